//! What is wrong or odd in a source, before anything is made of it: counted for each user and in total, with the first
//! rows of every kind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use problem::Result;
use serde::{Deserialize, Serialize};
use text::{Message, Tokenizer};

use crate::Card;
use crate::draft::{Choice, Draft};
use crate::judgements::{Agreement, Judgement, Sums};
use crate::literals::looks_like_messages;
use crate::spill::{Record, Spill};
use crate::split::{prompt_key, texts_key};
use crate::walk::{At, Source};

/// What a check looks for beside what ingestion refuses.
#[derive(Debug, Default)]
pub struct CheckOptions<'a> {
    /// Users with fewer decided votes are told.
    pub min_votes: usize,
    /// Rows of more tokens than this are told.
    pub tokens: Option<(&'a Tokenizer, usize)>,
    /// Threads; 0: one for each core.
    pub threads: usize,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Ingestion refuses the row unless it may drop bad rows.
    Error,
    /// Ingestion drops the vote, or it may not mean what it seems to.
    Warning,
}

/// One kind of finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// In a few words.
    pub kind: String,
    /// How bad it is.
    pub level: Level,
    /// Votes, rows, users or files.
    pub count: usize,
    /// Users whom it concerns.
    pub users: usize,
    /// The first rows, `file:row`, users or files.
    pub first: Vec<String>,
}

/// One user's votes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserCheck {
    /// All votes.
    pub votes: usize,
    /// Of these, ties.
    pub ties: usize,
    /// Decided votes whose order of showing is known.
    pub ordered: usize,
    /// Of these, for the answer shown first.
    pub for_first: usize,
    /// Decided votes for the longer answer (of unequal lengths).
    pub for_longer: usize,
    /// Decided votes on answers of unequal lengths.
    pub unequal: usize,
    /// Findings by kind.
    pub findings: BTreeMap<String, usize>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Files of the source.
    pub files: usize,
    /// Rows of the source.
    pub rows: usize,
    /// Votes that they make.
    pub votes: usize,
    /// Distinct prompts; near-duplicates count as one.
    pub prompts: usize,
    /// Distinct answers.
    pub answers: usize,
    /// All users' votes together.
    pub total: UserCheck,
    /// Share of votes for the answer shown first, and the two-sided p-value of a fair coin.
    pub position: Option<(f64, f64)>,
    /// How far users agree.
    pub agreement: Agreement,
    /// By kind, the worst first.
    pub findings: Vec<Finding>,
    /// By user.
    pub users: BTreeMap<String, UserCheck>,
    /// Columns of the source that nothing reads, sorted.
    #[serde(default)]
    pub unused_columns: Vec<String>,
    /// Sentences on columns that may be missed: those that look usable, and those that only some files have. They are findings too.
    #[serde(default)]
    pub column_notes: Vec<String>,
    /// What was decided from the files and values themselves: separators, units of times, messages written as text, files left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

impl Check {
    /// Is there anything at this level?
    pub fn has(&self, level: Level) -> bool {
        self.findings.iter().any(|f| f.level == level)
    }
}

/// Rows that are named of each kind.
const NAMED: usize = 5;

const SPILL_AFTER: usize = 128 << 20;

/// Unit, and row of its file.
type Place = (u32, u32);

/// How many, whose, and the first of them.
type Cases = (usize, HashSet<u64>, Vec<Place>);

/// A text that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Distinct {
    answer: bool,
    key: u128,
}

impl Record for Distinct {
    const SIZE: usize = 17;

    fn hash(&self) -> u64 {
        self.key as u64
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.answer));
        out.extend_from_slice(&self.key.to_le_bytes());
    }

    fn read(b: &[u8]) -> Self {
        Self { answer: b[0] == 1, key: u128::from_le_bytes(b[1..].try_into().expect("sixteen bytes")) }
    }
}

/// A worker's counts.
#[derive(Default)]
struct Own {
    rows: usize,
    votes: usize,
    users: HashMap<String, UserCheck>,
    kinds: HashMap<(Level, &'static str), Cases>,
    distinct: Vec<Distinct>,
    judgements: Vec<Judgement>,
    room: Vec<u8>,
}

impl Own {
    fn find(&mut self, level: Level, kind: &'static str, at: &At, user: Option<&str>) {
        let (count, users, places) = self.kinds.entry((level, kind)).or_default();
        *count += 1;
        if let Some(user) = user {
            users.insert(crate::plan::user_key(user));
            if let Some(own) = self.users.get_mut(user) {
                *own.findings.entry(kind.into()).or_default() += 1;
            }
        }
        let place = (at.unit as u32, at.row as u32);
        places.push(place);
        if places.len() >= 64 {
            places.sort_unstable();
            places.truncate(NAMED);
        }
    }

    fn see(&mut self, at: &At, draft: &Draft, options: &CheckOptions) {
        let user = match self.users.get_mut(draft.user.as_ref()) {
            Some(user) => user,
            None => self.users.entry(draft.user.clone().into_owned()).or_default(),
        };
        user.votes += 1;
        user.ties += usize::from(draft.choice == Choice::Tie);
        let decided = draft.choice != Choice::Tie;
        if decided && draft.choice != Choice::Unordered {
            user.ordered += 1;
            user.for_first += usize::from(draft.choice == Choice::First);
        }
        let (chosen, rejected) = draft.ranked();
        if decided && chosen.len() != rejected.len() {
            user.unequal += 1;
            user.for_longer += usize::from(chosen.len() > rejected.len());
        }
        let name = draft.user.as_ref();
        if let Some(flaw) = draft.flaw() {
            self.find(Level::Warning, flaw, at, Some(name));
        }
        if crate::draft::invisible(draft.first) || crate::draft::invisible(draft.second) {
            self.find(Level::Warning, "invisible answer", at, Some(name));
        }
        if draft.turns.iter().all(|(_, content)| content.trim().is_empty()) {
            self.find(Level::Warning, "empty prompt", at, Some(name));
        }
        let texts = draft.turns.iter().map(|(_, content)| *content).chain([draft.first, draft.second]);
        if texts.clone().any(damaged) {
            self.find(Level::Warning, "encoding damage", at, Some(name));
        }
        if texts.clone().any(escaped_for_html) {
            self.find(Level::Warning, "HTML-escaped text", at, Some(name));
        }
        if texts.clone().any(looks_like_messages) {
            self.find(Level::Warning, "messages written as text", at, Some(name));
        }
        if name.trim() != name {
            self.find(Level::Warning, "user id with outer spaces", at, Some(name));
        }
        if let Some((tokenizer, most)) = options.tokens {
            let messages: Vec<Message> = draft
                .turns
                .iter()
                .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
                .collect();
            let both = [(draft.first, draft.finished[0]), (draft.second, draft.finished[1])];
            let rows = both.map(|(answer, told)| tokenizer.row(&messages, answer, crate::votes::ending(told)));
            if rows.iter().any(Result::is_err) {
                self.find(Level::Error, "a prompt that the chat template refuses", at, Some(name));
            } else if rows.iter().flatten().any(|row| row.ids.len() > most) {
                self.find(Level::Warning, "over-long row", at, Some(name));
            }
            let spelled = |text: &str| tokenizer.special_tokens_in(text).is_ok_and(|tokens| !tokens.is_empty());
            if texts.clone().any(spelled) {
                self.find(Level::Warning, "a special token spelled in a text", at, Some(name));
            }
        }
        self.distinct.push(Distinct { answer: false, key: prompt_key(&draft.turns, &mut self.room) });
        self.distinct.extend([draft.first, draft.second].map(|a| Distinct { answer: true, key: texts_key(0, [a]) }));
        self.judgements.push(Judgement::of(draft, at.unit, at.row));
    }
}

/// Signs of bytes that were decoded as what they are not, or of control characters.
fn damaged(text: &str) -> bool {
    const MOJIBAKE: [&str; 8] = ["â€™", "â€œ", "â€\u{9d}", "â€“", "Ã©", "Ã¨", "Ã¼", "Â\u{a0}"];
    if text.is_ascii() {
        return text.bytes().any(|b| b < 0x20 && !matches!(b, b'\n' | b'\r' | b'\t') || b == 0x7f);
    }
    text.chars().any(|c| c == '\u{fffd}' || (c.is_control() && !matches!(c, '\n' | '\r' | '\t')))
        || MOJIBAKE.iter().any(|m| text.contains(m))
}

/// Does a text hold characters as HTML writes them: `&lt;`, `&amp;quot;`, `&#39;`?
fn escaped_for_html(text: &str) -> bool {
    const NAMES: [&str; 7] = ["amp;", "lt;", "gt;", "quot;", "apos;", "nbsp;", "#"];
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('&') {
        if let Some(name) = NAMES.iter().find(|name| after.starts_with(**name)) {
            let digits =
                after[name.len()..].trim_start_matches(['x', 'X']).trim_start_matches(|c: char| c.is_ascii_hexdigit());
            if *name != "#" || (digits.starts_with(';') && digits.len() < after.len() - 1) {
                return true;
            }
        }
        rest = after;
    }
    false
}

/// Looks at every row of a source. `folder` takes what does not fit into memory, and is left as it was.
pub fn check(card: &Card, sources: &[String], options: &CheckOptions, folder: &Path) -> Result<Check> {
    let source = Source::open(card, sources, 0, options.threads)?;
    let spill: Spill<Judgement> = Spill::new(folder, SPILL_AFTER);
    let distinct: Spill<Distinct> = Spill::new(folder, SPILL_AFTER / 2);
    let found = source.on_all_cores(Own::default, |own, unit| {
        own.rows += source.walk(unit, &mut |at, draft| {
            own.votes += 1;
            match draft {
                Ok(draft) => own.see(&at, &draft, options),
                Err(flaw) => own.find(Level::Error, flaw.kind, &at, None),
            }
            if own.judgements.len() >= 8192 {
                spill.add(&mut own.judgements)?;
                distinct.add(&mut own.distinct)?;
            }
            Ok(())
        })?;
        distinct.add(&mut own.distinct)?;
        spill.add(&mut own.judgements)
    })?;

    let mut check = Check { files: source.files.len(), ..Check::default() };
    let mut kinds: BTreeMap<(Level, &'static str), Cases> = BTreeMap::new();
    for own in found {
        check.rows += own.rows;
        check.votes += own.votes;
        for (user, theirs) in own.users {
            add(check.users.entry(user).or_default(), &theirs);
        }
        for (kind, (count, users, places)) in own.kinds {
            let all = kinds.entry(kind).or_default();
            all.0 += count;
            all.1.extend(users);
            all.2.extend(places);
        }
    }
    distinct.each(|mut all| {
        all.sort_unstable();
        all.dedup();
        let answers = all.iter().filter(|d| d.answer).count();
        check.answers += answers;
        check.prompts += all.len() - answers;
        Ok(())
    })?;
    let names: HashMap<u64, String> = check.users.keys().map(|u| (crate::plan::user_key(u), u.clone())).collect();
    repeated(&spill, &mut check, &mut kinds, &names)?;
    for theirs in check.users.values() {
        add(&mut check.total, theirs);
    }
    check.position = position(&check.total);

    let name = |(unit, row): Place| format!("{}:{row}", source.files[source.units[unit as usize].file].file.short);
    for ((level, kind), (count, users, mut places)) in kinds {
        places.sort_unstable();
        places.dedup();
        let first = places.into_iter().take(NAMED).map(name).collect();
        check.findings.push(Finding { kind: kind.into(), level, count, users: users.len(), first });
    }
    let notes = source.notes();
    check.column_notes = notes.missed_sentences();
    for (kind, files) in notes.missed {
        let count = if files.is_empty() { check.votes } else { files.len() };
        let first = files.into_iter().take(NAMED).collect();
        check.findings.push(Finding { kind, level: Level::Warning, count, users: 0, first });
    }
    check.unused_columns = notes.unused;
    for contradiction in source.contradictions() {
        let (kind, count) = (format!("{}: column `{}`", contradiction.kind, contradiction.column), contradiction.count);
        check.findings.push(Finding {
            kind,
            level: Level::Error,
            count,
            users: 0,
            first: source.rows_of(&contradiction),
        });
    }
    check.remarks = source.remarks();
    if check.rows == 0 {
        check.findings.push(Finding {
            kind: "no rows in the source".into(),
            level: Level::Error,
            count: source.files.len(),
            users: 0,
            first: source.files.iter().take(NAMED).map(|f| f.file.short.to_string()).collect(),
        });
    }
    let few: Vec<&String> =
        check.users.iter().filter(|(_, u)| u.votes - u.ties < options.min_votes).map(|(name, _)| name).collect();
    if !few.is_empty() {
        let kind = format!("user with fewer than {} decided votes", options.min_votes);
        let first = few.iter().take(NAMED).map(|u| format!("`{u}`")).collect();
        check.findings.push(Finding { kind, level: Level::Warning, count: few.len(), users: few.len(), first });
    }
    check.findings.sort_by_key(|f| (f.level, std::cmp::Reverse(f.count)));
    Ok(check)
}

fn add(to: &mut UserCheck, from: &UserCheck) {
    let UserCheck { votes, ties, ordered, for_first, for_longer, unequal, findings } = from;
    to.votes += votes;
    to.ties += ties;
    to.ordered += ordered;
    to.for_first += for_first;
    to.for_longer += for_longer;
    to.unequal += unequal;
    for (kind, n) in findings {
        *to.findings.entry(kind.clone()).or_default() += n;
    }
}

/// Rows that repeat an earlier one, users who contradict themselves, and how far users agree.
fn repeated(
    spill: &Spill<Judgement>,
    check: &mut Check,
    kinds: &mut BTreeMap<(Level, &'static str), Cases>,
    names: &HashMap<u64, String>,
) -> Result<()> {
    const DUPLICATE: &str = "duplicate vote";
    const CONTRADICTION: &str = "vote that contradicts the user's own";
    let mut sums = Sums::default();
    let mut told: Vec<(&'static str, Judgement)> = Vec::new();
    spill.each(|mut all| {
        all.sort_unstable_by_key(|j| (j.pair, j.user, j.unit, j.row, j.better));
        for pair in all.chunk_by(|a, b| a.pair == b.pair) {
            let mut counts = [0; 3];
            for own in pair.chunk_by(|a, b| a.user == b.user) {
                counts[usize::from(own[0].better)] += 1;
                for (i, vote) in own.iter().enumerate().skip(1) {
                    if own[..i].iter().any(|v| v.better == vote.better && v.in_order == vote.in_order) {
                        told.push((DUPLICATE, *vote));
                    } else if own[..i].iter().all(|v| v.better != vote.better) {
                        told.push((CONTRADICTION, *vote));
                    }
                }
            }
            sums.add(counts);
        }
        Ok(())
    })?;
    for (kind, vote) in told {
        let (count, users, places) = kinds.entry((Level::Warning, kind)).or_default();
        *count += 1;
        users.insert(vote.user);
        places.push((vote.unit, vote.row));
        if let Some(user) = names.get(&vote.user).and_then(|name| check.users.get_mut(name)) {
            *user.findings.entry(kind.into()).or_default() += 1;
        }
    }
    check.agreement = sums.agreement();
    Ok(())
}

/// Share of votes for the answer shown first, and the p-value of a fair coin by the normal approximation.
fn position(total: &UserCheck) -> Option<(f64, f64)> {
    if total.ordered == 0 {
        return None;
    }
    let n = total.ordered as f64;
    let share = total.for_first as f64 / n;
    let z = (share - 0.5).abs() * 2.0 * n.sqrt();
    Some((share, two_sided(z)))
}

/// P(|Z| > z) of a standard normal (Abramowitz and Stegun 7.1.26, error below 1.5e-7).
fn two_sided(z: f64) -> f64 {
    let x = z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    poly * (-x * x).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_from_foreign_letters() {
        for good in ["plain\n\ttext", "héllo 🙂 Ünïcode", "日本語", "Â la carte"] {
            assert!(!damaged(good), "{good}");
        }
        for bad in ["a\0b", "donâ€™t", "cafÃ©", "what\u{fffd}", "bell\u{7}"] {
            assert!(damaged(bad), "{bad}");
        }
    }

    #[test]
    fn html_is_told_from_plain_ampersands() {
        for bad in ["a &lt;b&gt;", "she said &amp;quot;yes", "it&#39;s", "it&#x27;s", "x&nbsp;y", "R&D &amp; more"] {
            assert!(escaped_for_html(bad), "{bad}");
        }
        for good in ["", "R&D", "a & b", "&#;", "&#39", "?a=1&b=2;", "&ltd", "if (a && b)"] {
            assert!(!escaped_for_html(good), "{good}");
        }
    }

    #[test]
    fn a_fair_coin_is_fair() {
        assert!((two_sided(1.959_964) - 0.05).abs() < 1e-5);
        assert!((two_sided(0.0) - 1.0).abs() < 1e-6);
        let user = |ordered, for_first| UserCheck { ordered, for_first, ..UserCheck::default() };
        assert_eq!(position(&user(0, 0)), None);
        // 60 of 100: z = 2, p = 0.0455
        assert!((position(&user(100, 60)).unwrap().1 - 0.0455).abs() < 1e-4);
    }
}
