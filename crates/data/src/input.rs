//! Bytes at an offset, from a local file or an object store: what every format's reader stands on.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::Result;
use crate::error::invalid;

/// A file to read from, by any number of threads.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Local(Arc<std::fs::File>, u64),
    Remote(Arc<Remote>),
}

impl Input {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (file, _) = fs_err::File::open(path)?.into_parts();
        let size = file.metadata()?.len();
        Ok(Self::Local(Arc::new(file), size))
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Local(_, size) => *size,
            Self::Remote(remote) => remote.size,
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        match self {
            Self::Local(file, _) => file.read_exact_at(buffer, at),
            Self::Remote(remote) => {
                buffer.copy_from_slice(&remote.range(at, buffer.len())?);
                Ok(())
            }
        }
    }

    /// All bytes, in order.
    pub(crate) fn reader(&self) -> Section {
        Section { input: self.clone(), at: 0, buffer: Vec::new(), used: 0 }
    }
}

impl Length for Input {
    fn len(&self) -> u64 {
        self.size()
    }
}

impl ChunkReader for Input {
    type T = Section;

    fn get_read(&self, start: u64) -> std::result::Result<Section, ParquetError> {
        Ok(Section { input: self.clone(), at: start, buffer: Vec::new(), used: 0 })
    }

    fn get_bytes(&self, start: u64, length: usize) -> std::result::Result<bytes::Bytes, ParquetError> {
        // A damaged file may ask for more than there is.
        if start.saturating_add(length as u64) > self.size() {
            return Err(ParquetError::EOF(format!("{length} bytes at {start}, of {} in the file", self.size())));
        }
        if let Self::Remote(remote) = self {
            return Ok(remote.range(start, length)?);
        }
        let mut buffer = vec![0; length];
        self.read_at(&mut buffer, start)?;
        Ok(buffer.into())
    }
}

/// Reads on from an offset.
#[derive(Debug)]
pub(crate) struct Section {
    input: Input,
    /// Offset behind the buffer.
    at: u64,
    buffer: Vec<u8>,
    used: usize,
}

/// Bytes asked for at one time.
const STEP: u64 = 1 << 20;

impl Read for Section {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.used == self.buffer.len() {
            let step = match self.input {
                Input::Local(..) => STEP,
                Input::Remote(_) => 8 * STEP, // a request each
            };
            let wanted = step.min(self.input.size().saturating_sub(self.at));
            self.buffer.resize(wanted as usize, 0);
            self.used = 0;
            if wanted == 0 {
                return Ok(0);
            }
            let input = self.input.clone();
            input.read_at(&mut self.buffer, self.at)?;
            self.at += wanted;
        }
        let n = out.len().min(self.buffer.len() - self.used);
        out[..n].copy_from_slice(&self.buffer[self.used..][..n]);
        self.used += n;
        Ok(n)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let here = self.at - (self.buffer.len() - self.used) as u64;
        let target = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => self.input.size().checked_add_signed(n),
            SeekFrom::Current(n) => here.checked_add_signed(n),
        };
        let target = target.ok_or_else(|| std::io::Error::other("a seek before the start of the file"))?;
        self.at = target;
        self.buffer.clear();
        self.used = 0;
        Ok(target)
    }
}

/// An object of a store: `s3://`, `gs://`, `az://`, `http://`, `https://`.
#[derive(Debug)]
pub(crate) struct Remote {
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    size: u64,
}

/// The one runtime that requests run on.
fn runtime() -> std::io::Result<&'static tokio::runtime::Runtime> {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    if let Some(known) = RUNTIME.get() {
        return Ok(known);
    }
    let new = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok(RUNTIME.get_or_init(|| new))
}

const HINT: &str = "check the address and the store's variables (AWS_..., GOOGLE_..., AZURE_...); AWS_SKIP_SIGNATURE=true reads public buckets";

impl Remote {
    /// The objects behind an address: one, all below it if it ends in `/`, or those that match its `*`. With each, its
    /// address and its path below what was given.
    pub(crate) fn find(url: &str) -> Result<Vec<(String, String, Self)>> {
        let wrong = |found: String| invalid(url, "files in an object store", found, HINT);
        let parsed = url::Url::parse(url).map_err(|e| wrong(e.to_string()))?;
        let options = std::env::vars().filter_map(|(k, v)| {
            let key = k.to_lowercase();
            ["aws_", "google_", "azure_"].iter().any(|p| key.starts_with(p)).then_some((key, v))
        });
        let plain = parsed.scheme() == "http";
        let options = options.chain(plain.then(|| ("allow_http".to_owned(), "true".to_owned())));
        let (store, path) = object_store::parse_url_opts(&parsed, options).map_err(|e| wrong(e.to_string()))?;
        let store: Arc<dyn ObjectStore> = Arc::from(store);
        let runtime = runtime()?;
        let many = url.ends_with('/') || url.contains('*');
        if !many {
            let meta = runtime.block_on(store.head(&path)).map_err(|e| wrong(e.to_string()))?;
            let name = path.filename().unwrap_or_default().to_owned();
            return Ok(vec![(url.to_owned(), name, Self { store, path, size: meta.size })]);
        }
        // Everything below the last folder without a star.
        let whole = path.to_string().replace("%2A", "*");
        let fixed = whole.split('*').next().unwrap_or_default();
        let folder = if url.contains('*') { fixed.rsplit_once('/').map_or("", |(f, _)| f) } else { fixed };
        let prefix = ObjectPath::from(folder);
        let listed = runtime
            .block_on(futures::TryStreamExt::try_collect::<Vec<_>>(store.list(Some(&prefix))))
            .map_err(|e| wrong(e.to_string()))?;
        let pattern = glob::Pattern::new(&whole).map_err(|e| wrong(e.to_string()))?;
        let mut found: Vec<(String, String, Self)> = listed
            .into_iter()
            .filter(|meta| !url.contains('*') || pattern.matches(meta.location.as_ref()))
            .map(|meta| {
                let below = meta.location.as_ref().strip_prefix(folder).unwrap_or(meta.location.as_ref());
                let short = below.trim_start_matches('/').to_owned();
                let remote = Self { store: store.clone(), path: meta.location.clone(), size: meta.size };
                (format!("{url}: {}", meta.location), short, remote)
            })
            .collect();
        found.sort_by(|a, b| a.1.cmp(&b.1));
        if found.is_empty() { Err(wrong("none".into())) } else { Ok(found) }
    }

    fn range(&self, start: u64, length: usize) -> std::io::Result<bytes::Bytes> {
        let got = runtime()?.block_on(self.store.get_range(&self.path, start..start + length as u64));
        let got = got.map_err(|e| std::io::Error::other(e.to_string()))?;
        if got.len() != length {
            return Err(std::io::Error::other(format!("{} bytes of {length} at {start}", got.len())));
        }
        Ok(got)
    }
}
