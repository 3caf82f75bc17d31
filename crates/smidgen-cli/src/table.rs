//! The plan as a table: a line a buffer, which sum to the peak.

use smidgen::{Plan, Row};

use crate::ui::{grouped, megabytes};

const HEAD: [&str; 5] = ["buffer", "shape", "bytes", "life", "why"];

/// Characters of the rules.
const RULE: usize = 100;

/// The plan's rows and their sum; the weights in memory, which the budget does not count; and the
/// bytes of `preparing`, which is over when the rest begins, if there is text to prepare.
pub fn plan(plan: &Plan, preparing: Option<u64>) -> String {
    let cells = |r: &Row| {
        [r.name.clone(), r.shape.clone(), grouped(r.bytes), r.life.clone(), r.why.clone()]
    };
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(plan.rows.iter().map(cells));
    let total = ["peak", "", &grouped(plan.peak_bytes), "", "the sum"];
    let why = "beside the peak: read-only pages of the model file, the system's to drop";
    let life = if plan.weights_stay { "whole run" } else { "two blocks" };
    let window = ["weight window", "", &grouped(plan.weight_bytes), life, why];
    let sum = rows.len();
    rows.extend([total, window].map(|row| row.map(str::to_owned)));
    rows.extend(preparing.map(|bytes| {
        let why =
            "the tokenizer, while text is made into tokens; the larger of it and the peak counts";
        ["preparing", "", &grouped(bytes), "before the run", why].map(str::to_owned)
    }));
    let mut lines = aligned(&rows);
    let rule = "-".repeat(RULE);
    lines.insert(sum, rule.clone());
    lines.insert(1, rule);
    lines.push(time(plan));
    lines.join("\n")
}

/// What a step takes, and what goes to the disk.
fn time(plan: &Plan) -> String {
    let step = format!("step: {:.2} s expected", plan.seconds);
    let smidgen::Traffic { read, written } = plan.scratch_traffic;
    if written == 0 {
        return step;
    }
    let (written, read) = (megabytes(written), megabytes(read));
    format!("{step}; scratch file: {written} written and {read} read a step")
}

/// Columns of equal width; the third is numbers and stands to the right.
fn aligned(rows: &[[String; 5]]) -> Vec<String> {
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |[name, shape, bytes, life, why]: &[String; 5]| {
        let (n, s, b, l) = (widths[0], widths[1], widths[2], widths[3]);
        format!("{name:n$}  {shape:s$}  {bytes:>b$}  {life:l$}  {why}").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A table whose first line is its head; all but the first column stand to the right.
pub fn right(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells: Vec<String> = cells
            .map(
                |(i, (cell, &w))| if i == 0 { format!("{cell:w$}") } else { format!("{cell:>w$}") },
            )
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
