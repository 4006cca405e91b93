//! Which user is meant: of a table of all users, or of a bank at hand. The compiler takes neither for the other, nor for a count.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A user's position in the table of users: which of all those who are trained, whoever is in a batch. On disk it is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserIndex(pub usize);

/// A user's position among the users of a bank at hand, such as the present users of a batch in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Place(pub usize);

impl UserIndex {
    /// All users of a table of `count`, in order.
    pub fn all(count: usize) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        (0..count).map(Self)
    }

    /// The user's place in a bank that holds the whole table. It says nothing of a bank of present users: ask [`Present::place`] there.
    pub fn in_whole_bank(self) -> Place {
        Place(self.0)
    }
}

impl fmt::Display for UserIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Place {
    /// All places of a bank of `count` users, in order.
    pub fn all(count: usize) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        (0..count).map(Self)
    }
}

/// The users who are present, each once and in the order of the table of users: what a batch's places count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    users: Vec<UserIndex>,
}

impl Present {
    /// Those who are named, in any order and any number of times.
    pub fn new(users: impl IntoIterator<Item = UserIndex>) -> Self {
        let mut users: Vec<UserIndex> = users.into_iter().collect();
        users.sort_unstable();
        users.dedup();
        Self { users }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Is nobody present?
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The users in the order of their places, as `Bank::present` takes them.
    pub fn users(&self) -> &[UserIndex] {
        &self.users
    }

    /// Every place with its user, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Place, UserIndex)> + ExactSizeIterator + '_ {
        self.users.iter().enumerate().map(|(place, user)| (Place(place), *user))
    }

    /// The user at a place.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn user(&self, place: Place) -> UserIndex {
        self.users[place.0]
    }

    /// A user's place; none for whoever is not present.
    pub fn find(&self, user: UserIndex) -> Option<Place> {
        self.users.binary_search(&user).ok().map(Place)
    }

    /// The place of a user who is present.
    ///
    /// # Panics
    /// If the user is not.
    pub fn place(&self, user: UserIndex) -> Place {
        self.find(user)
            .unwrap_or_else(|| panic!("user number {user}: expected one of the {} who are present", self.users.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_present_have_places_in_the_order_of_the_table() {
        let present = Present::new([7, 2, 7, 5].map(UserIndex));
        assert_eq!(present.users(), [2, 5, 7].map(UserIndex));
        assert_eq!(present.iter().map(|(place, _)| place).collect::<Vec<_>>(), [0, 1, 2].map(Place));
        assert!(present.iter().all(|(place, user)| present.place(user) == place && present.user(place) == user));
        assert_eq!((present.find(UserIndex(5)), present.find(UserIndex(0))), (Some(Place(1)), None));
        assert_eq!((present.len(), present.is_empty(), Present::default().is_empty()), (3, false, true));
    }

    #[test]
    fn in_a_bank_of_everybody_a_users_place_is_the_index() {
        let everybody = Present::new(UserIndex::all(4));
        assert!(everybody.iter().all(|(place, user)| user.in_whole_bank() == place));
        assert!(everybody.iter().map(|(place, _)| place).eq(Place::all(4)));
    }

    #[test]
    #[should_panic(expected = "user number 3: expected one of the 2 who are present")]
    fn who_is_not_present_has_no_place() {
        Present::new([UserIndex(2), UserIndex(4)]).place(UserIndex(3));
    }

    #[test]
    fn on_disk_both_are_plain_numbers_also_as_keys() {
        let text = serde_json::to_string(&(UserIndex(3), Place(1))).unwrap();
        assert_eq!(text, "[3,1]");
        assert_eq!(serde_json::from_str::<(UserIndex, Place)>(&text).unwrap(), (UserIndex(3), Place(1)));
        let keys = BTreeMap::from([(UserIndex(10), "a"), (UserIndex(9), "b")]);
        let text = serde_json::to_string(&keys).unwrap();
        assert_eq!(text, r#"{"9":"b","10":"a"}"#);
        assert_eq!(serde_json::from_str::<BTreeMap<UserIndex, &str>>(&text).unwrap(), keys);
    }
}
