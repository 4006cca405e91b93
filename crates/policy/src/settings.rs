//! Numbers in settings: what means nothing is refused with the key's name.

use std::collections::HashSet;
use std::fmt::Display;

use problem::{Problem, Result, invalid};

/// The settings of a stage, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The stage's kind.
    pub(crate) stage: &'static str,
}

impl Settings {
    /// The refusal of `key`.
    pub(crate) fn wrong(self, key: &str, expected: impl Into<String>, found: impl Display) -> Problem {
        let Self { stage } = self;
        invalid(
            format!("{stage}, `{key}`"),
            expected,
            found.to_string(),
            format!("`idiolect config {stage}` shows all settings and their defaults"),
        )
    }

    pub(crate) fn positive(self, key: &str, value: f64) -> Result<()> {
        let fine = value > 0.0 && value.is_finite();
        if fine { Ok(()) } else { Err(self.wrong(key, "a positive number", value)) }
    }

    pub(crate) fn at_least_0(self, key: &str, value: f64) -> Result<()> {
        let fine = value >= 0.0 && value.is_finite();
        if fine { Ok(()) } else { Err(self.wrong(key, "a number of at least 0", value)) }
    }

    /// A share, from 0 to 1.
    pub(crate) fn share(self, key: &str, value: f64) -> Result<()> {
        let fine = (0.0..=1.0).contains(&value);
        if fine { Ok(()) } else { Err(self.wrong(key, "from 0 to 1", value)) }
    }

    /// A number of tokens for each of `users` users, of which all together can still be counted.
    pub(crate) fn token_budget(self, key: &str, tokens: usize, users: usize) -> Result<()> {
        if tokens == 0 {
            return Err(self.wrong(key, "a number of tokens, at least 1", tokens));
        }
        let most = usize::MAX / users.max(1);
        let expected = || format!("at most {most} tokens for each of {users}, so that all of them can be counted");
        if tokens <= most { Ok(()) } else { Err(self.wrong(key, expected(), tokens)) }
    }

    /// Training needs somebody to train for.
    pub(crate) fn some_users(self, users: &[String]) -> Result<()> {
        let expected = "at least one user with votes";
        if users.is_empty() {
            Err(invalid(self.stage, expected, "none", "gather votes, or lower what `selection` asks for"))
        } else {
            Ok(())
        }
    }

    /// Settings of users who are not there are a mistake.
    pub(crate) fn known_users<'a>(self, own: impl Iterator<Item = &'a String>, users: &[String]) -> Result<()> {
        let known: HashSet<&String> = users.iter().collect();
        for user in own {
            if !known.contains(user) {
                return Err(self.wrong("user", format!("a user of {}", some_of(users)), format!("`{user}`")));
            }
        }
        Ok(())
    }
}

/// A setting that is not there is the same as its default, also for whoever asks whether a stage is up to date.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The first few names, and how many more there are.
pub(crate) fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() <= SHOWN { shown } else { format!("{shown} and {} more", names.len() - SHOWN) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { stage: "dpo" };

    #[test]
    fn numbers_that_mean_nothing_are_refused_with_the_keys_name() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = SETTINGS.positive("beta", bad).unwrap_err();
            assert_eq!(error.to_string(), format!("dpo, `beta`: expected a positive number, found {bad}"));
        }
        SETTINGS.at_least_0("nll", 0.0).unwrap();
        for bad in [-0.1, f64::NAN, f64::INFINITY] {
            SETTINGS.at_least_0("nll", bad).unwrap_err();
        }
        for (value, fine) in [(0.0, true), (1.0, true), (-0.1, false), (1.1, false), (f64::NAN, false)] {
            assert_eq!(SETTINGS.share("gamma", value).is_ok(), fine, "{value}");
        }
        for (tokens, users, fine) in
            [(1, 9, true), (0, 9, false), (usize::MAX / 2, 2, true), (usize::MAX / 2, 3, false)]
        {
            assert_eq!(SETTINGS.token_budget("token_budget", tokens, users).is_ok(), fine, "{tokens} {users}");
        }
    }

    #[test]
    fn a_user_who_is_not_there_is_named_among_a_few_who_are() {
        let users: Vec<String> = (0..100_000).map(|u| format!("user {u}")).collect();
        SETTINGS.known_users(users.iter(), &users).unwrap();
        SETTINGS.some_users(&users).unwrap();
        assert_eq!(
            SETTINGS.some_users(&[]).unwrap_err().to_string(),
            "dpo: expected at least one user with votes, found none"
        );
        let error = SETTINGS.known_users([&"eve".to_owned()].into_iter(), &users).unwrap_err().to_string();
        assert!(error.contains("user 7 and 99992 more, found `eve`"), "{error}");
        assert!(error.len() < 200, "{error}");
    }
}
