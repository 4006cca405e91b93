//! Users whose training was stopped, and why: the others go on without them.

use std::collections::BTreeMap;

use problem::{Result, diverged};
use serde::{Deserialize, Serialize};

use crate::UserIndex;

/// A user whose numbers left the finite ones in a step, and which numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose they are.
    pub user: UserIndex,
    /// Such as `the loss`.
    pub what: String,
}

impl Fault {
    /// The first of `users` whose number is not finite, if there is one.
    pub fn find(users: &[UserIndex], numbers: &[f64], what: &str) -> Option<Self> {
        let at = numbers.iter().position(|number| !number.is_finite())?;
        Some(Self { user: users[at], what: what.into() })
    }
}

/// Users who are no longer trained, with a sentence that says why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quarantine {
    reasons: BTreeMap<UserIndex, String>,
}

impl Quarantine {
    /// Stops a user's training. The first reason is kept.
    pub fn put(&mut self, user: UserIndex, why: impl Into<String>) {
        let why = why.into();
        self.reasons.entry(user).or_insert(why);
    }

    /// Is this user's training stopped?
    pub fn holds(&self, user: UserIndex) -> bool {
        self.reasons.contains_key(&user)
    }

    /// Those of `users` users whose training goes well, in order.
    pub fn healthy(&self, users: usize) -> Vec<UserIndex> {
        UserIndex::all(users).filter(|user| !self.holds(*user)).collect()
    }

    /// The reasons by user id, as reports give them under `quarantined`.
    pub fn by_id(&self, users: &[String]) -> BTreeMap<String, String> {
        self.reasons.iter().map(|(user, why)| (users[user.0].clone(), why.clone())).collect()
    }

    /// The healthy users, of whom there must be one.
    ///
    /// # Errors
    /// All users of `stage` are in quarantine, a [`problem::Kind::NotFinite`]: other cells of a matrix may still succeed.
    pub fn survivors(&self, stage: &str, users: &[String]) -> Result<Vec<UserIndex>> {
        let healthy = self.healthy(users.len());
        if healthy.is_empty() {
            let first = self
                .reasons
                .first_key_value()
                .map_or(String::new(), |(user, why)| format!(", such as `{}`: {why}", users[user.0]));
            let text = format!(
                "{stage}: expected a user whose training goes well, found all {} in quarantine{first}",
                users.len()
            );
            let hint =
                "lower `learning_rate`, train in float32 (`--dtype float32`), or give them pairs or a wider limit";
            return Err(diverged(text, hint));
        }
        Ok(healthy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_in_quarantine_keeps_the_first_reason_and_the_others_go_on() {
        let users = ["ann", "bob", "eve"].map(String::from);
        let mut quarantine = Quarantine::default();
        let fault = Fault::find(&[0, 2].map(UserIndex), &[1.0, f64::NAN], "the loss").unwrap();
        assert_eq!(fault.user, UserIndex(2));
        assert_eq!(Fault::find(&[0, 2].map(UserIndex), &[1.0, 2.0], "the loss"), None);
        quarantine.put(fault.user, "step 3: the loss is not finite");
        quarantine.put(UserIndex(2), "step 4: the gradient is not finite");
        assert!(quarantine.holds(UserIndex(2)) && !quarantine.holds(UserIndex(0)));
        assert_eq!(quarantine.survivors("dpo", &users).unwrap(), [0, 1].map(UserIndex));
        assert_eq!(quarantine.by_id(&users)["eve"], "step 3: the loss is not finite");
        let text = serde_json::to_string(&quarantine).unwrap();
        assert_eq!(text, r#"{"2":"step 3: the loss is not finite"}"#);
        assert_eq!(serde_json::from_str::<Quarantine>(&text).unwrap(), quarantine);
    }

    #[test]
    fn a_stage_without_a_healthy_user_diverged() {
        let mut quarantine = Quarantine::default();
        quarantine.put(UserIndex(0), "step 3: the loss is not finite");
        let error = quarantine.survivors("dpo", &["ann".to_owned()]).unwrap_err();
        assert!(error.is_not_finite(), "a matrix goes on with its other cells");
        assert!(error.to_string().contains("all 1 in quarantine, such as `ann`: step 3"), "{error}");
    }
}
