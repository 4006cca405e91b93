//! safetensors in and out, strictly.
#![expect(unsafe_code, reason = "files are memory-mapped")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::error::invalid;

/// Tensors by name, and the file's metadata.
#[derive(Debug, Default)]
pub struct Tensors {
    /// Where they were read from, for messages.
    pub place: String,
    /// By published name.
    pub by_name: BTreeMap<String, Tensor>,
    /// The header's `__metadata__`.
    pub metadata: HashMap<String, String>,
}

impl Tensors {
    /// Takes the tensor `name` out, of exactly this shape.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.by_name.remove(name).ok_or_else(|| {
            invalid(
                &self.place,
                format!("the tensor `{name}`"),
                "none of that name",
                "is this the model that config.json describes?",
            )
        })?;
        if tensor.size() != shape {
            return Err(invalid(
                format!("{}, tensor `{name}`", self.place),
                format!("shape {shape:?}"),
                format!("{:?}", tensor.size()),
                "config.json and the weights must belong together",
            ));
        }
        Ok(tensor)
    }

    /// Fails with the names of whatever was not taken.
    pub fn refuse_rest(&self) -> Result<()> {
        if self.by_name.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        Err(invalid(
            &self.place,
            "no tensor beyond those that the configuration describes",
            names.join(", "),
            "config.json and the weights must belong together",
        ))
    }
}

pub(crate) fn kind_of(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        Dtype::I64 => Some(Kind::Int64),
        _ => None,
    }
}

/// Reads every tensor of one file onto `device`; floating tensors are cast to `kind` if one is given.
pub fn read_tensors(path: &Path, device: Device, kind: Option<Kind>) -> Result<Tensors> {
    let mut out = Tensors { place: path.display().to_string(), ..Tensors::default() };
    read_into(path, device, kind, &mut out)?;
    Ok(out)
}

fn read_into(path: &Path, device: Device, kind: Option<Kind>, out: &mut Tensors) -> Result<()> {
    let file = fs_err::File::open(path)?;
    let damaged = |found: String| {
        invalid(
            path.display(),
            "a whole safetensors file",
            found,
            "the file is damaged or cut: fetch or write it again",
        )
    };
    if file.metadata()?.len() == 0 {
        return Err(damaged("an empty file".into()));
    }
    // SAFETY: the map is read-only and lives shorter than this function; tensors are copied out of it. A file that
    // another process cuts meanwhile would fault: folders of ours are never written in place.
    let map = unsafe { memmap2::Mmap::map(file.file())? };
    let file = SafeTensors::deserialize(&map).map_err(|e| damaged(e.to_string()))?;
    let (_, metadata) = SafeTensors::read_metadata(&map).map_err(|e| damaged(e.to_string()))?;
    out.metadata.extend(metadata.metadata().clone().unwrap_or_default());
    for (name, view) in file.iter() {
        let source = kind_of(view.dtype())
            .ok_or_else(|| damaged(format!("tensor `{name}` of type {:?}, which is not read", view.dtype())))?;
        let shape: Vec<i64> = view.shape().iter().map(|d| *d as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, source)?;
        let kind = kind.filter(|_| source != Kind::Int64).unwrap_or(source);
        out.by_name.insert(name.to_owned(), tensor.to_device(device).to_kind(kind));
    }
    Ok(())
}

/// Reads a model folder's `model.safetensors`, or the shards that `model.safetensors.index.json` names.
pub fn read_folder(folder: &Path, device: Device, kind: Kind) -> Result<Tensors> {
    let mut out = Tensors { place: folder.display().to_string(), ..Tensors::default() };
    for path in weight_files(folder)? {
        read_into(&path, device, Some(kind), &mut out)?;
    }
    Ok(out)
}

pub(crate) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(invalid(
            folder.display(),
            "model.safetensors or model.safetensors.index.json",
            "neither",
            "point at a folder with weights, or make one with `idiolect import`",
        ));
    }
    let value: Value = run::read_json(&index)?;
    let map = value["weight_map"].as_object().ok_or_else(|| {
        invalid(index.display(), "an object `weight_map`", value["weight_map"].to_string(), "fetch the file again")
    })?;
    let names: std::collections::BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Writes tensors with metadata, whole or not at all. Same tensors, same bytes.
///
/// At most one metadata entry: the library writes them in the order of a hash map, which differs from run to run.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)], metadata: Option<(&str, String)>) -> Result<()> {
    let mut buffers = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::BFloat16 => Dtype::BF16,
            Kind::Half => Dtype::F16,
            Kind::Int64 => Dtype::I64,
            other => {
                return Err(invalid(
                    path.display(),
                    "a float or int64 tensor",
                    format!("{name}: {other:?}"),
                    "report this as a bug",
                ));
            }
        };
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape: Vec<usize> = tensor.size().iter().map(|d| *d as usize).collect();
        buffers.push((name.clone(), dtype, shape, bytes));
    }
    let mut views = Vec::with_capacity(buffers.len());
    for (name, dtype, shape, bytes) in &buffers {
        let view = TensorView::new(*dtype, shape.clone(), bytes)
            .map_err(|e| invalid(name, "a tensor", e.to_string(), "report this as a bug"))?;
        views.push((name.as_str(), view));
    }
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_owned(), value)]));
    let bytes = safetensors::serialize(views, metadata)
        .map_err(|e| invalid(path.display(), "tensors that can be written", e.to_string(), "report this as a bug"))?;
    run::write_atomic(path, &bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<(String, Tensor)> {
        vec![
            ("b.weight".into(), Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3])),
            ("a.weight".into(), Tensor::from_slice(&[1.5f32, -2.0]).to_kind(Kind::BFloat16)),
        ]
    }

    #[test]
    fn what_is_written_is_read_back_and_the_bytes_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_tensors(&path, &tensors(), Some(("format", "pt".into()))).unwrap();
        let mut back = read_tensors(&path, Device::Cpu, None).unwrap();
        assert_eq!(back.metadata["format"], "pt");
        assert_eq!(back.take("b.weight", &[2, 3]).unwrap(), tensors()[0].1);
        assert_eq!(back.take("a.weight", &[2]).unwrap(), tensors()[1].1);
        back.refuse_rest().unwrap();
        let first = fs_err::read(&path).unwrap();
        write_tensors(&path, &tensors(), Some(("format", "pt".into()))).unwrap();
        assert_eq!(first, fs_err::read(&path).unwrap());
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_tensors(&path, &tensors(), None).unwrap();
        let whole = fs_err::read(&path).unwrap();
        for length in 0..whole.len() {
            fs_err::write(&path, &whole[..length]).unwrap();
            let error = read_tensors(&path, Device::Cpu, None).unwrap_err();
            assert!(error.to_string().contains("x.safetensors"), "{length}: {error}");
        }
    }

    #[test]
    fn missing_misshapen_and_left_over_tensors_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_tensors(&path, &tensors(), None).unwrap();
        let mut back = read_tensors(&path, Device::Cpu, None).unwrap();
        assert!(back.take("c", &[1]).unwrap_err().to_string().contains("`c`"));
        assert!(back.take("b.weight", &[3, 2]).unwrap_err().to_string().contains("[2, 3]"));
        assert!(back.refuse_rest().unwrap_err().to_string().contains("a.weight"));
    }
}
