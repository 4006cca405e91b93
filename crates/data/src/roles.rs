//! What columns look like by their names: used where no card says what they mean, and to point at those that nobody reads.

use crate::Card;
use crate::card::Users;

/// What a column may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    User,
    Time,
    Weight,
    Margin,
    Split,
    System,
    Group,
    Prompt,
    /// Tools and pictures that a prompt speaks of, as in LLaMA-Factory's shapes: no layout reads them.
    Attachment,
}

/// Names of a user's id, the surest first, in lower case without `_`, `-` and spaces.
const USERS: [&str; 13] = [
    "userid",
    "worker",
    "workerid",
    "annotatorid",
    "raterid",
    "labelerid",
    "labelerindex",
    "participantid",
    "evaluatorid",
    "judgeid",
    "rater",
    "annotator",
    "judge",
];

/// Names that may be a user's id or something else, such as what the user said.
const PERHAPS_USERS: [&str; 14] = [
    "user",
    "uid",
    "username",
    "userhash",
    "person",
    "personid",
    "labeler",
    "labeller",
    "participant",
    "evaluator",
    "respondent",
    "author",
    "authorid",
    "account",
];

const OTHERS: [(Role, &[&str]); 8] = [
    (
        Role::Time,
        &[
            "timestamp",
            "time",
            "datetime",
            "date",
            "created",
            "createdat",
            "createdtime",
            "tstamp",
            "submittedat",
            "ratedat",
        ],
    ),
    (Role::Weight, &["weight", "weights", "sampleweight", "voteweight", "confidence", "importance"]),
    (Role::Margin, &["margin"]),
    (Role::Split, &["split", "part", "fold", "subset"]),
    (Role::System, &["system", "systemprompt", "systemmessage", "systeminstruction"]),
    (Role::Group, &["group", "groupid"]),
    (Role::Prompt, &["prompt", "question", "query", "instruction", "input", "context", "messages", "conversation"]),
    (Role::Attachment, &["tools", "images", "videos", "audios"]),
];

fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).flat_map(char::to_lowercase).collect()
}

/// What a column of this name may be for.
pub(crate) fn role(column: &str) -> Option<Role> {
    let name = plain(column);
    if USERS.contains(&name.as_str()) || PERHAPS_USERS.contains(&name.as_str()) {
        return Some(Role::User);
    }
    OTHERS.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(role, _)| *role)
}

/// The column that surely names the user, by the surest name.
pub(crate) fn user_column(columns: &[String]) -> Option<&String> {
    USERS.iter().find_map(|user| columns.iter().find(|c| plain(c) == *user))
}

/// The column of the prompt, if there is exactly one of a common name.
pub(crate) fn prompt_column(columns: &[String]) -> Option<&String> {
    if let Some(prompt) = columns.iter().find(|c| *c == "prompt") {
        return Some(prompt);
    }
    let mut found = columns.iter().filter(|c| role(c) == Some(Role::Prompt));
    found.next().filter(|_| found.next().is_none())
}

/// What a column that nobody reads looks like, and which key of a card would use it; none if it looks like nothing, or if the card
/// reads another column as that.
pub(crate) fn advice(card: &Card, column: &str) -> Option<String> {
    let columns = &card.columns;
    let under = |table: &str, key: &str| Some(format!("`{key} = {column:?}` under [{table}] of a card reads it"));
    let (what, how) = match role(column)? {
        Role::User => {
            let how = match card.layout.users() {
                Users::Column(other) => {
                    return (other != column).then(|| looks("a user's id", &format!("users are read from `{other}`")));
                }
                Users::Unsaid => under("layout", "user_id"),
                Users::Layout => Some("this layout has users of its own, and no key reads it".to_owned()),
            };
            ("a user's id", how)
        }
        Role::Time if columns.timestamp.is_none() => ("the time of the vote", under("columns", "timestamp")),
        Role::Weight if columns.weight.is_none() => ("the vote's weight", under("columns", "weight")),
        Role::Margin if columns.margin.is_none() => ("by how much a response is better", under("columns", "margin")),
        Role::Split if columns.split.is_none() => ("the split", under("columns", "split")),
        Role::System if columns.system.is_none() => ("a system instruction", under("columns", "system")),
        Role::Group if columns.group.is_none() => ("a group of votes", under("columns", "group")),
        Role::Prompt if card.layout.lacks_prompt() => ("the prompt", under("layout", "prompt")),
        Role::Attachment => ("a part of the prompt", Some("no key reads it: the model is not shown it".to_owned())),
        _ => return None,
    };
    how.map(|how| looks(what, &how))
}

fn looks(what: &str, how: &str) -> String {
    format!("looks like {what}: {how}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn columns_are_told_by_their_names() {
        assert_eq!(user_column(&names(&["judge", "Annotator ID", "x"])).unwrap(), "Annotator ID");
        assert_eq!(user_column(&names(&["user", "x"])), None);
        assert_eq!(role("user"), Some(Role::User));
        assert_eq!(role("created_at"), Some(Role::Time));
        assert_eq!(role("chosen"), None);
        assert_eq!(prompt_column(&names(&["question", "context"])), None);
        assert_eq!(prompt_column(&names(&["question", "x"])).unwrap(), "question");
    }
}
