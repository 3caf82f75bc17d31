//! Logits as a safetensors file, for comparison with other programs.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use smidgen_train::{Base, Error, Evaluator, Result};

/// Writes the logits of `ids` to the safetensors file `path`: `ids` i32 `[T]` and `logits` f32
/// `[T, V]`. They go to the file a tile of the vocabulary at a time; `[T, V]` is never in memory.
///
/// # Errors
/// The file can't be written, `ids` is longer than the evaluator was made for, or holds a token
/// that `base` does not have.
pub fn write_logits(
    base: &Base,
    evaluator: &mut Evaluator<'_>,
    ids: &[u32],
    path: &Path,
) -> Result<()> {
    let io = |source| Error::Io { action: "write", path: path.to_owned(), source };
    let vocabulary = base.info().vocabulary;
    let mut file = File::create(path).map_err(io)?;
    let head = header(ids.len(), vocabulary);
    file.write_all(&head).map_err(io)?;
    for id in ids {
        file.write_all(&id.to_le_bytes()).map_err(io)?;
    }
    let start = head.len() as u64 + 4 * ids.len() as u64;
    let mut written = Ok(());
    let mut bytes = Vec::new();
    evaluator.logits(ids, &mut |first, tile| {
        for position in 0..ids.len() {
            bytes.clear();
            bytes.extend(tile.row(position).iter().flat_map(|logit| logit.to_le_bytes()));
            let at = start + 4 * (position as u64 * vocabulary as u64 + first as u64);
            if written.is_ok() {
                written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&bytes));
            }
        }
    })?;
    written.map_err(io)
}

/// The length of the header as eight bytes, then the header, padded with spaces so that the
/// numbers are aligned.
fn header(tokens: usize, vocabulary: usize) -> Vec<u8> {
    let ids = 4 * tokens as u64;
    let end = ids + ids * vocabulary as u64;
    let mut json =
        format!(r#"{{"ids":{{"dtype":"I32","shape":[{tokens}],"data_offsets":[0,{ids}]}},"#,);
    json += &format!(
        r#""logits":{{"dtype":"F32","shape":[{tokens},{vocabulary}],"data_offsets":[{ids},{end}]}}}}"#,
    );
    let padded = json.len().next_multiple_of(8);
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(8 + padded, b' ');
    bytes
}
