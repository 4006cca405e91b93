//! Every reward model behind one interface ([`estimate::Scorer`]): rewards with standard errors.

use estimate::{Scorer, Taste};
use lm::{Lm, TokenRow, UserIndex};
use problem::{Problem, Result, invalid};
use text::{Ending, Message, Tokenizer};

use crate::{Errors, Reader, RewardModel};

/// Any reward model for one of its users. The standard error is the half-width of P-ShareLoRA's ball ([`estimate::Pessimism`]), `sqrt(zeta)`
/// times the norm of the gradient over what is personal: 0 for a model that shares everything.
#[derive(Debug)]
pub struct ByFactors<'a> {
    /// The model.
    pub model: &'a RewardModel,
    /// Its base.
    pub lm: &'a Lm,
    /// Of the base.
    pub tokenizer: &'a Tokenizer,
    /// Squared radius of the ball; 0 asks for no standard errors.
    pub zeta: f64,
}

impl Scorer for ByFactors<'_> {
    type Error = Problem;

    fn scores(&mut self, user: &str, texts: &[(&str, &str)]) -> Result<Vec<(f64, f64)>> {
        let known = self.model.users.binary_search_by(|u| u.as_str().cmp(user));
        let index = match known {
            Ok(index) => UserIndex(index),
            // One reward for all is anybody's.
            Err(_) if self.model.is_shared() => UserIndex(0),
            Err(_) => return Err(unknown(user, self.model.users.len())),
        };
        let rows: Vec<TokenRow> = texts
            .iter()
            .map(|(prompt, answer)| Ok(self.tokenizer.row(&[Message::user(*prompt)], answer, Ending::Finished)?.into()))
            .collect::<Result<_>>()?;
        let all: Vec<usize> = (0..rows.len()).collect();
        let prefix = self.model.prefix(self.lm, rows, |_| ())?;
        let errors = if self.zeta == 0.0 { Errors::None } else { Errors::Ball(self.zeta) };
        let rated = errors.rated(self.lm, self.model, &prefix, &all, index)?;
        Ok(rated.into_iter().map(|(reward, error)| (f64::from(reward), f64::from(error))).collect())
    }
}

/// A taste over reward features: a user's own, or that of whoever has not voted. The standard error is Laplace's.
pub struct ByTaste<'a, F: Fn(&str) -> Option<Taste>> {
    /// Reads texts.
    pub reader: Reader<'a>,
    /// Tastes by user id.
    pub taste: F,
}

impl<F: Fn(&str) -> Option<Taste>> Scorer for ByTaste<'_, F> {
    type Error = Problem;

    fn scores(&mut self, user: &str, texts: &[(&str, &str)]) -> Result<Vec<(f64, f64)>> {
        let taste = (self.taste)(user).ok_or_else(|| unknown(user, 0))?;
        let prompts: Vec<[Message; 1]> = texts.iter().map(|(prompt, _)| [Message::user(*prompt)]).collect();
        let asked: Vec<crate::Text> =
            prompts.iter().zip(texts).map(|(p, (_, answer))| (&p[..], *answer, Ending::Finished)).collect();
        let (features, counts) = self.reader.features(&asked, |_, _| ())?;
        if counts.dropped > 0 {
            return Err(invalid(
                "texts to score",
                "rows within the limit",
                format!("{} longer ones", counts.dropped),
                "raise --max-row-tokens",
            ));
        }
        Ok(features.into_iter().flatten().map(|phi| taste.score(&phi)).collect())
    }
}

fn unknown(user: &str, users: usize) -> Problem {
    invalid(
        format!("user `{user}`"),
        "a user whom the reward model knows",
        format!("none of that name among {users}"),
        "`idiolect adapt` makes a model with reward features know a new user",
    )
}
