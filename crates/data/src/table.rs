//! Small typed tables as Parquet files.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatchReader, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use problem::{Problem, Result, bug, invalid, unwritable};

/// A column of a table that this program writes.
#[derive(Clone, Debug)]
pub enum Column {
    /// UTF-8.
    Text(Vec<String>),
    /// float64
    Real(Vec<f64>),
    /// int64
    Integer(Vec<i64>),
    /// bool
    Boolean(Vec<bool>),
}

impl Column {
    fn array(&self) -> ArrayRef {
        match self {
            Self::Text(v) => Arc::new(StringArray::from_iter_values(v)),
            Self::Real(v) => Arc::new(Float64Array::from_iter_values(v.iter().copied())),
            Self::Integer(v) => Arc::new(Int64Array::from_iter_values(v.iter().copied())),
            Self::Boolean(v) => Arc::new(BooleanArray::from(v.clone())),
        }
    }
}

/// Arrow refused what it never should.
pub(crate) fn arrow_bug(place: impl std::fmt::Display, error: &impl std::fmt::Display) -> Problem {
    bug(place, "an operation that Arrow accepts", error.to_string())
}

pub(crate) fn damaged(file: &str, error: &impl std::fmt::Display) -> Problem {
    invalid(file, "a whole file of its kind", error.to_string(), "the file is damaged or cut: fetch or write it again")
}

/// Writes a record batch as one Parquet file, whole or not at all.
pub(crate) fn write_batch(path: &Path, batch: &RecordBatch) -> Result<()> {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut aside = run::Aside::new(path)?;
    let file = aside.file();
    let write = || -> std::result::Result<(), parquet::errors::ParquetError> {
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties))?;
        writer.write(batch)?;
        writer.close()?;
        Ok(())
    };
    write().map_err(|e| unwritable(path.display(), &e))?;
    aside.publish()
}

/// Writes columns of equal length.
pub fn write_table(path: &Path, columns: &[(&str, Column)]) -> Result<()> {
    let arrays: Vec<(&str, ArrayRef)> = columns.iter().map(|(name, column)| (*name, column.array())).collect();
    let fields: Vec<Field> = arrays.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), false)).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays.into_iter().map(|(_, a)| a).collect())
        .map_err(|e| bug(path.display(), "columns of equal length", e.to_string()))?;
    write_batch(path, &batch)
}

/// Columns of a Parquet file, by name.
#[derive(Debug)]
pub struct Table {
    place: String,
    batch: RecordBatch,
    metadata: std::collections::HashMap<String, String>,
}

/// Reads only these columns of a Parquet file.
pub fn read_table(path: &Path, columns: &[&str]) -> Result<Table> {
    let file = fs_err::File::open(path)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.into_parts().0)
        .map_err(|e| damaged(&path.to_string_lossy(), &e))?;
    let schema = builder.schema().clone();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    for column in columns {
        if !names.contains(column) {
            return Err(invalid(
                path.display(),
                format!("a column `{column}`"),
                format!("the columns {}", names.join(", ")),
                "name the right column in the data set's card",
            ));
        }
        if names.iter().filter(|n| *n == column).count() > 1 {
            return Err(invalid(path.display(), format!("one column `{column}`"), "several", "rename one of them"));
        }
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    let reader = builder.with_projection(mask).build().map_err(|e| damaged(&path.to_string_lossy(), &e))?;
    let projected = reader.schema();
    let batches =
        reader.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| damaged(&path.to_string_lossy(), &e))?;
    let batch =
        arrow::compute::concat_batches(&projected, &batches).map_err(|e| damaged(&path.to_string_lossy(), &e))?;
    Ok(Table { place: path.display().to_string(), batch, metadata: schema.metadata().clone().into() })
}

impl Table {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// The schema's metadata under `key`.
    pub(crate) fn metadata(&self, key: &str) -> Option<String> {
        self.metadata.get(key).cloned()
    }

    pub(crate) fn array(&self, name: &str) -> Result<&ArrayRef> {
        self.batch.column_by_name(name).ok_or_else(|| {
            invalid(
                &self.place,
                format!("a column `{name}`"),
                "none of that name",
                "run the stage that writes this file again",
            )
        })
    }

    fn as_type(&self, name: &str, wanted: &DataType) -> Result<ArrayRef> {
        let array = self.array(name)?;
        let wrong = |found: String| {
            invalid(
                format!("{}, column `{name}`", self.place),
                format!("{wanted} values"),
                found,
                "map another column in the data set's card, or cast this one",
            )
        };
        let text = matches!(
            array.data_type(),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null
        ) || matches!(array.data_type(), DataType::Dictionary(_, v) if matches!(**v, DataType::Utf8 | DataType::LargeUtf8));
        let number = array.data_type().is_numeric();
        let fits = match wanted {
            DataType::Utf8 => text || array.data_type().is_integer(),
            DataType::Boolean => *array.data_type() == DataType::Boolean,
            _ => number,
        };
        if !fits {
            return Err(wrong(array.data_type().to_string()));
        }
        cast(array, wanted).map_err(|e| wrong(e.to_string()))
    }

    /// A text column, nulls as `None`; integers are read as their digits.
    pub fn text(&self, name: &str) -> Result<Vec<Option<String>>> {
        let array = self.as_type(name, &DataType::Utf8)?;
        Ok(array.as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect())
    }

    /// A text column without nulls.
    pub fn full_text(&self, name: &str) -> Result<Vec<String>> {
        self.text(name)?.into_iter().enumerate().map(|(row, v)| v.ok_or_else(|| self.null(name, row))).collect()
    }

    /// A boolean column without nulls.
    pub fn full_boolean(&self, name: &str) -> Result<Vec<bool>> {
        let array = self.as_type(name, &DataType::Boolean)?;
        let values = array.as_boolean().iter().enumerate();
        values.map(|(row, v)| v.ok_or_else(|| self.null(name, row))).collect()
    }

    /// A number column without nulls.
    pub fn full_real(&self, name: &str) -> Result<Vec<f64>> {
        let array = self.as_type(name, &DataType::Float64)?;
        let values = array.as_primitive::<arrow::datatypes::Float64Type>().iter().enumerate();
        values.map(|(row, v)| v.ok_or_else(|| self.null(name, row))).collect()
    }

    /// The error of a null at `row` (from 0; messages count from 1).
    pub(crate) fn null(&self, name: &str, row: usize) -> Problem {
        invalid(
            format!("{}, row {}, column `{name}`", self.place, row + 1),
            "a value",
            "null",
            "fill it in or drop the row before ingestion",
        )
    }
}
