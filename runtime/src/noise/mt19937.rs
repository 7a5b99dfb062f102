//! MT19937: Matsumoto and Nishimura 1998, "Mersenne Twister".

const N: usize = 624;
const M: usize = 397;

/// The generator, seeded as torch seeds it.
#[derive(Clone, Debug)]
pub(super) struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl Mt19937 {
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for j in 1..N {
            let last = state[j - 1];
            state[j] = 1_812_433_253u32
                .wrapping_mul(last ^ (last >> 30))
                .wrapping_add(j as u32);
        }
        Self { state, next: N }
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The first draw is the high word.
    pub(super) fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        high << 32 | u64::from(self.next_u32())
    }

    fn twist(&mut self) {
        for j in 0..N {
            let y = (self.state[j] & 0x8000_0000) | (self.state[(j + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[j] = self.state[(j + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_words_are_the_published_ones() {
        let words = |seed, n| {
            let mut mt = Mt19937::new(seed);
            (0..n).map(|_| mt.next_u32()).collect::<Vec<u32>>()
        };
        assert_eq!(words(5489, 3), [3_499_211_612, 581_869_302, 3_890_346_734]);
        assert_eq!(
            words(0, 4),
            [2_357_136_044, 2_546_248_239, 3_071_714_933, 3_626_093_760]
        );
        assert_eq!(
            words(42, 4),
            [1_608_637_542, 3_421_126_067, 4_083_286_876, 787_846_414]
        );
        assert_eq!(words(5489, 1000)[999], 1_341_017_984);
    }
}
