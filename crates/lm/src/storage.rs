//! Where what is personal lies: users' factors and the optimiser's moments of them, of which a batch needs a few.
#![expect(unsafe_code, reason = "files are reserved and mapped pages are given back by calls into libc")]

use std::cell::RefCell;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use device::Checked;
use problem::{Problem, Result, invalid};
use tch::{Device, Kind, Tensor, no_grad};

/// Memory, or files that are mapped into it: then what this process holds grows with the batch and not with the number of users.
#[derive(Debug, Default)]
pub struct Storage {
    folder: Option<PathBuf>,
    /// What was mapped; kept, so that no other mapping can take its place before [`Self::release`].
    mapped: RefCell<Vec<Tensor>>,
}

/// Rows that are filled before their pages are given back.
const FILLED_AT_ONCE: usize = 64;

impl Storage {
    /// In the memory of the device.
    pub fn memory() -> Self {
        Self::default()
    }

    /// In files in `folder`, which lose their names at once: whatever ends the process frees the disk.
    pub fn on_disk(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()), mapped: RefCell::default() }
    }

    /// Zeros, float32; on the CPU if they are on disk, else on `device`.
    ///
    /// # Errors
    /// A disk that has no room for them.
    pub fn zeros(&self, shape: &[i64], device: Device) -> Result<Tensor> {
        let count: i64 = shape.iter().product();
        let Some(folder) = self.folder.as_ref().filter(|_| count > 0) else {
            return Ok(Tensor::zeros(shape, (Kind::Float, device)));
        };
        fs_err::create_dir_all(folder)?;
        // Never published: its name goes when it is mapped.
        let mut aside = run::Aside::new(&folder.join("factors"))?;
        reserve(aside.file(), folder, count * 4)?;
        let path = aside.path();
        let name =
            path.to_str().ok_or_else(|| invalid(path.display(), "a path of UTF-8", "another", "rename the folder"))?;
        let tensor = Tensor::f_from_file(name, true, count, (Kind::Float, Device::Cpu)).checked()?;
        drop(aside);
        self.mapped.borrow_mut().push(tensor.shallow_clone());
        Ok(tensor.view(shape))
    }

    /// A leaf `[owners, ..]` to be trained, row by row from `row(owner)`.
    pub(crate) fn leaf(&self, owners: usize, device: Device, mut row: impl FnMut(usize) -> Tensor) -> Result<Tensor> {
        let first = row(0);
        let mut shape = first.size();
        shape.insert(0, owners as i64);
        let all = self.zeros(&shape, device)?;
        no_grad(|| {
            for owner in 0..owners {
                all.get(owner as i64).copy_(&if owner == 0 { first.shallow_clone() } else { row(owner) });
                if owner % FILLED_AT_ONCE == 0 {
                    self.release();
                }
            }
        });
        self.release();
        Ok(all.set_requires_grad(true))
    }

    /// Gives the pages of mapped files back: they are read again when they are looked at. Does nothing in memory.
    pub fn release(&self) {
        for tensor in self.mapped.borrow().iter() {
            // SAFETY: the address and length are those of a shared mapping of a file, alive because we hold its tensor; what was
            // written to it is the file's, and is there when the pages are mapped again.
            _ = unsafe { libc::madvise(tensor.data_ptr(), tensor.numel() * 4, libc::MADV_DONTNEED) };
        }
    }
}

/// Makes the file `bytes` long, of blocks that are there: a full disk is an error now and not a fault later.
fn reserve(file: &std::fs::File, folder: &Path, bytes: i64) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the descriptor is open.
        let code = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes) };
        if code != 0 {
            let error = std::io::Error::from_raw_os_error(code);
            let place = format!("{}: {bytes} bytes of users' factors", folder.display());
            let hint = "make room, or keep the factors in memory (`personal_factors = \"memory\"`)";
            return Err(Problem::from(error).within(place).with_hint(hint));
        }
    }
    #[cfg(not(target_os = "linux"))]
    file.set_len(bytes as u64)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_disk_survives_the_release_of_its_pages_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::on_disk(folder.path());
        let leaf =
            storage.leaf(200, Device::Cpu, |u| Tensor::full([3, 5], u as f64, (Kind::Float, Device::Cpu))).unwrap();
        assert_eq!(leaf.size(), [200, 3, 5]);
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
        no_grad(|| _ = leaf.get(7).g_add_scalar_(0.5));
        storage.release();
        for user in 0..200 {
            let expected = user as f64 + if user == 7 { 0.5 } else { 0.0 };
            assert_eq!(leaf.get(user).double_value(&[2, 4]), expected);
        }
        // The same numbers in memory.
        let memory =
            Storage::memory().leaf(200, Device::Cpu, |u| Tensor::full([3, 5], u as f64, (Kind::Float, Device::Cpu)));
        no_grad(|| _ = leaf.get(7).g_sub_scalar_(0.5));
        assert!(memory.unwrap().equal(&leaf));
        assert!(leaf.requires_grad());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_disk_without_room_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = Storage::on_disk(folder.path()).zeros(&[1 << 50], Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("of users' factors"), "{error}");
        assert_eq!(error.kind(), problem::Kind::Machine, "{error}");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
    }
}
