//! What is looked at in a file before a library reads it: is it of the kind that its name says, and do the lengths that it names
//! fit into it? Libraries take lengths at their word, and call a variety that they do not know damaged.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use arrow::ipc::reader::read_footer_length;
use arrow::ipc::{root_as_footer, root_as_message};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;
use problem::{Problem, Result, invalid};

use crate::input::Input;
use crate::location::{Format, Packing, SourceFile};
use crate::table::damaged;
use crate::varieties::{HEAD, Variety, names_encryption, variety};

/// A library's error about a file: a variety that it does not read is called that.
pub(crate) fn unreadable(file: &str, error: &dyn std::fmt::Display) -> Problem {
    let text = error.to_string();
    let lower = text.to_lowercase();
    if lower.contains("endianness") || lower.contains("big endian") {
        let hint = "write it again on a little-endian machine, or as Parquet";
        return invalid(file, "Arrow IPC with little-endian numbers", "Arrow IPC with big-endian numbers", hint);
    }
    if lower.contains("encrypt") {
        return not_read(file, PARQUET, variety(b"PARE").expect("known"));
    }
    let unread = [
        "not yet implemented",
        "nyi",
        "not supported",
        "unsupported",
        "does not support",
        "disabled feature",
        "not enabled",
    ];
    if unread.iter().any(|word| lower.contains(word)) {
        let hint = "write it again as Parquet with plain columns, for example with `pandas.DataFrame.to_parquet`";
        return invalid(file, "a variety of its kind that this program reads", text, hint);
    }
    damaged(file, &text)
}

pub(crate) const PARQUET: &str = "a Parquet file without encryption";

pub(crate) fn not_read(file: &str, expected: &str, found: Variety) -> Problem {
    invalid(file, expected, found.what, found.hint)
}

/// Refuses a file whose first bytes are those of another kind than its name's ending says. Gives these bytes.
pub(crate) fn as_named(file: &SourceFile) -> Result<Vec<u8>> {
    let head = file.input.head(HEAD)?;
    let Some(found) = variety(&head) else { return Ok(head) };
    let (expected, fits) = match (file.format, file.packing) {
        (Format::Parquet, _) => ("a Parquet file, as its name says", head.starts_with(b"PAR1")),
        (Format::Arrow, _) => (
            "an Arrow IPC file, as its name says",
            head.starts_with(b"ARROW1") || head.starts_with(b"\xff\xff\xff\xff"),
        ),
        (_, Packing::Gzip) => ("a file packed with gzip, as its name says", head.starts_with(b"\x1f\x8b")),
        (_, Packing::Zstd) => ("a file packed with Zstandard, as its name says", head.starts_with(b"\x28\xb5\x2f\xfd")),
        (Format::Json, Packing::None) => ("JSON, as its name says", false),
        (Format::Csv { .. }, Packing::None) => ("CSV, as its name says", false),
    };
    if fits { Ok(head) } else { Err(not_read(&file.name, expected, found)) }
}

/// Are columns of this Parquet file encrypted? Its footer is read by itself, since a reader without keys finds it damaged.
pub(crate) fn is_encrypted(input: &Input) -> bool {
    let read = || -> Option<bool> {
        let end = input.size();
        let tail = input.get_bytes(end.checked_sub(8)?, 8).ok()?;
        let length = u32::from_le_bytes(tail[..4].try_into().ok()?);
        let footer = input.get_bytes(end.checked_sub(8 + u64::from(length))?, usize::try_from(length).ok()?).ok()?;
        Some(names_encryption(&footer))
    };
    read().unwrap_or(false)
}

/// Walks over the messages of an Arrow IPC stream: each must lie in the file, and the last must be the mark of the end, without which
/// nobody knows that nothing was cut.
pub(crate) fn arrow_messages_fit(file: &SourceFile) -> Result<()> {
    let size = file.input.size();
    let cut = |found: String| {
        let hint = "the file was cut while it was written or fetched, or is of another kind: fetch or write it again";
        invalid(&file.name, "a whole Arrow IPC stream with a mark at its end", found, hint)
    };
    let mut reader = file.input.reader();
    let mut at = 0;
    loop {
        let mut begin = [0; 8];
        if size - at < 8 {
            return Err(cut(format!("the end of the file after {at} bytes, without the mark")));
        }
        reader.seek(SeekFrom::Start(at))?;
        reader.read_exact(&mut begin)?;
        let (mark, length) = begin.split_at(4);
        let length = u64::from(u32::from_le_bytes(length.try_into().expect("four bytes")));
        if mark != b"\xff\xff\xff\xff" {
            return Err(cut(format!("other bytes than a message's beginning at {at}")));
        }
        if length == 0 {
            return Ok(());
        }
        let begin_of_body = at.checked_add(8 + length).filter(|end| *end <= size);
        let begin_of_body = begin_of_body.ok_or_else(|| cut(format!("a message at {at} that ends after the file")))?;
        let mut message = vec![0; usize::try_from(length).map_err(|_| cut("a message too long".into()))?];
        reader.read_exact(&mut message)?;
        let message = root_as_message(&message).map_err(|e| cut(format!("no message at {at}: {e}")))?;
        if message.header_as_schema().is_some_and(|s| !s.endianness().equals_to_target_endianness()) {
            return Err(unreadable(&file.name, &"endianness"));
        }
        let body = u64::try_from(message.bodyLength()).ok().and_then(|body| begin_of_body.checked_add(body));
        at = body
            .filter(|end| *end <= size)
            .ok_or_else(|| cut(format!("a message at {at} that ends after the file")))?;
    }
}

/// Are the lengths that an Arrow file's end names those of a file of this size? The reader takes them at their word, and asks for
/// as much memory.
pub(crate) fn arrow_blocks_fit(file: &SourceFile) -> std::result::Result<(), String> {
    let size = file.input.size();
    let read = |at: u64, length: u64| -> std::result::Result<Vec<u8>, String> {
        let mut bytes = vec![0; length as usize];
        let mut reader = file.input.reader();
        reader.seek(SeekFrom::Start(at)).and_then(|_| reader.read_exact(&mut bytes)).map_err(|e| e.to_string())?;
        Ok(bytes)
    };
    let short = || "a file that was cut".to_owned();
    let trailer = size.checked_sub(10).ok_or_else(short)?;
    let tail: [u8; 10] = read(trailer, 10)?.try_into().map_err(|_| short())?;
    let length = read_footer_length(tail).map_err(|e| e.to_string())? as u64;
    let footer = read(trailer.checked_sub(length).ok_or_else(short)?, length)?;
    let footer = root_as_footer(&footer).map_err(|e| e.to_string())?;
    for block in footer.recordBatches().iter().flatten().chain(footer.dictionaries().iter().flatten()) {
        let parts = [block.offset(), i64::from(block.metaDataLength()), block.bodyLength()];
        let end = parts.iter().try_fold(0u64, |end, part| end.checked_add(u64::try_from(*part).ok()?));
        if end.is_none_or(|end| end > size) {
            return Err(format!("a block of {} bytes at {} in a file of {size}", block.bodyLength(), block.offset()));
        }
    }
    Ok(())
}

/// Does a column's dictionary hold as many values as it says? The reader makes room for them before it looks.
pub(crate) fn dictionary_fits(input: &Input, column: &ColumnChunkMetaData) -> Result<(), ParquetError> {
    if column.dictionary_page_offset().is_none() {
        return Ok(());
    }
    let mut pages = SerializedPageReader::new(Arc::new(input.clone()), column, 0, None)?;
    match pages.get_next_page()? {
        // A value takes a byte at least.
        Some(Page::DictionaryPage { buf, num_values, .. }) if num_values as usize > buf.len() => {
            Err(ParquetError::General(format!("{num_values} values in a dictionary of {} bytes", buf.len())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varieties_that_no_reader_knows_are_not_called_damaged() {
        for (error, called) in [
            ("the endianness of the source system does not match", "Arrow IPC with big-endian numbers"),
            ("Big Endian is not supported for Decimal!", "Arrow IPC with big-endian numbers"),
            ("Parquet file has an encrypted footer but the encryption feature is disabled", "Parquet with encryption"),
            ("NYI: The codec type LZO is not supported yet", "LZO"),
        ] {
            let problem = unreadable("x", &error);
            assert!(problem.to_string().contains(called), "{problem}");
            assert!(!problem.hint().unwrap_or_default().contains("damaged"), "{problem}");
        }
        assert!(unreadable("x", &"Invalid footer").hint().unwrap_or_default().contains("damaged or cut"));
    }
}
