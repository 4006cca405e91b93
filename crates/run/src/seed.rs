//! Random streams derived from names, so that no stream depends on who else draws.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// 32 bytes from a run's seed and a path of names such as `["dpo", "user 3", "step 17"]`.
pub fn derive(seed: u64, path: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    for name in path {
        hash.update((name.len() as u64).to_le_bytes()); // so that ["ab", "c"] and ["a", "bc"] differ
        hash.update(name.as_bytes());
    }
    hash.finalize().into()
}

/// The random stream of this seed and path: the same on every machine, independent of all others.
pub fn rng(seed: u64, path: &[&str]) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(derive(seed, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_repeat_and_differ_by_name_and_seed() {
        let draw = |seed, path: &[&str]| rng(seed, path).random::<u64>();
        assert_eq!(draw(7, &["a", "b"]), draw(7, &["a", "b"]));
        assert_ne!(draw(7, &["ab", "c"]), draw(7, &["a", "bc"]));
        assert_ne!(draw(7, &["a"]), draw(8, &["a"]));
    }
}
