//! The axes of a matrix, their combinations, and the names of folders that tell them apart.

use problem::{Result, mistake};
use serde::Deserialize;
use toml::{Table, Value};

use super::setting::Setting;

/// One step along an axis of the matrix: a value of one setting, or a name for several.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// `key=value` or `axis=name`.
    pub(crate) word: String,
    pub(crate) axis: String,
    pub(crate) settings: Vec<Setting>,
}

/// A named step, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedStep {
    name: String,
    set: Table,
}

impl Step {
    fn new(axis: &str, value: &Value) -> Result<Self> {
        let axis = axis.to_owned();
        let giver = format!("[matrix], `{axis}`");
        if !value.is_table() {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let word = format!("{axis}={shown}");
            return Ok(Self { word, settings: vec![Setting { key: axis.clone(), value: value.clone(), giver }], axis });
        }
        let NamedStep { name, set } = value.clone().try_into().map_err(|e: toml::de::Error| {
            mistake(format!("{giver}: {}", e.to_string().trim()), "write { name = \"..\", set = { .. } }")
        })?;
        if name.is_empty() {
            return Err(mistake(format!("{giver}: expected a name, found none"), "it tells the cells apart"));
        }
        let settings = set.into_iter().map(|(key, value)| Setting { key, value, giver: giver.clone() }).collect();
        Ok(Self { word: format!("{axis}={name}"), axis, settings })
    }

    /// Is it a fit of a method with another seed?
    pub(crate) fn is_of_seeds(&self) -> bool {
        !self.settings.is_empty() && self.settings.iter().all(|s| s.key.rsplit('.').next() == Some("seed"))
    }

    /// Is it another part of the data, such as a fold?
    pub(crate) fn is_of_data(&self) -> bool {
        !self.settings.is_empty() && self.settings.iter().all(|s| s.key.starts_with("data."))
    }

    /// The step's name without its axis.
    pub(crate) fn name(&self) -> &str {
        self.word.strip_prefix(&format!("{}=", self.axis)).unwrap_or(&self.word)
    }
}

/// The axes of a matrix, each with its steps.
///
/// # Errors
/// An axis without a value, two steps of one name, something else than a list.
pub(crate) fn axes(matrix: &Table) -> Result<Vec<Vec<Step>>> {
    let mut axes = Vec::new();
    for (key, values) in matrix {
        let Value::Array(values) = values else {
            return Err(mistake(format!("[matrix], `{key}`: expected a list, found {values}"), "write `key = [..]`"));
        };
        if values.is_empty() {
            let message = format!("[matrix], `{key}`: expected at least one value, found an empty list");
            return Err(mistake(message, "leave the axis out, or give it a value"));
        }
        let steps = values.iter().map(|value| Step::new(key, value)).collect::<Result<Vec<Step>>>()?;
        for (n, step) in steps.iter().enumerate() {
            if steps[..n].iter().any(|other| other.word == step.word) {
                return Err(mistake(
                    format!("[matrix], `{key}`: expected every value once, found {} twice", step.name()),
                    "leave one out",
                ));
            }
        }
        axes.push(steps);
    }
    Ok(axes)
}

/// All combinations of the axes, the first axis slowest.
pub(crate) fn combinations(axes: &[Vec<Step>]) -> Vec<Vec<Step>> {
    let mut cells: Vec<Vec<Step>> = vec![vec![]];
    for steps in axes {
        let longer = |cell: &Vec<Step>| -> Vec<Vec<Step>> {
            steps.iter().map(|step| cell.iter().cloned().chain([step.clone()]).collect()).collect()
        };
        cells = cells.iter().flat_map(longer).collect();
    }
    cells
}

/// Longest name of a folder that is not cut.
const LONGEST: usize = 200;

/// The folder of a stage that these words reach: the kind, and the words without whatever could lead out of the folder or mean something
/// to a shell. A name that is too long ends in a hash of the whole.
pub(crate) fn folder_name(kind: &str, words: &[String]) -> String {
    if words.is_empty() {
        return kind.to_owned();
    }
    let all = words.iter().map(|word| escaped(word)).collect::<Vec<_>>().join(",");
    let name = format!("{kind}@{all}");
    if name.len() <= LONGEST {
        return name;
    }
    let hash = run::hash_bytes(name.as_bytes());
    format!("{}~{}", &name[..LONGEST - 17], &hash[..16])
}

/// Letters, digits and some marks as they are, all other bytes as `%XX`.
fn escaped(word: &str) -> String {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-_.=+ ".contains(&b);
    word.bytes().map(|b| if safe(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn all_combinations_come_once_the_first_axis_slowest() {
        let axes = axes(&table("\"a.x\" = [1, 2]\nm = [{ name = \"p\", set = { \"b.y\" = 3 } }]")).unwrap();
        let words: Vec<Vec<String>> =
            combinations(&axes).iter().map(|cell| cell.iter().map(|s| s.word.clone()).collect()).collect();
        assert_eq!(words, [["a.x=1", "m=p"], ["a.x=2", "m=p"]]);
    }

    #[test]
    fn an_axis_without_a_value_or_with_one_twice_is_an_error() {
        let error = |text: &str| axes(&table(text)).unwrap_err().to_string();
        assert!(error("\"a.x\" = []").contains("found an empty list"));
        assert!(error("\"a.x\" = [1, 1]").contains("found 1 twice"));
        assert!(error("\"a.x\" = 1").contains("expected a list"));
    }

    #[test]
    fn a_value_never_becomes_a_path() {
        let of = |word: &str| folder_name("data", &[word.to_owned()]);
        assert_eq!(of("dpo.beta=0.1"), "data@dpo.beta=0.1");
        assert_eq!(of("data.path=../../etc"), "data@data.path=..%2F..%2Fetc");
        assert_eq!(of("a=x,b"), "data@a=x%2Cb", "a comma stands between words");
        assert_ne!(folder_name("d", &["a=x,b=y".into()]), folder_name("d", &["a=x".into(), "b=y".into()]));
        let (long, other) = ("x".repeat(500), "x".repeat(501));
        assert!(of(&long).len() <= LONGEST);
        assert_ne!(of(&long), of(&other));
        assert_eq!(folder_name("data", &[]), "data");
    }
}
