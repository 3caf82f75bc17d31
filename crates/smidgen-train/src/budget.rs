//! Budgets as people write them.

use std::str::FromStr;

use crate::error::Error;
use crate::train_config::MemoryBudget;

/// Units in bytes; MB is 10^6, MiB is 2^20.
const UNITS: [(&str, u64); 7] = [
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
];

impl FromStr for MemoryBudget {
    type Err = Error;

    /// `auto`, `min`, `unlimited`, or an amount such as `300MB`, `1.5GB`, `512 MiB`; a number
    /// alone is bytes.
    fn from_str(text: &str) -> Result<Self, Error> {
        let lower = text.trim().to_ascii_lowercase();
        match lower.as_str() {
            "auto" => return Ok(Self::Auto),
            "min" => return Ok(Self::Min),
            "unlimited" => return Ok(Self::Unlimited),
            _ => {}
        }
        let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
        let (number, unit) = lower.split_at(digits);
        let unit = unit.trim_start();
        let bytes = match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, scale)) => scaled(number, *scale),
            None if unit.is_empty() => number.parse().ok(),
            None => None,
        };
        bytes.map(Self::Bytes).ok_or_else(|| {
            Error::setting(format!(
                "{text:?} is no amount of memory; write 300MB (MB is 10^6 bytes), 1.5GB, 512MiB, \
                 a number of bytes, min, auto or unlimited"
            ))
        })
    }
}

/// `number` times `scale`, rounded down to a byte.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let bytes = number.parse::<f64>().ok()? * scale as f64;
    (bytes < u64::MAX as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        let bytes = |text: &str| text.parse::<MemoryBudget>().ok();
        let table = [
            ("300MB", 300_000_000),
            ("1.5GB", 1_500_000_000),
            ("512 MiB", 512 << 20),
            ("2gib", 2 << 30),
            ("64kB", 64_000),
            ("123456789", 123_456_789),
            ("0", 0),
        ];
        for (text, expected) in table {
            assert_eq!(bytes(text), Some(MemoryBudget::Bytes(expected)), "{text}");
        }
        assert_eq!(bytes("min"), Some(MemoryBudget::Min));
        assert_eq!(bytes("AUTO"), Some(MemoryBudget::Auto));
        assert_eq!(bytes("unlimited"), Some(MemoryBudget::Unlimited));
        for text in ["", "MB", "300M", "-1", "1.5", "1..5GB", "9e9", "99999999999GB", "1.2.3MB"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
