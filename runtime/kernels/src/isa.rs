//! Instruction levels of x86 processors, and which of them the machine has.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Scalar, Simd};

/// A set of vector instructions; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What every processor has.
    Scalar,
    /// AVX2, FMA and F16C: 8 numbers at a time.
    Avx2,
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
    pub const ALL: [Self; 5] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
    ];

    /// The best that this machine has, within [`Isa::limit`].
    #[must_use]
    pub fn detect() -> Self {
        let limit = LIMIT.load(Ordering::Relaxed);
        Self::of_machine().min(Self::ALL[limit - 1])
    }

    /// Lets this process use no better level: kernels compute what a processor of that level does, with the same rounding.
    pub fn limit(self) {
        let levels = Self::ALL.iter().filter(|&&isa| isa <= self).count();
        LIMIT.store(levels, Ordering::Relaxed);
    }

    /// The best that this machine has.
    fn of_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let vnni = is_x86_feature_detected!("avx512vnni");
            let bf16 = is_x86_feature_detected!("avx512bf16");
            match [avx2, avx512, vnni, bf16] {
                [true, true, true, true] => Self::Avx512Bf16,
                [true, true, true, false] => Self::Avx512Vnni,
                [true, true, false, _] => Self::Avx512,
                [true, false, ..] => Self::Avx2,
                [false, ..] => Self::Scalar,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Scalar
    }

    /// The levels that this machine has, the simplest first.
    pub fn available() -> impl Iterator<Item = Self> {
        let best = Self::detect();
        Self::ALL.into_iter().filter(move |&isa| isa <= best)
    }

    /// The name in options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
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
        self == Self::Scalar || self >= Self::Avx512Vnni
    }

    /// Whether products of bf16 numbers are computed at this level.
    #[must_use]
    pub fn multiplies_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// Runs `task` with the vectors of this level, or of the best one that the machine has if it lacks this one.
    pub(crate) fn dispatch<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the level is one that was detected.
        match self.min(Self::detect()) {
            Self::Scalar => unsafe { Scalar::vectorize(task) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { Avx2::vectorize(task) },
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
