//! Bytes at an offset, from a local file or an object store: what every format's reader stands on.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use problem::Result;

use crate::remote::Remote;

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
            Self::Remote(remote) => remote.size(),
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

    /// The first bytes, at most so many.
    pub(crate) fn head(&self, most: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.size()).unwrap_or(most).min(most)];
        if !bytes.is_empty() {
            self.read_at(&mut bytes, 0)?;
        }
        Ok(bytes)
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
            self.buffer.resize(wanted as usize, 0); // at most eight steps
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
