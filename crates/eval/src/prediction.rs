//! What a model says of every vote of a split, and its file: all that evaluation and comparison read.

use std::path::Path;

use data::{Column, read_table, write_table};
use problem::Result;
use text::RowCounts;

/// What a model says of one vote.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Whose vote.
    pub user: String,
    /// File and row of the source: the vote's name.
    pub source_row: String,
    /// Hash of the prompt.
    pub prompt: String,
    /// Hash of the prompt and both answers, in whatever order.
    pub pair: String,
    /// Could the user not tell?
    pub tie: bool,
    /// r(chosen) - r(rejected); of a tie, of the first shown and the second.
    pub margin: f64,
    /// P(chosen | decided).
    pub probability: f64,
    /// The same with the user's own lean to the answer shown first, learnt from training votes: for a model that is shared
    /// throughout. NaN elsewhere, and where the order is unknown.
    pub with_lean: f64,
    /// 1 if the chosen answer is longer (characters), 0 if it is shorter, one half if equal.
    pub longer: f64,
    /// The same for the majority of the other users' decided votes on the two answers, of all splits; NaN without any or if even.
    pub majority: f64,
}

/// A model's word on a split.
#[derive(Clone, Debug)]
pub struct Predictions {
    /// One for every vote whose rows are within the limit, ties included.
    pub votes: Vec<Prediction>,
    /// Rows left out or changed.
    pub rows: RowCounts,
    /// Where asked for: for each user and each other user's decided votes, (index of the factors' user, index of the votes' user,
    /// votes, accuracy); indices are the model's.
    pub swap: Vec<(usize, usize, usize, f64)>,
}

impl Predictions {
    /// Writes what was measured with other users' factors: the factors' user, the votes' user, votes, accuracy. `users` are the model's.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_swap(&self, path: &Path, users: &[String]) -> Result<()> {
        let name = |f: fn(&(usize, usize, usize, f64)) -> usize| {
            Column::Text(self.swap.iter().map(|row| users[f(row)].clone()).collect())
        };
        let columns = [
            ("factors_of", name(|r| r.0)),
            ("votes_of", name(|r| r.1)),
            ("votes", Column::Integer(self.swap.iter().map(|r| r.2 as i64).collect())),
            ("accuracy", Column::Real(self.swap.iter().map(|r| r.3).collect())),
        ];
        write_table(path, &columns)
    }
}

/// Writes predictions as Parquet; columns are named as the fields of [`Prediction`].
pub fn write_predictions(path: &Path, predictions: &[Prediction]) -> Result<()> {
    let text = |f: fn(&Prediction) -> &String| Column::Text(predictions.iter().map(|p| f(p).clone()).collect());
    let real = |f: fn(&Prediction) -> f64| Column::Real(predictions.iter().map(f).collect());
    let columns = [
        ("user", text(|p| &p.user)),
        ("source_row", text(|p| &p.source_row)),
        ("prompt", text(|p| &p.prompt)),
        ("pair", text(|p| &p.pair)),
        ("tie", Column::Boolean(predictions.iter().map(|p| p.tie).collect())),
        ("margin", real(|p| p.margin)),
        ("probability", real(|p| p.probability)),
        ("with_lean", real(|p| p.with_lean)),
        ("longer", real(|p| p.longer)),
        ("majority", real(|p| p.majority)),
    ];
    write_table(path, &columns)
}

/// Reads what [`write_predictions`] wrote.
pub fn read_predictions(path: &Path) -> Result<Vec<Prediction>> {
    let reals = ["margin", "probability", "with_lean", "longer", "majority"];
    let texts = ["user", "source_row", "prompt", "pair"];
    let names: Vec<&str> = texts.iter().chain(&reals).chain(&["tie"]).copied().collect();
    let table = read_table(path, &names)?;
    let [user, source_row, prompt, pair] = texts.map(|name| table.full_text(name));
    let (user, source_row, prompt, pair) = (user?, source_row?, prompt?, pair?);
    let [margin, probability, with_lean, longer, majority] = reals.map(|name| table.full_real(name));
    let (margin, probability, with_lean, longer, majority) = (margin?, probability?, with_lean?, longer?, majority?);
    let tie = table.full_boolean("tie")?;
    let row = |i: usize| Prediction {
        user: user[i].clone(),
        source_row: source_row[i].clone(),
        prompt: prompt[i].clone(),
        pair: pair[i].clone(),
        tie: tie[i],
        margin: margin[i],
        probability: probability[i],
        with_lean: with_lean[i],
        longer: longer[i],
        majority: majority[i],
    };
    Ok((0..table.rows()).map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_survive_their_file() {
        let one = Prediction {
            user: "ü".into(),
            source_row: "f:3".into(),
            prompt: "p".into(),
            pair: "q".into(),
            tie: true,
            margin: -0.25,
            probability: 0.4,
            with_lean: 0.6,
            longer: 0.5,
            majority: 1.0,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.parquet");
        write_predictions(&path, std::slice::from_ref(&one)).unwrap();
        assert_eq!(read_predictions(&path).unwrap(), [one]);
    }
}
