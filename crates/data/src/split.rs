//! Where a vote's split comes from, and the keys by which nothing stands on two sides.

use std::num::NonZero;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// Which part a vote belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// To learn from.
    Train,
    /// To choose settings by.
    Dev,
    /// The few votes of a held-out user that their own parameters are fitted to.
    Adapt,
    /// To report, looked at last.
    Test,
}

impl Split {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Train, Self::Dev, Self::Adapt, Self::Test];

    /// `train`, `dev`, `adapt`, `test`
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Dev => "dev",
            Self::Adapt => "adapt",
            Self::Test => "test",
        }
    }

    /// The split of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// What a split keeps whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Whole {
    /// Prompts that are the same but for case, marks and spaces.
    Prompt,
    /// The card's group column, such as a topic.
    Group,
}

/// Where a vote's split comes from. All but `column` depend on contents and the seed alone, not on the order of rows or
/// files.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SplitRule {
    /// The column that the card names.
    Column,
    /// By a hash of the prompt.
    Prompt {
        /// Share of prompts for `dev`.
        dev: f64,
        /// Share of prompts for `test`.
        test: f64,
    },
    /// By a hash of the card's group column.
    Group {
        /// Share of groups for `dev`.
        dev: f64,
        /// Share of groups for `test`.
        test: f64,
    },
    /// Cross-validation: prompts or groups are dealt to folds in the order of their hashes, so that folds differ by one
    /// at most.
    Folds {
        /// What is dealt.
        over: Whole,
        /// Number of folds.
        of: NonZero<usize>,
        /// The fold that is `test`, from 0.
        test: usize,
        /// The fold that is `dev`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dev: Option<usize>,
    },
    /// A user's newest votes are `test`, those before them `dev`. Votes on one prompt stay together, as old as the newest.
    Time {
        /// Share of a user's votes for `dev`.
        dev: f64,
        /// Share of a user's votes for `test`.
        test: f64,
    },
    /// Held-out users: of their votes, `adapt` are for fitting and the rest is `test`.
    Users {
        /// Share of users that are held out.
        test: f64,
        /// Votes of a held-out user for fitting.
        adapt: usize,
        /// Share of prompts that only held-out users' `test` votes are on. 0: all users share prompts.
        #[serde(default)]
        prompts: f64,
    },
}

impl SplitRule {
    /// What is wrong with its numbers.
    pub(crate) fn problem(&self) -> Option<String> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        match self {
            Self::Prompt { dev, test } | Self::Group { dev, test } | Self::Time { dev, test } => {
                (!share(*dev) || !share(*test) || dev + test > 1.0)
                    .then(|| format!("shares dev = {dev} and test = {test}"))
            }
            Self::Folds { of, test, dev, .. } => {
                let wrong = *test >= of.get() || dev.is_some_and(|d| d >= of.get() || d == *test);
                wrong.then(|| format!("of = {of}, test = {test}, dev = {dev:?}"))
            }
            Self::Users { test, prompts, .. } => {
                (!share(*test) || !share(*prompts)).then(|| format!("shares test = {test} and prompts = {prompts}"))
            }
            Self::Column => None,
        }
    }
}

/// Passes on what is a hash already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hashed(u64);

impl std::hash::Hasher for Hashed {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut eight = [0; 8];
            eight[..chunk.len()].copy_from_slice(chunk);
            self.0 = self.0.rotate_left(5) ^ u64::from_le_bytes(eight);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64 ^ (hash >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A set of what is a hash already.
pub(crate) type HashedSet<T> = std::collections::HashSet<T, std::hash::BuildHasherDefault<Hashed>>;

/// A number from 0 to 1 that the seed and a key decide.
pub(crate) fn share(seed: u64, what: &str, key: u128) -> f64 {
    let mut hash = Xxh3::with_seed(seed);
    hash.update(what.as_bytes());
    hash.update(&key.to_le_bytes());
    hash.digest() as f64 / u64::MAX as f64
}

/// The split of a key by shares.
pub(crate) fn by_share(share: f64, dev: f64, test: f64) -> Split {
    if share < test {
        Split::Test
    } else if share < test + dev {
        Split::Dev
    } else {
        Split::Train
    }
}

/// An ASCII letter or digit in lower case, anything else as a space; without a branch, so that many are done at a time.
fn letter(byte: u8) -> u8 {
    let lower = byte | 0x20;
    let is_letter = lower.wrapping_sub(b'a') < 26;
    let is_digit = byte.wrapping_sub(b'0') < 10;
    if is_letter {
        lower
    } else if is_digit {
        byte
    } else {
        b' '
    }
}

/// A hash of what two prompts must share to count as one: roles and letters, whatever case, marks and spaces. The system's
/// instruction does not count. `room` is scratch space.
pub(crate) fn prompt_key(turns: &[(&str, &str)], room: &mut Vec<u8>) -> u128 {
    room.clear();
    for (role, content) in turns.iter().filter(|(role, _)| *role != "system") {
        room.extend_from_slice(role.as_bytes());
        let from = room.len();
        if content.is_ascii() {
            room.push(b' ');
            room.extend(content.bytes().map(letter));
            squeeze(room, from);
        } else {
            let mut between = true;
            for c in content.chars() {
                if c.is_alphanumeric() {
                    if between {
                        room.push(b' ');
                    }
                    for lower in c.to_lowercase() {
                        room.extend_from_slice(lower.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                }
                between = !c.is_alphanumeric();
            }
        }
        if room.len() == from {
            room.extend_from_slice(content.trim().as_bytes()); // nothing but marks: these are what it says
        }
        room.push(b'\n');
    }
    xxhash_rust::xxh3::xxh3_128(room)
}

/// Makes one space of several behind `from`, and takes those at the end away.
fn squeeze(room: &mut Vec<u8>, from: usize) {
    let (mut read, mut write) = (from, from);
    while read < room.len() {
        let run = memchr::memmem::find(&room[read..], b"  ").map_or(room.len() - read, |at| at + 1);
        room.copy_within(read..read + run, write);
        (read, write) = (read + run, write + run);
        read += room[read..].iter().take_while(|b| **b == b' ').count();
    }
    room.truncate(write);
    if room.len() > from && room.last() == Some(&b' ') {
        room.pop();
    }
}

/// A hash of texts, each told from its neighbours.
pub(crate) fn texts_key<'t>(seed: u64, texts: impl IntoIterator<Item = &'t str>) -> u128 {
    let mut hash = Xxh3::with_seed(seed);
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_duplicates_fall_on_one_side_and_shares_are_met() {
        let key = |text: &str| prompt_key(&[("user", text)], &mut Vec::new());
        assert_eq!(key("How are you?"), key("  how ARE you"));
        assert_eq!(key("Wie geht es DÖRTE"), key("wie geht, es dörte!"));
        assert_ne!(key("How are you?"), key("How is she?"));
        assert_ne!(key("ab c"), key("a bc"));
        assert_ne!(prompt_key(&[("user", "a"), ("user", "b")], &mut vec![]), key("a user b"));
        assert_ne!(key("🙂"), key("🎉"));
        assert_ne!(key("+="), key("-="));
        assert_eq!(prompt_key(&[("system", "x"), ("user", "a")], &mut vec![]), key("a"));
        // Not one byte otherwise than word by word, whatever stands where.
        for text in
            ["", " ", "a", " a", "a ", "--", "A--b  c", "it's 5 o'clock...", "  x\ty\n\nZ  ", "a    b     ", "....a"]
        {
            let words: Vec<String> = text
                .split(|c: char| !c.is_ascii_alphanumeric())
                .filter(|w| !w.is_empty())
                .map(|w| format!(" {}", w.to_ascii_lowercase()))
                .collect();
            let want = if words.is_empty() { text.trim().to_owned() } else { words.concat() };
            let mut room = Vec::new();
            prompt_key(&[("user", text)], &mut room);
            assert_eq!(String::from_utf8(room).unwrap(), format!("user{want}\n"), "{text:?}");
        }
        let n = 4000u128;
        let at = |i: u128| by_share(share(7, "prompt", i * i), 0.1, 0.3);
        let test = (0..n).filter(|i| at(*i) == Split::Test).count() as f64 / n as f64;
        let dev = (0..n).filter(|i| at(*i) == Split::Dev).count() as f64 / n as f64;
        assert!((test - 0.3).abs() < 0.03, "{test} {dev}");
        assert!((dev - 0.1).abs() < 0.02, "{test} {dev}"); // errors .007, .005
    }

    #[test]
    fn impossible_numbers_are_told() {
        assert!(SplitRule::Prompt { dev: 0.6, test: 0.5 }.problem().is_some());
        assert!(SplitRule::Time { dev: -0.1, test: 0.5 }.problem().is_some());
        let five = NonZero::new(5).unwrap();
        assert!(SplitRule::Folds { over: Whole::Prompt, of: five, test: 5, dev: None }.problem().is_some());
        assert!(SplitRule::Folds { over: Whole::Prompt, of: five, test: 4, dev: Some(4) }.problem().is_some());
        assert!(SplitRule::Folds { over: Whole::Prompt, of: five, test: 4, dev: Some(0) }.problem().is_none());
    }
}
