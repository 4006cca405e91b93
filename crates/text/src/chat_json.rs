//! `tojson` as transformers gives it to templates.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::chat_limits::{BUDGET, ELEMENT, spend};

/// Python's `json.dumps(value, ensure_ascii=False)`, as transformers gives templates: a space after commas and colons,
/// nothing escaped for HTML.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a minijinja filter")]
pub(crate) fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(value, indent, sort_keys.unwrap_or(false), 0, &mut out)?;
    Ok(out)
}

/// Levels of lists and maps inside each other; Python's own limit is 1000.
const DEEPEST: usize = 200;

fn write_json(
    value: &Value,
    indent: Option<usize>,
    sort_keys: bool,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    if depth > DEEPEST {
        let text = format!("tojson: more than {DEEPEST} lists and maps inside each other");
        return Err(Error::new(ErrorKind::InvalidOperation, text));
    }
    let line = |depth: usize, out: &mut String| -> Result<(), Error> {
        if let Some(width) = indent {
            let spaces = width.saturating_mul(depth).min(BUDGET + 1);
            spend(spaces + 1)?;
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', spaces));
        }
        Ok(())
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if sort_keys {
                keys.sort();
            }
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out)?;
                plain_json(&Value::from(key.to_string()), out)?;
                out.push_str(": ");
                write_json(&value.get_item(key)?, indent, sort_keys, depth + 1, out)?;
            }
            if !keys.is_empty() {
                line(depth, out)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out)?;
                write_json(item, indent, sort_keys, depth + 1, out)?;
            }
            if !items.is_empty() {
                line(depth, out)?;
            }
            out.push(']');
        }
        _ => plain_json(value, out)?,
    }
    Ok(())
}

fn plain_json(value: &Value, out: &mut String) -> Result<(), Error> {
    let text = serde_json::to_string(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    spend(text.len() + ELEMENT)?;
    out.push_str(&text);
    Ok(())
}
