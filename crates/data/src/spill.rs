//! More records than memory: they go to partitions by a hash, to disk where a partition grows large, and come back one
//! partition at a time.

use std::io::{Read, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use problem::Result;

/// Something of a fixed number of bytes that knows its partition.
pub(crate) trait Record: Sized {
    /// Bytes.
    const SIZE: usize;
    /// Records that must be seen together have the same.
    fn hash(&self) -> u64;
    fn write(&self, out: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Self;
}

const PARTITIONS: usize = 64;

#[derive(Debug, Default)]
struct Part {
    buffer: Vec<u8>,
    file: Option<std::fs::File>,
}

/// Records by partition.
#[derive(Debug)]
pub(crate) struct Spill<R> {
    folder: PathBuf,
    parts: Vec<Mutex<Part>>,
    /// Bytes of a partition that stay in memory.
    limit: usize,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> Spill<R> {
    /// `memory` bytes are kept before anything goes to files below `folder`, which are unlinked at once and vanish with the
    /// process.
    pub(crate) fn new(folder: &Path, memory: usize) -> Self {
        let parts = (0..PARTITIONS).map(|_| Mutex::default()).collect();
        Self { folder: folder.to_owned(), parts, limit: (memory / PARTITIONS).max(R::SIZE), record: PhantomData }
    }

    /// Takes all of `records`.
    pub(crate) fn add(&self, records: &mut Vec<R>) -> Result<()> {
        let mut sorted: Vec<Vec<u8>> = vec![Vec::new(); PARTITIONS];
        for record in records.drain(..) {
            record.write(&mut sorted[(record.hash() >> 32) as usize % PARTITIONS]);
        }
        for (part, bytes) in self.parts.iter().zip(sorted) {
            let mut part = part.lock().expect("no worker panics with a partition in hand");
            part.buffer.extend_from_slice(&bytes);
            if part.buffer.len() > self.limit {
                if part.file.is_none() {
                    part.file = Some(tempfile::tempfile_in(&self.folder)?);
                }
                let buffer = std::mem::take(&mut part.buffer);
                if let Some(file) = &mut part.file {
                    file.write_all(&buffer)?;
                }
            }
        }
        Ok(())
    }

    /// All records of each partition in turn, in no order.
    pub(crate) fn each(&self, mut see: impl FnMut(Vec<R>) -> Result<()>) -> Result<()> {
        use std::io::Seek;
        for part in &self.parts {
            let mut part = part.lock().expect("no worker panics with a partition in hand");
            let mut bytes = Vec::new();
            if let Some(file) = &mut part.file {
                file.rewind()?;
                file.read_to_end(&mut bytes)?;
            }
            bytes.extend_from_slice(&part.buffer);
            let records: Vec<R> = bytes.chunks_exact(R::SIZE).map(R::read).collect();
            drop(bytes);
            see(records)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
    struct Pair(u64, u32);

    impl Record for Pair {
        const SIZE: usize = 12;
        fn hash(&self) -> u64 {
            self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }
        fn write(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.0.to_le_bytes());
            out.extend_from_slice(&self.1.to_le_bytes());
        }
        fn read(b: &[u8]) -> Self {
            Self(u64::from_le_bytes(b[..8].try_into().unwrap()), u32::from_le_bytes(b[8..].try_into().unwrap()))
        }
    }

    #[test]
    fn what_goes_in_comes_out_with_its_like() {
        for memory in [0, 1 << 20] {
            let dir = tempfile::tempdir().unwrap();
            let spill = Spill::new(dir.path(), memory);
            let all: Vec<Pair> = (0..10_000).map(|i| Pair(i % 700, i as u32)).collect();
            for some in all.chunks(999) {
                spill.add(&mut some.to_vec()).unwrap();
            }
            for _ in 0..2 {
                let (mut back, mut seen) = (Vec::new(), std::collections::HashSet::new());
                spill
                    .each(|records| {
                        let here: std::collections::HashSet<u64> = records.iter().map(|r| r.0).collect();
                        assert!(here.iter().all(|k| seen.insert(*k)), "a key in two partitions");
                        back.extend(records);
                        Ok(())
                    })
                    .unwrap();
                back.sort_by_key(|p| p.1);
                assert_eq!(back, all);
            }
            assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0, "nothing stays on disk");
        }
    }
}
