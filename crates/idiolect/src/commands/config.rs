//! `idiolect config`: the settings of a stage, with their documentation and defaults.

use clap::Args;
use problem::Result;
use serde_json::Value;
use toml::Table;

use crate::stages::{Schema, documented_settings, kinds};
use crate::table;

#[derive(Args)]
pub(crate) struct ConfigArgs {
    /// A kind of stage, such as `dpo`; without one, all kinds are listed
    stage: Option<String>,
    /// Print the JSON schema, for editors
    #[arg(long, requires = "stage")]
    json_schema: bool,
}

impl ConfigArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        let Some(kind) = &self.stage else {
            let all: Vec<&str> = kinds().collect();
            return table::print(&all.join("\n"));
        };
        let (mut schema, defaults) = documented_settings(kind)?;
        if self.json_schema {
            fill(&mut schema, &defaults);
            return table::print(&serde_json::to_string_pretty(&schema).expect("plain data"));
        }
        table::print(&annotated(kind, &schema, &defaults))
    }
}

/// Widest line of documentation.
const WIDTH: usize = 110;

/// The settings as a `[[stage]]` of a pipeline: what is said of each, and its default.
fn annotated(kind: &str, schema: &Value, defaults: &Table) -> String {
    let mut out = format!("[[stage]]\nkind = \"{kind}\"\n");
    let schema = Schema::new(schema);
    if schema.properties().is_none() {
        // One of several kinds of tables: what each is, and then the usual one.
        for (shown, said) in schema.alternatives() {
            comment(&mut out, &format!("{shown}: {}", said.unwrap_or_default()), "#   ");
        }
    }
    write_table(&mut out, "stage", schema.of_kind(defaults), defaults);
    out
}

/// Plain settings first, then a section for each table with fixed keys.
fn write_table(out: &mut String, path: &str, schema: Schema, defaults: &Table) {
    let properties = schema.properties().unwrap_or_default();
    for (name, own) in &properties {
        if own.properties().is_some() {
            continue;
        }
        out.push('\n');
        comment(out, own.description().unwrap_or_default(), "# ");
        for (shown, said) in own.alternatives() {
            comment(out, &said.map_or(shown.clone(), |said| format!("{shown}: {said}")), "#   ");
        }
        match defaults.get(*name).cloned().or_else(|| own.default()) {
            Some(value) => *out += &format!("{name} = {}\n", shortest(value)),
            None => *out += &format!("# {name} = {}   (not set)\n", own.kind()),
        }
    }
    let empty = Table::new();
    for (name, own) in properties {
        if own.properties().is_none() {
            continue;
        }
        let below = format!("{path}.{name}");
        *out += "\n";
        comment(out, own.description().unwrap_or_default(), "# ");
        *out += &format!("[{below}]\n");
        write_table(out, &below, own, defaults.get(name).and_then(toml::Value::as_table).unwrap_or(&empty));
    }
}

/// A number that is kept in 32 bits is printed as it was written there, and not with the digits that 64 bits add.
fn shortest(value: toml::Value) -> toml::Value {
    match value {
        toml::Value::Float(number) if f64::from(number as f32) == number => {
            toml::Value::Float((number as f32).to_string().parse().unwrap_or(number))
        }
        toml::Value::Array(all) => toml::Value::Array(all.into_iter().map(shortest).collect()),
        toml::Value::Table(all) => all.into_iter().map(|(key, value)| (key, shortest(value))).collect::<Table>().into(),
        other => other,
    }
}

/// A comment in lines of a width that can be read.
fn comment(out: &mut String, text: &str, mark: &str) {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && mark.len() + line.len() + 1 + word.len() > WIDTH {
            *out += &format!("{mark}{line}\n");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    if !line.is_empty() {
        *out += &format!("{mark}{line}\n");
    }
}

/// Writes the defaults into a schema: what has one is not required.
fn fill(schema: &mut Value, defaults: &Table) {
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|name| name.as_str().is_none_or(|name| !defaults.contains_key(name)));
    }
    for (name, value) in defaults {
        if let Some(property) = schema["properties"].get_mut(name).and_then(Value::as_object_mut) {
            property.insert("default".into(), serde_json::to_value(value).expect("plain data"));
        }
    }
}
