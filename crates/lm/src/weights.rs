//! safetensors in and out, strictly.
#![expect(unsafe_code, reason = "files are memory-mapped")]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use device::Checked;
use problem::{Result, bug, invalid};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::folder;

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
    read_into(path, Source::Copied(device, kind), &mut out)?;
    Ok(out)
}

/// The tensors of one file on the CPU, whose numbers are read when they are looked at, and are not written back when they are
/// changed. For files that are replaced and never written in place, as [`write_tensors`] does it.
pub fn map_tensors(path: &Path) -> Result<Tensors> {
    let mut out = Tensors { place: path.display().to_string(), ..Tensors::default() };
    read_into(path, Source::Mapped, &mut out)?;
    Ok(out)
}

/// What becomes of a file's bytes.
#[derive(Clone, Copy)]
enum Source {
    Copied(Device, Option<Kind>),
    Mapped,
}

fn read_into(path: &Path, source: Source, out: &mut Tensors) -> Result<()> {
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
    // SAFETY: the map is read-only and lives shorter than this function; tensors are copied out of it, or map the file
    // themselves. A file that another process cuts meanwhile would fault: files of ours are never written in place.
    let map = unsafe { memmap2::Mmap::map(file.file())? };
    let file = SafeTensors::deserialize(&map).map_err(|e| damaged(e.to_string()))?;
    let (_, metadata) = SafeTensors::read_metadata(&map).map_err(|e| damaged(e.to_string()))?;
    out.metadata.extend(metadata.metadata().clone().unwrap_or_default());
    let bytes = match source {
        Source::Mapped => {
            let name = path.to_str().ok_or_else(|| damaged("a name that is not UTF-8".into()))?;
            Some(Tensor::f_from_file(name, false, map.len() as i64, (Kind::Uint8, Device::Cpu)).checked()?)
        }
        Source::Copied(..) => None,
    };
    for (name, view) in file.iter() {
        let stored = kind_of(view.dtype())
            .ok_or_else(|| damaged(format!("tensor `{name}` of type {:?}, which is not read", view.dtype())))?;
        let shape: Vec<i64> = view.shape().iter().map(|d| *d as i64).collect();
        let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
        let aligned = start.is_multiple_of(stored.elt_size_in_bytes());
        let tensor = match &bytes {
            Some(bytes) if aligned && !view.data().is_empty() => bytes
                .narrow(0, start as i64, view.data().len() as i64)
                .f_view_dtype(stored)
                .checked()?
                .view(shape.as_slice()),
            _ => Tensor::f_from_data_size(view.data(), &shape, stored).checked()?,
        };
        let tensor = match source {
            Source::Mapped => tensor,
            Source::Copied(device, kind) => {
                tensor.to_device(device).to_kind(kind.filter(|_| stored != Kind::Int64).unwrap_or(stored))
            }
        };
        out.by_name.insert(name.to_owned(), tensor);
    }
    Ok(())
}

/// Reads a model folder's `model.safetensors`, or the shards that `model.safetensors.index.json` names.
pub fn read_folder(folder: &Path, device: Device, kind: Kind) -> Result<Tensors> {
    let mut out = Tensors { place: folder.display().to_string(), ..Tensors::default() };
    for path in weight_files(folder)? {
        read_into(&path, Source::Copied(device, Some(kind)), &mut out)?;
    }
    Ok(out)
}

/// The safetensors files of a model folder: `model.safetensors`, or the shards that its index names.
///
/// # Errors
/// Neither; a shard that is missing.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(folder::without_weights(folder));
    }
    let value: Value = run::read_json(&index)?;
    let map = value["weight_map"].as_object().ok_or_else(|| {
        invalid(index.display(), "an object `weight_map`", value["weight_map"].to_string(), "fetch the file again")
    })?;
    let plain = |name: &str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    let mut names = std::collections::BTreeSet::new();
    for value in map.values() {
        let wrong =
            || invalid(index.display(), "names of files in the same folder", value.to_string(), "fetch the file again");
        names.insert(value.as_str().filter(|name| plain(name)).ok_or_else(wrong)?);
    }
    if names.is_empty() {
        return Err(invalid(
            index.display(),
            "an object `weight_map` that names files",
            "none",
            "fetch the file again",
        ));
    }
    let missing: Vec<&str> = names.iter().copied().filter(|name| !folder.join(name).exists()).collect();
    if !missing.is_empty() {
        let (expected, found) = ("every file that it names", format!("none named {}", missing.join(", ")));
        return Err(invalid(index.display(), expected, found, "fetch the missing files"));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Writes tensors with metadata, whole or not at all. Same tensors, same bytes.
///
/// One tensor after the other goes to the file: none of those on the CPU is copied.
///
/// At most one metadata entry: the library writes them in the order of a hash map, which differs from run to run.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)], metadata: Option<(&str, String)>) -> Result<()> {
    let mut written = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::BFloat16 => Dtype::BF16,
            Kind::Half => Dtype::F16,
            Kind::Double => Dtype::F64,
            Kind::Int64 => Dtype::I64,
            other => {
                return Err(bug(path.display(), "a float or int64 tensor", format!("{name}: {other:?}")));
            }
        };
        let shape: Vec<usize> = tensor.size().iter().map(|d| *d as usize).collect();
        written.push((name.as_str(), Written { tensor, dtype, shape }));
    }
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_owned(), value)]));
    run::write_aside(path, |aside| match safetensors::serialize_to_file(written, metadata, aside) {
        Ok(()) => Ok(()),
        Err(safetensors::SafeTensorError::IoError(error)) => Err(error.into()),
        Err(error) => Err(bug(path.display(), "tensors that can be written", error.to_string())),
    })
}

/// A tensor on the CPU, contiguous, as it goes into a file.
struct Written {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for Written {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.data_len() == 0 {
            return Cow::Borrowed(&[]);
        }
        // SAFETY: a contiguous tensor on the CPU holds so many bytes, for as long as `self` holds it.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), self.data_len()) })
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
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
    fn a_mapped_file_reads_the_same_and_is_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_tensors(&path, &tensors(), None).unwrap();
        let before = fs_err::read(&path).unwrap();
        let mut mapped = map_tensors(&path).unwrap();
        let b = mapped.take("b.weight", &[2, 3]).unwrap();
        assert_eq!(b, tensors()[0].1);
        assert_eq!(mapped.take("a.weight", &[2]).unwrap(), tensors()[1].1);
        _ = b.shallow_clone().fill_(7.0);
        assert_eq!((b.double_value(&[1, 1]), fs_err::read(&path).unwrap()), (7.0, before));
        // A file that takes its place does not reach what was mapped.
        write_tensors(&path, &[("b.weight".into(), Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)))], None).unwrap();
        assert_eq!(b.double_value(&[1, 1]), 7.0);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_tensors(&path, &tensors(), None).unwrap();
        let whole = fs_err::read(&path).unwrap();
        for length in 0..whole.len() {
            fs_err::write(&path, &whole[..length]).unwrap();
            for error in [read_tensors(&path, Device::Cpu, None).unwrap_err(), map_tensors(&path).unwrap_err()] {
                assert!(error.to_string().contains("x.safetensors"), "{length}: {error}");
            }
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
