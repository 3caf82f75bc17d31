use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::dataset::Sequence;
use crate::gguf::tests::tiny;
use crate::{Dataset, WindowSpec};

fn sample(ids: &[u32], targets: &[u8]) -> Sequence {
    Sequence { ids: ids.to_vec(), targets: targets.iter().map(|&target| target == 1).collect() }
}

fn write_samples(folder: &Path) -> PathBuf {
    let path = folder.join("samples.tokens");
    let mut writer = TokenFileWriter::create(&path, TokenFileKind::Samples, &tiny(), true).unwrap();
    writer.push_sample(&sample(&[1, 2, 3, 0], &[0, 0, 1, 1])).unwrap();
    writer.push_sample(&sample(&[4, 0], &[1, 1])).unwrap();
    writer.push_sample(&sample(&[1, 1, 1, 1, 1, 2], &[0, 0, 0, 0, 0, 1])).unwrap();
    writer.made_with(Some(Fingerprint([1; 16])), Some(Fingerprint([2; 16])));
    writer.finish([7; 32]).unwrap();
    path
}

fn write_text(folder: &Path, tokens: u32) -> PathBuf {
    let path = folder.join("text.tokens");
    let mut writer = TokenFileWriter::create(&path, TokenFileKind::Text, &tiny(), true).unwrap();
    let ids: Vec<u32> = (0..tokens).map(|i| i % 5).collect();
    writer.push_text(&ids).unwrap();
    writer.finish([7; 32]).unwrap();
    path
}

fn open(path: &Path, max_seq_length: usize, chunks: Option<usize>, bos: bool) -> Dataset {
    let spec = WindowSpec { max_seq_length, chunks, bos, single_token: false };
    Dataset::open(TokenFile::open(path).unwrap(), &spec).unwrap()
}

fn read(dataset: &Dataset) -> Vec<Sequence> {
    (0..dataset.len())
        .map(|index| {
            let mut sequence = Sequence::default();
            dataset.read(index, &mut sequence).unwrap();
            sequence
        })
        .collect()
}

#[test]
fn header_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = TokenFile::open(&write_samples(folder.path())).unwrap();
    let header = file.header();
    assert_eq!((header.tokens, header.targets, header.samples), (12, 5, 3));
    assert_eq!((header.bos, header.eos), (None, Some(0)));
    assert_eq!(header.source_sha256, [7; 32]);
    assert_eq!(header.fingerprint, tiny().fingerprint());
    assert_eq!(header.chat_template, Some(Fingerprint([1; 16])));
    assert_eq!(header.features, Some(Fingerprint([2; 16])));
    let text = TokenFile::open(&write_text(folder.path(), 9)).unwrap();
    assert_eq!((text.header().chat_template, text.header().features), (None, None));
    fs::remove_file(text.path()).unwrap();
    assert!(header.mask_prompt);
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["samples.tokens"], "the partial file is gone");
}

#[test]
fn samples() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = open(&write_samples(folder.path()), 100, None, false);
    assert_eq!(
        read(&dataset),
        [
            sample(&[1, 2, 3, 0], &[0, 0, 1, 1]),
            sample(&[4, 0], &[0, 1]),
            sample(&[1, 1, 1, 1, 1, 2], &[0, 0, 0, 0, 0, 1]),
        ]
    );
    assert_eq!((dataset.max_len(), dataset.targets()), (6, 4));
}

#[test]
fn truncation_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = open(&write_samples(folder.path()), 3, None, false);
    assert_eq!(read(&dataset), [sample(&[1, 2, 3], &[0, 0, 1]), sample(&[4, 0], &[0, 1])]);
    let summary = dataset.summary().unwrap();
    assert_eq!((summary.sequences, summary.truncated, summary.dropped), (2, 2, 1));
    assert_eq!((summary.length_min, summary.length_median, summary.length_max), (2, 3, 3));
    assert_eq!((summary.tokens, summary.targets), (12, 2));
    assert_eq!(summary.first_ids, [1, 2, 3, 0, 4, 0, 1, 1, 1, 1, 1, 2]);
    assert_eq!(open(&write_samples(folder.path()), 3, Some(1), false).len(), 1);
}

#[test]
fn windows() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_text(folder.path(), 10);
    let dataset = open(&path, 4, None, false);
    let wanted = [
        sample(&[0, 1, 2, 3], &[0, 1, 1, 1]),
        sample(&[4, 0, 1, 2], &[0, 1, 1, 1]),
        sample(&[3, 4], &[0, 1]),
    ];
    assert_eq!(read(&dataset), wanted);
    assert_eq!((dataset.max_len(), dataset.targets()), (4, 7));
    let summary = dataset.summary().unwrap();
    assert_eq!((summary.length_min, summary.length_median, summary.length_max), (2, 4, 4));
    assert_eq!(read(&open(&path, 4, Some(9), false)), wanted[..2]);
    assert_eq!(read(&open(&path, 4, Some(1), false)), wanted[..1]);
    assert_eq!(open(&path, usize::MAX, None, false).max_len(), 10);
    assert_eq!(open(&write_text(folder.path(), 9), 4, None, false).len(), 2);
}

#[test]
fn windows_with_bos_keep_their_targets() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_text(folder.path(), 10);
    let mut file = TokenFile::open(&path).unwrap();
    let spec = WindowSpec { max_seq_length: 5, chunks: None, bos: true, single_token: false };
    assert!(Dataset::open(file, &spec).unwrap_err().to_string().contains("BOS"));
    let tokenizer = tiny().with_bos_eos(Some(3), Some(0)).unwrap();
    let mut writer = TokenFileWriter::create(&path, TokenFileKind::Text, &tokenizer, true).unwrap();
    writer.push_text(&[0, 1, 2, 4, 4]).unwrap();
    writer.finish([0; 32]).unwrap();
    file = TokenFile::open(&path).unwrap();
    let dataset = Dataset::open(file, &spec).unwrap();
    assert_eq!(read(&dataset), [sample(&[3, 0, 1, 2, 4, 4], &[0, 0, 1, 1, 1, 1])]);
    assert_eq!((dataset.max_len(), dataset.targets()), (6, 4));
    assert_eq!(dataset.summary().unwrap().length_max, 6);
}

/// A chat template may write BOS itself.
#[test]
fn samples_with_bos_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("samples.tokens");
    let tokenizer = tiny().with_bos_eos(Some(3), Some(0)).unwrap();
    let mut writer =
        TokenFileWriter::create(&path, TokenFileKind::Samples, &tokenizer, true).unwrap();
    writer.push_sample(&sample(&[3, 1, 2, 0], &[1, 0, 1, 1])).unwrap();
    writer.push_sample(&sample(&[1, 2], &[1, 1])).unwrap();
    writer.push_sample(&sample(&[3], &[1])).unwrap();
    writer.finish([0; 32]).unwrap();
    let dataset = open(&path, 3, None, true);
    assert_eq!(
        read(&dataset),
        [sample(&[3, 1, 2], &[0, 0, 1]), sample(&[3, 1, 2], &[0, 1, 1])],
        "no second BOS, which is no target either"
    );
    assert_eq!((dataset.max_len(), dataset.targets()), (3, 3));
    let summary = dataset.summary().unwrap();
    assert_eq!((summary.length_min, summary.length_max, summary.dropped), (3, 3, 1));
    assert_eq!(read(&open(&path, 4, None, false))[1], sample(&[1, 2], &[0, 1]));
}

#[test]
fn of_an_answer_its_first_token_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.tokens");
    let write = |masked| {
        let kind = TokenFileKind::Samples;
        let mut writer = TokenFileWriter::create(&path, kind, &tiny(), masked).unwrap();
        writer.push_sample(&sample(&[1, 2, 3, 4, 0], &[0, 0, 1, 1, 1])).unwrap();
        writer.push_sample(&sample(&[1, 1, 1, 1, 2, 0], &[0, 0, 0, 0, 1, 1])).unwrap();
        writer.push_sample(&sample(&[2, 4, 0], &[0, 1, 1])).unwrap();
        writer.finish([0; 32]).unwrap();
        TokenFile::open(&path).unwrap()
    };
    let spec = WindowSpec { max_seq_length: 4, chunks: None, bos: false, single_token: true };
    let dataset = Dataset::open(write(true), &spec).unwrap();
    assert_eq!(read(&dataset), [sample(&[1, 2, 3], &[0, 0, 1]), sample(&[2, 4], &[0, 1])]);
    assert_eq!((dataset.max_len(), dataset.targets()), (3, 2));
    // What is behind an answer is not missed.
    assert_eq!((dataset.truncated(), dataset.dropped()), (1, 1));
    assert_eq!(dataset.lengths().unwrap(), [3, 2]);
    let error = Dataset::open(write(false), &spec).unwrap_err().to_string();
    assert!(error.contains("prompts are in the loss"), "{error}");
    let text = TokenFile::open(&write_text(folder.path(), 9)).unwrap();
    let error = Dataset::open(text, &spec).unwrap_err().to_string();
    assert!(error.contains("no answers"), "{error}");
}

#[test]
fn specs_that_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_text(folder.path(), 3);
    let spec = WindowSpec { max_seq_length: 4, chunks: Some(1), bos: false, single_token: false };
    let error = Dataset::open(TokenFile::open(&path).unwrap(), &spec).unwrap_err();
    let said = error.of(Path::new("a.txt")).to_string();
    assert_eq!(
        said,
        "a.txt: the text is too short: it has 3 tokens, and a number of windows is read of whole \
         ones of 4; give a longer text, or a smaller --max-seq-length"
    );
    for (max_seq_length, chunks) in [(0, None), (1, None), (4, Some(1)), (2, Some(0))] {
        let spec = WindowSpec { max_seq_length, chunks, bos: false, single_token: false };
        assert!(Dataset::open(TokenFile::open(&path).unwrap(), &spec).is_err());
    }
}

#[test]
fn every_cut_and_every_flipped_bit_is_found() {
    let folder = tempfile::tempdir().unwrap();
    for path in [write_samples(folder.path()), write_text(folder.path(), 9)] {
        let whole = fs::read(&path).unwrap();
        let damaged = folder.path().join("damaged");
        let refused = |bytes: &[u8], what: String| {
            fs::write(&damaged, bytes).unwrap();
            let error = TokenFile::open(&damaged).expect_err(&what).to_string();
            fs::remove_file(&damaged).unwrap();
            assert!(error.contains("damaged"), "{error} names no file");
        };
        for length in 0..whole.len() {
            refused(&whole[..length], format!("cut at {length}"));
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            refused(&bytes, format!("bit {bit} flipped"));
        }
        let longer = [&whole[..], &[0; 8]].concat();
        refused(&longer, "longer".into());
    }
}

/// A file whose checksum is right but whose content is not.
#[test]
fn content_that_contradicts_itself() {
    use sha2::{Digest, Sha256};
    let folder = tempfile::tempdir().unwrap();
    let path = write_samples(folder.path());
    let whole = fs::read(&path).unwrap();
    let refused = |at: usize, value: u8, wanted: &str| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        let mut hash = Sha256::new();
        hash.update(&bytes[HEADER_BYTES..]);
        hash.update(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&hash.finalize());
        fs::write(&path, bytes).unwrap();
        let error = TokenFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error:?} is not {wanted:?}");
    };
    let offsets = HEADER_BYTES + 12 * 4;
    refused(HEADER_BYTES, 200, "outside its vocabulary");
    refused(HEADER_BYTES + 3, 0x80, "number of targets");
    refused(offsets, 1, "offsets");
    refused(offsets + 8, 6, "offsets");
    refused(offsets + 24, 11, "offsets");
    refused(8, 1, "version 1 is not 2");
    refused(103, 0xff, "samples in");
    refused(87, 0xff, "not what its header describes");
    refused(16, 0, "vocabulary size");
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.tokens");
    let mut writer = TokenFileWriter::create(&path, TokenFileKind::Text, &tiny(), true).unwrap();
    writer.push_text(&[1, 2]).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
