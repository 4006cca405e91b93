//! What Hive's folders say of the files in them: all rows of `user_id=ann/part-0.parquet` have `ann` in a column `user_id`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatchOptions, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use percent_encoding::percent_decode_str;
use problem::{Result, invalid};

use crate::columns::Place;
use crate::location::SourceFile;
use crate::table::arrow_bug;

/// How Hive writes the null of a partition.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// A column that a folder names, and its value in all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) name: String,
    value: Option<String>,
}

/// The columns that the folders of a file name, the outermost first.
pub(crate) fn partitions(file: &SourceFile) -> Result<Vec<Partition>> {
    let remote = crate::location::is_remote(&file.name);
    // An address that names several files stands in front of the file's own.
    let name = file.name.rsplit_once(": ").filter(|_| remote).map_or(file.name.as_ref(), |(_, own)| own);
    let folders = name.split_once('?').filter(|_| remote).map_or(name, |(path, _)| path);
    of_folders(folders).map_err(|found| {
        let hint = "rename one of the folders, or move the file to where no folder contradicts another";
        invalid(&file.name, "folders `column=value` that agree, in UTF-8", found, hint)
    })
}

fn of_folders(path: &str) -> Result<Vec<Partition>, String> {
    let mut all: Vec<Partition> = Vec::new();
    let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
    for (name, value) in folders.split('/').filter_map(|folder| folder.split_once('=')) {
        let decoded = |text: &str| {
            percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned).map_err(|_| format!("`{text}`"))
        };
        let partition =
            Partition { name: decoded(name)?, value: if value == NULL { None } else { Some(decoded(value)?) } };
        if partition.name.is_empty() {
            continue;
        }
        match all.iter().find(|p| p.name == partition.name) {
            None => all.push(partition),
            Some(known) if known.value == partition.value => {}
            Some(known) => return Err(format!("{} in {}", partition.told(), known.told())),
        }
    }
    Ok(all)
}

impl Partition {
    fn told(&self) -> String {
        format!("`{}={}`", self.name, self.value.as_deref().unwrap_or(NULL))
    }

    /// The batch with this column. A column of the file of the same name must say the same in every row.
    pub(crate) fn join(&self, batch: RecordBatch, place: &Place) -> Result<RecordBatch> {
        let value = self.value.as_deref();
        if let Some(own) = batch.column_by_name(&self.name) {
            let texts = cast(own, &DataType::Utf8).ok();
            let texts: Option<&StringArray> = texts.as_ref().and_then(|a| a.as_string_opt());
            let at = |row: usize| texts.and_then(|texts| texts.is_valid(row).then(|| texts.value(row)));
            let Some(row) = (0..batch.num_rows()).find(|row| texts.is_none() || at(*row) != value) else {
                return Ok(batch);
            };
            return Err(invalid(
                place.row(row, &self.name),
                format!("what the folder {} says", self.told()),
                at(row).map_or("null".into(), |text| format!("`{text}`")),
                "rename the folder or the column: they contradict each other",
            ));
        }
        let column: ArrayRef = Arc::new(StringArray::from_iter(std::iter::repeat_n(value, batch.num_rows())));
        let mut fields: Vec<Arc<Field>> = batch.schema().fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(&self.name, DataType::Utf8, true)));
        let columns = batch.columns().iter().cloned().chain([column]).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
            .map_err(|e| arrow_bug(&place.file, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_columns() {
        let of =
            |path: &str| of_folders(path).map(|all| all.into_iter().map(|p| (p.name, p.value)).collect::<Vec<_>>());
        let some = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        assert_eq!(of("data/part=x.parquet").unwrap(), []);
        assert_eq!(
            of("v/user_id=a%20b%2F=c/day=2026-01-01/part-0.parquet").unwrap(),
            [some("user_id", "a b/=c"), some("day", "2026-01-01")]
        );
        assert_eq!(of(&format!("user_id={NULL}/x.jsonl")).unwrap(), [("user_id".to_owned(), None)]);
        assert_eq!(of("u=/x.csv").unwrap(), [some("u", "")]);
        assert_eq!(of("u=a/u=a/x.csv").unwrap(), [some("u", "a")]);
        assert_eq!(of("u=a/u=b/x.csv").unwrap_err(), "`u=b` in `u=a`");
        assert!(of("u=%ff/x.csv").unwrap_err().contains("%ff"));
    }
}
