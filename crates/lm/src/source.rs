//! The weights of a model folder, memory-mapped, taken out by their published names.
#![expect(unsafe_code, reason = "files are memory-mapped and lent to libtorch")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::path::Path;
use std::sync::Arc;

use device::Compute;
use memmap2::Mmap;
use problem::{Result, invalid};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::cpu::call;
use crate::finite;
use crate::parts::{LayerNorm, Linear};
use crate::quantised::QUANTISED_HINT;
use crate::weights::{kind_of, weight_files};

unsafe extern "C" {
    fn idiolect_borrow(
        data: *const c_void,
        sizes: *const i64,
        axes: usize,
        kind: i32,
        owner: *const c_void,
        release: extern "C" fn(*const c_void),
        message: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
}

/// One tensor of a mapped file.
#[derive(Debug)]
struct Entry {
    map: Arc<Mmap>,
    offset: usize,
    shape: Vec<i64>,
    dtype: Dtype,
}

impl Entry {
    fn bytes(&self) -> &[u8] {
        let numbers: usize = self.shape.iter().map(|d| *d as usize).product();
        let size = kind_of(self.dtype).map_or(0, Kind::elt_size_in_bytes);
        &self.map[self.offset..][..numbers * size]
    }
}

/// Where the `index`-th number of a tensor of this shape is.
fn coordinates(mut index: usize, shape: &[i64]) -> Vec<usize> {
    let mut out: Vec<usize> = Vec::with_capacity(shape.len());
    for size in shape.iter().rev() {
        out.push(index % *size as usize);
        index /= *size as usize;
    }
    out.reverse();
    out
}

/// A linear layer of a block, which adapters can sit on.
#[derive(Debug)]
pub struct Layer {
    /// As the checkpoint spells it, such as `model.layers.3.self_attn.q_proj`.
    pub path: String,
    /// The block's index.
    pub block: usize,
    /// `[out, in]`
    pub(crate) weight: Tensor,
    /// Does the checkpoint store `[in, out]`?
    pub transposed: bool,
}

impl Layer {
    /// The last part of its path, such as `q_proj`.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// (in, out)
    pub fn shape(&self) -> (i64, i64) {
        let size = self.weight.size();
        (size[1], size[0])
    }
}

/// A model folder's weights while a model is built of them.
#[derive(Debug)]
pub(crate) struct Source {
    place: String,
    entries: RefCell<BTreeMap<String, Entry>>,
    layers: RefCell<Vec<Layer>>,
    device: Device,
    kind: Kind,
}

impl Source {
    /// Maps the folder's safetensors files.
    pub(crate) fn open(folder: &Path, compute: &Compute) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for path in weight_files(folder)? {
            map_file(&path, &mut entries)?;
        }
        Ok(Self {
            place: folder.display().to_string(),
            entries: RefCell::new(entries),
            layers: RefCell::default(),
            device: compute.device,
            kind: compute.kind,
        })
    }

    /// The top of the name tree.
    pub(crate) fn root(&self) -> Scope<'_> {
        Scope { source: self, prefix: String::new(), block: None }
    }

    /// Fails with the names of whatever was not taken; gives the layers that were.
    pub(crate) fn finish(self) -> Result<Vec<Layer>> {
        let rest: Vec<String> = self.entries.into_inner().into_keys().collect();
        if rest.is_empty() {
            return Ok(self.layers.into_inner());
        }
        let expected = "no tensor beyond those that the configuration describes";
        Err(invalid(self.place, expected, rest.join(", "), "config.json and the weights must belong together"))
    }

    fn take(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let entry = self.entries.borrow_mut().remove(name);
        let entry = entry.ok_or_else(|| {
            let left: Vec<String> = self.entries.borrow().keys().take(8).cloned().collect();
            let found = format!("none of that name (not yet taken: {}, ...)", left.join(", "));
            invalid(&self.place, format!("the tensor `{name}`"), found, "is this the model that config.json describes?")
        })?;
        let place = || format!("{}, tensor `{name}`", self.place);
        if entry.shape != shape {
            let (expected, found) = (format!("shape {shape:?}"), format!("{:?}", entry.shape));
            return Err(invalid(place(), expected, found, "config.json and the weights must belong together"));
        }
        let kind = kind_of(entry.dtype).filter(|k| *k != Kind::Int64).ok_or_else(|| {
            let found = format!("{:?}", entry.dtype);
            invalid(place(), "float32, float16 or bfloat16", found, QUANTISED_HINT)
        })?;
        if let Some(index) = finite::first_that_is_not(entry.bytes(), kind) {
            let found = format!("{} at {:?}", finite::spelled(entry.bytes(), kind, index), coordinates(index, shape));
            let hint = "the weights are damaged, or come of a training that diverged or overflowed in float16: take another checkpoint";
            return Err(invalid(place(), "finite numbers", found, hint));
        }
        Ok(borrow(&entry, kind).to_device(self.device).to_kind(self.kind))
    }
}

fn map_file(path: &Path, entries: &mut BTreeMap<String, Entry>) -> Result<()> {
    let damaged = |found: String| {
        let hint = "the file is damaged or cut: fetch or write it again";
        invalid(path.display(), "a whole safetensors file", found, hint)
    };
    let file = fs_err::File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Err(damaged("an empty file".into()));
    }
    // SAFETY: the map is read-only and lives as long as any tensor that borrows of it. A file that another process cuts
    // meanwhile would fault: folders of ours are never written in place.
    let map = Arc::new(unsafe { Mmap::map(file.file())? });
    let tensors = SafeTensors::deserialize(&map).map_err(|e| damaged(e.to_string()))?;
    for (name, view) in tensors.iter() {
        let entry = Entry {
            map: Arc::clone(&map),
            offset: view.data().as_ptr() as usize - map.as_ptr() as usize,
            shape: view.shape().iter().map(|d| *d as i64).collect(),
            dtype: view.dtype(),
        };
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(damaged(format!("the tensor `{name}`, which another file of the folder holds as well")));
        }
    }
    Ok(())
}

/// libtorch's number of a type (c10/core/ScalarType.h).
fn scalar_type(kind: Kind) -> i32 {
    match kind {
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::BFloat16 => 15,
        other => unreachable!("{other:?} is not a type of weights"),
    }
}

/// A tensor over mapped bytes: nothing is copied, and the map lives as long as the tensor.
fn borrow(entry: &Entry, kind: Kind) -> Tensor {
    extern "C" fn release(owner: *const c_void) {
        // SAFETY: `owner` is what `Arc::into_raw` gave below, and libtorch calls this once.
        drop(unsafe { Arc::from_raw(owner.cast::<Mmap>()) });
    }
    let data = entry.map[entry.offset..].as_ptr().cast();
    let owner = Arc::into_raw(Arc::clone(&entry.map)).cast();
    // SAFETY: shape and offset come from a header that the safetensors library has checked against the file's length, and
    // the owner keeps the bytes mapped. They are read-only: nothing writes into the base's weights.
    call(|message, capacity| unsafe {
        let (sizes, axes) = (entry.shape.as_ptr(), entry.shape.len());
        idiolect_borrow(data, sizes, axes, scalar_type(kind), owner, release, message, capacity)
    })
}

/// A place in the tree of names, as in `model.layers.3`.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    source: &'a Source,
    prefix: String,
    block: Option<usize>,
}

impl Scope<'_> {
    /// One name further.
    pub(crate) fn pp(&self, name: &str) -> Self {
        Scope { source: self.source, prefix: format!("{}{name}.", self.prefix), block: self.block }
    }

    /// The block `index` of a list of blocks.
    pub(crate) fn block(&self, list: &str, index: usize) -> Self {
        Scope { block: Some(index), ..self.pp(&format!("{list}.{index}")) }
    }

    pub(crate) fn device(&self) -> Device {
        self.source.device
    }

    pub(crate) fn kind(&self) -> Kind {
        self.source.kind
    }

    /// Puts `base_prefix` in front of all names where a checkpoint was saved without it, and drops `buffers`.
    pub(crate) fn prepare(&self, base_prefix: &str, buffers: &[&str]) {
        let mut entries = self.source.entries.borrow_mut();
        entries.retain(|name, _| !buffers.iter().any(|b| name.ends_with(&format!(".{b}"))));
        let front = format!("{base_prefix}.");
        if !entries.keys().any(|name| name.starts_with(&front)) {
            let heads = ["lm_head.", "embed_out."];
            let renamed = std::mem::take(&mut *entries).into_iter().map(|(name, entry)| {
                let keep = heads.iter().any(|h| name.starts_with(h));
                (if keep { name } else { format!("{front}{name}") }, entry)
            });
            *entries = renamed.collect();
        }
    }

    /// Takes tensors named `new` as `old`, where a later writer renamed them.
    pub(crate) fn also_called(&self, old: &str, new: &str) {
        let mut entries = self.source.entries.borrow_mut();
        if !entries.contains_key(old)
            && let Some(entry) = entries.remove(new)
        {
            entries.insert(old.to_owned(), entry);
        }
    }

    /// A tensor of exactly this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.source.take(&format!("{}{name}", self.prefix), shape)
    }

    /// A linear layer whose weight is stored `[out, in]`.
    pub(crate) fn linear(&self, name: &str, input: i64, output: i64, bias: bool) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[output, input])?;
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"), &[output])?) } else { None };
        Ok(self.register(name, weight, bias, false))
    }

    /// A linear layer with a bias whose weight is stored `[in, out]`: GPT-2's Conv1D.
    pub(crate) fn conv1d(&self, name: &str, input: i64, output: i64) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[input, output])?.tr();
        let bias = self.tensor(&format!("{name}.bias"), &[output])?;
        Ok(self.register(name, weight, Some(bias), true))
    }

    fn register(&self, name: &str, weight: Tensor, bias: Option<Tensor>, transposed: bool) -> Linear {
        let block = self.block.expect("a linear layer is part of a block");
        let mut layers = self.source.layers.borrow_mut();
        let path = format!("{}{name}", self.prefix);
        layers.push(Layer { path, block, weight: weight.shallow_clone(), transposed });
        Linear::new(Some(layers.len() - 1), weight, bias)
    }

    /// Scale and shift of a layer norm.
    pub(crate) fn layer_norm(&self, name: &str, size: i64, epsilon: f64) -> Result<LayerNorm> {
        let scope = self.pp(name);
        Ok(LayerNorm::new(scope.tensor("weight", &[size])?, scope.tensor("bias", &[size])?, epsilon))
    }

    /// The vocabulary projection, or the embedding `tied` in its place. A tied copy that a checkpoint stores as well must
    /// be the same.
    pub(crate) fn head(
        &self,
        name: &str,
        tied: Option<&Tensor>,
        input: i64,
        output: i64,
        bias: bool,
    ) -> Result<Linear> {
        let weight_name = format!("{}{name}.weight", self.prefix);
        let stored = self.source.entries.borrow().contains_key(&weight_name);
        let weight = match tied {
            Some(embedding) => {
                if stored && self.tensor(&format!("{name}.weight"), &[output, input])? != *embedding {
                    let place = format!("{}, tensor `{weight_name}`", self.source.place);
                    let hint = "config.json and the weights must belong together";
                    return Err(invalid(
                        place,
                        "a copy of the embedding, which config.json ties it to",
                        "other numbers",
                        hint,
                    ));
                }
                embedding.shallow_clone()
            }
            None => self.tensor(&format!("{name}.weight"), &[output, input])?,
        };
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"), &[output])?) } else { None };
        Ok(Linear::new(None, weight, bias))
    }
}
