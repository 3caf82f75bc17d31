//! A list of strings where it lies in a file.

use crate::error::{Result, TextError};

/// Strings as an array of a GGUF file holds them: each its length in 8 bytes, little-endian, then
/// its bytes in UTF-8. Nothing is copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct PackedStrings<'a> {
    bytes: &'a [u8],
    count: usize,
    spelled: usize,
}

impl<'a> PackedStrings<'a> {
    /// The strings in `bytes`.
    ///
    /// # Errors
    /// A length that does not fit, or a string that is no UTF-8.
    pub fn parse(mut bytes: &'a [u8]) -> Result<Self> {
        let mut strings = Self { bytes, count: 0, spelled: 0 };
        while !bytes.is_empty() {
            let bad = |what| TextError::BadVocabulary(format!("string {} {what}", strings.count));
            let (string, rest) = split_first(bytes).ok_or_else(|| bad("doesn't fit its list"))?;
            std::str::from_utf8(string).map_err(|_| bad("of a list is no UTF-8"))?;
            bytes = rest;
            strings.count += 1;
            strings.spelled += string.len();
        }
        Ok(strings)
    }

    /// How many strings there are.
    pub fn len(self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    /// Bytes of all strings, without their lengths.
    pub fn spelled_bytes(self) -> usize {
        self.spelled
    }

    /// The strings, in order.
    pub fn iter(self) -> PackedStringsIter<'a> {
        PackedStringsIter { rest: self.bytes, left: self.count }
    }
}

/// The strings of a [`PackedStrings`], in order.
#[derive(Clone, Debug)]
pub struct PackedStringsIter<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for PackedStringsIter<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.left == 0 {
            return None;
        }
        let (string, rest) = split_first(self.rest).expect("walked before");
        self.rest = rest;
        self.left -= 1;
        Some(std::str::from_utf8(string).expect("found to be UTF-8"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for PackedStringsIter<'_> {}

/// The first string's bytes, and what follows them.
fn split_first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_what_is_none() {
        let mut bytes = Vec::new();
        for string in ["é", "", "abc"] {
            bytes.extend_from_slice(&(string.len() as u64).to_le_bytes());
            bytes.extend_from_slice(string.as_bytes());
        }
        let strings = PackedStrings::parse(&bytes).unwrap();
        assert_eq!(strings.iter().collect::<Vec<_>>(), ["é", "", "abc"]);
        assert_eq!((strings.len(), strings.spelled_bytes()), (3, 5));
        for end in 1..bytes.len() {
            let whole = end == 10 || end == 18;
            assert_eq!(PackedStrings::parse(&bytes[..end]).is_ok(), whole, "{end}");
        }
        bytes[8] = 0xff;
        assert!(PackedStrings::parse(&bytes).is_err());
        assert!(PackedStrings::parse(&[0xff; 12]).is_err());
        assert!(PackedStrings::parse(&[]).unwrap().is_empty());
    }
}
