//! What a file is by its first bytes: files that are not what their names say, and kinds that this program does not read, are called
//! by their names, with a way to convert them.

/// Bytes of a file's beginning that tell what it is.
pub(crate) const HEAD: usize = 512;

/// A kind of file, and what to do with one that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variety {
    pub(crate) what: &'static str,
    pub(crate) hint: &'static str,
}

/// How a file's bytes begin, what that says, and what helps. The first that fits counts.
const BEGINNINGS: [(&[u8], &str, &str); 29] = [
    (b"PAR1", "a Parquet file", "end its name in .parquet"),
    (
        b"PARE",
        "Parquet with encryption",
        "read it with its keys and write it again without encryption: `pyarrow.parquet.write_table`",
    ),
    (b"ARROW1", "an Arrow IPC file", "end its name in .arrow"),
    (b"\xff\xff\xff\xff", "an Arrow IPC stream", "end its name in .arrow"),
    (
        b"FEA1",
        "a Feather file of version 1",
        "write it again: `pandas.read_feather(FILE).to_feather(\"votes.feather\")`",
    ),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "`git lfs pull` in its repository fetches the file",
    ),
    (
        b"SQLite format 3\0",
        "a SQLite file",
        "export a table: `sqlite3 -header -csv FILE 'select * from TABLE' > votes.csv`",
    ),
    (b"ORC", "an ORC file", "write it again as Parquet: `pandas.read_orc(FILE).to_parquet(\"votes.parquet\")`"),
    (b"Obj\x01", "an Avro file", "write it again as Parquet, for example with Spark or fastavro and pandas"),
    (
        b"\xd0\xcf\x11\xe0",
        "an Excel workbook of the old kind (.xls)",
        "save it as `CSV UTF-8`, or `pandas.read_excel(FILE).to_parquet(\"votes.parquet\")`",
    ),
    (b"PK\x03\x04", "a ZIP archive", "unpack it, and name the files in it"),
    (b"PK\x05\x06", "an empty ZIP archive", "fetch or write it again"),
    (
        b"\x1f\x8b",
        "data packed with gzip",
        "end its name in .gz after its kind, such as votes.jsonl.gz; Parquet and Arrow: unpack it",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        "data packed with Zstandard",
        "end its name in .zst after its kind, such as votes.jsonl.zst; Parquet and Arrow: unpack it",
    ),
    (b"BZh", "data packed with bzip2", "unpack it: `bunzip2 FILE`"),
    (b"\xfd7zXZ\0", "data packed with xz", "unpack it: `unxz FILE`"),
    (b"\x04\x22\x4d\x18", "data packed with LZ4", "unpack it: `lz4 -d FILE`"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it, and name the files in it"),
    (b"Rar!", "a RAR archive", "unpack it, and name the files in it"),
    (
        b"\x93NUMPY",
        "a NumPy array",
        "write a table with named columns, for example with `pandas.DataFrame(...).to_parquet`",
    ),
    (b"\x89HDF", "an HDF5 file", "write it again as Parquet: `pandas.read_hdf(FILE).to_parquet(\"votes.parquet\")`"),
    (b"%PDF", "a PDF document", "name a file with a table"),
    (b"\xff\xfe\0\0", "UTF-32 text", "re-encode it: `iconv -f UTF-32 -t UTF-8 FILE > NEW`"),
    (b"\0\0\xfe\xff", "UTF-32 text", "re-encode it: `iconv -f UTF-32 -t UTF-8 FILE > NEW`"),
    (b"RDX", "an R data file", "write it again with R: `arrow::write_parquet(table, \"votes.parquet\")`"),
    (b"$FL", "an SPSS file", "write it again as Parquet: `pandas.read_spss(FILE).to_parquet(\"votes.parquet\")`"),
    (
        b"<stata_dta>",
        "a Stata file",
        "write it again as Parquet: `pandas.read_stata(FILE).to_parquet(\"votes.parquet\")`",
    ),
    (b"/annex/objects/", "a git-annex pointer, not the file itself", "`git annex get FILE` fetches the file"),
    (b"../.git/annex/", "a git-annex pointer, not the file itself", "`git annex get FILE` fetches the file"),
];

const WORKBOOK: Variety = Variety {
    what: "an Excel workbook",
    hint: "save it as `CSV UTF-8`, or `pandas.read_excel(FILE).to_parquet(\"votes.parquet\")`",
};

const PICKLE: Variety = Variety {
    what: "a pickle",
    hint: "a pickle can run code, and none is read: load one that you trust with Python, `pandas.read_pickle(FILE).to_parquet(\"votes.parquet\")`",
};

const PAGE: Variety = Variety {
    what: "an HTML page",
    hint: "the address answered with a page: fetch the file itself (on the Hub its address has /resolve/ and not /blob/)",
};

const XML: Variety = Variety { what: "an XML document", hint: "write a table as CSV, JSON lines or Parquet" };

const TAR: Variety = Variety { what: "a tar archive", hint: "unpack it, and name the files in it" };

const DUCKDB: Variety =
    Variety { what: "a DuckDB file", hint: "export a table: `duckdb FILE \"copy TABLE to 'votes.parquet'\"`" };

/// What the first bytes of a file (up to [`HEAD`]) say that it is; none for plain text and what is not known.
pub(crate) fn variety(head: &[u8]) -> Option<Variety> {
    let holds = |what: &[u8]| head.windows(what.len()).any(|w| w == what);
    if let Some((mark, what, hint)) = BEGINNINGS.iter().find(|(mark, _, _)| head.starts_with(mark)) {
        let workbook = *mark == b"PK\x03\x04"
            && (holds(b"[Content_Types].xml") || holds(b"xl/") || holds(b"opendocument.spreadsheet"));
        return Some(if workbook { WORKBOOK } else { Variety { what, hint } });
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some(TAR);
    }
    if head.get(8..12) == Some(b"DUCK") {
        return Some(DUCKDB);
    }
    if head.first() == Some(&0x80) && head.get(1).is_some_and(|v| (2..=5).contains(v)) {
        return Some(PICKLE);
    }
    let bare = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |tag: &str| bare.get(..tag.len()).is_some_and(|b| b.eq_ignore_ascii_case(tag.as_bytes()));
    if begins("<!doctype html") || begins("<html") || begins("<head") {
        return Some(PAGE);
    }
    begins("<?xml").then_some(XML)
}

/// Does the end of a Parquet file (its `FileMetaData`, in Thrift's compact protocol) say that columns are encrypted? Only the
/// fields' numbers are read; bytes that make no sense say no.
pub(crate) fn names_encryption(footer: &[u8]) -> bool {
    const ENCRYPTION_ALGORITHM: i16 = 8;
    let mut bytes = Thrift(footer);
    let mut id = 0;
    while let Some((next, kind)) = bytes.field(id) {
        if next == ENCRYPTION_ALGORITHM {
            return true;
        }
        id = next;
        if bytes.skip(kind, 0).is_none() {
            return false;
        }
    }
    false
}

/// A reader of Thrift's compact protocol that skips values.
struct Thrift<'a>(&'a [u8]);

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(n).ok()?..)?;
        Some(())
    }

    /// Number and type of a struct's next field; none at its end.
    fn field(&mut self, last: i16) -> Option<(i16, u8)> {
        let byte = self.byte()?;
        let (delta, kind) = (byte >> 4, byte & 0x0f);
        if kind == 0 {
            return None;
        }
        let id = if delta == 0 {
            let zigzag = self.varint()?;
            i16::try_from((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)).ok()?
        } else {
            last.checked_add(i16::from(delta))?
        };
        Some((id, kind))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > 16 {
            return None;
        }
        match kind {
            1 | 2 => Some(()),
            3 => self.take(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.take(8),
            8 => {
                let length = self.varint()?;
                self.take(length)
            }
            9 | 10 => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                let item = byte & 0x0f;
                for _ in 0..count {
                    // In a list a boolean takes a byte.
                    if matches!(item, 1 | 2) { self.take(1)? } else { self.skip(item, depth + 1)? }
                }
                Some(())
            }
            12 => {
                let mut id = 0;
                while let Some((next, kind)) = self.field(id) {
                    id = next;
                    self.skip(kind, depth + 1)?;
                }
                Some(())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_say_what_a_file_is() {
        let what = |head: &[u8]| variety(head).map(|v| v.what);
        for (head, expected) in [
            (b"PARE\0\0".as_slice(), "Parquet with encryption"),
            (b"PK\x03\x04\x14\0\x06\0 [Content_Types].xml", "an Excel workbook"),
            (b"PK\x03\x04\x14\0\x06\0 votes.csv", "a ZIP archive"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer, not the file itself"),
            (b"\n <!DOCTYPE html>", "an HTML page"),
            (b"\xef\xbb\xbf<HTML>", "an HTML page"),
            (b"<?xml version", "an XML document"),
            (b"\x80\x04\x95", "a pickle"),
            (b"Obj\x01\x04", "an Avro file"),
            (b"ORC\x12", "an ORC file"),
        ] {
            assert_eq!(what(head), Some(expected));
        }
        for text in ["user_id,prompt", "{\"a\": 1}", "[", "\u{feff}user_id", "ÿ", ""] {
            assert_eq!(what(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_encrypted_footer_is_told_by_its_field() {
        // version 1, an empty list as schema, rows 3; then field 8 as an empty struct, or the end.
        let plain = [0x15, 0x02, 0x19, 0x0c, 0x16, 0x06];
        assert!(names_encryption(&[&plain[..], &[0x5c, 0x00, 0x00]].concat()));
        assert!(!names_encryption(&[&plain[..], &[0x00]].concat()));
        assert!(!names_encryption(b"\xff\xff\xff"));
    }
}
