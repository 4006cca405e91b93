//! `config.json` of any family.

use std::path::Path;

use problem::{Result, invalid};
use serde_json::Value;

use crate::families;
use crate::folder;
use crate::shape::Shape;

/// A folder's `config.json`, read and checked.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// `model_type`
    pub model_type: String,
    /// Sizes.
    pub shape: Shape,
    pub(crate) kind: families::Kind,
    pub(crate) value: Value,
    pub(crate) place: String,
}

impl ModelConfig {
    /// Reads `config.json`. What this code does not compute is refused, never ignored.
    pub fn read(folder: &Path) -> Result<Self> {
        folder::recognise(folder)?;
        let path = folder.join("config.json");
        let place = path.display().to_string();
        let value: Value = serde_json::from_slice(&fs_err::read(&path)?)
            .map_err(|e| invalid(&place, "JSON", e.to_string(), "fetch the model's config.json again"))?;
        let model_type = value["model_type"].as_str().unwrap_or_default().to_owned();
        let Some((_, kind)) = families::KINDS.iter().find(|(name, _)| *name == model_type) else {
            let names = families::KINDS.map(|(name, _)| format!("`{name}`")).join(", ");
            let place = format!("{place}, `model_type`");
            return Err(invalid(place, names, value["model_type"].to_string(), "this model is not supported yet"));
        };
        let shape = families::shape(*kind, &value, &place)?;
        Ok(Self { model_type, shape, kind: *kind, value, place })
    }
}
