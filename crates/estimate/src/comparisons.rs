//! Votes with contexts, as contextual rewards read them.

/// Who votes.
#[derive(Clone, Debug, PartialEq)]
pub enum Contexts {
    /// A vector `[dx]` for every vote, vote by vote.
    Vectors {
        /// dx
        d: usize,
        /// `[N, dx]`
        values: Vec<f64>,
    },
    /// A person's number for every vote: one-hot vectors of so many entries.
    People {
        /// dx
        count: usize,
        /// `[N]`
        index: Vec<usize>,
    },
}

/// Votes with contexts.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparisons {
    /// x of every vote.
    pub contexts: Contexts,
    /// dphi
    pub d: usize,
    /// Features of the first answer minus those of the second, `[N, dphi]`, vote by vote.
    pub differences: Vec<f64>,
    /// 1 if the first was chosen, 0 if the second, one half for a tie, `[N]`.
    pub outcomes: Vec<f64>,
}

impl Comparisons {
    /// N
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// dx
    pub fn dx(&self) -> usize {
        match &self.contexts {
            Contexts::Vectors { d, .. } => *d,
            Contexts::People { count, .. } => *count,
        }
    }

    /// These votes alone.
    pub fn some(&self, votes: &[usize]) -> Self {
        let contexts = match &self.contexts {
            Contexts::Vectors { d, values } => Contexts::Vectors {
                d: *d,
                values: votes.iter().flat_map(|n| &values[n * d..(n + 1) * d]).copied().collect(),
            },
            Contexts::People { count, index } => {
                Contexts::People { count: *count, index: votes.iter().map(|n| index[*n]).collect() }
            }
        };
        let row = |n: &usize| &self.differences[n * self.d..(n + 1) * self.d];
        Self {
            contexts,
            d: self.d,
            differences: votes.iter().flat_map(row).copied().collect(),
            outcomes: votes.iter().map(|n| self.outcomes[*n]).collect(),
        }
    }

    /// Refuses sizes that do not fit, and no votes.
    pub(crate) fn check(&self) {
        let contexts = match &self.contexts {
            Contexts::Vectors { d, values } => values.len() == self.len() * d,
            Contexts::People { count, index } => index.len() == self.len() && index.iter().all(|i| i < count),
        };
        assert!(
            contexts && self.differences.len() == self.len() * self.d && !self.is_empty(),
            "sizes that fit, and votes"
        );
    }
}
