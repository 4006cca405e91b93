//! A source as units of work: row groups of Parquet files, other files whole. Each is read batch by batch, with the columns
//! that the card names and no others.

use std::io::{BufRead, BufReader};
use std::sync::Arc;

use arrow::array::RecordBatchReader;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::ipc::reader::{FileReader as IpcReader, StreamReader};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Type;
use problem::{Result, invalid};

use crate::columns::{Place, is_message_field};
use crate::csv::{CsvBatches, Shape, shape};
use crate::decode::decoded;
use crate::draft::Flaw;
use crate::input::Section;
use crate::json::{JsonBatches, infer};
use crate::location::{Format, Packing, SourceFile};
use crate::partitions::{Partition, partitions};
use crate::readings::Reader;
use crate::shape::without_mixed;
use crate::table::damaged;
use crate::trust::{
    PARQUET, arrow_blocks_fit, arrow_messages_fit, as_named, dictionary_fits, is_encrypted, not_read, unreadable,
};
use crate::varieties::variety;

/// Rows of a batch, fewer where rows are large.
const BATCH_ROWS: usize = 8192;

/// Rows of a unit, at least, where a Parquet file is cut into units.
const UNIT_ROWS: usize = 65_536;

/// Bytes of a batch that are aimed at.
const BATCH_BYTES: usize = 32 << 20;

/// An opened file.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: SourceFile,
    /// Its columns, then those that its folders name and the file itself lacks.
    pub(crate) columns: Vec<String>,
    /// How many of them the file has itself.
    own_columns: usize,
    /// What its folders say of all of its rows.
    partitions: Vec<Partition>,
    /// What was decided about how it is written, for those who read its rows.
    pub(crate) remark: Option<String>,
    /// Where it is told how values are understood.
    pub(crate) reader: Reader,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Parquet(ArrowReaderMetadata),
    Arrow,
    ArrowStream,
    Json(SchemaRef),
    Csv(Shape),
}

/// What one worker reads at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    /// Index of the file.
    pub(crate) file: usize,
    /// Row groups `[from, to)` of a Parquet file; otherwise the whole file.
    groups: Option<(usize, usize)>,
    /// Rows of the file before it.
    first_row: usize,
}

/// Opens a file and reads what says which columns it has.
pub(crate) fn open(file: SourceFile) -> Result<Opened> {
    unless_it_panics(&file.name.clone(), || opened(file))?
}

/// Arrow's readers panic on some damaged files.
fn unless_it_panics<T>(file: &str, read: impl FnOnce() -> T) -> Result<T> {
    run::unless_it_panics(read).ok_or_else(|| damaged(file, &"bytes that its reader cannot make sense of"))
}

fn opened(file: SourceFile) -> Result<Opened> {
    let broken = |e: &dyn std::fmt::Display| unreadable(file.name.as_ref(), e);
    if file.input.size() == 0 {
        return Err(damaged(file.name.as_ref(), &"an empty file"));
    }
    let head = as_named(&file)?;
    let mut remark = None;
    let (kind, schema) = match file.format {
        Format::Parquet => {
            if is_encrypted(&file.input) {
                return Err(not_read(&file.name, PARQUET, variety(b"PARE").expect("known")));
            }
            let metadata = ArrowReaderMetadata::load(&file.input, ArrowReaderOptions::new()).map_err(|e| broken(&e))?;
            // Texts as views of the pages that they were read from: one copy less.
            let nanoseconds = metadata.parquet_schema().columns().iter().any(|c| c.physical_type() == Type::INT96);
            let fields = metadata.schema().fields().iter().map(|f| as_views(f, nanoseconds)).collect::<Vec<_>>();
            let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(fields)));
            let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options).unwrap_or(metadata);
            let schema = metadata.schema().clone();
            (Kind::Parquet(metadata), schema)
        }
        Format::Arrow if !head.starts_with(b"ARROW1") => {
            arrow_messages_fit(&file)?;
            let reader = StreamReader::try_new(BufReader::new(file.input.reader()), None).map_err(|e| broken(&e))?;
            (Kind::ArrowStream, reader.schema())
        }
        Format::Arrow => {
            arrow_blocks_fit(&file).map_err(|e| broken(&e))?;
            let reader = IpcReader::try_new(BufReader::new(file.input.reader()), None).map_err(|e| broken(&e))?;
            let schema = reader.schema();
            (Kind::Arrow, schema)
        }
        Format::Json => {
            let schema = infer(&file.name, text_reader(&file)?)?;
            (Kind::Json(schema.clone()), schema)
        }
        Format::Csv { delimiter } => {
            let mut shape = shape(&file.name, &|| text_reader(&file), delimiter)?;
            remark = shape.remark.take();
            let schema = shape.schema.clone();
            (Kind::Csv(shape), schema)
        }
    };
    let mut columns: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
    let own_columns = columns.len();
    let partitions = partitions(&file)?;
    let new = partitions.iter().filter(|p| !columns.contains(&p.name)).map(|p| p.name.clone());
    columns.extend(new.collect::<Vec<_>>());
    Ok(Opened { file, columns, own_columns, partitions, remark, reader: Reader::default(), kind })
}

/// A field whose texts, however deep, are views. With `int96`, moments of the old type of Spark and Hive are read as microseconds, since in nanoseconds those
/// far from today would become others.
fn as_views(field: &Field, int96: bool) -> Field {
    let inner = |f: &Arc<Field>| Arc::new(as_views(f, int96));
    let data_type = match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Timestamp(TimeUnit::Nanosecond, zone) if int96 => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        DataType::List(item) => DataType::List(inner(item)),
        DataType::LargeList(item) => DataType::LargeList(inner(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => other.clone(),
    };
    field.clone().with_data_type(data_type)
}

/// A text file's bytes, unpacked and as UTF-8.
fn text_reader(file: &SourceFile) -> Result<Box<dyn BufRead + Send>> {
    let raw: Section = file.input.reader();
    let unpacked: Box<dyn BufRead + Send> = match file.packing {
        Packing::None => Box::new(BufReader::with_capacity(1 << 20, raw)),
        Packing::Gzip => Box::new(BufReader::with_capacity(1 << 20, flate2::read::MultiGzDecoder::new(raw))),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(raw).map_err(|e| damaged(file.name.as_ref(), &e))?;
            Box::new(BufReader::with_capacity(1 << 20, decoder))
        }
    };
    decoded(unpacked).map_err(|e| invalid(&file.name, "text that can be read", e.to_string(), crate::decode::hint(&e)))
}

impl Opened {
    /// The file's units; with `in_order` one for the whole file.
    pub(crate) fn units(&self, index: usize, in_order: bool) -> Vec<Unit> {
        let whole = vec![Unit { file: index, groups: None, first_row: 0 }];
        let Kind::Parquet(metadata) = &self.kind else { return whole };
        if in_order {
            return whole;
        }
        // Small row groups are read together.
        let (mut units, mut rows, mut first_row, mut from) = (Vec::new(), 0, 0, 0);
        let groups = metadata.metadata().row_groups();
        for (group, meta) in groups.iter().enumerate() {
            rows += usize::try_from(meta.num_rows()).unwrap_or(0);
            if rows >= UNIT_ROWS || group + 1 == groups.len() {
                units.push(Unit { file: index, groups: Some((from, group + 1)), first_row });
                (first_row, rows, from) = (first_row + rows, 0, group + 1);
            }
        }
        units
    }

    /// The column of a path: the whole name if there is one, else what stands before the first dot.
    fn root<'p>(&self, path: &'p str) -> &'p str {
        if self.columns.iter().any(|c| c == path) { path } else { path.split('.').next().unwrap_or(path) }
    }

    /// Refuses a path without its column, and a column named twice.
    pub(crate) fn check(&self, paths: &[String]) -> Result<()> {
        for path in paths {
            let root = self.root(path);
            match self.columns.iter().filter(|c| *c == root).count() {
                0 => return Err(crate::layouts::missing(&self.file.name, root, &self.columns)),
                1 => {}
                _ => {
                    let place = self.file.name.as_ref();
                    return Err(invalid(place, format!("one column `{root}`"), "several", "rename one of them"));
                }
            }
        }
        Ok(())
    }

    /// The unit's batches, each with its place, read with the columns of `paths` only.
    pub(crate) fn batches(&self, unit: Unit, paths: &[String]) -> Result<Batches> {
        unless_it_panics(&self.file.name, || self.reader(unit, paths))?
    }

    fn reader(&self, unit: Unit, paths: &[String]) -> Result<Batches> {
        let broken = |e: &dyn std::fmt::Display| unreadable(self.file.name.as_ref(), e);
        let roots: Vec<usize> =
            (0..self.own_columns).filter(|i| paths.iter().any(|p| self.root(p) == self.columns[*i])).collect();
        let source: Source = match &self.kind {
            Kind::Parquet(metadata) => {
                let parquet = metadata.metadata();
                let (from, to) = unit.groups.unwrap_or((0, parquet.num_row_groups()));
                let groups: Vec<usize> = (from..to).collect();
                let parts: Vec<Vec<String>> =
                    metadata.parquet_schema().columns().iter().map(|c| c.path().parts().to_vec()).collect();
                let mut leaves: Vec<usize> =
                    (0..parts.len()).filter(|i| paths.iter().any(|p| self.reads(p, &parts[*i]))).collect();
                // A column without the fields that are looked for, such as a list that is always empty, is read whole: the
                // layout says what is wrong with it.
                for root in paths.iter().map(|p| self.root(p)) {
                    if !leaves.iter().any(|i| parts[*i][0] == root) {
                        leaves.extend((0..parts.len()).filter(|i| parts[*i][0] == root));
                    }
                }
                leaves.sort_unstable();
                leaves.dedup();
                for group in groups.iter().map(|g| parquet.row_group(*g)) {
                    for leaf in &leaves {
                        dictionary_fits(&self.file.input, group.column(*leaf)).map_err(|e| broken(&e))?;
                    }
                }
                let (mut bytes, mut rows) = (1usize, 1usize);
                for group in groups.iter().map(|g| parquet.row_group(*g)) {
                    rows += usize::try_from(group.num_rows()).unwrap_or(0);
                    for leaf in &leaves {
                        bytes += usize::try_from(group.column(*leaf).uncompressed_size()).unwrap_or(0);
                    }
                }
                let fitting = (BATCH_BYTES / (bytes / rows).max(1)).clamp(1, BATCH_ROWS);
                let mask = ProjectionMask::leaves(metadata.parquet_schema(), leaves);
                let reader =
                    ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.input.clone(), metadata.clone())
                        .with_row_groups(groups)
                        .with_projection(mask)
                        .with_batch_size(fitting)
                        .build()
                        .map_err(|e| broken(&e))?;
                Source::Arrow(Box::new(reader))
            }
            Kind::Arrow => {
                let input = BufReader::new(self.file.input.reader());
                let reader = IpcReader::try_new(input, Some(roots)).map_err(|e| broken(&e))?;
                Source::Arrow(Box::new(reader))
            }
            Kind::ArrowStream => {
                let input = BufReader::new(self.file.input.reader());
                let reader = StreamReader::try_new(input, Some(roots)).map_err(|e| broken(&e))?;
                Source::Arrow(Box::new(reader))
            }
            Kind::Json(schema) => {
                let read = |name: &str| {
                    is_message_field(name) || paths.iter().any(|p| p.split('.').skip(1).any(|part| part == name))
                };
                let schema = without_mixed(&schema.project(&roots).map_err(|e| broken(&e))?, &read);
                let reader = text_reader(&self.file)?;
                Source::Text(Box::new(JsonBatches::new(self.file.name.clone(), reader, Arc::new(schema))))
            }
            Kind::Csv(shape) => {
                let reader = text_reader(&self.file)?;
                Source::Text(Box::new(CsvBatches::new(self.file.name.clone(), reader, shape, roots)?))
            }
        };
        let SourceFile { name, short, .. } = &self.file;
        let (file, short, reader) = (name.clone(), short.clone(), self.reader.clone());
        Ok(Batches { source, place: Place { file, short, reader, first_row: unit.first_row } })
    }

    /// Columns that no path reads, those of folders included.
    pub(crate) fn unread(&self, paths: &[String]) -> impl Iterator<Item = &String> {
        self.columns.iter().filter(|column| !paths.iter().any(|p| self.root(p) == column.as_str()))
    }

    /// A batch of the file with the columns of `paths` that the folders name.
    pub(crate) fn with_partitions(&self, batch: RecordBatch, place: &Place, paths: &[String]) -> Result<RecordBatch> {
        let read = |p: &&Partition| paths.iter().any(|path| self.root(path) == p.name);
        self.partitions.iter().filter(read).try_fold(batch, |batch, partition| partition.join(batch, place))
    }

    /// Does a card's path need this Parquet leaf? Between a list and its items Parquet has names of its own.
    fn reads(&self, path: &str, leaf: &[String]) -> bool {
        if leaf[0] == path {
            return true;
        }
        if self.root(path) != leaf[0] {
            return false;
        }
        let between = ["list", "element", "item", "array", "bag", "array_element"];
        let mut wanted = path.split('.').skip(1).peekable();
        for part in &leaf[1..] {
            match wanted.peek() {
                None => return true,
                Some(name) if name == part => _ = wanted.next(),
                Some(_) if between.contains(&part.as_str()) => {}
                Some(_) => return false,
            }
        }
        wanted.peek().is_none()
    }
}

/// Rows of a file of text, with the first one's number from 0, or a row that cannot be read.
type TextRows = Result<(usize, Result<RecordBatch, Flaw>)>;

enum Source {
    /// Parquet or Arrow IPC.
    Arrow(Box<dyn RecordBatchReader + Send>),
    /// JSON or CSV.
    Text(Box<dyn Iterator<Item = TextRows> + Send>),
}

/// What comes next in a file.
pub(crate) enum Piece {
    /// Rows.
    Rows(Place, RecordBatch),
    /// A row that cannot be read; the place's first row is this one.
    Bad(Place, Flaw),
}

/// The rows of a unit, with their places.
pub(crate) struct Batches {
    source: Source,
    place: Place,
}

impl Iterator for Batches {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match &mut self.source {
            Source::Text(batches) => {
                return batches.next().map(|read| {
                    let (first_row, read) = read?;
                    let place = Place { first_row, ..self.place.clone() };
                    Ok(match read {
                        Ok(batch) => Piece::Rows(place, batch),
                        Err(flaw) => Piece::Bad(place, flaw),
                    })
                });
            }
            Source::Arrow(reader) => match unless_it_panics(&self.place.file, || reader.next()) {
                Ok(next) => next?,
                Err(error) => return Some(Err(error)),
            },
        };
        Some(match batch {
            Ok(batch) => {
                let place = self.place.clone();
                self.place.first_row += batch.num_rows();
                Ok(Piece::Rows(place, batch))
            }
            Err(error) => {
                let found = error.to_string();
                let place = format!("{}, after row {}", self.place.file, self.place.first_row);
                Err(if found.to_lowercase().replace('-', "").contains("utf8") {
                    invalid(place, "rows that can be read", found, "re-encode the text columns as UTF-8")
                } else {
                    unreadable(&place, &found)
                })
            }
        })
    }
}
