//! A column of moments, whatever type and unit a writer chose.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, StringArray};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt64Type,
};
use problem::Result;

use crate::columns::{Place, Texts};
use crate::draft::Flaw;
use crate::readings::Form;

/// Seconds from 1970 to 1990, and to 2100: what numbers are taken for moments in between. The same in other units are other numbers,
/// so a number's size tells its unit.
const NUMBERS_FROM: i128 = 631_152_000;
const NUMBERS_TO: i128 = 4_102_444_800;

/// Seconds from 1970 to the years 1 and 10,000: typed moments and texts lie between.
const FIRST: i128 = -62_135_596_800;
const END: i128 = 253_402_300_800;

/// Units of numbers, with how many of them make a second.
const UNITS: [(Form, i128); 4] = [
    (Form::Seconds, 1),
    (Form::Milliseconds, 1_000),
    (Form::Microseconds, 1_000_000),
    (Form::Nanoseconds, 1_000_000_000),
];

const MICROS: i128 = 1_000_000;

/// A column of moments.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    column: String,
    /// Microseconds since 1970.
    moments: Vec<Option<i64>>,
    /// Rows whose value is no moment, with the value.
    wrong: HashMap<usize, String>,
}

/// A value that is no moment, as messages show it.
type Wrong = String;

/// The unit that a number's size tells, and the moment in microseconds, rounded down.
fn by_size(number: i128) -> Option<(Form, i64)> {
    let (form, per_second) =
        UNITS.into_iter().find(|(_, per)| (NUMBERS_FROM * per..NUMBERS_TO * per).contains(&number))?;
    i64::try_from((number * MICROS).div_euclid(per_second)).ok().map(|micros| (form, micros))
}

/// As [`by_size`], rounded to the nearest microsecond.
fn real_by_size(number: f64) -> Option<(Form, i64)> {
    let (form, per_second) = UNITS.into_iter().find(|(_, per)| {
        let per = *per as f64;
        (NUMBERS_FROM as f64 * per..NUMBERS_TO as f64 * per).contains(&number)
    })?;
    // In range of i64: a moment before 2100.
    Some((form, (number * (MICROS as f64 / per_second as f64)).round() as i64))
}

/// A count of units, `per_second` to a second, as microseconds; none outside the years 1 to 9999.
fn typed(value: i64, units: i128, per_second: i128) -> Result<i64, Wrong> {
    let micros = (i128::from(value) * units * MICROS).div_euclid(per_second);
    let inside = (FIRST * MICROS..END * MICROS).contains(&micros);
    let micros = if inside { i64::try_from(micros).ok() } else { None };
    micros.ok_or_else(|| format!("{value}, a moment outside of the years 1 to 9999"))
}

impl Times {
    /// Timestamps of any unit and zone (without a zone they are UTC), dates, ISO 8601 texts, and numbers, also written as text, of
    /// seconds, milliseconds, microseconds or nanoseconds since 1970.
    pub(crate) fn bind(array: &ArrayRef, place: &Place, column: &str) -> Result<Self> {
        let mut times =
            Self { column: column.to_owned(), moments: Vec::with_capacity(array.len()), wrong: HashMap::new() };
        match array.data_type() {
            DataType::Dictionary(_, value) => {
                return Self::bind(
                    &cast(array, value).map_err(|_| place.wrong_type(column, "time", array.data_type()))?,
                    place,
                    column,
                );
            }
            DataType::RunEndEncoded(_, value) => {
                let plain = cast(array, value.data_type());
                return Self::bind(
                    &plain.map_err(|_| place.wrong_type(column, "time", array.data_type()))?,
                    place,
                    column,
                );
            }
            DataType::Timestamp(unit, _) => match unit {
                TimeUnit::Second => times.fill::<TimestampSecondType>(array, |v| typed(v, 1, 1)),
                TimeUnit::Millisecond => times.fill::<TimestampMillisecondType>(array, |v| typed(v, 1, 1_000)),
                TimeUnit::Microsecond => times.fill::<TimestampMicrosecondType>(array, |v| typed(v, 1, MICROS)),
                TimeUnit::Nanosecond => times.fill::<TimestampNanosecondType>(array, |v| typed(v, 1, 1_000_000_000)),
            },
            DataType::Date32 => times.fill::<Date32Type>(array, |days| typed(i64::from(days), 86_400, 1)),
            DataType::Date64 => times.fill::<Date64Type>(array, |v| typed(v, 1, 1_000)),
            DataType::Null => times.moments.resize(array.len(), None),
            DataType::UInt64 => times.numbers::<UInt64Type>(array, place, |v| by_size(i128::from(v))),
            t if t.is_integer() => {
                let wide =
                    cast(array, &DataType::Int64).map_err(|_| place.wrong_type(column, "time", array.data_type()))?;
                times.numbers::<Int64Type>(&wide, place, |v| by_size(i128::from(v)));
            }
            t if t.is_numeric() => {
                let reals =
                    cast(array, &DataType::Float64).map_err(|_| place.wrong_type(column, "time", array.data_type()))?;
                times.numbers::<Float64Type>(&reals, place, real_by_size);
            }
            _ => times.texts(&Texts::bind(array, place, column)?, array.len(), place)?,
        }
        Ok(times)
    }

    fn take(&mut self, row: usize, moment: Option<Result<i64, Wrong>>) {
        let moment = moment.and_then(|m| m.map_err(|found| self.wrong.insert(row, found)).ok());
        self.moments.push(moment);
    }

    fn fill<T: ArrowPrimitiveType>(&mut self, array: &ArrayRef, read: impl Fn(T::Native) -> Result<i64, Wrong>) {
        for (row, value) in array.as_primitive::<T>().iter().enumerate() {
            self.take(row, value.map(&read));
        }
    }

    fn numbers<T: ArrowPrimitiveType>(
        &mut self,
        array: &ArrayRef,
        place: &Place,
        read: impl Fn(T::Native) -> Option<(Form, i64)>,
    ) where
        T::Native: std::fmt::Display + PartialEq,
    {
        let mut forms = Forms::default();
        for (row, value) in array.as_primitive::<T>().iter().enumerate() {
            // What is no number (NaN) is how pandas writes a missing one.
            #[expect(clippy::eq_op, reason = "NaN alone differs from itself")]
            let value = value.filter(|v| v == v);
            let read = value.map(|v| read(v).map(|found| forms.note(row, found)).ok_or_else(|| v.to_string()));
            self.take(row, read);
        }
        forms.tell(place, &self.column);
    }

    fn texts(&mut self, texts: &Texts, rows: usize, place: &Place) -> Result<()> {
        let number = |text: &str| match text.parse::<i128>() {
            Ok(whole) => Some(by_size(whole)),
            Err(_) => text.parse::<f64>().ok().map(real_by_size),
        };
        let trimmed = |row: usize| texts.get(row).map(str::trim).filter(|text| !text.is_empty());
        let dates: ArrayRef =
            Arc::new(StringArray::from_iter((0..rows).map(|row| trimmed(row).filter(|t| number(t).is_none()))));
        let target = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
        let lenient = CastOptions { safe: true, ..CastOptions::default() };
        let dates = cast_with_options(&dates, &target, &lenient)
            .map_err(|e| crate::table::arrow_bug(place.column(&self.column), &e))?;
        let dates = dates.as_primitive::<TimestampMicrosecondType>();
        let mut forms = Forms::default();
        for row in 0..rows {
            let moment = trimmed(row).map(|text| {
                let read = match number(text) {
                    Some(sized) => sized,
                    None if dates.is_valid(row) => typed(dates.value(row), 1, MICROS).ok().map(|m| (Form::Written, m)),
                    None => None,
                };
                read.map(|found| forms.note(row, found))
                    .ok_or_else(|| format!("`{}`", text.chars().take(40).collect::<String>()))
            });
            self.take(row, moment);
        }
        forms.tell(place, &self.column);
        Ok(())
    }

    /// Microseconds since 1970 at `row`; none if it is null.
    pub(crate) fn get(&self, row: usize) -> Result<Option<i64>, Flaw> {
        let Some(found) = self.wrong.get(&row) else { return Ok(self.moments[row]) };
        Err(Flaw {
            kind: "unusable time",
            column: self.column.clone(),
            expected: "a moment such as 2026-01-31T08:15:00Z, or a number since 1970 (seconds, or milli-, micro- or nanoseconds) \
                       in the years 1990 to 2099"
                .into(),
            found: found.clone(),
            hint: "correct the time, leave `timestamp` out of the card, or set `bad_rows = \"drop\"`",
        })
    }
}

/// Forms of a batch's values, with counts and first rows.
#[derive(Default)]
struct Forms(std::collections::BTreeMap<Form, (usize, usize)>);

impl Forms {
    fn note(&mut self, row: usize, (form, moment): (Form, i64)) -> i64 {
        self.0.entry(form).or_insert((0, row)).0 += 1;
        moment
    }

    fn tell(self, place: &Place, column: &str) {
        for (form, (count, row)) in self.0 {
            place.tell(column, form, count, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numbers_size_tells_its_unit() {
        let second = 1_772_452_800; // 2026-03-02T12:00:00Z
        for (form, per) in UNITS {
            assert_eq!(by_size(second * per), Some((form, 1_772_452_800_000_000)), "{form:?}");
            assert_eq!(real_by_size((second * per) as f64), Some((form, 1_772_452_800_000_000)), "{form:?}");
            assert_eq!(by_size(NUMBERS_FROM * per).map(|(f, _)| f), Some(form));
            assert_eq!(by_size(NUMBERS_TO * per - 1).map(|(f, _)| f), Some(form));
            assert_eq!((by_size(NUMBERS_FROM * per - 1), by_size(NUMBERS_TO * per)), (None, None));
        }
        assert_eq!(by_size(1_772_452_800_000_001_999), Some((Form::Nanoseconds, 1_772_452_800_000_001)));
        assert_eq!(real_by_size(1_772_452_800.25), Some((Form::Seconds, 1_772_452_800_250_000)));
        for odd in [0, -5, 2026, 20_260_131, i128::from(i64::MAX), i128::from(u64::MAX)] {
            assert_eq!(by_size(odd), None, "{odd}");
        }
        for odd in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            assert_eq!(real_by_size(odd), None, "{odd}");
        }
    }

    #[test]
    fn typed_moments_neither_wrap_nor_saturate() {
        assert_eq!(typed(-1, 86_400, 1), Ok(-86_400_000_000)); // 1969-12-31 as days
        assert_eq!(typed(-1, 1, 1_000_000_000), Ok(-1)); // a nanosecond before 1970: the microsecond that it lies in
        assert_eq!(typed(253_402_300_799, 1, 1), Ok(253_402_300_799_000_000));
        for (value, units, per_second) in [
            (i64::MAX, 1, 1),
            (i64::MIN, 1, 1),
            (i64::MAX, 1, 1_000),
            (i64::from(i32::MAX), 86_400, 1),
            (i64::MIN, 1, MICROS),
        ] {
            assert!(typed(value, units, per_second).unwrap_err().contains("years 1 to 9999"));
        }
    }
}
