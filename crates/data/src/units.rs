//! A source as units of work: row groups of Parquet files, other files whole. Each is read batch by batch, with the columns
//! that the card names and no others.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use arrow::array::RecordBatchReader;
use arrow::csv::ReaderBuilder as CsvReader;
use arrow::csv::reader::Format as CsvFormat;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::{FileReader as IpcReader, read_footer_length};
use arrow::ipc::root_as_footer;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;
use problem::{Result, invalid};

use crate::columns::{Place, is_message_field};
use crate::input::{Input, Section};
use crate::json::{JsonBatches, infer};
use crate::location::{Format, Packing, SourceFile};
use crate::partitions::{Partition, partitions};
use crate::shape::without_mixed;
use crate::table::damaged;

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
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Parquet(ArrowReaderMetadata),
    Arrow,
    Json(SchemaRef),
    Csv(SchemaRef, u8),
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
    let broken = |e: &dyn std::fmt::Display| damaged(file.name.as_ref(), &e);
    if file.input.size() == 0 {
        return Err(damaged(file.name.as_ref(), &"an empty file"));
    }
    let (kind, schema) = match file.format {
        Format::Parquet => {
            let metadata = ArrowReaderMetadata::load(&file.input, ArrowReaderOptions::new()).map_err(|e| broken(&e))?;
            // Texts as views of the pages that they were read from: one copy less.
            let fields = metadata.schema().fields().iter().map(|f| as_views(f)).collect::<Vec<_>>();
            let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(fields)));
            let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options).unwrap_or(metadata);
            let schema = metadata.schema().clone();
            (Kind::Parquet(metadata), schema)
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
            let format = CsvFormat::default().with_header(true).with_delimiter(delimiter);
            let (schema, _) = format.infer_schema(text_reader(&file)?, Some(0)).map_err(|e| broken(&e))?;
            // Everything is text: `007` is an id, not a number.
            let fields: Vec<Field> =
                schema.fields().iter().map(|f| Field::new(f.name(), DataType::Utf8, true)).collect();
            let schema = Arc::new(Schema::new(fields));
            (Kind::Csv(schema.clone(), delimiter), schema)
        }
    };
    let mut columns: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
    let own_columns = columns.len();
    let partitions = partitions(&file)?;
    let new = partitions.iter().filter(|p| !columns.contains(&p.name)).map(|p| p.name.clone());
    columns.extend(new.collect::<Vec<_>>());
    Ok(Opened { file, columns, own_columns, partitions, kind })
}

/// Are the lengths that an Arrow file's end names those of a file of this size? The reader takes them at their word, and asks for
/// as much memory.
fn arrow_blocks_fit(file: &SourceFile) -> std::result::Result<(), String> {
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
fn dictionary_fits(input: &Input, column: &ColumnChunkMetaData) -> Result<(), ParquetError> {
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

/// A field whose texts, however deep, are views.
fn as_views(field: &Field) -> Field {
    let inner = |f: &Arc<Field>| Arc::new(as_views(f));
    let data_type = match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::List(item) => DataType::List(inner(item)),
        DataType::LargeList(item) => DataType::LargeList(inner(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => other.clone(),
    };
    field.clone().with_data_type(data_type)
}

/// A text file's bytes, unpacked.
fn text_reader(file: &SourceFile) -> Result<Box<dyn BufRead + Send>> {
    let raw: Section = file.input.reader();
    Ok(match file.packing {
        Packing::None => Box::new(BufReader::with_capacity(1 << 20, raw)),
        Packing::Gzip => Box::new(BufReader::with_capacity(1 << 20, flate2::read::MultiGzDecoder::new(raw))),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(raw).map_err(|e| damaged(file.name.as_ref(), &e))?;
            Box::new(BufReader::with_capacity(1 << 20, decoder))
        }
    })
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
        let broken = |e: &dyn std::fmt::Display| damaged(self.file.name.as_ref(), &e);
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
            Kind::Json(schema) => {
                let read = |name: &str| {
                    is_message_field(name) || paths.iter().any(|p| p.split('.').skip(1).any(|part| part == name))
                };
                let schema = without_mixed(&schema.project(&roots).map_err(|e| broken(&e))?, &read);
                let reader = text_reader(&self.file)?;
                Source::Json(Box::new(JsonBatches::new(self.file.name.clone(), reader, Arc::new(schema))?))
            }
            Kind::Csv(schema, delimiter) => {
                let reader = CsvReader::new(schema.clone())
                    .with_header(true)
                    .with_delimiter(*delimiter)
                    .with_null_regex(regex::Regex::new(r"\z.").expect("a pattern that matches nothing"))
                    .with_projection(roots)
                    .with_batch_size(1024)
                    .build_buffered(text_reader(&self.file)?)
                    .map_err(|e| broken(&e))?;
                Source::Arrow(Box::new(reader))
            }
        };
        Ok(Batches { source, place: Place { file: self.file.name.clone(), first_row: unit.first_row } })
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

enum Source {
    /// Parquet, Arrow IPC or CSV.
    Arrow(Box<dyn RecordBatchReader + Send>),
    Json(Box<JsonBatches>),
}

/// Batches of a unit, with their places.
pub(crate) struct Batches {
    source: Source,
    place: Place,
}

impl Iterator for Batches {
    type Item = Result<(Place, RecordBatch)>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match &mut self.source {
            Source::Json(batches) => {
                return batches.next().map(|batch| {
                    let (first_row, batch) = batch?;
                    Ok((Place { file: self.place.file.clone(), first_row }, batch))
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
                Ok((place, batch))
            }
            Err(error) => {
                let found = error.to_string();
                let hint = if found.contains("UTF-8") || found.contains("utf-8") || found.contains("UTF8") {
                    "re-encode the text columns as UTF-8"
                } else {
                    "the file is damaged or cut: fetch or write it again"
                };
                let place = format!("{}, behind row {}", self.place.file, self.place.first_row);
                Err(invalid(place, "rows that can be read", found, hint))
            }
        })
    }
}
