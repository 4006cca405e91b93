//! A source's files: how they are encoded, and which local ones a folder or a pattern names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use problem::{Result, invalid};

use crate::input::Input;
use crate::varieties::{HEAD, variety};

/// In front of data sets of the hub.
pub(crate) const HUB: &str = "hf://datasets/";

/// How a file is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Parquet,
    /// An Arrow IPC file or stream.
    Arrow,
    /// JSON lines, or one JSON array of objects.
    Json,
    Csv {
        delimiter: u8,
    },
}

/// How a text file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// One file of a source.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    /// As messages name it.
    pub(crate) name: Arc<str>,
    /// As `source_row` names it: the path below what the user gave.
    pub(crate) short: Arc<str>,
    pub(crate) format: Format,
    pub(crate) packing: Packing,
    pub(crate) input: Input,
    /// Where it is on this machine; none of what is behind an address.
    pub(crate) path: Option<PathBuf>,
}

const KNOWN: &str = ".parquet, .arrow, .feather, .jsonl, .ndjson, .json, .csv or .tsv (texts also with .gz or .zst)";

impl SourceFile {
    pub(crate) fn new(name: String, short: String, input: Input) -> Result<Self> {
        let Some((format, packing)) = encoding(&short) else {
            let (found, hint) = match variety(&input.head(HEAD)?) {
                Some(found) => (found.what, found.hint),
                None => ("another ending", "rename the file as what it is"),
            };
            return Err(invalid(&name, format!("a file ending in {KNOWN}"), found, hint));
        };
        Ok(Self { name: name.into(), short: short.into(), format, packing, input, path: None })
    }
}

/// What a file name's ending says.
fn encoding(name: &str) -> Option<(Format, Packing)> {
    let lower = name.to_lowercase();
    let (bare, packing) = match lower.rsplit_once('.') {
        Some((bare, "gz")) => (bare, Packing::Gzip),
        Some((bare, "zst")) => (bare, Packing::Zstd),
        _ => (lower.as_str(), Packing::None),
    };
    let format = match bare.rsplit_once('.')?.1 {
        "parquet" | "pq" => Format::Parquet,
        "arrow" | "feather" | "ipc" => Format::Arrow,
        "jsonl" | "ndjson" | "json" => Format::Json,
        "csv" => Format::Csv { delimiter: b',' },
        "tsv" => Format::Csv { delimiter: b'\t' },
        _ => return None,
    };
    let packable = matches!(format, Format::Json | Format::Csv { .. });
    (packable || packing == Packing::None).then_some((format, packing))
}

/// The local files behind `sources`, for a fingerprint, each with its name as `source_row` gives it; remote ones are left out.
pub fn local_files(sources: &[String]) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for source in sources.iter().filter(|s| !is_remote(s)) {
        files.extend(local(source)?.files.into_iter().map(|(path, name)| {
            let name = with_partitions(&path, &name);
            (path, name)
        }));
    }
    Ok(files)
}

/// The name, after the folders `column=value` above it: they give the file's rows a column.
fn with_partitions(path: &Path, name: &str) -> String {
    let folders: Vec<_> = path.components().map(|c| c.as_os_str().to_string_lossy()).collect();
    let above = folders.len().saturating_sub(Path::new(name).components().count());
    let partitions = folders[..above].iter().filter(|folder| folder.contains('='));
    partitions.map(|folder| format!("{folder}/")).collect::<String>() + name
}

/// Is a source an address, and not a path?
pub fn is_remote(source: &str) -> bool {
    source.contains("://")
}

/// A local source's files, each with its path below what was given, and what a reader should know of others there.
#[derive(Debug, Default)]
pub(crate) struct Local {
    pub(crate) files: Vec<(PathBuf, String)>,
    pub(crate) remarks: Vec<String>,
}

/// The files of a local source: a file, a folder, or a pattern.
pub(crate) fn local(source: &str) -> Result<Local> {
    let path = Path::new(source);
    if path.is_dir() {
        return folder(source, path);
    }
    if path.exists() || !source.contains(['*', '?', '[']) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs_err::metadata(path)?;
        return Ok(Local { files: vec![(path.to_owned(), name)], remarks: vec![] });
    }
    let wrong = |found: String| invalid(source, "files that match", found, "quote the pattern, and look at its folder");
    let matches = glob::glob(source).map_err(|e| wrong(e.to_string()))?;
    let mut found = matches.collect::<Result<Vec<PathBuf>, _>>().map_err(|e| wrong(e.to_string()))?;
    found.sort();
    let root: PathBuf =
        path.components().take_while(|c| !c.as_os_str().to_string_lossy().contains(['*', '?', '['])).collect();
    let mut all = Shards { top: root.strip_prefix(".").unwrap_or(&root).to_owned(), ..Shards::default() };
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in found {
        // What is below a folder that matches comes with the folder.
        if folders.iter().any(|folder| path.starts_with(folder)) {
            continue;
        }
        if path.is_dir() {
            if !is_hidden(&name_of(&path)) {
                all.add(&path)?;
                folders.push(path);
            }
        } else if is_metadata(&name_of(&path)) || all.is_in_a_loop(&path)? {
            all.left_out.push(path);
        } else {
            all.files.push(path);
        }
    }
    if all.files.is_empty() {
        return Err(wrong("none".into()));
    }
    Ok(all.told(source, &root))
}

fn folder(source: &str, path: &Path) -> Result<Local> {
    let mut all = Shards { top: path.to_owned(), ..Shards::default() };
    all.add(path)?;
    if all.files.is_empty() {
        let left_out = short(&all.left_out, path);
        let found = if left_out.is_empty() { "none".to_owned() } else { format!("none beside {}", some(&left_out)) };
        return Err(invalid(source, format!("a folder with files ending in {KNOWN}"), found, "name another folder"));
    }
    Ok(all.told(source, path))
}

fn short(paths: &[PathBuf], root: &Path) -> Vec<String> {
    paths.iter().map(|path| below(path, root)).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn below(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// The first of some names, and how many more there are.
fn some(names: &[String]) -> String {
    const NAMED: usize = 5;
    let more = names.len().saturating_sub(NAMED);
    let first = names[..names.len() - more].join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

/// Says which files are read where there are several kinds, and which are not.
fn remarks_of(source: &str, files: &[(PathBuf, String)], left_out: &[String]) -> Vec<String> {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for (_, name) in files {
        let kind = match encoding(name) {
            Some((Format::Parquet, _)) => "Parquet",
            Some((Format::Arrow, _)) => "Arrow",
            Some((Format::Json, _)) => "JSON",
            Some((Format::Csv { .. }, _)) => "CSV",
            None => "other",
        };
        match kinds.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, n)) => *n += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let mut remarks = Vec::new();
    if kinds.len() > 1 {
        let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        remarks.push(format!("{source}: files of several kinds are read: {}", kinds.join(", ")));
    }
    if !left_out.is_empty() {
        remarks.push(format!(
            "{source}: {} of {} files are read; no votes: {}",
            files.len(),
            files.len() + left_out.len(),
            some(left_out)
        ));
    }
    remarks
}

/// A name of what writers and repositories keep beside data.
pub(crate) fn is_metadata(name: &str) -> bool {
    is_hidden(name)
        // What `idiolect data ingest` writes beside a table.
        || name.ends_with(".report.json")
        || matches!(
            name,
            "dataset_info.json" | "dataset_infos.json" | "dataset_dict.json" | "state.json" | "croissant.json"
        )
}

/// A name, of a file or a folder, that readers of data sets pass over.
fn is_hidden(name: &str) -> bool {
    name.starts_with(['.', '_'])
}

/// Does a file of this name hold rows, as far as its name says?
pub(crate) fn is_data(name: &str) -> bool {
    !is_metadata(name) && encoding(name).is_some()
}

/// What is found below a folder.
#[derive(Default)]
struct Shards {
    /// The folder that everything is below.
    top: PathBuf,
    files: Vec<PathBuf>,
    left_out: Vec<PathBuf>,
    /// Folders of a saved data set's parts.
    parts: Vec<PathBuf>,
}

/// What `Dataset.save_to_disk` (datasets 2 to 4) writes beside shards.
#[derive(serde::Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<Shard>,
    /// Of early versions: rows are chosen by numbers in other files.
    #[serde(rename = "_indices_data_files", alias = "_indices_files", default)]
    indices: Option<Vec<serde_json::Value>>,
}

#[derive(serde::Deserialize)]
struct Shard {
    filename: String,
}

/// What `DatasetDict.save_to_disk` writes beside its parts.
#[derive(serde::Deserialize)]
struct Parts {
    splits: Vec<String>,
}

impl Shards {
    /// Adds the files below a folder, sorted by name; those of a saved data set as its own list has them.
    fn add(&mut self, folder: &Path) -> Result<()> {
        if self.is_loop(folder)? {
            self.left_out.push(folder.to_owned());
            return Ok(());
        }
        let entries = entries(folder)?;
        if let Some(state) = list::<State>(&folder.join("state.json"), "_data_files")? {
            return self.add_saved(folder, &state, entries);
        }
        if let Some(parts) = list::<Parts>(&folder.join("dataset_dict.json"), "splits")? {
            let parts = parts.splits.iter().map(|part| Ok(folder.join(plain_name(folder, part)?)));
            let parts = parts.collect::<Result<Vec<PathBuf>>>()?;
            for part in &parts {
                self.add(part)?;
            }
            for path in entries.into_iter().filter(|path| !parts.contains(path)) {
                self.leave_out(path)?;
            }
            self.parts.extend(parts);
            return Ok(());
        }
        for path in entries {
            let name = name_of(&path);
            if path.is_dir() {
                if !is_hidden(&name) {
                    self.add(&path)?;
                }
            } else if is_data(&name) {
                self.files.push(path);
            } else {
                self.left_out.push(path);
            }
        }
        Ok(())
    }

    fn add_saved(&mut self, folder: &Path, state: &State, entries: Vec<PathBuf>) -> Result<()> {
        let place = || folder.join("state.json").display().to_string();
        if state.indices.as_ref().is_some_and(|list| !list.is_empty()) {
            let hint = "save it again after `dataset.flatten_indices()`";
            return Err(invalid(place(), "a data set whose files hold its rows", "rows chosen by indices", hint));
        }
        let listed = state.data_files.iter().map(|shard| Ok(folder.join(plain_name(folder, &shard.filename)?)));
        let listed = listed.collect::<Result<Vec<PathBuf>>>()?;
        if let Some(missing) = listed.iter().find(|path| !path.is_file()) {
            let found = format!("no file {}", name_of(missing));
            return Err(invalid(place(), "the files that it lists", found, "copy or save the data set again"));
        }
        // Beside them `map` and `filter` leave what they computed once.
        for path in entries.into_iter().filter(|path| !listed.contains(path)) {
            self.leave_out(path)?;
        }
        self.files.extend(listed);
        Ok(())
    }

    /// Leaves out a file, or all files below a folder.
    fn leave_out(&mut self, path: PathBuf) -> Result<()> {
        if !path.is_dir() || self.is_loop(&path)? {
            self.left_out.push(path);
        } else if !is_hidden(&name_of(&path)) {
            for path in entries(&path)? {
                self.leave_out(path)?;
            }
        }
        Ok(())
    }

    /// Does a symbolic link make this folder one of those that it is in? Its files would be read again and again.
    fn is_loop(&self, folder: &Path) -> Result<bool> {
        let real = |path: &Path| fs_err::canonicalize(if path.as_os_str().is_empty() { Path::new(".") } else { path });
        let own = real(folder)?;
        for outer in folder.ancestors().skip(1).take_while(|outer| outer.starts_with(&self.top)) {
            if real(outer)? == own {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Is a file below such a folder?
    fn is_in_a_loop(&self, file: &Path) -> Result<bool> {
        for folder in file.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.top)) {
            if self.is_loop(folder)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The files with their paths below `root`, and what a reader should know of the others.
    fn told(self, source: &str, root: &Path) -> Local {
        let names = short(&self.files, root);
        let files: Vec<(PathBuf, String)> = self.files.into_iter().zip(names).collect();
        let mut remarks = remarks_of(source, &files, &short(&self.left_out, root));
        let parts = short(&self.parts, root);
        if let [_, .., last] = parts.as_slice() {
            remarks.push(format!(
                "{source}: one saved data set of the parts {}, which are read as one; the card's `split_files`, such as \
                 {{ \"{last}/*\" = \"test\" }}, says which split a part is",
                parts.join(", ")
            ));
        }
        Local { files, remarks }
    }
}

/// What is directly in a folder, sorted by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut entries =
        fs_err::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    entries.sort();
    Ok(entries)
}

/// A saved data set's list in `file`; none if there is no such file, or it is another program's, without `key`.
fn list<T: serde::de::DeserializeOwned>(file: &Path, key: &str) -> Result<Option<T>> {
    if !file.is_file() {
        return Ok(None);
    }
    let text = fs_err::read(file)?;
    match serde_json::from_slice(&text) {
        Ok(list) => Ok(Some(list)),
        Err(error) if String::from_utf8_lossy(&text).contains(&format!("\"{key}\"")) => {
            let expected = format!("the list `{key}` of a saved data set");
            Err(invalid(file.display(), expected, error.to_string(), "copy or save the data set again"))
        }
        Err(_) => Ok(None),
    }
}

/// A name in a list of names that leads to no other folder.
fn plain_name<'n>(folder: &Path, name: &'n str) -> Result<&'n str> {
    if name.is_empty() || name.contains(['/', '\\']) || name == ".." || name == "." {
        let hint = "save the data set again";
        return Err(invalid(folder.display(), "names of files in this folder", format!("`{name}`"), hint));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_say_what_a_file_is() {
        assert_eq!(encoding("a.PARQUET"), Some((Format::Parquet, Packing::None)));
        assert_eq!(encoding("train.jsonl.gz"), Some((Format::Json, Packing::Gzip)));
        assert_eq!(encoding("a.tsv.zst"), Some((Format::Csv { delimiter: b'\t' }, Packing::Zstd)));
        assert_eq!(encoding("a.parquet.gz"), None);
        assert_eq!(encoding("README"), None);
    }
}
