//! `idiolect chat`: talk to a user's model, or to two models side by side, as they speak.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use lm::{Bank, BankConfig, Hooks, Lm, Place, Sampling, Storage, UserIndex};
use policy::Policies;
use problem::{Result, invalid, mistake};
use text::{Message, Tokenizer};

use crate::base;
use crate::compute::ComputeArgs;
use crate::table;

/// The name of the model without an adapter.
const BASE: &str = "base";

#[derive(Args)]
pub(crate) struct ChatArgs {
    /// Whose model
    #[arg(long)]
    user: String,
    /// Another model beside it: `base`, or another user's
    #[arg(long, value_name = "base|USER")]
    beside: Option<String>,
    /// The folder of a stage `dpo`, `ppo` or `sft`, with its policies.safetensors
    #[arg(long)]
    policies: PathBuf,
    /// The base, a Hugging Face folder
    #[arg(long)]
    model: PathBuf,
    /// A system instruction in front of the conversation
    #[arg(long)]
    system: Option<String>,
    /// Logits are divided by it; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.7)]
    temperature: f64,
    /// Answers are cut behind so many tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    #[arg(long, default_value_t = 7)]
    seed: u64,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// One side of the conversation.
struct Speaker {
    name: String,
    /// In the bank.
    place: Place,
    history: Vec<Message>,
}

impl ChatArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        run(self)
    }
}

fn run(args: &ChatArgs) -> Result<()> {
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) || args.max_new_tokens == 0 {
        let found = format!("{} and {}", args.temperature, args.max_new_tokens);
        let message = format!(
            "--temperature, --max-new-tokens: expected a number of at least 0 and at least one token, found {found}"
        );
        return Err(mistake(message, "leave them out for 0.7 and 256"));
    }
    let (lm, tokenizer) = base::load(&args.model, &args.compute.resolve()?)?;
    if args.max_new_tokens >= lm.context() {
        let (expected, found) = (format!("fewer than {} tokens", lm.context()), args.max_new_tokens.to_string());
        return Err(invalid("--max-new-tokens", expected, found, text::context_hint(lm.context())));
    }
    let policies = Policies::read(&args.policies.join("policies.safetensors"), &lm)?;
    let mut users = policies.users.clone();
    let bank = with_base(&lm, &policies)?;
    users.push(BASE.to_owned());
    let start: Vec<Message> = args.system.iter().map(|s| Message::system(s.as_str())).collect();
    let speaker = |name: &String| match users.iter().position(|u| u == name) {
        Some(index) => {
            Ok(Speaker { name: name.clone(), place: UserIndex(index).in_whole_bank(), history: start.clone() })
        }
        None => Err(mistake(
            format!("expected a user of {}, found `{name}`", args.policies.display()),
            format!("the models are: {}", users.join(", ")),
        )),
    };
    let mut speakers = std::iter::once(&args.user).chain(&args.beside).map(speaker).collect::<Result<Vec<_>>>()?;
    let sampling = Sampling {
        temperature: (args.temperature > 0.0).then_some(args.temperature),
        ..Sampling::greedy(args.max_new_tokens, tokenizer.stop_ids().to_vec())
    };
    let names: Vec<&str> = speakers.iter().map(|s| s.name.as_str()).collect();
    table::say(&format!("talking to {}; /reset starts over, Ctrl-D ends", names.join(" and ")));
    let mut input = std::io::stdin().lock();
    for turn in 0usize.. {
        out("you> ");
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            out("\n");
            break;
        }
        match line.trim() {
            "" => {}
            "/reset" => speakers.iter_mut().for_each(|s| s.history.clone_from(&start)),
            said => say(args, &lm, &tokenizer, &bank, &mut speakers, &sampling, said, turn)?,
        }
    }
    Ok(())
}

/// The users' policies and, behind them, one that changes nothing.
fn with_base(lm: &Lm, policies: &Policies) -> Result<Bank> {
    let config = BankConfig { users: 1, ..policies.bank.config().clone() };
    let zero = Bank::new(&config, lm, &[BASE.to_owned()], &Storage::memory(), |name| run::rng(0, &["chat", name]))?;
    let order: Vec<usize> = (0..=policies.users.len()).collect();
    policies.bank.joined(&zero, &order, &Storage::memory())
}

/// One turn: what was said, and everybody's answer while it comes.
fn say(
    args: &ChatArgs,
    lm: &Lm,
    tokenizer: &Tokenizer,
    bank: &Bank,
    speakers: &mut [Speaker],
    sampling: &Sampling,
    said: &str,
    turn: usize,
) -> Result<()> {
    let mut prompts = Vec::new();
    for speaker in speakers.iter_mut() {
        speaker.history.push(Message::user(said));
        prompts.push(tokenizer.prompt(&speaker.history)?);
    }
    let room = lm.context().saturating_sub(args.max_new_tokens);
    if let Some(long) = prompts.iter().map(Vec::len).find(|n| *n > room) {
        let message = format!("the conversation: expected at most {room} tokens, found {long}");
        return Err(mistake(message, "start over with /reset, or lower --max-new-tokens"));
    }
    let places: Vec<Place> = speakers.iter().map(|s| s.place).collect();
    let seed = |s: &Speaker| run::derive(args.seed, &["chat", &s.name, &turn.to_string()]);
    let seeds: Vec<[u8; 32]> = speakers.iter().map(seed).collect();
    let names: Vec<String> = speakers.iter().map(|s| s.name.clone()).collect();
    let mut screen = Screen::new(&names);
    let mut ids: Vec<Vec<i64>> = vec![Vec::new(); speakers.len()];
    let mut texts = vec![String::new(); speakers.len()];
    let mut on_token = |row: usize, token: i64| {
        ids[row].push(token);
        // What cannot be read yet, such as half a character, is shown with the next token.
        if let Ok(text) = tokenizer.decode(&ids[row]) {
            texts[row] = text;
            screen.show(&texts);
        }
    };
    let hooks = Hooks { on_token: Some(&mut on_token), ..Hooks::default() };
    let samples = lm::generate(lm, Some((bank, places.as_slice())), &prompts, &seeds, sampling, hooks);
    for ((speaker, sample), text) in speakers.iter_mut().zip(&samples).zip(&mut texts) {
        *text = tokenizer.decode(&sample.ids)?;
        speaker.history.push(Message::assistant(text.as_str()));
    }
    screen.end(&texts, &samples.iter().map(lm::Sample::finished).collect::<Vec<_>>());
    Ok(())
}

/// To the terminal, at once.
fn out(text: &str) {
    let mut stdout = std::io::stdout();
    // Nobody listens any more: the next line that is read will say so.
    _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Answers as they come: one on a terminal grows in its place, two stand in columns; elsewhere they are printed when they are whole.
struct Screen {
    names: Vec<String>,
    live: bool,
    shown: usize, // characters of a single answer
    height: usize,
    width: usize,
}

impl Screen {
    fn new(names: &[String]) -> Self {
        let live = std::io::stdout().is_terminal();
        let width = usize::from(console::Term::stdout().size().1);
        let screen = Self { names: names.to_vec(), live, shown: 0, height: 0, width };
        if live && names.len() == 1 {
            out(&format!("{}> ", names[0]));
        }
        screen
    }

    fn show(&mut self, texts: &[String]) {
        if !self.live {
            return;
        }
        if let [text] = texts {
            out(&text.chars().skip(self.shown).collect::<String>());
            self.shown = text.chars().count();
        } else {
            if self.height > 0 {
                out(&format!("\x1b[{}A\x1b[J", self.height)); // up, and clear to the end
            }
            let lines = columns(&self.names, texts, self.width);
            self.height = lines.len();
            out(&(lines.join("\n") + "\n"));
        }
    }

    fn end(&mut self, texts: &[String], finished: &[bool]) {
        if self.live {
            self.show(texts);
            if texts.len() == 1 {
                out("\n");
            }
        } else {
            self.names.iter().zip(texts).for_each(|(name, text)| out(&format!("{name}> {text}\n")));
        }
        for (name, _) in self.names.iter().zip(finished).filter(|(_, finished)| !**finished) {
            table::say(&format!("({name} was cut at --max-new-tokens)"));
        }
    }
}

/// Texts in columns of the same width under their names.
fn columns(names: &[String], texts: &[String], width: usize) -> Vec<String> {
    let column = (width.saturating_sub(3 * (names.len() - 1)) / names.len()).max(12);
    let wrapped: Vec<Vec<String>> = names
        .iter()
        .zip(texts)
        .map(|(name, text)| std::iter::once(format!("{name}>")).chain(wrap(text, column)).collect())
        .collect();
    let height = wrapped.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |lines: &Vec<String>, i: usize| format!("{:column$}", lines.get(i).map_or("", String::as_str));
    (0..height).map(|i| wrapped.iter().map(|lines| cell(lines, i)).collect::<Vec<_>>().join(" | ")).collect()
}

/// Lines of at most `width` characters, broken between words where that is possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut word: Vec<char> = word.chars().collect();
            if !line.is_empty() && line.chars().count() + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
            }
            while word.len() > width {
                lines.push(word.drain(..width).collect());
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_keep_their_width_and_lose_no_word() {
        let names = ["ann", "base"].map(String::from);
        let texts = ["one two three four five", "averyveryverylongword\n\nend"].map(String::from);
        let lines = columns(&names, &texts, 27);
        assert_eq!(
            lines,
            [
                "ann>         | base>       ",
                "one two      | averyveryver",
                "three four   | ylongword   ",
                "five         |             ",
                "             | end         "
            ]
        );
    }
}
