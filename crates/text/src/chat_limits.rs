//! What a chat template may execute and build. A template is a program that came with a model: one that loops for ever, or
//! doubles a text forty times, ends in a message.
//!
//! Instructions cost fuel. Text that values are joined to, and elements of lists, are paid for out of a budget before they
//! are built: minijinja has no limit of that kind, so the compiled instructions `+`, `*` and `~`, and the filters whose results
//! can be much larger than what goes into them, are replaced by ones that pay.
//!
//! Left out: the time that single operations on texts of megabytes take, such as a search.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Vm, WhitespaceConfig, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};

/// Bytes that one rendering may build, all intermediate texts counted.
pub(crate) const BUDGET: usize = 128 << 20;

/// Instructions of one rendering: a conversation of a thousand messages takes some 100,000.
const FUEL: u64 = 1_000_000;

/// Bytes of the template's own text between tags that are paid by their instruction alone.
const FREE: usize = 128;

/// Bytes of a template. The longest published ones have some 20,000.
const LONGEST: usize = 256 << 10;

/// The largest number that a filter or method takes, such as a width.
const LARGEST: u64 = 1_000_000;

/// What an element of a list costs.
pub(crate) const ELEMENT: usize = 24;

thread_local! {
    static SPENT: Cell<usize> = const { Cell::new(0) };
}

/// Pays for so many bytes of this rendering's budget.
pub(crate) fn spend(bytes: usize) -> Result<(), Error> {
    let spent = SPENT.get().saturating_add(bytes);
    SPENT.set(spent);
    if spent > BUDGET { Err(too_much(format!("more than {} MiB of text and lists", BUDGET >> 20))) } else { Ok(()) }
}

fn too_much(what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the template builds {what}"))
}

/// Writes on to another writer and pays for it.
struct Paid<'w, W>(&'w mut W);

impl<W: Write> Write for Paid<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        spend(text.len() + ELEMENT).map_err(|_| fmt::Error)?; // lists are written in small pieces, which take time
        self.0.write_str(text)
    }
}

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Program {
    instructions: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

impl Program {
    pub(crate) fn run(&self, environment: &Environment<'static>, root: Value) -> Result<String, Error> {
        SPENT.set(0);
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        Vm::new(environment).eval(&self.instructions, root, &self.blocks, &mut output, AutoEscape::None)?;
        Ok(text)
    }
}

/// Compiles a template with transformers' settings, and puts what limits it into the environment.
pub(crate) fn compile(environment: &mut Environment<'static>, source: String) -> Result<Program, Error> {
    if source.len() > LONGEST {
        let text = format!("a template of {} bytes; at most {LONGEST} are taken", source.len());
        return Err(Error::new(ErrorKind::SyntaxError, text));
    }
    // A tokenizer has one template and lives as long as the program: its text is never freed.
    let source: &'static str = Box::leak(source.into_boxed_str());
    let spaces = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let tree = parse(source, "chat", SyntaxConfig, spaces)?;
    let mut generator = CodeGenerator::new("chat", source);
    generator.compile_stmt(&tree);
    let (instructions, blocks) = generator.finish();
    let blocks = blocks.iter().map(|(name, block)| Ok((*name, metered(block)?))).collect::<Result<_, Error>>()?;
    let instructions = metered(&instructions)?;
    limit(environment);
    Ok(Program { instructions, blocks })
}

/// Filters that can give much more than they take, and what pays for each.
const PAYING: [(&str, &str); 11] = [
    ("replace", "paid-replace"),
    ("join", "paid-join"),
    ("string", "paid-string"),
    ("indent", "paid-indent"),
    ("batch", "paid-batch"),
    ("slice", "paid-slice"),
    ("format", "paid-format"),
    ("list", "paid-list"),
    ("map", "paid-map"),
    ("split", "paid-split"),
    ("lines", "paid-lines"),
];

/// The same program, which pays for what it builds.
fn metered(program: &Instructions<'static>) -> Result<Instructions<'static>, Error> {
    let mut paying = Instructions::new(program.name(), program.source());
    let mut moved = Vec::with_capacity(program.len() + 1); // where each instruction is now
    for (index, instruction) in (0..).map_while(|index| Some((index, program.get(index)?))) {
        moved.push(paying.len() as u32);
        let line = program.get_line(index).unwrap_or(1) as u16;
        let mut add = |instruction| _ = paying.add_with_line(instruction, line);
        let two = |name| Instruction::ApplyFilter(name, Some(2), !0);
        match instruction {
            Instruction::Add => add(two("+")),
            Instruction::Mul => add(two("*")),
            Instruction::StringConcat => add(two("~")),
            Instruction::ApplyFilter(name, count, local) => {
                let other = PAYING.iter().find(|(n, _)| n == name).map_or(*name, |(_, paying)| paying);
                add(Instruction::ApplyFilter(other, *count, *local));
            }
            // Operations on constants are done while the template is compiled.
            Instruction::LoadConst(value) if size(value) > LARGEST as usize => {
                return Err(too_much(format!("a constant of {} bytes", size(value))));
            }
            Instruction::EmitRaw(text) if text.len() > FREE => {
                add(Instruction::LoadConst(Value::from(*text)));
                add(Instruction::Emit);
            }
            other => add(other.clone()),
        }
    }
    moved.push(paying.len() as u32);
    for index in 0..paying.len() as u32 {
        if let Some(
            Instruction::Jump(to)
            | Instruction::JumpIfFalse(to)
            | Instruction::JumpIfFalseOrPop(to)
            | Instruction::JumpIfTrueOrPop(to)
            | Instruction::Iterate(to)
            | Instruction::BuildMacro(_, to, _),
        ) = paying.get_mut(index)
        {
            *to = moved[*to as usize];
        }
    }
    Ok(paying)
}

/// What a value itself takes, without what it refers to.
fn size(value: &Value) -> usize {
    value.as_str().map_or_else(|| value.len().unwrap_or(0).saturating_mul(ELEMENT), str::len)
}

fn limit(environment: &mut Environment<'static>) {
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(emit);
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        let all: Vec<Value> = std::iter::once(value.clone()).chain(arguments.iter().cloned()).collect();
        pay(method, &all)?;
        // The library looks for the next empty text without end.
        if let ("count", Some(text), [what]) = (method, value.as_str(), arguments)
            && what.as_str() == Some("")
        {
            return Ok(Value::from(text.chars().count() + 1));
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
    });
    environment.add_filter("+", add);
    environment.add_filter("*", multiply);
    environment.add_filter("~", |a: &Value, b: &Value| paid_text(&[a, b]));
    for (name, paying) in PAYING {
        environment.add_filter(paying, move |state: &State, arguments: Rest<Value>| {
            pay(name, &arguments)?;
            state.apply_filter(name, &arguments)
        });
    }
    // Not in Jinja2; they join lists without end.
    for name in ["chain", "zip", "pprint"] {
        environment.remove_filter(name);
    }
}

/// Writes a value to where the template's output goes.
fn emit(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    if state.auto_escape() != AutoEscape::None {
        paid_text(&[value])?;
        return minijinja::escape_formatter(out, state, value);
    }
    match write!(Paid(out), "{value}") {
        Ok(()) => Ok(()),
        Err(error) => spend(0).and(Err(error.into())),
    }
}

/// Values as one text.
fn paid_text(values: &[&Value]) -> Result<String, Error> {
    let mut text = String::new();
    for value in values {
        if write!(Paid(&mut text), "{value}").is_err() {
            spend(0)?;
        }
    }
    Ok(text)
}

/// Pays for what a filter or method gives, before it does.
fn pay(name: &str, arguments: &[Value]) -> Result<(), Error> {
    let [subject, options @ ..] = arguments else { return Ok(()) };
    let text = subject.as_str().unwrap_or_default();
    let lines = |at: char| text.matches(at).count() + 1;
    match name {
        "replace" => {
            let old = paid_text(&options.first().into_iter().collect::<Vec<_>>())?;
            let new = options.get(1).and_then(Value::as_str).map_or(64, str::len);
            spend((text.matches(&old).count() + 1).saturating_mul(new).saturating_add(text.len()))
        }
        "split" => {
            let between = options.first().and_then(Value::as_str);
            let pieces = between.map_or(text.len() / 2, |between| text.matches(between).count());
            spend((pieces + 1).saturating_mul(ELEMENT).saturating_add(text.len()))
        }
        "splitlines" | "lines" => spend(lines('\n').saturating_mul(ELEMENT).saturating_add(text.len())),
        "indent" => spend(lines('\n').saturating_mul(width(name, options)?).saturating_add(text.len())),
        "batch" | "slice" => {
            spend(width(name, options)?.saturating_add(subject.len().unwrap_or(0)).saturating_mul(ELEMENT))
        }
        "format" => {
            let written = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
            if written > 4 {
                let text = "`format`: expected widths and precisions below 10,000, found a larger one";
                return Err(Error::new(ErrorKind::InvalidOperation, text));
            }
            // A width or precision that is itself an argument: `%*d`, `{:{}}`.
            let given = if text.contains('*') || text.contains(":{") || text.contains(".{") {
                width(name, options)?
            } else {
                0
            };
            let widest = given.max(10_usize.pow(written as u32));
            spend((lines('%') + lines('{')).saturating_mul(widest).saturating_add(text.len()))?;
            paid_text(&options.iter().collect::<Vec<_>>()).map(|_| ())
        }
        "join" => {
            // The method's subject is what goes between, the filter's what is joined.
            let (list, between) = match subject.as_str() {
                Some(between) => (options.first(), between.len()),
                None => (Some(subject), options.first().and_then(Value::as_str).map_or(0, str::len)),
            };
            for item in list.into_iter().filter_map(|l| l.try_iter().ok()).flatten() {
                spend(between)?;
                paid_text(&[&item])?;
            }
            Ok(())
        }
        "string" => paid_text(&[subject]).map(|_| ()),
        "list" | "map" => spend(text.len().max(subject.len().unwrap_or(0)).saturating_mul(ELEMENT)),
        _ => Ok(()),
    }
}

/// The largest number among the options of a filter or method.
fn width(name: &str, options: &[Value]) -> Result<usize, Error> {
    let mut largest = 0;
    for option in options {
        let mut numbers = vec![option.clone()];
        if option.is_kwargs() {
            for key in option.try_iter()? {
                numbers.push(option.get_item(&key)?);
            }
        }
        // What is no 64-bit number, such as 10 ** 30, is refused by the filter itself.
        largest = numbers.iter().filter_map(Value::as_i64).map(i64::unsigned_abs).fold(largest, u64::max);
    }
    if largest > LARGEST {
        let text = format!("`{name}`: expected a number of at most {LARGEST}, found {largest}");
        return Err(Error::new(ErrorKind::InvalidOperation, text));
    }
    Ok(largest as usize)
}

fn add(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        spend(a.len() + b.len())?;
        return Ok(Value::from([a, b].concat()));
    }
    if is_list(a) && is_list(b) {
        let mut all = Vec::new();
        for item in a.try_iter()?.chain(b.try_iter()?) {
            spend(ELEMENT)?;
            all.push(item);
        }
        return Ok(Value::from(all));
    }
    numbers("+", a, b, i128::checked_add, |a, b| a + b)
}

fn multiply(a: &Value, b: &Value) -> Result<Value, Error> {
    let times = |n: &Value| {
        let found = || format!("`*`: expected a whole number of times, found {n}");
        n.as_usize().ok_or_else(|| Error::new(ErrorKind::InvalidOperation, found()))
    };
    for (some, n) in [(a, b), (b, a)] {
        if let Some(text) = some.as_str() {
            let n = times(n)?;
            spend(text.len().saturating_mul(n))?;
            return Ok(Value::from(text.repeat(n)));
        }
        if is_list(some) {
            let n = times(n)?;
            let items: Vec<Value> = some.try_iter()?.collect();
            spend(items.len().saturating_mul(n).saturating_mul(ELEMENT))?;
            return Ok(Value::from(std::iter::repeat_n(items, n).flatten().collect::<Vec<_>>()));
        }
    }
    numbers("*", a, b, i128::checked_mul, |a, b| a * b)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn numbers(
    operator: &str,
    a: &Value,
    b: &Value,
    whole: impl Fn(i128, i128) -> Option<i128>,
    real: impl Fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let cannot = || {
        let text = format!("`{operator}`: expected two numbers, texts or lists, found {} and {}", a.kind(), b.kind());
        Error::new(ErrorKind::InvalidOperation, text)
    };
    let is_real = |v: &Value| v.is_number() && !v.is_integer();
    if is_real(a) || is_real(b) {
        let number = |v: &Value| f64::try_from(v.clone()).map_err(|_| cannot());
        return Ok(Value::from(real(number(a)?, number(b)?)));
    }
    let number = |v: &Value| i128::try_from(v.clone()).map_err(|_| cannot());
    let result = whole(number(a)?, number(b)?).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("`{operator}`: {a} and {b} give a number that is too large"))
    })?;
    Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from))
}
