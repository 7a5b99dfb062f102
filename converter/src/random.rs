//! Numbers that depend on a seed, a name and a position alone, by a rule that any language can follow.
//!
//! The key of a name is the first 8 bytes, little-endian, of SHA-256 of the text `seed:name`; number `i` is the upper 24
//! bits, over 2^24, of `SplitMix64`'s output (Steele et al. 2014) for the state `key + (i + 1) * 0x9E3779B97F4A7C15`.

use sha2::{Digest, Sha256};

/// The key of a name.
pub(crate) fn key(seed: u64, name: &str) -> u64 {
    let digest = Sha256::digest(format!("{seed}:{name}"));
    u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

/// Number `i` of a key, in [0, 1).
pub(crate) fn unit(key: u64, i: u64) -> f32 {
    let mut z = key.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_pinned() {
        assert_eq!(
            key(0, "a.weight"),
            u64::from_le_bytes(Sha256::digest("0:a.weight")[..8].try_into().unwrap())
        );
        // SplitMix64 of state 0, from the generator's reference implementation: 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4.
        let expected = |z: u64| (z >> 40) as f32 / 16_777_216.0;
        assert_eq!(unit(0, 0), expected(0xE220_A839_7B1D_CDAF));
        assert_eq!(unit(0, 1), expected(0x6E78_9E6A_A1B9_65F4));
    }
}
