//! The one error type of the workspace.
//!
//! A [`Problem`] says where something went wrong, what was expected there, what was found, and what to do about it. Its
//! [`Kind`] says whose matter it is, and so decides the program's exit code: 2 for what the user can mend, 1 for a bug of
//! ours and for a machine that refuses, such as a full disk. Libraries return [`Result`]; `main` alone prints.
//!
//! ```
//! use problem::{Kind, invalid};
//! let problem = invalid("pairs.parquet, row 412", "a text in `chosen`", "null", "drop the row").within("data");
//! assert_eq!(problem.to_string(), "data: pairs.parquet, row 412: expected a text in `chosen`, found null");
//! assert_eq!((problem.kind(), problem.hint()), (Kind::User, Some("drop the row")));
//! ```

mod panics;

use std::error::Error;
use std::fmt::{self, Display};
use std::io::{self, ErrorKind};

pub use panics::{is_expected_panic, unless_it_panics};

/// What every fallible function of the workspace returns.
pub type Result<T, E = Problem> = std::result::Result<T, E>;

/// Whose matter a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The user can mend it: a setting, a file, an argument. The same command fails again until they do.
    User,
    /// Training left the finite numbers, or no user's training went well. The user can mend it too, but other runs with other settings may
    /// still succeed.
    NotFinite,
    /// A bug of ours.
    Ours,
    /// The machine refused: a full disk, too little memory, a device that failed. The same command may succeed later.
    Machine,
}

impl Kind {
    /// The program's exit code: 2 for the user's matters, 1 for ours and the machine's.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::User | Self::NotFinite => 2,
            Self::Ours | Self::Machine => 1,
        }
    }
}

/// Something that went wrong: where, what was expected, what was found, what to do, and whose matter it is.
pub struct Problem(Box<Parts>);

#[derive(Debug)]
struct Parts {
    kind: Kind,
    /// What was being done, outermost first.
    within: Vec<String>,
    what: What,
    hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

#[derive(Debug)]
enum What {
    /// The ordinary form.
    Unexpected { place: String, expected: String, found: String },
    /// A sentence, where the form would be odd.
    Text(String),
}

/// The user's input at `place` is not as it must be; `hint` is the remedy.
pub fn invalid(
    place: impl Display,
    expected: impl Into<String>,
    found: impl Into<String>,
    hint: impl Into<String>,
) -> Problem {
    let what = What::Unexpected { place: place.to_string(), expected: expected.into(), found: found.into() };
    Problem::new(Kind::User, what, Some(hint.into()))
}

/// A mistake of the user in a sentence of its own, for what reads oddly as "expected, found".
pub fn mistake(text: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new(Kind::User, What::Text(text.into()), Some(hint.into()))
}

/// A bug of ours at `place`: what cannot happen happened.
pub fn bug(place: impl Display, expected: impl Into<String>, found: impl Into<String>) -> Problem {
    let what = What::Unexpected { place: place.to_string(), expected: expected.into(), found: found.into() };
    Problem::new(Kind::Ours, what, Some(REPORT.into()))
}

/// The machine refused, in a sentence; `hint` is the remedy.
pub fn machine(text: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new(Kind::Machine, What::Text(text.into()), Some(hint.into()))
}

/// `what` (the loss, a gradient, a weight) at `place` is no finite number.
pub fn not_finite(place: impl Display, what: impl Display) -> Problem {
    let hint = "lower the learning rate, or train in float32 (`--dtype float32`)";
    Problem::new(Kind::NotFinite, What::Text(format!("{place}: {what} is not finite")), Some(hint.into()))
}

/// No training of a stage ended well, in a sentence; `hint` is the remedy. As for [`not_finite`], other cells of a matrix may still succeed.
pub fn diverged(text: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new(Kind::NotFinite, What::Text(text.into()), Some(hint.into()))
}

/// What the user is asked to do about a bug of ours.
pub const REPORT: &str =
    "this is a bug in Idiolect; please report it with the command, this message and the stage's log.txt";

impl Problem {
    fn new(kind: Kind, what: What, hint: Option<String>) -> Self {
        Self(Box::new(Parts { kind, within: Vec::new(), what, hint, source: None }))
    }

    /// The same problem, seen from outside: `place` is put in front of the message.
    pub fn within(mut self, place: impl Display) -> Self {
        self.0.within.insert(0, place.to_string());
        self
    }

    /// The same problem with another remedy.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same problem with the library's error that caused it.
    pub fn caused_by(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Whose matter it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Did training leave the finite numbers?
    pub fn is_not_finite(&self) -> bool {
        self.0.kind == Kind::NotFinite
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for place in &self.0.within {
            write!(f, "{place}: ")?;
        }
        match &self.0.what {
            What::Unexpected { place, expected, found } => write!(f, "{place}: expected {expected}, found {found}"),
            What::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Error for Problem {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

/// A path that is wrong is the user's matter; a disk that is full or fails is the machine's.
impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        let (kind, hint) = of_io(error.kind());
        Self::new(kind, What::Text(error.to_string()), Some(hint.into())).caused_by(error)
    }
}

/// A library could not write `place`. The input/output error in its chain decides whose matter that is; without one it is a
/// bug of ours.
pub fn unwritable(place: impl Display, error: &(dyn Error + 'static)) -> Problem {
    let mut cause = Some(error);
    while let Some(link) = cause {
        if let Some(io) = link.downcast_ref::<io::Error>() {
            let (kind, hint) = of_io(io.kind());
            return Problem::new(kind, What::Text(format!("{place}: {io}")), Some(hint.into()));
        }
        cause = link.source();
    }
    bug(place, "values that can be written", error.to_string())
}

fn of_io(kind: ErrorKind) -> (Kind, &'static str) {
    match kind {
        ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::IsADirectory
        | ErrorKind::NotADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::InvalidFilename => (Kind::User, "check that the path is right and can be used"),
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput => {
            (Kind::User, "the file is cut, or not of the kind that is expected here (text must be UTF-8)")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            (Kind::Machine, "free some space; what is finished is kept, and the same command continues from there")
        }
        ErrorKind::ReadOnlyFilesystem => (Kind::Machine, "write to a file system that allows it"),
        _ => (Kind::Machine, "run the same command again; what is finished is kept"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_place_expected_and_found_and_the_hint_is_apart() {
        let problem = invalid("a.toml", "a number", "`x`", "write a number").within("reward").within("cell 2");
        assert_eq!(problem.to_string(), "cell 2: reward: a.toml: expected a number, found `x`");
        assert_eq!(problem.hint(), Some("write a number"));
        assert_eq!(mistake("two words", "one").to_string(), "two words");
        assert_eq!(not_finite("dpo, step 3", "the loss").to_string(), "dpo, step 3: the loss is not finite");
    }

    #[test]
    fn the_kind_decides_the_exit_code() {
        assert_eq!(invalid("", "", "", "").kind().exit_code(), 2);
        assert_eq!(not_finite("", "").kind().exit_code(), 2);
        assert_eq!(bug("", "", "").kind().exit_code(), 1);
        assert_eq!(machine("", "").kind().exit_code(), 1);
        assert!(not_finite("", "").is_not_finite() && !bug("", "", "").is_not_finite());
    }

    #[test]
    fn a_wrong_path_is_the_users_and_a_full_disk_the_machines() {
        let of = |code: i32| Problem::from(io::Error::from_raw_os_error(code)).kind();
        for (name, code) in [("ENOENT", 2), ("EACCES", 13), ("EEXIST", 17), ("ENOTDIR", 20), ("EISDIR", 21)] {
            assert_eq!(of(code), Kind::User, "{name}");
        }
        for kind in [ErrorKind::InvalidData, ErrorKind::UnexpectedEof] {
            assert_eq!(Problem::from(io::Error::from(kind)).kind(), Kind::User, "{kind}");
        }
        for (name, code) in [("EIO", 5), ("ENOMEM", 12), ("ENOSPC", 28), ("EROFS", 30), ("EDQUOT", 122)] {
            assert_eq!(of(code), Kind::Machine, "{name}");
        }
    }

    #[test]
    fn an_io_error_deep_in_a_librarys_error_decides() {
        #[derive(Debug)]
        struct Wrapped(Option<io::Error>);
        impl Display for Wrapped {
            fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the writer failed")
            }
        }
        impl Error for Wrapped {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                self.0.as_ref().map(|e| e as _)
            }
        }
        let full = unwritable("votes.parquet", &Wrapped(Some(io::Error::from_raw_os_error(28))));
        assert_eq!(full.kind(), Kind::Machine);
        assert!(full.to_string().starts_with("votes.parquet: No space left"), "{full}");
        assert_eq!(unwritable("votes.parquet", &Wrapped(None)).kind(), Kind::Ours);
    }

    #[test]
    fn the_librarys_error_is_kept_as_the_source() {
        let problem = Problem::from(io::Error::from_raw_os_error(28));
        assert!(problem.source().unwrap().downcast_ref::<io::Error>().is_some());
    }
}
