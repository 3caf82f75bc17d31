//! Progress on stderr: a bar on a terminal, else (and with NO_COLOR) a line now and then.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::ui;

/// How often a line is written where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

const MB: u64 = 1_000_000;

/// How far something has come.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    last: Instant,
    wrote: bool,
}

impl Progress {
    /// `total` of `what` lie ahead.
    pub fn new(what: &'static str, total: u64) -> Self {
        let bar = ui::is_styled(&std::io::stderr()).then(|| {
            let style = "{prefix} {pos}/{len} [{wide_bar}] {msg}  {eta} left";
            let style = ProgressStyle::with_template(style).expect("the template is right");
            ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_prefix(what)
        });
        Self { bar, what, last: Instant::now(), wrote: false }
    }

    /// `done` of `total` are done; `message` says how it goes.
    pub fn at(&mut self, done: u64, total: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_message(message());
            bar.set_position(done);
            return;
        }
        let is_edge = !self.wrote || done >= total;
        if is_edge || self.last.elapsed() >= EVERY {
            (self.last, self.wrote) = (Instant::now(), true);
            ui::warn(&format!("{} {done}/{total}  {}", self.what, message()));
        }
    }

    /// A line that stays, above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| ui::warn(text)),
            None => ui::warn(text),
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress in writing a file, told a megabyte at a time.
#[derive(Debug)]
pub struct Writing {
    progress: Progress,
    /// The last megabyte that was told.
    told: Option<u64>,
}

impl Writing {
    pub fn new() -> Self {
        Self { progress: Progress::new("writing MB", 0), told: None }
    }

    /// `done` of `total` bytes are written.
    pub fn at(&mut self, done: u64, total: u64) {
        if self.told.replace(done / MB) != Some(done / MB) {
            self.progress.at(done / MB, total / MB, String::new);
        }
    }

    pub fn clear(&self) {
        self.progress.clear();
    }
}

/// Progress in tokenising a text, shown only where it takes long.
#[derive(Debug)]
pub struct Preparing {
    begin: Instant,
    progress: Option<Progress>,
}

impl Preparing {
    pub fn new() -> Self {
        Self { begin: Instant::now(), progress: None }
    }

    pub fn at(&mut self, p: smidgen::Progress) {
        if self.progress.is_none() && self.begin.elapsed() < Duration::from_secs(1) {
            return;
        }
        let progress = self.progress.get_or_insert_with(|| Progress::new("tokenising MB", 0));
        let message = || ui::count(p.tokens, "token");
        progress.at(p.bytes.div_ceil(MB), p.bytes_total.div_ceil(MB), message);
    }

    pub fn end(&self) {
        if let Some(progress) = &self.progress {
            progress.clear();
        }
    }
}
