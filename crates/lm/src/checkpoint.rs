//! The checkpoint of a training loop: tensors, a small note, and a history that is only ever appended to.
//!
//! In the folder `state` of an unfinished run lie
//!
//! - `<part>-<step>.safetensors`: the tensors of each part, such as an optimiser's [`AdamW::state`](crate::AdamW::state);
//! - `history.jsonl`: a line for each record that the loop wants to keep, from its first step on;
//! - `checkpoint.json`: the step, the note, and how many bytes of the history belong to it. It is written last, and names what is valid:
//!   whatever a killed process left beyond it is dropped when the run is resumed.
//!
//! Each checkpoint writes what happened since the last one and no more, so that a long run with many users does not write its whole past
//! again and again.

use std::collections::BTreeMap;
use std::io::Write;
use std::marker::PhantomData;

use problem::{Result, invalid};
use run::Run;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Tensors, map_tensors, write_tensors};

const FILE: &str = "checkpoint.json";
const HISTORY: &str = "history.jsonl";

/// What a loop goes on from.
#[derive(Debug)]
pub struct Saved<Note, Record> {
    /// Steps that were taken.
    pub step: usize,
    /// What the loop wrote about itself.
    pub note: Note,
    /// Every record up to that step.
    pub history: Vec<Record>,
    /// The tensors of each part, mapped from their files.
    pub parts: BTreeMap<String, Tensors>,
}

impl<Note, Record> Saved<Note, Record> {
    /// Takes the tensors of a part out.
    ///
    /// # Errors
    /// A checkpoint without that part.
    pub fn take(&mut self, part: &str) -> Result<Tensors> {
        self.parts.remove(part).ok_or_else(|| damaged(FILE, &format!("the part `{part}`"), "none of that name"))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<Note> {
    step: usize,
    parts: Vec<String>,
    history_bytes: u64,
    note: Note,
}

fn damaged(place: &str, expected: &str, found: &str) -> problem::Problem {
    invalid(place, expected, found, "remove the stage's .partial folder and run again")
}

/// Writes a loop's checkpoints. `Record` is what is kept of each step, `Note` everything else that is not a tensor.
#[derive(Debug)]
pub struct Checkpoints<Note, Record> {
    history_bytes: u64,
    earlier: Vec<String>,
    types: PhantomData<(Note, Record)>,
}

impl<Note: Serialize + DeserializeOwned, Record: Serialize + DeserializeOwned> Checkpoints<Note, Record> {
    /// Opens the checkpoints of a run, and reads the last one if there is one. Lines of `metrics.jsonl` that belong to steps behind it are
    /// dropped: the resumed loop takes those steps again.
    ///
    /// # Errors
    /// A checkpoint that cannot be read.
    pub fn open(run: &mut Run) -> Result<(Self, Option<Saved<Note, Record>>)> {
        let path = run.state(FILE);
        if !path.exists() {
            // What a process left that died before its first checkpoint was valid.
            let history = run.state(HISTORY);
            if history.exists() {
                fs_err::remove_file(history)?;
            }
            run.rewind_log(0)?;
            return Ok((Self { history_bytes: 0, earlier: vec![], types: PhantomData }, None));
        }
        let Header { step, parts, history_bytes, note } = run::read_json::<Header<Note>>(&path)?;
        let history = read_history(run, history_bytes)?;
        let mut tensors = BTreeMap::new();
        for part in &parts {
            let name = file_of(part, step);
            tensors.insert(part.clone(), map_tensors(&run.state(&name))?);
        }
        run.rewind_log(step)?;
        let earlier = parts.iter().map(|part| file_of(part, step)).collect();
        Ok((Self { history_bytes, earlier, types: PhantomData }, Some(Saved { step, note, history, parts: tensors })))
    }

    /// Writes a checkpoint behind `step` steps: `records` are those since the last checkpoint. The files of the one before are removed.
    ///
    /// # Errors
    /// A disk without room; the last checkpoint is still valid then.
    pub fn save(
        &mut self,
        run: &mut Run,
        step: usize,
        note: &Note,
        records: &[Record],
        parts: &[(&str, Vec<(String, Tensor)>)],
    ) -> Result<()> {
        for (part, tensors) in parts {
            write_tensors(&run.state(&file_of(part, step)), tensors, None)?;
        }
        self.append(run, records)?;
        let names: Vec<String> = parts.iter().map(|(part, _)| (*part).to_owned()).collect();
        let files: Vec<String> = names.iter().map(|part| file_of(part, step)).collect();
        run::write_json(&run.state(FILE), &Header { step, parts: names, history_bytes: self.history_bytes, note })?;
        for file in std::mem::replace(&mut self.earlier, files) {
            if !self.earlier.contains(&file) {
                fs_err::remove_file(run.state(&file))?;
            }
        }
        run.checkpointed();
        Ok(())
    }

    fn append(&mut self, run: &Run, records: &[Record]) -> Result<()> {
        let mut text = Vec::new();
        for record in records {
            serde_json::to_writer(&mut text, record).expect("plain data");
            text.push(b'\n');
        }
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(run.state(HISTORY))?;
        file.write_all(&text)?;
        file.sync_all()?;
        self.history_bytes += text.len() as u64;
        Ok(())
    }
}

fn file_of(part: &str, step: usize) -> String {
    format!("{part}-{step}.safetensors")
}

/// The first `bytes` of the history; what a killed process appended beyond them is cut off.
fn read_history<Record: DeserializeOwned>(run: &Run, bytes: u64) -> Result<Vec<Record>> {
    let path = run.state(HISTORY);
    let place = path.display().to_string();
    let file = fs_err::OpenOptions::new().read(true).write(true).open(&path)?;
    let found = file.metadata()?.len();
    if found < bytes {
        return Err(damaged(&place, &format!("at least {bytes} bytes"), &found.to_string()));
    }
    file.set_len(bytes)?;
    let text = fs_err::read_to_string(&path)?;
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            damaged(&format!("{place}, line {}", number + 1), "a record of this stage", &error.to_string())
        })
    };
    text.lines().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use run::Identity;

    type Own = Checkpoints<String, (usize, f64)>;

    fn begin(folder: &std::path::Path) -> Run {
        Run::begin(folder, Identity::new("reward", 1, serde_json::json!({}), 7), run::Environment::new()).unwrap()
    }

    fn tensors(value: f64) -> Vec<(String, Tensor)> {
        vec![("w".to_owned(), Tensor::from_slice(&[value]))]
    }

    #[test]
    fn a_checkpoint_gives_back_what_was_saved_and_cuts_off_what_came_later() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = begin(&folder.path().join("reward"));
        let (mut checkpoints, saved) = Own::open(&mut run).unwrap();
        assert!(saved.is_none());
        checkpoints.save(&mut run, 2, &"a".to_owned(), &[(0, 0.5), (1, 0.25)], &[("adam", tensors(1.0))]).unwrap();
        checkpoints.save(&mut run, 3, &"b".to_owned(), &[(2, 0.1)], &[("adam", tensors(2.0))]).unwrap();
        // A process that was killed while it wrote the next one.
        checkpoints.append(&run, &[(3, 9.0)]).unwrap();
        write_tensors(&run.state("adam-4.safetensors"), &tensors(3.0), None).unwrap();
        drop(run);

        let mut run = begin(&folder.path().join("reward"));
        let (mut checkpoints, saved) = Own::open(&mut run).unwrap();
        let mut saved = saved.unwrap();
        assert_eq!((saved.step, saved.note.as_str()), (3, "b"));
        assert_eq!(saved.history, [(0, 0.5), (1, 0.25), (2, 0.1)]);
        assert_eq!(saved.take("adam").unwrap().take("w", &[1]).unwrap().double_value(&[0]), 2.0);
        assert!(saved.take("critic").unwrap_err().to_string().contains("the part `critic`"));
        assert!(!run.state("adam-2.safetensors").exists(), "the files of an earlier checkpoint are removed");
        checkpoints.save(&mut run, 4, &"c".to_owned(), &[(3, 0.05)], &[("adam", tensors(4.0))]).unwrap();
        let (_, saved) = Own::open(&mut run).unwrap();
        assert_eq!(saved.unwrap().history.last(), Some(&(3, 0.05)));
    }

    #[test]
    fn a_history_without_a_valid_checkpoint_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = begin(&folder.path().join("reward"));
        let (mut checkpoints, _) = Own::open(&mut run).unwrap();
        // Killed in the first save, after its history and before its header.
        checkpoints.append(&run, &[(0, 9.0)]).unwrap();
        let (mut checkpoints, saved) = Own::open(&mut run).unwrap();
        assert!(saved.is_none());
        checkpoints.save(&mut run, 1, &String::new(), &[(0, 0.5)], &[]).unwrap();
        checkpoints.save(&mut run, 2, &String::new(), &[(1, 0.25)], &[]).unwrap();
        assert_eq!(Own::open(&mut run).unwrap().1.unwrap().history, [(0, 0.5), (1, 0.25)]);
    }

    #[test]
    fn a_checkpoint_writes_what_happened_since_the_last_one_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = begin(&folder.path().join("reward"));
        let (mut checkpoints, _) = Own::open(&mut run).unwrap();
        let mut sizes = Vec::new();
        for step in 1..=50 {
            checkpoints.save(&mut run, step, &String::new(), &[(step, 0.0)], &[("adam", tensors(0.0))]).unwrap();
            let len = |name: &str| fs_err::metadata(run.state(name)).unwrap().len();
            sizes.push((len(&file_of("adam", step)), len(FILE)));
        }
        let (first, last) = (sizes[0], sizes[49]);
        assert_eq!(first.0, last.0, "the header of the tensors does not grow");
        assert!(last.1 <= first.1 + 4, "{first:?} {last:?}");
    }

    #[test]
    fn a_history_that_was_cut_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = begin(&folder.path().join("reward"));
        let (mut checkpoints, _) = Own::open(&mut run).unwrap();
        checkpoints.save(&mut run, 1, &String::new(), &[(0, 0.5)], &[]).unwrap();
        fs_err::write(run.state(HISTORY), "").unwrap();
        let error = Own::open(&mut run).unwrap_err();
        assert!(error.to_string().contains("history.jsonl: expected at least"), "{error}");
    }
}
