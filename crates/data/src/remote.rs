//! Objects of stores, with the feature `clouds`.

use std::sync::{Arc, OnceLock};

use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use problem::{Result, invalid};

/// An object of a store: `s3://`, `gs://`, `az://`, `http://`, `https://`.
#[derive(Debug)]
pub(crate) struct Remote {
    store: Arc<dyn ObjectStore>,
    meta: ObjectMeta,
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
            return Ok(vec![(url.to_owned(), name, Self { store, meta })]);
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
                let name = format!("{url}: {}", meta.location);
                (name, short, Self { store: store.clone(), meta })
            })
            .collect();
        found.sort_by(|a, b| a.1.cmp(&b.1));
        if found.is_empty() { Err(wrong("none".into())) } else { Ok(found) }
    }

    pub(crate) fn size(&self) -> u64 {
        self.meta.size
    }

    /// What tells its content from others of this name; none where the server tells neither an entity tag nor a time.
    pub(crate) fn version(&self) -> Option<String> {
        let size = self.meta.size;
        let time = self.meta.last_modified;
        let known = match (&self.meta.e_tag, &self.meta.version) {
            (Some(tag), _) => format!("etag {tag}"),
            (None, Some(version)) => format!("version {version}"),
            (None, None) if time.timestamp() > 0 => format!("modified {}", time.to_rfc3339()),
            (None, None) => return None,
        };
        Some(format!("{known}, {size} bytes"))
    }

    /// Bytes of it as it was found: one that has changed since is an error.
    pub(crate) fn range(&self, start: u64, length: usize) -> std::io::Result<bytes::Bytes> {
        // Weak tags are for other comparisons than this one.
        let tag = self.meta.e_tag.as_ref().filter(|tag| !tag.starts_with("W/"));
        let options = GetOptions {
            range: Some((start..start + length as u64).into()),
            if_match: tag.cloned(),
            ..GetOptions::default()
        };
        let got = runtime()?.block_on(async {
            let got = self.store.get_opts(&self.meta.location, options).await?;
            let meta = got.meta.clone();
            Ok::<_, object_store::Error>((meta, got.bytes().await?))
        });
        let (meta, got) = match got {
            Err(object_store::Error::Precondition { .. }) => return Err(self.changed()),
            got => got.map_err(|e| std::io::Error::other(e.to_string()))?,
        };
        // A server may not know the condition.
        let bare = |tag: &Option<String>| tag.as_ref().map(|t| t.trim_start_matches("W/").trim_matches('"').to_owned());
        let other_tag =
            meta.e_tag.is_some() && self.meta.e_tag.is_some() && bare(&meta.e_tag) != bare(&self.meta.e_tag);
        if other_tag || meta.size != self.meta.size {
            return Err(self.changed());
        }
        if got.len() != length {
            return Err(std::io::Error::other(format!("{} bytes of {length} at {start}", got.len())));
        }
        Ok(got)
    }

    fn changed(&self) -> std::io::Error {
        std::io::Error::other(format!("{} changed while it was read", self.meta.location))
    }
}
