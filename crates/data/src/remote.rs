//! Objects of stores, with the feature `clouds`.

use std::sync::{Arc, OnceLock};

use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use problem::{Result, invalid};

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

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn range(&self, start: u64, length: usize) -> std::io::Result<bytes::Bytes> {
        let got = runtime()?.block_on(self.store.get_range(&self.path, start..start + length as u64));
        let got = got.map_err(|e| std::io::Error::other(e.to_string()))?;
        if got.len() != length {
            return Err(std::io::Error::other(format!("{} bytes of {length} at {start}", got.len())));
        }
        Ok(got)
    }
}
