//! Files of `/proc`, a line at a time: they can be long, and a meter must take next to nothing.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Calls `line` with every line of the file at `path`, without its end. What is not UTF-8, in a file's name perhaps, is replaced.
pub(super) fn each_line(path: &Path, line: &mut dyn FnMut(&str)) -> std::io::Result<()> {
    let mut file = BufReader::with_capacity(4096, File::open(path)?);
    let mut bytes = Vec::with_capacity(256);
    while file.read_until(b'\n', &mut bytes)? > 0 {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        line(&String::from_utf8_lossy(&bytes));
        bytes.clear();
    }
    Ok(())
}
