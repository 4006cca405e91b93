//! Results of a command: a file or folder that is not there yet, and appears whole.

use std::path::{Path, PathBuf};

use problem::{Result, invalid};

/// Refuses a folder to write that exists already.
pub(crate) fn refuse_folder(out: &Path) -> Result<()> {
    if out.exists() {
        return Err(invalid(out.display(), "a new folder", "one that exists", "name another folder"));
    }
    Ok(())
}

/// Refuses a file to write that exists already.
pub(crate) fn refuse_file(out: &Path) -> Result<()> {
    if out.exists() {
        return Err(invalid(out.display(), "a new file", "one that exists", "name another file"));
    }
    Ok(())
}

/// A folder that is written under a name of its own next to the one that it gets at the end. Unless it gets it, it is removed.
#[derive(Debug)]
pub(crate) struct NewFolder {
    out: PathBuf,
    aside: tempfile::TempDir,
}

impl NewFolder {
    /// # Errors
    /// A folder `out` that exists.
    pub(crate) fn begin(out: &Path) -> Result<Self> {
        refuse_folder(out)?;
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs_err::create_dir_all(parent)?;
        let aside = tempfile::Builder::new().prefix(".new-").tempdir_in(parent)?;
        Ok(Self { out: out.to_owned(), aside })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        self.aside.path()
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// A folder of that name that appeared meanwhile.
    pub(crate) fn publish(self) -> Result<()> {
        refuse_folder(&self.out)?;
        let aside = self.aside.keep();
        open_to_others(&aside)?;
        Ok(fs_err::rename(aside, self.out)?)
    }
}

/// A temporary folder is its owner's alone; a result may be read by others, as far as the process's mask allows.
fn open_to_others(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let probe = folder.join("probe");
        fs_err::create_dir(&probe)?;
        let usual = fs_err::metadata(&probe)?.permissions().mode();
        fs_err::remove_dir(&probe)?;
        fs_err::set_permissions(folder, std::fs::Permissions::from_mode(usual))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all_and_never_in_anothers_place() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/out");
        let first = NewFolder::begin(&out).unwrap();
        let second = NewFolder::begin(&out).unwrap();
        fs_err::write(first.path().join("x"), "1").unwrap();
        assert!(!out.exists());
        first.publish().unwrap();
        assert_eq!(fs_err::read_to_string(out.join("x")).unwrap(), "1");
        assert!(second.publish().unwrap_err().to_string().contains("expected a new folder"));
        assert!(NewFolder::begin(&out).is_err());
        drop(NewFolder::begin(&dir.path().join("a/other")).unwrap());
        assert_eq!(fs_err::read_dir(dir.path().join("a")).unwrap().count(), 1, "nothing is left of the others");
    }
}
