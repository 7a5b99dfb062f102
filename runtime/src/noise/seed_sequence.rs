//! numpy's `SeedSequence` (after O'Neill 2015, "Developing a `seed_seq` alternative") with a pool of 24 words, as torchsde
//! seeds the nodes of its tree.

const POOL: usize = 24;

/// The first word of `SeedSequence(entropy, spawn_key=spawn_key, pool_size=24).generate_state(n)`, for any `n`.
pub(super) fn first_word(entropy: u64, spawn_key: Option<[u64; 2]>) -> u32 {
    first_words::<1>(entropy, spawn_key)[0]
}

/// The first `N` words; `N` is at most the pool's size.
fn first_words<const N: usize>(entropy: u64, spawn_key: Option<[u64; 2]>) -> [u32; N] {
    let mut hash = Hash {
        constant: 0x43b0_d7e5,
        multiplier: 0x931e_8875,
    };
    let mut pool = [0; POOL];
    for (place, word) in pool.iter_mut().zip(words(entropy)) {
        *place = word;
    }
    pool.iter_mut().for_each(|word| *word = hash.mix(*word));
    for source in 0..POOL {
        for target in (0..POOL).filter(|&target| target != source) {
            pool[target] = mix(pool[target], hash.mix(pool[source]));
        }
    }
    for word in spawn_key.into_iter().flatten().flat_map(words) {
        for target in &mut pool {
            *target = mix(*target, hash.mix(word));
        }
    }
    let mut output = Hash {
        constant: 0x8b51_f9dd,
        multiplier: 0x58f3_8ded,
    };
    std::array::from_fn(|k| output.mix(pool[k]))
}

/// The lowest words first; 0 has one.
fn words(number: u64) -> impl Iterator<Item = u32> {
    let high = (number >> 32) as u32;
    std::iter::once(number as u32).chain((high != 0).then_some(high))
}

/// A hash whose constant changes with every word.
struct Hash {
    constant: u32,
    multiplier: u32,
}

impl Hash {
    fn mix(&mut self, word: u32) -> u32 {
        let word = word ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.multiplier);
        let word = word.wrapping_mul(self.constant);
        word ^ (word >> 16)
    }
}

fn mix(x: u32, y: u32) -> u32 {
    let mixed = 0xca01_f9dd_u32
        .wrapping_mul(x)
        .wrapping_sub(0x4973_f715_u32.wrapping_mul(y));
    mixed ^ (mixed >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_numpys() {
        for (entropy, spawn_key, expected) in [
            (
                0,
                None,
                [4_025_752_534, 2_687_548_107, 2_326_983_537, 1_576_567_101],
            ),
            (
                42,
                None,
                [387_750_627, 2_536_650_517, 4_078_839_648, 2_023_786_165],
            ),
            (
                4_294_967_301,
                Some([0, 0]),
                [1_023_811_034, 3_659_964_411, 4_258_990_095, 1_103_598_982],
            ),
            (
                42,
                Some([5, 3]),
                [3_084_123_560, 468_215_949, 242_942_938, 2_650_128_260],
            ),
            (
                123,
                Some([8_589_934_593, 40]),
                [2_455_278_210, 3_379_616_313, 1_662_506_090, 2_467_601_297],
            ),
        ] {
            assert_eq!(first_words::<4>(entropy, spawn_key), expected);
            assert_eq!(first_word(entropy, spawn_key), expected[0]);
        }
    }
}
