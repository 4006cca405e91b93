//! Tokenised rows of all distinct texts of a canonical table, made once, on all cores, and read from a memory map by every
//! later stage.
//!
//! The file is an Arrow IPC file: `key` (hash of prompt, answer and ending), `ids`, `answer_start`, `straddles`; its metadata
//! names the tokenizer and template by a hash, and who reads with another tokenizer finds nothing. Rows are whole: what
//! becomes of long ones is decided where they are read, so one file serves every limit.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, Int32Array, ListArray, UInt32Array};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, UInt32Type};
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::root_as_footer;
use arrow::ipc::writer::FileWriter;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use problem::{Result, invalid, unwritable};
use serde::{Deserialize, Serialize};
use text::{Ending, KnownRows, Message, Row, Tokenizer};

use crate::split::texts_key;
use crate::table::damaged;

/// Raised when the file's columns, or what they mean, change.
const FORMAT: &str = "2";

/// What was tokenised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenReport {
    /// Texts of the table: two for each vote.
    pub texts: usize,
    /// Distinct ones: each was tokenised once.
    pub distinct: usize,
    /// Tokens of the distinct ones.
    pub tokens: usize,
    /// Tokens of the longest.
    pub longest: usize,
}

fn key(prompt: &[Message], answer: &str, ending: Ending) -> u128 {
    let turns = prompt.iter().flat_map(|m| [m.role.as_str(), m.content.as_str()]);
    let ending = if ending == Ending::Finished { "finished" } else { "cut" };
    texts_key(0, [answer, ending].into_iter().chain(turns))
}

fn schema(tokenizer: &Tokenizer) -> SchemaRef {
    let fields = vec![
        Field::new("key", DataType::FixedSizeBinary(16), false),
        Field::new("ids", DataType::List(Arc::new(Field::new("item", DataType::Int32, false))), false),
        Field::new("answer_start", DataType::UInt32, false),
        Field::new("straddles", DataType::Boolean, false),
    ];
    let metadata = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("tokenizer".to_owned(), tokenizer.identity().to_owned()),
    ]);
    Arc::new(Schema::new(fields).with_metadata(metadata))
}

fn batch(schema: &SchemaRef, keys: &[u128], rows: &[Row]) -> RecordBatch {
    let ids: Vec<i32> = rows.iter().flat_map(|r| r.ids.iter().map(|id| *id as i32)).collect();
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(|r| r.ids.len()));
    let item = Arc::new(Field::new("item", DataType::Int32, false));
    let keys: Vec<u8> = keys.iter().flat_map(|k| k.to_le_bytes()).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(FixedSizeBinaryArray::new(16, keys.into(), None)),
        Arc::new(ListArray::new(item, offsets, Arc::new(Int32Array::from(ids)), None)),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.answer_start as u32))),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(r.straddles)))),
    ];
    RecordBatch::try_new(schema.clone(), columns).expect("columns of equal length, in the schema's types")
}

/// Texts that are tokenised at one time.
const TEXTS: usize = 8192;

/// Tokenises both answers of every vote of a canonical table, each distinct text once, on `threads` threads (0: one for each
/// core).
///
/// # Errors
/// A text that the tokenizer or its template refuses; the message names the row's source.
pub fn tokenise(votes: &Path, tokenizer: &Tokenizer, out: &Path, threads: usize) -> Result<TokenReport> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if threads == 0 { cores } else { threads };
    let place = votes.display().to_string();
    let broken = |e: &dyn std::fmt::Display| damaged(&place, &e);
    let (file, _) = fs_err::File::open(votes)?.into_parts();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| broken(&e))?;
    let mask = ProjectionMask::columns(
        builder.parquet_schema(),
        ["prompt", "chosen", "rejected", "chosen_finished", "rejected_finished", "source_row"],
    );
    let reader = builder.with_projection(mask).with_batch_size(TEXTS / 2).build().map_err(|e| broken(&e))?;

    let mut aside = run::Aside::new(out)?;
    let schema = schema(tokenizer);
    let failed = |e: &arrow::error::ArrowError| unwritable(out.display(), e);
    let mut writer = FileWriter::try_new(std::io::BufWriter::new(aside.file()), &schema).map_err(|e| failed(&e))?;
    let mut report = TokenReport::default();
    let mut known: HashSet<u128> = HashSet::new();
    for table in reader {
        let table = table.map_err(|e| broken(&e))?;
        let rows = crate::votes::texts(&table).ok_or_else(|| {
            invalid(&place, "a table that ingestion wrote", "other columns or types", "run ingestion again")
        })?;
        // The batch's new texts.
        let mut new: Vec<(u128, usize, (&str, Ending))> = Vec::new();
        for (row, (prompt, both, _)) in rows.iter().enumerate() {
            for (answer, ending) in *both {
                report.texts += 1;
                let key = key(prompt, answer, ending);
                if known.insert(key) {
                    new.push((key, row, (answer, ending)));
                }
            }
        }
        let part = new.len().div_ceil(threads).max(1);
        let work = |some: &[(u128, usize, (&str, Ending))]| -> Result<Vec<Row>> {
            some.iter()
                .map(|(_, row, (answer, ending))| {
                    let (prompt, _, source) = &rows[*row];
                    tokenizer.row(prompt, answer, *ending).map_err(|e| e.within(source))
                })
                .collect()
        };
        let made: Vec<Result<Vec<Row>>> = std::thread::scope(|scope| {
            let mut parts = new.chunks(part);
            let own = parts.next();
            let others: Vec<_> = parts.map(|some| scope.spawn(move || work(some))).collect();
            let mut made: Vec<_> = own.map(work).into_iter().collect();
            made.extend(others.into_iter().map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))));
            made
        });
        for (some, made) in new.chunks(part).zip(made) {
            let made = made?;
            report.distinct += made.len();
            report.tokens += made.iter().map(|r| r.ids.len()).sum::<usize>();
            report.longest = report.longest.max(made.iter().map(|r| r.ids.len()).max().unwrap_or(0));
            let keys: Vec<u128> = some.iter().map(|(key, _, _)| *key).collect();
            writer.write(&batch(&schema, &keys, &made)).map_err(|e| failed(&e))?;
        }
    }
    writer.finish().map_err(|e| failed(&e))?;
    writer.get_mut().flush().map_err(|e| unwritable(out.display(), &e))?;
    drop(writer);
    aside.publish()?;
    Ok(report)
}

/// A file of tokenised rows, memory-mapped.
#[derive(Debug)]
pub struct TokenCache {
    tokenizer: String,
    batches: Vec<Columns>,
    /// Batch and row of each key.
    rows: HashMap<u128, (u32, u32)>,
}

#[derive(Debug)]
struct Columns {
    ids: ListArray,
    starts: UInt32Array,
    straddles: BooleanArray,
}

impl TokenCache {
    /// Maps a file that [`tokenise`] wrote. One of another format is of no tokenizer and holds no rows: they are made again.
    #[expect(unsafe_code, reason = "maps a file")]
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |found: String| {
            invalid(path.display(), "tokenised rows", found, "remove the file: the stage makes it again")
        };
        let (file, _) = fs_err::File::open(path)?.into_parts();
        // SAFETY: the file is a finished stage's; such files are never changed in place, only replaced as a whole.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        let buffer = Buffer::from(bytes::Bytes::from_owner(map));
        let decode = || -> std::result::Result<(String, Vec<RecordBatch>), arrow::error::ArrowError> {
            let short = || arrow::error::ArrowError::IpcError("a file that was cut".into());
            let trailer = buffer.len().checked_sub(10).ok_or_else(short)?;
            let tail: [u8; 10] = buffer[trailer..].try_into().expect("ten bytes");
            let footer_length = read_footer_length(tail)?;
            let footer_start = trailer.checked_sub(footer_length).ok_or_else(short)?;
            let footer = root_as_footer(&buffer[footer_start..trailer])
                .map_err(|e| arrow::error::ArrowError::IpcError(e.to_string()))?;
            let schema = try_fb_to_schema(footer.schema().ok_or_else(short)?)?;
            let told = |name: &str| schema.metadata().get(name).cloned().unwrap_or_default();
            if told("format") != FORMAT {
                tracing::info!("{}: rows of format `{}`, this program's is {FORMAT}", path.display(), told("format"));
                return Ok((String::new(), Vec::new()));
            }
            let decoder = FileDecoder::new(Arc::new(schema.clone()), footer.version());
            let blocks = footer.recordBatches();
            let mut batches = Vec::new();
            for block in blocks.iter().flatten() {
                let size = |n: i64| usize::try_from(n).map_err(|_| short());
                let (body, metadata) = (size(block.bodyLength())?, size(block.metaDataLength().into())?);
                let (from, length) = (size(block.offset())?, body.checked_add(metadata).ok_or_else(short)?);
                if from.checked_add(length).is_none_or(|end| end > buffer.len()) {
                    return Err(short());
                }
                batches.extend(decoder.read_record_batch(block, &buffer.slice_with_length(from, length))?);
            }
            Ok((told("tokenizer"), batches))
        };
        let (tokenizer, batches) = decode().map_err(|e| wrong(e.to_string()))?;
        let mut cache = Self { tokenizer, batches: Vec::new(), rows: HashMap::new() };
        for (number, batch) in batches.into_iter().enumerate() {
            let column = |name: &str| batch.column_by_name(name).ok_or_else(|| wrong(format!("no column `{name}`")));
            let keys = column("key")?.as_fixed_size_binary_opt().ok_or_else(|| wrong("other types".into()))?;
            for (row, bytes) in keys.iter().flatten().enumerate() {
                let key = u128::from_le_bytes(bytes.try_into().expect("sixteen bytes"));
                cache.rows.insert(key, (number as u32, row as u32));
            }
            let ids = column("ids")?.as_list_opt::<i32>().cloned();
            let starts = column("answer_start")?.as_primitive_opt::<UInt32Type>().cloned();
            let straddles = column("straddles")?.as_boolean_opt().cloned();
            let (Some(ids), Some(starts), Some(straddles)) = (ids, starts, straddles) else {
                return Err(wrong("other types".into()));
            };
            cache.batches.push(Columns { ids, starts, straddles });
        }
        Ok(cache)
    }

    /// Distinct texts.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Is there nothing in it?
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Was it made by this tokenizer and template?
    pub fn is_of(&self, tokenizer: &Tokenizer) -> bool {
        self.tokenizer == tokenizer.identity()
    }
}

impl KnownRows for TokenCache {
    fn row(&self, prompt: &[Message], answer: &str, ending: Ending) -> Option<Row> {
        let (batch, row) = *self.rows.get(&key(prompt, answer, ending))?;
        let (columns, row) = (&self.batches[batch as usize], row as usize);
        let ids = columns.ids.value(row);
        Some(Row {
            ids: ids.as_primitive::<Int32Type>().values().iter().map(|id| i64::from(*id)).collect(),
            answer_start: columns.starts.value(row) as usize,
            straddles: columns.straddles.value(row),
        })
    }
}
