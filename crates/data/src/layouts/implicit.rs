//! A prompt that is not in a column of its own: what the better and the worse answer begin with.

use std::collections::HashSet;

use smallvec::smallvec;
use unicode_segmentation::UnicodeSegmentation;

use crate::columns::Talks;
use crate::draft::{Flaw, Turns};
use crate::layouts::bound::brief;

/// The role that a plain text is read under, which no message has.
const PLAIN: &str = "(a plain text)";

/// The prompt of a row, and what each of its two columns has after it: two conversations as messages, two of HH-RLHF's
/// transcripts, or two texts.
pub(super) fn split<'a>(
    row: usize,
    (better, better_name): (&'a Talks, &str),
    (worse, worse_name): (&'a Talks, &str),
) -> Result<(Turns<'a>, &'a str, &'a str), Flaw> {
    let (better, worse) = (better.get(row, PLAIN)?, worse.get(row, PLAIN)?);
    match (better.as_slice(), worse.as_slice()) {
        ([(PLAIN, better)], [(PLAIN, worse)]) if is_transcript(better) && is_transcript(worse) => {
            of_messages(transcript(better, better_name)?, transcript(worse, worse_name)?, better_name)
        }
        ([(PLAIN, better)], [(PLAIN, worse)]) => {
            let (prompt, better, worse) = of_texts(better, worse, better_name)?;
            Ok((smallvec![("user", prompt)], better, worse))
        }
        ([(PLAIN, _)], _) | (_, [(PLAIN, _)]) => Err(not_shared(better_name, "a text and a list of messages".into())),
        _ => of_messages(better, worse, better_name),
    }
}

fn not_shared(column: &str, found: String) -> Flaw {
    Flaw {
        kind: "no shared prompt",
        column: column.into(),
        expected:
            "two texts that begin with the same prompt, or two conversations that differ in their last message only"
                .into(),
        found,
        hint: "name a prompt column in the card, drop the row before ingestion, or set `bad_rows = \"drop\"`",
    }
}

/// Two conversations that differ in their last message only: what they share, and the two last messages.
pub(super) fn of_messages<'a>(
    mut better: Turns<'a>,
    mut worse: Turns<'a>,
    column: &str,
) -> Result<(Turns<'a>, &'a str, &'a str), Flaw> {
    let wrong = |found: String| not_shared(column, found);
    let (last, other) = (better.pop(), worse.pop());
    let (Some((role, last)), Some((other_role, other))) = (last, other) else {
        return Err(wrong("an empty conversation".into()));
    };
    if role == "user" || other_role == "user" {
        return Err(wrong("a last message of the user".into()));
    }
    if better.is_empty() {
        return Err(wrong("a single message".into()));
    }
    if better != worse {
        let at = better.iter().zip(&worse).take_while(|(a, b)| a == b).count();
        return Err(wrong(format!("conversations that part at message {}", at + 1)));
    }
    Ok((better, last, other))
}

/// What two texts begin with, and the rest of each. The cut is where they part, as in TRL's `extract_prompt`, and a space in
/// front of it belongs to the rest; but it is never inside a word, where TRL cuts too (`bl` of `blue` and `black`).
fn of_texts<'a>(better: &'a str, worse: &'a str, column: &str) -> Result<(&'a str, &'a str, &'a str), Flaw> {
    if better == worse {
        return Err(not_shared(column, "two equal texts".into()));
    }
    let same = better.chars().zip(worse.chars()).take_while(|(a, b)| a == b);
    let mut cut = between_words(better, worse, same.map(|(c, _)| c.len_utf8()).sum());
    if better[..cut].ends_with(' ') {
        cut -= 1;
    }
    let (prompt, better_rest) = better.split_at(cut);
    if prompt.trim().is_empty() {
        return Err(not_shared(column, format!("`{}` and `{}`", brief(better), brief(worse))));
    }
    Ok((prompt, better_rest, &worse[cut..]))
}

/// The last place, up to byte `cut`, that is inside no word of either text.
fn between_words(better: &str, worse: &str, cut: usize) -> usize {
    // Words do not reach over spaces: no more than the last one need be looked at.
    let from = better[..cut].rfind(char::is_whitespace).unwrap_or(0);
    let ends = |text: &str| -> HashSet<usize> {
        let words = text[from..].split_word_bound_indices().map(|(at, _)| from + at);
        // Unicode lets a colon join letters, as Swedish does; here it ends what announces a response.
        let colons = text[from..].match_indices(':').map(|(at, _)| from + at + 1);
        words.chain(colons).chain([text.len()]).filter(|at| *at <= cut).collect()
    };
    let (better, worse) = (ends(better), ends(worse));
    better.intersection(&worse).copied().max().unwrap_or(0)
}

const MARKS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];

/// Does a text mark its turns as HH-RLHF does?
fn is_transcript(text: &str) -> bool {
    text.trim_start().starts_with(MARKS[0].0.trim_start()) && text.contains(MARKS[1].0)
}

/// The messages of a text that marks its turns with `\n\nHuman:` and `\n\nAssistant:`; the empty lines in front of the first mark
/// may be missing.
pub(super) fn transcript<'a>(text: &'a str, column: &str) -> Result<Turns<'a>, Flaw> {
    let next = |from: usize| {
        let found = MARKS.iter().filter_map(|(m, role)| text[from..].find(m).map(|at| (from + at, m.len(), *role)));
        found.min_by_key(|(at, _, _)| *at)
    };
    let blank = text.len() - text.trim_start().len();
    let (bare, role) = (MARKS[0].0.trim_start(), MARKS[0].1);
    let first = text[blank..].starts_with(bare).then_some((blank, bare.len(), role));
    let first = first.or_else(|| next(0).filter(|(at, _, _)| text[..*at].trim().is_empty()));
    let mut here = first.ok_or_else(|| Flaw {
        kind: "no marked turns",
        column: column.into(),
        expected: "a text that begins with `\\n\\nHuman:`".into(),
        found: format!("`{}`", brief(text)),
        hint: "is this HH-RLHF? layout `pairs` reads plain answers",
    })?;
    let mut turns = Turns::new();
    loop {
        let (at, mark, role) = here;
        let after = next(at + mark);
        turns.push((role, text[at + mark..after.map_or(text.len(), |(end, _, _)| end)].trim()));
        match after {
            Some(found) => here = found,
            None => return Ok(turns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_is_cut_at_its_marks() {
        let text = "\n\nHuman: hi\n\nthere\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: bye ";
        let turns = transcript(text, "chosen").unwrap();
        assert_eq!(
            turns.as_slice(),
            [("user", "hi\n\nthere"), ("assistant", "hello"), ("user", "and?"), ("assistant", "bye")]
        );
        assert_eq!(transcript(text.trim_start(), "chosen").unwrap(), turns);
        assert_eq!(transcript("plain", "chosen").unwrap_err().kind, "no marked turns");
        let other =
            transcript("\n\nHuman: hi\n\nthere\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: no", "c").unwrap();
        let (prompt, better, worse) = of_messages(turns.clone(), other, "chosen").unwrap();
        assert_eq!((prompt.len(), better, worse), (3, "bye", "no"));
        let parted = transcript("\n\nHuman: ho\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: no", "c").unwrap();
        assert!(of_messages(turns, parted, "chosen").unwrap_err().found.contains("part at message 1"));
    }

    #[test]
    fn texts_are_cut_where_trl_cuts_them_but_not_inside_a_word() {
        for (better, worse, prompt) in [
            ("The sky is blue.", "The sky is green.", "The sky is"),
            ("The sky is blue.", "The sky is black.", "The sky is"), // TRL: `The sky is bl`
            ("Q: why?\nA: so", "Q: why?\nA: no", "Q: why?\nA:"),
            ("Q: why?\nA:so", "Q: why?\nA:no", "Q: why?\nA:"),
            ("Pi is 3.14", "Pi is 3.15", "Pi is"),
            ("It is, I do.", "It is, I don't.", "It is, I"),
            ("2 + 2 =4", "2 + 2 =5", "2 + 2 ="),
            ("天は青い", "天は赤い", "天は"),
            ("a cafe\u{301} b", "a cafe c", "a"),
            ("so it goes", "so it", "so it"),
            ("line\none", "line\ntwo", "line\n"),
        ] {
            let (found, one, two) = of_texts(better, worse, "chosen").unwrap_or_else(|f| panic!("{better}: {f:?}"));
            assert_eq!(
                (found, format!("{found}{one}"), format!("{found}{two}")),
                (prompt, better.into(), worse.into())
            );
        }
        for (better, worse, found) in [
            ("same", "same", "two equal texts"),
            ("good", "goodness", "`good` and `goodness`"),
            (" a", " b", "` a` and"),
        ] {
            assert!(of_texts(better, worse, "c").unwrap_err().found.contains(found), "{better}");
        }
    }
}
