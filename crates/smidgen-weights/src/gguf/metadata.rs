//! Metadata values by key. Arrays stay in the file and are read one element after the other.

use super::Gguf;
use super::parse::Value;
use super::types::ValueType;
use crate::error::{Error, Result};

impl Gguf {
    /// All metadata keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.header.values.keys().map(String::as_str)
    }

    /// An unsigned integer, stored with any integer type.
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type or a value out of range.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.integer(key, "u64")
    }

    /// An unsigned integer that fits 32 bits, stored with any integer type.
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type or a value out of range.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.integer(key, "u32")
    }

    /// A floating-point number, stored as f32 or f64 (then rounded).
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type.
    pub fn f32(&self, key: &str) -> Result<f32> {
        let (value, bytes) = self.value(key)?;
        match value.kind {
            ValueType::F32 => Ok(f32::from_le_bytes(array(bytes))),
            ValueType::F64 => Ok(f64::from_le_bytes(array(bytes)) as f32),
            _ => Err(self.key_type(key, "f32", value)),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type; [`Error::Malformed`] where its
    /// byte is neither 0 nor 1.
    pub fn bool(&self, key: &str) -> Result<bool> {
        let (value, bytes) = self.value(key)?;
        match (value.kind, bytes) {
            (ValueType::Bool, [0]) => Ok(false),
            (ValueType::Bool, [1]) => Ok(true),
            (ValueType::Bool, _) => {
                let what = format!("metadata {key:?}: a bool is neither 0 nor 1");
                Err(self.malformed(value.range.start, what))
            }
            _ => Err(self.key_type(key, "bool", value)),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type; [`Error::Malformed`] where it is
    /// no UTF-8.
    pub fn str(&self, key: &str) -> Result<&str> {
        let (value, bytes) = self.value(key)?;
        if value.kind != ValueType::String {
            return Err(self.key_type(key, "string", value));
        }
        std::str::from_utf8(bytes)
            .map_err(|_| self.malformed(value.range.start, format!("metadata {key:?} is no UTF-8")))
    }

    /// The strings of an array, read one after the other.
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type. An element that is no UTF-8 is a
    /// [`Error::Malformed`] of the iterator.
    pub fn strings(&self, key: &str) -> Result<Strings<'_>> {
        let (value, rest) = self.value(key)?;
        match value.elements {
            Some((ValueType::String, count)) => {
                let key = self.header.values.get_key_value(key).map_or("", |(key, _)| key.as_str());
                Ok(Strings { gguf: self, key, rest, at: value.range.start, next: 0, count })
            }
            _ => Err(self.key_type(key, "array of strings", value)),
        }
    }

    /// The numbers of an array of i32 as they lie in the file, little-endian.
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type.
    pub fn i32_words(&self, key: &str) -> Result<&[[u8; 4]]> {
        Ok(self.numbers(key, ValueType::I32, "array of i32")?.as_chunks().0)
    }

    /// The numbers of an array of f32 as they lie in the file, little-endian.
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type.
    pub fn f32_words(&self, key: &str) -> Result<&[[u8; 4]]> {
        Ok(self.numbers(key, ValueType::F32, "array of f32")?.as_chunks().0)
    }

    /// The numbers of an array of i32.
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type.
    pub fn i32s(&self, key: &str) -> Result<impl ExactSizeIterator<Item = i32> + '_> {
        Ok(self.i32_words(key)?.iter().map(|&word| i32::from_le_bytes(word)))
    }

    /// The numbers of an array of f32.
    ///
    /// # Errors
    /// [`Error::MissingKey`]; [`Error::KeyType`] for another type.
    pub fn f32s(&self, key: &str) -> Result<impl ExactSizeIterator<Item = f32> + '_> {
        Ok(self.f32_words(key)?.iter().map(|&word| f32::from_le_bytes(word)))
    }

    pub(super) fn value(&self, key: &str) -> Result<(&Value, &[u8])> {
        let missing =
            || Error::MissingKey { path: self.map.path().to_owned(), key: key.to_owned() };
        let value = self.header.values.get(key).ok_or_else(missing)?;
        Ok((value, &self.map.bytes()[value.range.clone()]))
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<T> {
        let (value, bytes) = self.value(key)?;
        let integer: i128 = match value.kind {
            ValueType::U8 => u8::from_le_bytes(array(bytes)).into(),
            ValueType::I8 => i8::from_le_bytes(array(bytes)).into(),
            ValueType::U16 => u16::from_le_bytes(array(bytes)).into(),
            ValueType::I16 => i16::from_le_bytes(array(bytes)).into(),
            ValueType::U32 => u32::from_le_bytes(array(bytes)).into(),
            ValueType::I32 => i32::from_le_bytes(array(bytes)).into(),
            ValueType::U64 => u64::from_le_bytes(array(bytes)).into(),
            ValueType::I64 => i64::from_le_bytes(array(bytes)).into(),
            _ => return Err(self.key_type(key, expected, value)),
        };
        T::try_from(integer).map_err(|_| Error::KeyType {
            path: self.map.path().to_owned(),
            key: key.to_owned(),
            expected,
            found: integer.to_string(),
        })
    }

    fn numbers(&self, key: &str, element: ValueType, expected: &'static str) -> Result<&[u8]> {
        let (value, bytes) = self.value(key)?;
        match value.elements {
            Some((found, _)) if found == element => Ok(bytes),
            _ => Err(self.key_type(key, expected, value)),
        }
    }

    fn key_type(&self, key: &str, expected: &'static str, value: &Value) -> Error {
        let found = match value.elements {
            Some((element, count)) => format!("array of {count} {}", element.name()),
            None => value.kind.name().to_owned(),
        };
        Error::KeyType { path: self.map.path().to_owned(), key: key.to_owned(), expected, found }
    }
}

/// The bytes of one number, whose length the header's parser has checked.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a number's bytes")
}

/// The strings of a metadata array, in order. Made by [`Gguf::strings`].
#[derive(Debug)]
pub struct Strings<'a> {
    gguf: &'a Gguf,
    key: &'a str,
    rest: &'a [u8],
    /// Where `rest` begins in the file.
    at: usize,
    next: usize,
    count: usize,
}

impl<'a> Strings<'a> {
    /// The strings that are left as they lie in the file: each its length in 8 bytes, little-endian,
    /// then its bytes.
    pub fn packed(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = Result<&'a str>;

    fn next(&mut self) -> Option<Self::Item> {
        // The parser has walked the array, so lengths fit and there are `count` elements.
        let (len, rest) = self.rest.split_first_chunk::<8>()?;
        let (string, rest) = rest.split_at_checked(u64::from_le_bytes(*len) as usize)?;
        let (at, index) = (self.at, self.next);
        self.at += 8 + string.len();
        self.next += 1;
        self.rest = rest;
        Some(std::str::from_utf8(string).map_err(|_| {
            self.gguf.malformed(at, format!("metadata {:?}, element {index} is no UTF-8", self.key))
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.count - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Strings<'_> {}
