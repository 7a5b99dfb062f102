//! Instruction levels of x86 processors, and which of them the machine has.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512, Evex, Pairs, Vex};
use crate::simd::{Scalar, Simd};

/// A set of vector instructions, the later the better.
///
/// Each includes those before it, but for the products of [`Isa::Avx2Vnni`], which [`Isa::Avx512`] lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What every processor has.
    Scalar,
    /// AVX2, FMA and F16C: 8 numbers at a time.
    Avx2,
    /// Besides, products of whole 8- and 16-bit numbers: AVX-VNNI, or what AVX512-VNNI and VL have of it.
    Avx2Vnni,
    /// AVX-512 F, BW, DQ and VL: 16 numbers at a time.
    Avx512,
    /// Besides, products of whole 8- and 16-bit numbers: AVX512-VNNI.
    Avx512Vnni,
    /// Besides, products of bf16 numbers: AVX512-BF16.
    Avx512Bf16,
}

/// How many of [`Isa::ALL`] are used at most.
static LIMIT: AtomicUsize = AtomicUsize::new(Isa::ALL.len());

impl Isa {
    /// All levels, the simplest first.
    pub const ALL: [Self; 6] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx2Vnni,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
    ];

    /// The best that this machine has, within [`Isa::limit`].
    #[must_use]
    pub fn detect() -> Self {
        Self::available().last().unwrap_or(Self::Scalar)
    }

    /// Lets this process use no better level: kernels compute what a processor of that level does, with the same rounding.
    pub fn limit(self) {
        let levels = Self::ALL.iter().filter(|&&isa| isa <= self).count();
        LIMIT.store(levels, Ordering::Relaxed);
    }

    /// The levels that this machine has, the simplest first, within [`Isa::limit`].
    pub fn available() -> impl Iterator<Item = Self> {
        let limit = LIMIT.load(Ordering::Relaxed);
        let within = Self::ALL.into_iter().take(limit);
        within.filter(|isa| isa.is_of_machine())
    }

    /// This level, or the best one before it that [`Isa::available`] has.
    pub(crate) fn here(self) -> Self {
        let levels = Self::available().take_while(|&isa| isa <= self);
        levels.last().unwrap_or(Self::Scalar)
    }

    /// Whether this machine has the instructions.
    #[cfg(target_arch = "x86_64")]
    fn is_of_machine(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Avx2Vnni => {
                Self::Avx2.is_of_machine()
                    && (is_x86_feature_detected!("avxvnni") || Self::Avx512Vnni.is_of_machine())
            }
            Self::Avx512 => {
                Self::Avx2.is_of_machine()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Self::Avx512Vnni => {
                Self::Avx512.is_of_machine() && is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx512Bf16 => {
                Self::Avx512Vnni.is_of_machine() && is_x86_feature_detected!("avx512bf16")
            }
        }
    }

    /// Whether this machine has the instructions.
    #[cfg(not(target_arch = "x86_64"))]
    fn is_of_machine(self) -> bool {
        self == Self::Scalar
    }

    /// The name in options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx2Vnni => "avx2-vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
        }
    }

    /// Whether products of whole 16-bit numbers are computed at this level: where they are not faster than single precision, they
    /// are not.
    #[must_use]
    pub fn multiplies_int16(self) -> bool {
        self != Self::Avx512
    }

    /// Whether products of whole 8-bit numbers are computed at this level.
    #[must_use]
    pub fn multiplies_int8(self) -> bool {
        !matches!(self, Self::Avx2 | Self::Avx512)
    }

    /// Whether products of bf16 numbers are computed at this level.
    #[must_use]
    pub fn multiplies_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// Runs `task` with the vectors of this level, or of the best one that the machine has if it lacks this one.
    pub(crate) fn dispatch<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the machine has the instructions.
        match self.here() {
            Self::Scalar => unsafe { Scalar::vectorize(task) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { Avx2::<Pairs>::vectorize(task) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni if is_x86_feature_detected!("avxvnni") => unsafe {
                Avx2::<Vex>::vectorize(task)
            },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Vnni => unsafe { Avx2::<Evex>::vectorize(task) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 => unsafe {
                Avx512::vectorize(task)
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("only the scalar level is detected here"),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|isa| isa.name() == name);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{name}` is no instruction level; there are {names}")
        })
    }
}

/// Work written over [`Simd`]; `run` must be `#[inline(always)]`, so that it is compiled with the level's instructions.
pub(crate) trait Task {
    /// What it returns.
    type Output;

    /// Does the work.
    ///
    /// # Safety
    /// The machine has the instructions of `S`; pointers in `self` are what the task says.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_that_a_machine_lacks_are_those_before_them() {
        let available: Vec<Isa> = Isa::available().collect();
        assert!(available.is_sorted() && available[0] == Isa::Scalar);
        assert_eq!(available.last(), Some(&Isa::detect()));
        for isa in Isa::ALL {
            let here = isa.here();
            assert!(here <= isa && available.contains(&here), "{isa}: {here}");
            assert_eq!(here == isa, available.contains(&isa), "{isa}: {here}");
        }
    }

    #[test]
    fn eight_bits_are_multiplied_where_sixteen_are() {
        for isa in Isa::ALL {
            assert!(isa.multiplies_int16() || !isa.multiplies_int8(), "{isa}");
            assert_eq!(isa.name().parse(), Ok(isa));
        }
        assert!(Isa::Avx2Vnni.multiplies_int8() && !Isa::Avx2Vnni.multiplies_bf16());
        assert!(!Isa::Avx2.multiplies_int8() && !Isa::Avx512.multiplies_int8());
    }
}
