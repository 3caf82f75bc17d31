//! Where text goes: results to stdout, all else to stderr.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::args::OutputArgs;
use crate::error::{Failure, Result};

/// Tells results, as text or as one JSON object.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    json: bool,
}

impl Ui {
    pub fn new(output: OutputArgs) -> Self {
        Self { json: output.json }
    }

    /// A line of text for people: on stdout, or on stderr where stdout is for JSON. A reader who
    /// has gone away does not end a run.
    pub fn say(&self, text: &str) {
        self.put(text, "\n");
    }

    /// Text that goes on on the same line.
    pub fn put(&self, text: &str, end: &str) {
        if self.json {
            let _ = write!(std::io::stderr(), "{text}{end}");
        } else {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "{text}{end}").and_then(|()| out.flush());
        }
    }

    /// The command's report, where JSON was asked for.
    pub fn report(&self, report: &impl Serialize) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        let failed = |what: String| Failure::File(format!("cannot write the report: {what}"));
        let text = serde_json::to_string(report).map_err(|e| failed(e.to_string()))?;
        writeln!(std::io::stdout(), "{text}").map_err(|e| failed(e.to_string()))
    }

    /// Whether text may be dimmed where [`Ui::say`] puts it.
    pub fn is_styled(&self) -> bool {
        match self.json {
            true => is_styled(&std::io::stderr()),
            false => is_styled(&std::io::stdout()),
        }
    }
}

/// Whether bars and dimmed text may go there: a terminal, and no NO_COLOR.
pub fn is_styled(out: &impl IsTerminal) -> bool {
    out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// A line on stderr.
pub fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The command as it was typed, as a shell would take it.
pub fn typed_command() -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+".contains(c);
    let quoted = |word: String| match !word.is_empty() && word.chars().all(plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    std::iter::once(program).chain(words.map(quoted)).collect::<Vec<_>>().join(" ")
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The beginning and the end of a text that is too long for a line.
pub fn shortened(text: &str) -> String {
    const LONGEST: usize = 160;
    let count = text.chars().count();
    if count <= LONGEST {
        return text.to_owned();
    }
    let head: String = text.chars().take(LONGEST / 2).collect();
    let tail: String = text.chars().skip(count - LONGEST / 2).collect();
    format!("{head} ... {tail}")
}

/// Bytes in MB of 10^6.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// `1 step`, `2 steps`.
pub fn count(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
        assert_eq!(megabytes(1_250_000), "1.2 MB");
        assert_eq!(count(1, "token"), "1 token");
        assert_eq!(count(1_000, "token"), "1,000 tokens");
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"é".repeat(200)).chars().count(), 165);
    }
}
