//! One prompt with its response as token ids, and what becomes of a row that is too long.

use problem::{Problem, Result, invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Did the speaker stop by itself? Only then does the row end with the end-of-turn token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The answer is complete.
    Finished,
    /// The answer was cut at a token limit.
    Cut,
}

/// What was said to a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Answer {
    /// The words.
    pub text: String,
    /// Did the speaker stop by itself? An answer that was cut does not teach where to stop.
    pub finished: bool,
}

impl Answer {
    /// How a row of this answer ends.
    pub fn ending(&self) -> Ending {
        if self.finished { Ending::Finished } else { Ending::Cut }
    }
}

/// One tokenised prompt with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Token ids of prompt and answer, `[T]`.
    pub ids: Vec<i64>,
    /// Index of the answer's first token. A token that straddles the boundary belongs to the answer.
    pub answer_start: usize,
    /// Does the answer's first token begin inside the prompt?
    pub straddles: bool,
}

/// What becomes of a row that is longer than the limit. An answer is never cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OverLong {
    /// An error that names it.
    Error,
    /// It is left out, and counted.
    Drop,
    /// The prompt loses its first tokens, and the row is counted; an answer that alone is too long is an error.
    TruncatePromptLeft,
}

/// A row held against a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fitted {
    /// Within the limit.
    Whole(Row),
    /// Without the prompt's first tokens.
    Truncated(Row),
    /// Left out.
    Dropped,
}

impl Row {
    fn over_long(&self, max_tokens: usize) -> Problem {
        let (tokens, answer) = (self.ids.len(), self.ids.len() - self.answer_start);
        invalid(
            "the row",
            format!("at most {max_tokens} tokens of prompt and answer"),
            format!("{tokens} ({answer} of them the answer's)"),
            "raise `max_row_tokens`, or set `over_long` to \"drop\" or \"truncate-prompt-left\"",
        )
    }

    /// Holds the row against a limit of tokens.
    ///
    /// # Errors
    /// A row that is too long where that is an error.
    pub fn fit(mut self, max_tokens: usize, over_long: OverLong) -> Result<Fitted> {
        let surplus = self.ids.len().saturating_sub(max_tokens);
        match over_long {
            _ if surplus == 0 => Ok(Fitted::Whole(self)),
            OverLong::Drop => Ok(Fitted::Dropped),
            // A prompt keeps at least the token that the answer's first is predicted from.
            OverLong::TruncatePromptLeft if surplus < self.answer_start => {
                self.ids.drain(..surplus);
                self.answer_start -= surplus;
                Ok(Fitted::Truncated(self))
            }
            OverLong::Error | OverLong::TruncatePromptLeft => Err(self.over_long(max_tokens)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_over_long_row_follows_its_policy_and_keeps_its_answer() {
        let row = || Row { ids: (0..10).collect(), answer_start: 6, straddles: false };
        assert_eq!(row().fit(10, OverLong::Error).unwrap(), Fitted::Whole(row()));
        assert_eq!(row().fit(9, OverLong::Drop).unwrap(), Fitted::Dropped);
        let error = row().fit(9, OverLong::Error).unwrap_err().to_string();
        assert_eq!(error, "the row: expected at most 9 tokens of prompt and answer, found 10 (4 of them the answer's)");
        let Fitted::Truncated(cut) = row().fit(5, OverLong::TruncatePromptLeft).unwrap() else { panic!("not cut") };
        assert_eq!((cut.ids.as_slice(), cut.answer_start), (&[5, 6, 7, 8, 9][..], 1));
        assert!(row().fit(4, OverLong::TruncatePromptLeft).is_err(), "no prompt would be left");
    }
}
