//! A run on one page of HTML that needs no other file: how it was asked for, how its loss and its
//! memory went, what the model says before and after.

use std::fmt::Write;

use smidgen::History;

use crate::chart::{self, escaped};
use crate::report::{Answer, PlanRow, Report};
use crate::ui::{grouped, megabytes};

/// Groups of steps that are drawn, at most.
pub const GROUPS: usize = 800;

/// What a page tells beside the run's report.
#[derive(Debug)]
pub struct Page<'a> {
    /// The command as it was typed.
    pub command: &'a str,
    /// The run's report.
    pub report: &'a Report,
    /// How it went.
    pub history: &'a History,
    /// Its buffers.
    pub rows: &'a [PlanRow],
    /// Bytes that were allowed, if it had a limit.
    pub budget: Option<u64>,
}

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 16px;\
color:#1f2328;background:#fff}\
h1{font-size:22px}h2{font-size:17px;margin-top:2em}\
code,pre{font:13px ui-monospace,monospace}pre{white-space:pre-wrap;background:#f6f8fa;padding:10px}\
table{border-collapse:collapse;font-size:13px}td,th{padding:2px 12px 2px 0;text-align:left;\
vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}\
th{border-bottom:1px solid #818b98}.soft{color:#59636e}svg{max-width:100%;height:auto}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px}dt{color:#59636e}dd{margin:0}\
.answer{white-space:pre-wrap}\
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}pre{background:#161b22}\
.soft,dt{color:#9198a1}}";

impl Page<'_> {
    /// The page's text.
    pub fn html(&self) -> String {
        let model = escaped(&self.report.model);
        let mut body = format!("<h1>Fine-tuning {model}</h1><pre>{}</pre>", escaped(self.command));
        self.figures(&mut body);
        let train: Vec<_> =
            self.history.steps.iter().map(|group| (group.step as f64, group.loss)).collect();
        let valid: Vec<_> =
            self.history.evaluations.iter().map(|&(step, loss)| (step as f64, loss)).collect();
        body += "<h2>Loss</h2>";
        body += &chart::loss_svg(&train, &valid);
        let steps = self.history.steps.iter();
        let memory: Vec<_> = steps.filter_map(|s| Some((s.seconds, s.memory_bytes?))).collect();
        if !memory.is_empty() {
            body += "<h2>Memory</h2>";
            body += &chart::memory_svg(&memory, Some(self.report.planned_peak_bytes), self.budget);
        }
        answers(&mut body, &self.report.answers);
        buffers(&mut body, self.rows, self.report.planned_peak_bytes);
        notes(&mut body, &self.report.notes);
        document(&format!("Fine-tuning {model}"), &body)
    }

    fn figures(&self, body: &mut String) {
        let report = self.report;
        let mut all: Vec<(&str, String)> = Vec::new();
        if let Some(steps) = report.steps {
            let before = report.resumed_steps.map(|n| format!(", {} before a resume", grouped(n)));
            all.push(("steps", grouped(steps) + &before.unwrap_or_default()));
        }
        if let (Some(first), Some(last)) = (self.history.steps.first(), self.history.steps.last()) {
            all.push(("training loss", format!("{:.4} to {:.4}", first.loss, last.loss)));
        }
        if let (Some(first), Some(last)) = (report.valid.first(), report.valid.last()) {
            let from = match report.valid.len() {
                1 => String::new(),
                _ => format!("{:.4} (step {}) to ", first.loss, first.step),
            };
            let (loss, perplexity) = (last.loss, last.perplexity);
            let accuracy = 100.0 * last.accuracy;
            all.push((
                "valid loss",
                format!("{from}{loss:.4}, perplexity {perplexity:.2}, accuracy {accuracy:.1} %"),
            ));
        }
        if let (Some(step), Some(all_seconds)) = (report.seconds_per_step, report.seconds) {
            all.push(("time", format!("{step:.3} s a step, {all_seconds:.1} s since it began")));
        }
        let measured =
            report.peak_memory_bytes.map(|peak| format!(", {} measured", megabytes(peak)));
        let budget = self.budget.map_or("no limit".to_owned(), megabytes);
        let planned = megabytes(report.planned_peak_bytes);
        all.push(("peak memory", format!("{planned} planned{}", measured.unwrap_or_default())));
        all.push(("budget", budget));
        if report.spool_written_bytes > 0 {
            let written = megabytes(report.spool_written_bytes);
            all.push(("scratch file", format!("{written} written a step at full length")));
        }
        if let Some(path) = &report.adapter_path {
            all.push(("adapter", path.clone()));
        }
        *body += "<dl>";
        for (name, value) in all {
            let _ = write!(body, "<dt>{name}</dt><dd>{}</dd>", escaped(&value));
        }
        *body += "</dl>";
    }
}

/// A page of a title and a body, both in HTML.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )
}

fn answers(body: &mut String, answers: &[Answer]) {
    if answers.is_empty() {
        return;
    }
    *body += "<h2>What the model says</h2><table><tr><th>prompt<th>data<th>before<th>after</tr>";
    for Answer { prompt, expected, before, after } in answers {
        *body += "<tr>";
        for text in [prompt, expected.as_deref().unwrap_or("–"), before, after] {
            let lines: Vec<String> = text.trim().lines().map(escaped).collect();
            let _ = write!(body, "<td class=\"answer\">{}</td>", lines.join("<br>"));
        }
        *body += "</tr>";
    }
    *body += "</table>";
}

fn buffers(body: &mut String, rows: &[PlanRow], peak: u64) {
    *body += "<h2>Plan</h2><table><tr><th>buffer<th>shape<th>bytes<th>life<th>why</tr>";
    for PlanRow { name, shape, bytes, life, why } in rows {
        let [name, shape, life, why] = [name, shape, life, why].map(|text| escaped(text));
        let bytes = grouped(*bytes);
        let _ = write!(
            body,
            "<tr><td>{name}<td>{shape}<td class=\"n\">{bytes}<td>{life}<td class=\"soft\">{why}</tr>"
        );
    }
    let peak = grouped(peak);
    let _ = write!(
        body,
        "<tr><th>peak<td><td class=\"n\">{peak}<td><td class=\"soft\">the sum</table>"
    );
}

fn notes(body: &mut String, notes: &[String]) {
    if !notes.is_empty() {
        *body += "<h2>Notes</h2><ul>";
        notes.iter().for_each(|note| {
            let _ = write!(body, "<li>{}</li>", escaped(note));
        });
        *body += "</ul>";
    }
}

#[cfg(test)]
mod tests {
    use smidgen::StepGroup;

    use super::*;

    #[test]
    fn a_page_needs_nothing_else() {
        let answer = |text: &str| text.to_owned();
        let report = Report {
            model: "a<b>.gguf".into(),
            planned_peak_bytes: 6_000_000,
            peak_memory_bytes: Some(5_500_000),
            steps: Some(20),
            answers: vec![Answer {
                prompt: answer("Q?\nA:"),
                expected: None,
                before: answer("<script>"),
                after: answer("yes"),
            }],
            ..Report::default()
        };
        let group = |i: u64| StepGroup {
            step: i,
            loss: 2.0 / i as f64,
            seconds: i as f64,
            memory_bytes: Some(5_000_000 + i),
        };
        let history =
            History { steps: (1..=20).map(group).collect(), evaluations: vec![(20, 1.5)] };
        let rows = [("LoRA weights", 400), ("rest", 5_999_600)].map(|(name, bytes)| PlanRow {
            name: name.into(),
            shape: "1".into(),
            bytes,
            life: "whole run".into(),
            why: "&".into(),
        });
        let page = Page {
            command: "smidgen train -m 'a b'",
            report: &report,
            history: &history,
            rows: &rows,
            budget: Some(7_000_000),
        };
        let html = page.html();
        for part in [
            "a&lt;b&gt;.gguf",
            "&lt;script&gt;",
            "Q?<br>A:",
            "6.0 MB planned, 5.5 MB measured",
            "2.0000 to 0.1000",
            "Training loss, and the valid data's (dots)",
            "budget 7.0 MB",
            "LoRA weights",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("<script") && !html.contains("href") && !html.contains("NaN"));
        assert!(html.matches("http").count() == html.matches("http://www.w3.org/2000/svg").count());
    }
}
