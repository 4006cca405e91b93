//! `datasets/<name>/card.toml`: where a data set is from, and which of its columns means what.

use std::collections::BTreeMap;
use std::path::Path;

use problem::{Result, invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Split;

/// A data set's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Short name.
    pub name: String,
    /// Where it comes from.
    pub source: String,
    /// Under which licence.
    pub licence: String,
    /// The work to cite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub citation: Option<String>,
    /// SHA-256 of files by name; a local file of that name must have it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sha256: BTreeMap<String, String>,
    /// The user whose votes all rows are, where no column names users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_user: Option<String>,
    /// The shape of its rows.
    pub layout: Layout,
    /// Columns that any layout may have.
    #[serde(default)]
    pub columns: Columns,
    /// What the columns of a users table mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<crate::UsersCard>,
}

/// Columns that any layout may have. All are names in the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// A system instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// `train`, `dev`, `adapt` or `test`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// What other values of that column mean.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub split_names: BTreeMap<String, Split>,
    /// Without such a column: the split of files whose name fits a pattern.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub split_files: BTreeMap<String, Split>,
    /// When the vote was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// What must not stand on two sides of a split beside the prompt, such as a topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The group is the text before the first of this mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_until: Option<String>,
    /// How much a vote counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// By how much the better answer is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<String>,
    /// Two columns of true and false: did the first response of a row (`response_a`, `chosen`) end by itself, and did the second? A response that
    /// was cut at a limit of tokens does not teach where to end. For the layouts `votes` and `pairs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<[String; 2]>,
}

/// The shape of the source's rows. Names without a place for them are those that the data set was published with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Layout {
    /// Two answers as shown and a label that says which is better.
    Votes {
        /// Column of the user's id; without it the card's `one_user` says whose votes all rows are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
        /// Column of the prompt, a text or a list of messages.
        prompt: String,
        /// Column of the answer shown first.
        response_a: String,
        /// Column of the answer shown second.
        response_b: String,
        /// Column of the label.
        label: String,
        /// The label's value where the first answer is better.
        label_a: String,
        /// The label's value where the second answer is better.
        label_b: String,
        /// The label's values for ties.
        label_tie: OneOrMore,
    },
    /// A better and a worse answer, as texts or messages; without a prompt column the prompt is what both begin with. The shapes of
    /// TRL.
    Pairs {
        /// Column of the user's id; without it the card's `one_user` says whose votes all rows are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
        /// Column of the prompt.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prompt: Option<String>,
        /// Column of the better answer.
        #[serde(default = "chosen")]
        chosen: String,
        /// Column of the worse answer.
        #[serde(default = "rejected")]
        rejected: String,
    },
    /// The table that ingestion and `idiolect ask` write.
    Canonical,
    /// HH-RLHF: `chosen` and `rejected` are whole conversations, `\n\nHuman: ...\n\nAssistant: ...`.
    Hh {
        /// Column of the user's id; without it the card's `one_user` says whose votes all rows are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
    },
    /// A prompt with k answers and a number for each, such as ranks or scores: every two of them are a vote.
    Rankings {
        /// Column of the user's id; without it the card's `one_user` says whose votes all rows are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
        /// Column of the prompt.
        prompt: String,
        /// Column of the answers, a list of texts.
        responses: String,
        /// Column of the numbers, a list.
        scores: String,
        /// Is the larger number the better answer? Ranks say no.
        higher_is_better: bool,
    },
    /// One answer and its rating a row, a user's rows one after the other: votes from pairs whose ratings differ enough.
    Ratings {
        /// Column of the user's id.
        user_id: String,
        /// Column of the rated text.
        item: String,
        /// Column of the rating.
        rating: String,
        /// What the texts are answers to.
        prompt: String,
        /// Pairs whose ratings differ by less are left out.
        min_gap: f64,
        /// So many pairs of a user, chosen by hash; all without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pairs_per_user: Option<usize>,
    },
    /// OpenAI summarize-from-feedback, `comparisons`.
    Tldr,
    /// PRISM, `conversations`: scores of each turn's answers.
    Prism,
    /// HelpSteer2: five attributes as users; two rows share a prompt; equal scores are decided by noise.
    Helpsteer2,
    /// UltraFeedback: four attributes as users.
    Ultrafeedback,
    /// Chatbot Arena conversations.
    Arena,
    /// PersonalLLM: reward models as users, eight answers to a prompt.
    Personalllm,
    /// MultiPref: several annotators a comparison.
    Multipref,
    /// LLaMA-Factory's alpaca shape for rankings: `instruction`, `chosen`, `rejected`; where there are such columns, `input`, `system`
    /// and `history` too.
    Alpaca {
        /// Column of the user's id; without it the card's `one_user` says whose votes all rows are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
    },
    /// LLaMA-Factory's sharegpt shape for rankings: `conversations`, `chosen`, `rejected`; where there is such a column, `system` too.
    Sharegpt {
        /// Column of the user's id; without it the card's `one_user` says whose votes all rows are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
    },
}

/// Who says whose vote a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Users<'l> {
    /// This column.
    Column(&'l str),
    /// Nobody: the layout's `user_id` could.
    Unsaid,
    /// The layout itself: columns or parts of rows stand for users.
    Layout,
}

impl Layout {
    /// Could a key name the prompt's column, and does none?
    pub(crate) fn lacks_prompt(&self) -> bool {
        matches!(self, Self::Pairs { prompt: None, .. })
    }

    pub(crate) fn users(&self) -> Users<'_> {
        match self {
            Self::Votes { user_id, .. }
            | Self::Pairs { user_id, .. }
            | Self::Hh { user_id }
            | Self::Rankings { user_id, .. }
            | Self::Alpaca { user_id }
            | Self::Sharegpt { user_id } => user_id.as_deref().map_or(Users::Unsaid, Users::Column),
            Self::Ratings { user_id, .. } => Users::Column(user_id),
            Self::Canonical | Self::Prism => Users::Column("user_id"),
            Self::Tldr => Users::Column("worker"),
            Self::Arena => Users::Column("judge"),
            Self::Helpsteer2 | Self::Ultrafeedback | Self::Personalllm | Self::Multipref => Users::Layout,
        }
    }
}

/// One text or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMore {
    /// One.
    One(String),
    /// Several.
    More(Vec<String>),
}

impl OneOrMore {
    /// All of them.
    pub fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

fn chosen() -> String {
    "chosen".into()
}

fn rejected() -> String {
    "rejected".into()
}

impl Card {
    /// Can a vote of this source have a weight of 0?
    pub(crate) fn may_weigh_0(&self) -> bool {
        self.columns.weight.is_some() || self.layout == Layout::Canonical
    }

    /// Reads a card; an unknown key is an error.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&fs_err::read_to_string(path)?, &path.display())
    }

    /// A card from its text; `place` names it in errors.
    pub fn parse(text: &str, place: &impl std::fmt::Display) -> Result<Self> {
        let card: Self = toml::from_str(text).map_err(|e| {
            invalid(place, "a data set card", e.to_string(), "datasets/simulated/card.toml is an example")
        })?;
        if card.columns.finished.is_some() && !matches!(card.layout, Layout::Votes { .. } | Layout::Pairs { .. }) {
            let expected = "`finished` in [columns] only with the layouts `votes` and `pairs`";
            let hint = "leave `finished` out: the other layouts have no first and second response in a row";
            return Err(invalid(place, expected, "it with another layout", hint));
        }
        card.check_one_user().map_err(|error| error.within(place))?;
        Ok(card)
    }

    /// Takes all rows for the votes of one user.
    ///
    /// # Errors
    /// A layout that has users already; a blank id.
    pub fn with_one_user(self, user: &str) -> Result<Self> {
        let card = Self { one_user: Some(user.to_owned()), ..self };
        card.check_one_user()?;
        Ok(card)
    }

    fn check_one_user(&self) -> Result<()> {
        let Some(user) = &self.one_user else { return Ok(()) };
        let wrong = |expected: &str, found: String| {
            let hint = "`one_user` is for sources without a column of users: leave it out of the card, or `user_id` of its layout";
            Err(invalid(format!("card `{}`, `one_user`", self.name), expected, found, hint))
        };
        match self.layout.users() {
            _ if user.trim().is_empty() => wrong("the user's id", format!("`{user}`")),
            Users::Unsaid => Ok(()),
            Users::Column(column) => wrong("no other word on users", format!("users in the column `{column}`")),
            Users::Layout => wrong("no other word on users", "a layout that has users of its own".into()),
        }
    }

    /// The user of rows that name none.
    pub(crate) fn one_user(&self) -> &str {
        self.one_user.as_deref().unwrap_or(EVERYONE)
    }

    /// Does nobody say whose votes the rows are: neither a column, nor the layout, nor the card's `one_user`?
    pub fn lacks_users(&self) -> bool {
        self.layout.users() == Users::Unsaid && self.one_user.is_none()
    }
}

/// The user of rows that name none, as long as nobody gives the user another name.
const EVERYONE: &str = "everyone";
