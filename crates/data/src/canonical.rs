//! Writing the canonical table: rows are gathered into batches, encoded by whichever worker made them, and written in the
//! order of the source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use arrow::array::{
    ArrayRef, BooleanBuilder, Float32Builder, ListArray, StringBuilder, StructArray, TimestampMicrosecondBuilder,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, Encoding};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use problem::{Problem, Result, unwritable};
use run::Aside;

use crate::Split;

/// Rows of a row group, fewer where rows are large.
const GROUP_ROWS: usize = 131_072;
const GROUP_BYTES: usize = 64 << 20;
/// Rows and bytes of text that are gathered before they are encoded.
const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: usize = 16 << 20;
/// Encoded bytes that may wait for their turn.
const WAITING_BYTES: usize = 128 << 20;

fn message_fields() -> Fields {
    Fields::from(vec![Field::new("role", DataType::Utf8, false), Field::new("content", DataType::Utf8, false)])
}

/// The table's columns.
fn schema() -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Struct(message_fields()), false));
    Arc::new(Schema::new(vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("prompt", DataType::List(item), false),
        Field::new("chosen", DataType::Utf8, false),
        Field::new("rejected", DataType::Utf8, false),
        Field::new("tie", DataType::Boolean, false),
        Field::new("chosen_finished", DataType::Boolean, true),
        Field::new("rejected_finished", DataType::Boolean, true),
        Field::new("chosen_first", DataType::Boolean, true),
        Field::new("weight", DataType::Float32, false),
        Field::new("margin", DataType::Float32, true),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("split", DataType::Utf8, false),
        Field::new("source_row", DataType::Utf8, false),
    ]))
}

/// One row of the table, borrowed.
#[derive(Debug)]
pub(crate) struct RowRef<'a> {
    pub(crate) user_id: &'a str,
    pub(crate) prompt: &'a [(&'a str, &'a str)],
    pub(crate) chosen: &'a str,
    pub(crate) rejected: &'a str,
    pub(crate) tie: bool,
    /// Did the better and the other answer end by themselves?
    pub(crate) finished: [Option<bool>; 2],
    pub(crate) chosen_first: Option<bool>,
    pub(crate) weight: f32,
    pub(crate) margin: Option<f32>,
    pub(crate) timestamp: Option<i64>,
    pub(crate) split: Split,
    /// File and row, from 1.
    pub(crate) source: (&'a str, usize),
}

/// Columns under construction.
#[derive(Debug, Default)]
struct Columns {
    users: StringBuilder,
    ends: Vec<i32>,
    roles: StringBuilder,
    contents: StringBuilder,
    chosen: StringBuilder,
    rejected: StringBuilder,
    tie: BooleanBuilder,
    chosen_finished: BooleanBuilder,
    rejected_finished: BooleanBuilder,
    first: BooleanBuilder,
    weight: Float32Builder,
    margin: Float32Builder,
    timestamp: TimestampMicrosecondBuilder,
    split: StringBuilder,
    source: StringBuilder,
    messages: usize,
    rows: usize,
    bytes: usize,
}

impl Columns {
    fn push(&mut self, row: &RowRef) {
        use std::fmt::Write;
        self.users.append_value(row.user_id);
        for (role, content) in row.prompt {
            self.roles.append_value(role);
            self.contents.append_value(content);
            self.bytes += role.len() + content.len();
        }
        self.messages += row.prompt.len();
        self.ends.push(i32::try_from(self.messages).expect("batches are cut long before"));
        self.chosen.append_value(row.chosen);
        self.rejected.append_value(row.rejected);
        self.tie.append_value(row.tie);
        self.chosen_finished.append_option(row.finished[0]);
        self.rejected_finished.append_option(row.finished[1]);
        self.first.append_option(row.chosen_first);
        self.weight.append_value(row.weight);
        self.margin.append_option(row.margin);
        self.timestamp.append_option(row.timestamp);
        self.split.append_value(row.split.name());
        _ = write!(self.source, "{}:{}", row.source.0, row.source.1);
        self.source.append_value("");
        self.rows += 1;
        self.bytes += row.user_id.len() + row.chosen.len() + row.rejected.len();
    }

    fn finish(&mut self) -> RecordBatch {
        let offsets = OffsetBuffer::new(std::iter::once(0).chain(self.ends.drain(..)).collect::<Vec<i32>>().into());
        let roles: ArrayRef = Arc::new(self.roles.finish());
        let contents: ArrayRef = Arc::new(self.contents.finish());
        let messages = StructArray::new(message_fields(), vec![roles, contents], None);
        let item = Arc::new(Field::new("item", DataType::Struct(message_fields()), false));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.users.finish()),
            Arc::new(ListArray::new(item, offsets, Arc::new(messages), None)),
            Arc::new(self.chosen.finish()),
            Arc::new(self.rejected.finish()),
            Arc::new(self.tie.finish()),
            Arc::new(self.chosen_finished.finish()),
            Arc::new(self.rejected_finished.finish()),
            Arc::new(self.first.finish()),
            Arc::new(self.weight.finish()),
            Arc::new(self.margin.finish()),
            Arc::new(self.timestamp.finish().with_timezone("UTC")),
            Arc::new(self.split.finish()),
            Arc::new(self.source.finish()),
        ];
        (self.rows, self.bytes, self.messages) = (0, 0, 0);
        RecordBatch::try_new(schema(), columns).expect("columns of equal length, in the schema's types")
    }
}

/// Encoded row groups of one unit.
#[derive(Default)]
struct Pending {
    groups: Vec<Vec<ArrowColumnChunk>>,
    bytes: usize,
    finished: bool,
}

/// The file being written.
struct File {
    writer: SerializedFileWriter<std::fs::File>,
    /// The unit whose rows come next.
    turn: usize,
    /// Row groups of units whose turn has not come.
    pending: BTreeMap<usize, Pending>,
    stopped: bool,
}

impl File {
    /// Writes what can be written.
    fn advance(&mut self) -> std::result::Result<(), ParquetError> {
        while let Some(pending) = self.pending.get_mut(&self.turn) {
            pending.bytes = 0;
            for chunks in std::mem::take(&mut pending.groups) {
                let mut group = self.writer.next_row_group()?;
                for chunk in chunks {
                    chunk.append_to_row_group(&mut group)?;
                }
                group.close()?;
            }
            if !pending.finished {
                break;
            }
            self.pending.remove(&self.turn);
            self.turn += 1;
        }
        Ok(())
    }

    fn waiting_bytes(&self) -> usize {
        self.pending.values().map(|p| p.bytes).sum()
    }
}

/// A table on its way to disk.
pub(crate) struct TableWriter {
    path: PathBuf,
    aside: Aside,
    file: Mutex<File>,
    moved: Condvar,
    factory: ArrowRowGroupWriterFactory,
}

fn failed(path: &Path, error: &ParquetError) -> Problem {
    unwritable(path.display(), error)
}

impl TableWriter {
    /// Writes beside `path`; nothing is there before [`Self::finish`], nor without it.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let mut aside = Aside::new(path)?;
        let file = aside.file().try_clone()?;
        // Every row's own place: a dictionary would not pay. Least and greatest texts help nobody.
        let place = ColumnPath::from("source_row");
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_column_dictionary_enabled(place.clone(), false)
            .set_column_encoding(place, Encoding::DELTA_BYTE_ARRAY)
            .set_statistics_enabled(EnabledStatistics::None);
        let writer = ArrowWriter::try_new(file, schema(), Some(properties.build())).map_err(|e| failed(path, &e))?;
        let (writer, factory) = writer.into_serialized_writer().map_err(|e| failed(path, &e))?;
        let file = Mutex::new(File { writer, turn: 0, pending: BTreeMap::new(), stopped: false });
        Ok(Self { path: path.to_owned(), aside, file, moved: Condvar::new(), factory })
    }

    /// What a worker writes one unit's rows with.
    pub(crate) fn unit(&self, unit: usize) -> UnitWriter<'_> {
        UnitWriter { table: self, unit, columns: Columns::default(), group: None }
    }

    /// A worker failed: nobody waits for its turn any more.
    pub(crate) fn stop(&self) {
        self.file.lock().expect("no panic with the file in hand").stopped = true;
        self.moved.notify_all();
    }

    /// Takes a unit's encoded row group, or its end, and waits while too much of other units is in memory.
    fn offer(&self, unit: usize, group: Option<(Vec<ArrowColumnChunk>, usize)>) -> Result<()> {
        let mut file = self.file.lock().expect("no panic with the file in hand");
        let pending = file.pending.entry(unit).or_default();
        pending.finished = group.is_none();
        if let Some((chunks, bytes)) = group {
            pending.groups.push(chunks);
            pending.bytes += bytes;
        }
        file.advance().map_err(|e| failed(&self.path, &e))?;
        self.moved.notify_all();
        while file.turn < unit && file.waiting_bytes() > WAITING_BYTES && !file.stopped {
            file = self.moved.wait(file).expect("no panic with the file in hand");
        }
        file.advance().map_err(|e| failed(&self.path, &e))
    }

    /// The file is whole and gets its name.
    pub(crate) fn finish(self) -> Result<()> {
        let mut writer = self.file.into_inner().expect("no panic with the file in hand").writer;
        writer.finish().map_err(|e| failed(&self.path, &e))?;
        self.aside.publish()
    }
}

/// One unit's rows.
pub(crate) struct UnitWriter<'t> {
    table: &'t TableWriter,
    unit: usize,
    columns: Columns,
    group: Option<(Vec<ArrowColumnWriter>, usize)>,
}

impl UnitWriter<'_> {
    pub(crate) fn push(&mut self, row: &RowRef) -> Result<()> {
        self.columns.push(row);
        if self.columns.rows >= BATCH_ROWS || self.columns.bytes >= BATCH_BYTES {
            self.encode()?;
        }
        Ok(())
    }

    fn encode(&mut self) -> Result<()> {
        if self.columns.rows == 0 {
            return Ok(());
        }
        let wrong = |e: ParquetError| failed(&self.table.path, &e);
        let batch = self.columns.finish();
        let (mut writers, rows) = match self.group.take() {
            Some(group) => group,
            None => (self.table.factory.create_column_writers(0).map_err(wrong)?, 0),
        };
        let mut next = writers.iter_mut();
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            for leaf in compute_leaves(field, column).map_err(wrong)? {
                next.next().expect("a writer for every leaf").write(&leaf).map_err(wrong)?;
            }
        }
        let rows = rows + batch.num_rows();
        let bytes: usize = writers.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum();
        self.group = Some((writers, rows));
        if rows >= GROUP_ROWS || bytes >= GROUP_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let Some((writers, _)) = self.group.take() else { return Ok(()) };
        let path = &self.table.path;
        let wrong = |e: ParquetError| failed(path, &e);
        let chunks: Vec<ArrowColumnChunk> =
            writers.into_iter().map(ArrowColumnWriter::close).collect::<std::result::Result<_, _>>().map_err(wrong)?;
        let bytes = chunks.iter().map(|c| c.close().bytes_written as usize).sum();
        self.table.offer(self.unit, Some((chunks, bytes)))
    }

    /// The unit's last rows, and the next unit's turn.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.encode()?;
        self.flush()?;
        self.table.offer(self.unit, None)
    }
}
