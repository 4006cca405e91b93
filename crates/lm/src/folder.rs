//! What a folder is that is given as a model, and which of its files belong to the model beside its weights.

use std::io::Read;
use std::path::{Path, PathBuf};

use problem::{Problem, Result, invalid};
use serde_json::Value;

use crate::quantised::QUANTISED_HINT;

/// Says what a folder is that is no model folder, and what to do about it. A folder that may be one passes.
///
/// # Errors
/// No such folder; a file; an adapter; files that Git LFS has not fetched; a cache of the Hugging Face Hub; checkpoints of a training;
/// weights in another format; quantised weights; nothing in it.
pub fn recognise(folder: &Path) -> Result<()> {
    let wrong = |found: String, hint: String| Err(invalid(folder.display(), MODEL, found, hint));
    if folder.is_file() {
        let gguf = starts_with(folder, b"GGUF");
        let (found, hint) = if gguf {
            ("a GGUF file", "make a folder of it with `idiolect import FILE FOLDER`")
        } else {
            ("a file", "name the folder that it is in")
        };
        return wrong(found.into(), hint.into());
    }
    if !folder.is_dir() {
        return wrong("no folder of that name".into(), "check the path".into());
    }
    let names = names_in(folder)?;
    if names.is_empty() {
        return wrong("an empty folder".into(), "name the folder that the model's files are in".into());
    }
    let has = |name: &str| names.iter().any(|n| n == name);
    refuse_pointers(folder)?;
    if has("adapter_config.json") && !has("config.json") {
        return Err(adapter(folder));
    }
    for name in
        ["quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json", "qmodel.pt"]
    {
        if has(name) {
            return wrong(format!("quantised weights, of which `{name}` tells"), QUANTISED_HINT.into());
        }
    }
    if has("config.json") {
        return Ok(());
    }
    if let Some((found, hint)) = within(folder, &names) {
        return wrong(found, hint);
    }
    let (found, hint) = other_weights(&names).unwrap_or_else(|| {
        let found = format!("no config.json in it; it has {}", some_of(&names));
        (found, "name the folder that config.json and the weights are in".into())
    });
    wrong(found, hint)
}

const MODEL: &str = "a Hugging Face model folder (config.json, tokenizer.json, safetensors)";

/// A folder with a config.json and without weights that are read.
pub(crate) fn without_weights(folder: &Path) -> Problem {
    let names = names_in(folder).unwrap_or_default();
    if names.iter().any(|name| name == "adapter_config.json") {
        return adapter(folder);
    }
    let (found, hint) = other_weights(&names).unwrap_or_else(|| {
        let found = format!("no weights; the folder has {}", some_of(&names));
        (found, "point at a folder with weights, or make one with `idiolect import`".into())
    });
    invalid(folder.display(), "model.safetensors or model.safetensors.index.json", found, hint)
}

/// Names of files and folders, in order.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let mut names = fs_err::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 8 { format!("{shown} and {} more", names.len() - 8) } else { shown }
}

fn starts_with(file: &Path, beginning: &[u8]) -> bool {
    let mut bytes = vec![0; beginning.len()];
    fs_err::File::open(file).and_then(|mut f| f.read_exact(&mut bytes)).is_ok_and(|()| bytes == beginning)
}

/// Does a file begin as GGUF files do?
pub fn is_gguf(file: &Path) -> bool {
    starts_with(file, b"GGUF")
}

/// What Git LFS leaves in the place of a file that it has not fetched.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses a folder with files that Git LFS has not fetched.
///
/// # Errors
/// Such files, by name.
pub fn refuse_pointers(folder: &Path) -> Result<()> {
    // Other weights, which nobody reads, may stay pointers.
    let read = |name: &String| is_companion(name) || name.ends_with(".safetensors");
    let is_pointer = |name: &String| folder.join(name).is_file() && starts_with(&folder.join(name), POINTER);
    let pointers: Vec<String> = names_in(folder)?.into_iter().filter(|name| read(name) && is_pointer(name)).collect();
    if pointers.is_empty() {
        return Ok(());
    }
    let found = format!("pointers of Git LFS in the place of {}", some_of(&pointers));
    let hint = "fetch the files themselves: `git lfs pull` in the clone, or download the model again";
    Err(invalid(folder.display(), "the model's files", found, hint))
}

fn adapter(folder: &Path) -> Problem {
    let config: Value = run::read_json(&folder.join("adapter_config.json")).unwrap_or_default();
    let base = config["base_model_name_or_path"].as_str().unwrap_or("a base that it does not name");
    let kind = config["peft_type"].as_str().unwrap_or("unknown kind");
    let hint = format!(
        "give its base, {base}, as the model, and this folder as the adapter (`--adapter`), or merge the two first"
    );
    invalid(folder.display(), MODEL, format!("a PEFT adapter ({kind}) of {base}"), hint)
}

/// A folder of the Hub's cache, or of a training's checkpoints: the model is further down.
fn within(folder: &Path, names: &[String]) -> Option<(String, String)> {
    let snapshots = if names.iter().any(|n| n == "snapshots") { folder.join("snapshots") } else { folder.to_owned() };
    if names.iter().any(|n| n == "snapshots") || folder.file_name().is_some_and(|name| name == "snapshots") {
        let main = fs_err::read_to_string(snapshots.join("../refs/main")).map(|commit| snapshots.join(commit.trim()));
        let all = names_in(&snapshots).ok()?;
        let one = main.ok().filter(|path| path.is_dir()).or_else(|| all.first().map(|name| snapshots.join(name)))?;
        let found = "a model's folder in the cache of the Hugging Face Hub".into();
        return Some((found, format!("name the snapshot in it: {}", one.display())));
    }
    if let Some(model) = names.iter().find(|n| n.starts_with("models--")) {
        let found = format!("a cache of the Hugging Face Hub, with {model} and others");
        let hint =
            format!("name a snapshot in it, such as {}", folder.join(model).join("snapshots/<commit>").display());
        return Some((found, hint));
    }
    let inner: Vec<&String> = names.iter().filter(|n| folder.join(n).join("config.json").exists()).collect();
    let step = |name: &str| name.rsplit_once('-').and_then(|(_, n)| n.parse::<u64>().ok());
    let adapters = |name: &&String| folder.join(name).join("adapter_config.json").exists();
    let checkpoints: Vec<&String> =
        names.iter().filter(|n| n.starts_with("checkpoint-") && step(n).is_some() && folder.join(n).is_dir()).collect();
    if let Some(newest) = checkpoints.iter().max_by_key(|n| step(n)) {
        let kind = if adapters(newest) { " of adapters" } else { "" };
        let found = format!("{} checkpoints{kind} of a training", checkpoints.len());
        return Some((found, format!("name one of them, such as {}", folder.join(newest).display())));
    }
    let first = inner.first()?;
    let found = format!(
        "no config.json in it, but one in {}",
        some_of(&inner.iter().map(|n| (*n).clone()).collect::<Vec<_>>())
    );
    Some((found, format!("name the folder itself: {}", folder.join(first).display())))
}

/// Weights in formats that are not read.
fn other_weights(names: &[String]) -> Option<(String, String)> {
    let ends =
        |endings: &[&str]| names.iter().find(|name| endings.iter().any(|ending| name.to_lowercase().ends_with(ending)));
    let convert = "convert them once: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) of Python's transformers \
                   writes safetensors; copy the tokenizer's files";
    let original = |name: &&String| name.starts_with("consolidated.");
    if let Some(name) = names.iter().find(original) {
        let hint = "take the model's Hugging Face folder (config.json and model*.safetensors), or convert these with the script \
                    of Python's transformers for the family (convert_*_weights_to_hf.py)";
        return Some((format!("weights in the authors' own layout, such as {name}"), hint.into()));
    }
    if let Some(name) = names.iter().find(|name| name.ends_with(".safetensors")) {
        let hint = "weights are read from model.safetensors, or from the files that model.safetensors.index.json names: fetch the index, \
                    or rename a single file";
        return Some((format!("{name} without an index"), hint.into()));
    }
    if let Some(name) = ends(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return Some((
            format!("weights as pickled tensors, {name}: pickle can run any code and is never read"),
            convert.into(),
        ));
    }
    if let Some(name) = ends(&[".gguf"]) {
        let hint = format!("make a folder of the file with `idiolect import {name} FOLDER`");
        return Some((format!("a GGUF file, {name}"), hint));
    }
    let foreign = [
        (&[".onnx"][..], "ONNX", "take the model's safetensors"),
        (
            &[".h5", ".tflite", ".pb"],
            "TensorFlow",
            "take the model's safetensors, or convert them: from_pretrained(FOLDER, from_tf=True) \
                                       of transformers 4",
        ),
        (
            &[".msgpack"],
            "Flax",
            "take the model's safetensors, or convert them: from_pretrained(FOLDER, from_flax=True) of transformers 4",
        ),
        (&[".npz"], "NumPy or MLX", "take the model's safetensors"),
    ];
    foreign.iter().find_map(|(endings, program, hint)| {
        ends(endings).map(|name| (format!("weights for {program}, {name}"), (*hint).to_owned()))
    })
}

/// Files beside a model's weights that travel with it, and those that do not.
#[derive(Debug, Default)]
pub struct Companions {
    /// Paths below the folder, in order.
    pub files: Vec<PathBuf>,
    /// Names that are left: other weights, code, pictures, folders.
    pub left: Vec<String>,
}

/// Endings of what does not travel whatever its name is: weights, archives, code.
const LEFT: [&str; 14] =
    ["safetensors", "bin", "pt", "pth", "h5", "onnx", "gguf", "npz", "pkl", "zip", "gz", "py", "ipynb", "bak"];

/// What this program itself writes into the folder of a stage: no part of a model.
const STAGES: [&str; 7] =
    ["manifest.json", "config.toml", "metrics.jsonl", "log.txt", "report.json", "policies.safetensors", "lanes.json"];

/// The folder of further chat templates, of which only Jinja files are taken.
const TEMPLATES: &str = "additional_chat_templates";

fn is_template(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending == "jinja")
}

/// A file that is larger is no companion of a model. Tokenizers of 256,000 tokens take about 35 MB.
const MOST_BYTES: u64 = 128 << 20;

/// Beginnings of the names of what travels, in lower case: tokenizers, chat templates, licences, notices.
const BEGIN: [&str; 7] = ["tokenizer", "vocab", "chat_template", "licen", "copying", "notice", "use_policy"];

/// Endings of the names of what travels.
const END: [&str; 6] = ["_config.json", "tokens.json", "_map.json", ".tiktoken", ".model", ".md"];

/// Does a file of this name, a path below a model's folder, travel with a model: configuration, tokenizer, chat templates, licence,
/// notices, the model's own page? What is not known to belong to these, such as somebody's training data, stays.
pub fn is_companion(name: &str) -> bool {
    if let Some((folder, name)) = name.split_once('/') {
        return folder == TEMPLATES && is_template(name);
    }
    let name = name.to_lowercase();
    let ending = Path::new(&name).extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
    let known = ["config.json", "merges.txt", "tekken.json"].contains(&name.as_str())
        || BEGIN.iter().any(|begin| name.starts_with(begin))
        || END.iter().any(|end| name.ends_with(end));
    known && name != "adapter_config.json" && !name.starts_with('.') && !LEFT.contains(&ending.as_str())
}

/// The files of a model folder beside its weights: everything small that is no weight, no code and no picture.
///
/// # Errors
/// A folder that cannot be read.
pub fn companions(folder: &Path) -> Result<Companions> {
    let mut kept = Companions::default();
    for name in names_in(folder)? {
        let path = folder.join(&name);
        if name == TEMPLATES && path.is_dir() {
            let inner = names_in(&path)?.into_iter().filter(|n| is_template(n)).map(|n| Path::new(TEMPLATES).join(n));
            kept.files.extend(inner);
        } else if path.is_file() && is_companion(&name) && fs_err::metadata(&path)?.len() <= MOST_BYTES {
            kept.files.push(name.into());
        } else if !name.starts_with('.') && !STAGES.contains(&name.as_str()) {
            kept.left.push(name);
        }
    }
    Ok(kept)
}

/// Copies a model's companions from one folder to another.
///
/// # Errors
/// A file that cannot be read or written.
pub fn copy_companions(from: &Path, to: &Path) -> Result<Companions> {
    let kept = companions(from)?;
    for file in &kept.files {
        if let Some(parent) = file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs_err::create_dir_all(to.join(parent))?;
        }
        fs_err::copy(from.join(file), to.join(file))?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokenizer_template_and_licence_files_are_companions_and_weights_code_and_our_own_files_are_not() {
        for name in [
            "config.json",
            "tokenizer.model",
            "added_tokens.json",
            "vocab.json",
            "merges.txt",
            "vocab.txt",
            "special_tokens_map.json",
            "chat_template.json",
            "chat_template.jinja",
            "preprocessor_config.json",
            "LICENSE",
            "LICENSE.txt",
            "NOTICE",
            "USE_POLICY.md",
            "README.md",
            "tekken.json",
            "qwen.tiktoken",
            "generation_config.json",
            "chat_template_date.txt",
        ] {
            assert!(is_companion(name), "{name}");
        }
        for name in [
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "modeling_x.py",
            ".gitattributes",
            "tf_model.h5",
            "flax_model.msgpack",
            "manifest.json",
            "report.json",
            "picture.PNG",
            "consolidated.00.pth",
            "adapter_config.json",
            "model.safetensors.bak",
            "train.jsonl",
            "data.csv",
            "secrets.env",
            "id_rsa",
            "tokenizer.bin",
            "trainer_state.json",
        ] {
            assert!(!is_companion(name), "{name}");
        }
    }
}
