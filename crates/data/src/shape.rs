//! The columns of a JSON file and their types, from the keys and the kinds of values of all of its objects: nothing depends on
//! the order of rows.

use std::collections::HashMap;
use std::fmt;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use indexmap::IndexMap;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Keys of an inner object beyond this many are not columns but data, such as ids: they are not remembered.
const INNER_KEYS: usize = 4096;

/// Key of a field's metadata, there if its values are of several kinds: which.
const MIXED: &str = "mixed";

/// What the objects seen so far have.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    columns: IndexMap<String, Kinds>,
}

/// How many values of each kind stood in one place.
#[derive(Debug, Default)]
struct Kinds {
    texts: u64,
    booleans: u64,
    integers: u64,
    /// Beyond 64 bits with a sign.
    large_integers: u64,
    reals: u64,
    lists: u64,
    objects: u64,
    item: Option<Box<Kinds>>,
    fields: IndexMap<String, Kinds>,
}

impl Shape {
    /// Takes one object's keys and kinds of values.
    ///
    /// # Errors
    /// Bytes that are no JSON object, in words.
    pub(crate) fn see(&mut self, object: &[u8]) -> Result<(), String> {
        let mut reader = serde_json::Deserializer::from_slice(object);
        let seen = reader.deserialize_any(Object { fields: &mut self.columns, most: usize::MAX });
        seen.and_then(|()| reader.end()).map_err(|e| e.to_string())
    }

    /// Columns in the order in which they first appeared. Where values are of several kinds, the type is that of most of them
    /// (of equally many: text before list before object), and the field says so in its metadata.
    pub(crate) fn schema(&self) -> SchemaRef {
        Schema::new(fields(&self.columns)).into()
    }
}

/// A schema without the inner fields whose values are of several kinds and that nobody reads: reading them would fail.
/// `names` are the names of inner fields that are read.
pub(crate) fn without_mixed(schema: &Schema, names: &dyn Fn(&str) -> bool) -> Schema {
    let columns = schema.fields().iter().map(|f| Field::new(f.name(), pruned(f.data_type(), names), true));
    Schema::new(columns.collect::<Vec<_>>())
}

fn pruned(data_type: &DataType, names: &dyn Fn(&str) -> bool) -> DataType {
    let inner = |f: &FieldRef| FieldRef::new(Field::new(f.name(), pruned(f.data_type(), names), true));
    match data_type {
        DataType::List(item) => DataType::List(inner(item)),
        DataType::Struct(fields) => {
            let kept = fields.iter().filter(|f| names(f.name()) || !f.metadata().contains_key(MIXED));
            DataType::Struct(kept.map(inner).collect())
        }
        other => other.clone(),
    }
}

fn fields(all: &IndexMap<String, Kinds>) -> Fields {
    all.iter().map(|(name, kinds)| kinds.field(name)).collect()
}

impl Kinds {
    fn field(&self, name: &str) -> Field {
        let (data_type, mixed) = self.told();
        let marks = mixed.then(|| (MIXED.to_owned(), String::new()));
        Field::new(name, data_type, true).with_metadata(marks.into_iter().collect::<HashMap<_, _>>())
    }

    /// The type, and whether some values are of another kind.
    fn told(&self) -> (DataType, bool) {
        let Self { texts, booleans, integers, large_integers, reals, lists, objects, item, fields: inner } = self;
        let scalars = texts + booleans + integers + large_integers + reals;
        let mixed = [scalars, *lists, *objects].iter().filter(|n| **n > 0).count() > 1;
        if scalars >= *lists.max(objects) {
            let numbers = integers + large_integers + reals;
            let data_type = match scalars {
                0 => DataType::Null,
                n if n == *booleans => DataType::Boolean,
                n if n == *integers => DataType::Int64,
                n if n == numbers && *reals > 0 => DataType::Float64,
                _ => DataType::Utf8,
            };
            return (data_type, mixed);
        }
        if lists >= objects {
            let item = item.as_deref().map_or_else(|| Field::new("item", DataType::Null, true), |i| i.field("item"));
            let mixed = mixed || item.metadata().contains_key(MIXED);
            return (DataType::List(item.into()), mixed);
        }
        (DataType::Struct(fields(inner)), mixed)
    }
}

/// Reads one value and counts it.
struct Value<'k>(&'k mut Kinds);

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.0.booleans += 1;
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.0.integers += 1;
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        let fits = i64::try_from(value).is_ok();
        *(if fits { &mut self.0.integers } else { &mut self.0.large_integers }) += 1;
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.0.reals += 1;
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.0.texts += 1;
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.0.lists += 1;
        let item = self.0.item.get_or_insert_default();
        while items.next_element_seed(Value(item))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<(), A::Error> {
        self.0.objects += 1;
        Object { fields: &mut self.0.fields, most: INNER_KEYS }.visit_map(entries)
    }
}

/// Reads one object and counts its values by key, of at most so many keys.
struct Object<'k> {
    fields: &'k mut IndexMap<String, Kinds>,
    most: usize,
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Self { fields, most } = self;
        let mut next = 0;
        while let Some(index) = entries.next_key_seed(Key { fields, next, most })? {
            let mut unknown = Kinds::default();
            let kinds = fields.get_index_mut(index).map_or(&mut unknown, |(_, kinds)| kinds);
            entries.next_value_seed(Value(kinds))?;
            next = index + 1;
        }
        Ok(())
    }
}

/// Reads a key and finds its index; rows mostly have their keys in the same order.
struct Key<'k> {
    fields: &'k mut IndexMap<String, Kinds>,
    next: usize,
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<usize, D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, name: &str) -> Result<usize, E> {
        let Self { fields, next, most } = self;
        if fields.get_index(next).is_some_and(|(known, _)| known == name) {
            return Ok(next);
        }
        Ok(match fields.get_index_of(name) {
            Some(index) => index,
            None if fields.len() >= most => usize::MAX - 1,
            None => fields.insert_full(name.to_owned(), Kinds::default()).0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(rows: &[&str]) -> String {
        let mut shape = Shape::default();
        rows.iter().for_each(|row| shape.see(row.as_bytes()).unwrap());
        let fields = shape.schema();
        fields.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn kinds_of_all_rows_decide_and_their_order_does_not() {
        let rows = [
            r#"{"id": 7, "n": 1, "b": true, "big": 18446744073709551615, "none": null}"#,
            r#"{"id": "u8", "n": 0.5, "b": false, "big": 1, "none": null}"#,
            r#"{"late": [], "id": 9}"#,
            r#"{"late": [{"role": "user", "content": "x"}]}"#,
        ];
        let found = schema(&rows);
        assert!(found.starts_with("id: Utf8; n: Float64; b: Boolean; big: Utf8; none: Null; late: List("), "{found}");
        assert!(found.contains("content"), "{found}");
        let mut reversed = rows;
        reversed.reverse();
        let sorted = |text: String| {
            let mut columns: Vec<String> = text.split("; ").map(str::to_owned).collect();
            columns.sort();
            columns
        };
        assert_eq!(sorted(schema(&reversed)), sorted(found));
    }

    #[test]
    fn several_kinds_are_told_by_the_most_and_dropped_inside_where_nobody_reads_them() {
        let mut shape = Shape::default();
        for row in [
            r#"{"x": "text", "m": [{"content": "a", "tools": "t"}]}"#,
            r#"{"x": ["list"], "m": [{"content": "b", "tools": ["t"]}]}"#,
            r#"{"x": ["list"], "m": [{"content": "c"}]}"#,
        ] {
            shape.see(row.as_bytes()).unwrap();
        }
        let schema = shape.schema();
        assert!(matches!(schema.field(0).data_type(), DataType::List(_)));
        assert!(schema.field(0).metadata().contains_key(MIXED));
        let text = |names: &dyn Fn(&str) -> bool| without_mixed(&schema, names).field(1).to_string();
        assert!(text(&|_| true).contains("tools"));
        assert!(!text(&|name| name == "content").contains("tools"));
        assert!(text(&|name| name == "content").contains("content"));
    }

    #[test]
    fn what_is_no_object_is_told_and_keys_that_are_data_do_not_fill_the_memory() {
        let mut shape = Shape::default();
        for (bad, what) in [("[1]", "a JSON object"), ("{\"a\": }", "expected value"), ("{} x", "trailing")] {
            let found = shape.see(bad.as_bytes()).unwrap_err();
            assert!(found.contains(what), "{found}");
        }
        let row: Vec<String> = (0..2 * INNER_KEYS).map(|i| format!("\"k{i}\": [{i}]")).collect();
        shape.see(format!("{{\"x\": {{{}}}}}", row.join(",")).as_bytes()).unwrap();
        let x = shape.schema();
        let DataType::Struct(fields) = x.field_with_name("x").unwrap().data_type() else { panic!("{x}") };
        assert_eq!(fields.len(), INNER_KEYS);
    }
}
