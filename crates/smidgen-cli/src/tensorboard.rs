//! `--tensorboard`: a run's figures as TensorBoard reads them.
//!
//! A file of records (TFRecord): a length of 8 bytes, its checksum, the record, its checksum; both are CRC-32C,
//! rotated right by 15 bits, plus 0xa282ead8. A record is an `Event` protocol buffer with, as far as
//! it is needed here: 1 wall time (f64), 2 step, 3 the file's version, 5 a `Summary` of 1 values,
//! each of 1 a tag and 2 a number (f32).

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

/// A file of events, for one run of the program.
#[derive(Debug)]
pub struct Events {
    file: File,
}

impl Events {
    /// Begins a file in `folder`, beside those of the run before it was resumed.
    pub fn create(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let now = seconds();
        let name = format!("events.out.tfevents.{:.0}.smidgen.{}", now, std::process::id());
        let mut events = Self { file: File::create(folder.join(name))? };
        let mut event = Vec::new();
        put_f64(&mut event, 1, now);
        put_bytes(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        Ok(events)
    }

    /// Numbers after a step, each with its tag.
    pub fn numbers(&mut self, step: u64, numbers: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for &(tag, number) in numbers {
            let mut value = Vec::new();
            put_bytes(&mut value, 1, tag.as_bytes());
            value.push(2 << 3 | 5);
            value.extend_from_slice(&(number as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &value);
        }
        let mut event = Vec::new();
        put_f64(&mut event, 1, seconds());
        event.push(2 << 3);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, event: &[u8]) -> io::Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked(crc32c(&length)).to_le_bytes());
        record.extend_from_slice(event);
        record.extend_from_slice(&masked(crc32c(event)).to_le_bytes());
        self.file.write_all(&record)
    }
}

fn seconds() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0.0, |time| time.as_secs_f64())
}

fn put_f64(out: &mut Vec<u8>, field: u8, number: f64) {
    out.push(field << 3 | 1);
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), a bit at a time: a record is some sixty bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn checksums() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path()).unwrap();
        events.numbers(300, &[("train/loss", 2.5), ("memory/MB", 90.25)]).unwrap();
        let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(file).unwrap();
        let (mut at, mut records) = (0, Vec::new());
        while at < bytes.len() {
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(word(at + 8), masked(crc32c(&bytes[at..at + 8])));
            let record = &bytes[at + 12..at + 12 + length];
            assert_eq!(word(at + 12 + length), masked(crc32c(record)));
            records.push(record);
            at += 16 + length;
        }
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(b"brain.Event:2"));
        // Step 300 as a varint behind the wall time, then the summary.
        assert_eq!(records[1][9..12], [0x10, 0xac, 0x02]);
        let tag = b"train/loss";
        let place = records[1].windows(tag.len()).position(|part| part == tag).unwrap() + tag.len();
        assert_eq!(records[1][place], 2 << 3 | 5);
        assert_eq!(records[1][place + 1..place + 5], 2.5f32.to_le_bytes());
    }
}
