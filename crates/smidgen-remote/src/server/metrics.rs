//! What the server counts, as Prometheus reads it.

use std::fmt::{self, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tonic::Code;

/// A number that only grows, or one that goes up and down.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn subtract(&self, less: u64) {
        self.0.fetch_sub(less, Ordering::Relaxed);
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more as long as the guard lives.
    pub fn hold(&self) -> Held<'_> {
        self.add(1);
        Held(self)
    }
}

/// One of a [`Count`].
#[derive(Debug)]
pub(super) struct Held<'a>(&'a Count);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.subtract(1);
    }
}

/// What a worker does for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// A sample's output.
    Forward,
    /// A sample's gradient.
    Backward,
    /// Both, with the loss in between.
    Learn,
    /// A step's update, with its way to the disk.
    Commit,
}

const WORK: [(Work, &str); 4] = [
    (Work::Forward, "forward"),
    (Work::Backward, "backward"),
    (Work::Learn, "learn"),
    (Work::Commit, "commit"),
];
/// gRPC's codes are 0 to 16.
const CODES: usize = 17;

/// All that is counted.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub connections: Count,
    pub received: Count,
    pub sent: Count,
    pub stored: Count,
    pub attached: Count,
    pub steps: Count,
    pub waiting: Count,
    pub cache_bytes: Count,
    pub cache_entries: Count,
    pub cache_hits: Count,
    pub cache_misses: Count,
    pub cache_damaged: Count,
    pub cache_evicted: Count,
    refusals: [Count; CODES],
    /// Time that workers took.
    work: Mutex<[Duration; WORK.len()]>,
}

impl Metrics {
    /// Counts what was refused.
    pub fn refuse(&self, code: Code) {
        if let Some(count) = self.refusals.get(code as usize) {
            count.add(1);
        }
    }

    /// Counts the time since `start`.
    pub fn worked(&self, work: Work, start: Instant) {
        let mut all = self.work.lock().unwrap_or_else(|e| e.into_inner());
        for (sum, (of, _)) in all.iter_mut().zip(WORK) {
            if of == work {
                *sum += start.elapsed();
            }
        }
    }

    /// The page that Prometheus reads (its text format, version 0.0.4).
    pub fn page(&self) -> String {
        let mut page = Page::default();
        let gauges = [
            ("connections", "Open connections.", &self.connections),
            ("sessions_stored", "Sessions on disk.", &self.stored),
            ("sessions_attached", "Sessions with a device that trains.", &self.attached),
            ("work_waiting", "Jobs that wait for a worker.", &self.waiting),
            ("cache_bytes", "Bytes of cached taps on disk.", &self.cache_bytes),
            ("cache_entries", "Samples whose taps are cached.", &self.cache_entries),
        ];
        for (name, help, count) in gauges {
            page.head(name, help, "gauge");
            page.line(name, "", count.get());
        }
        let counters = [
            ("received_bytes_total", "Bytes read from connections.", &self.received),
            ("sent_bytes_total", "Bytes written to connections.", &self.sent),
            ("steps_total", "Steps confirmed.", &self.steps),
            ("cache_hits_total", "Samples whose taps were cached.", &self.cache_hits),
            ("cache_misses_total", "Samples whose taps had to be sent.", &self.cache_misses),
            ("cache_damaged_total", "Cached taps found damaged or gone.", &self.cache_damaged),
            ("cache_evicted_total", "Cached taps that made room.", &self.cache_evicted),
        ];
        for (name, help, count) in counters {
            page.head(name, help, "counter");
            page.line(name, "", count.get());
        }
        page.head("work_seconds_total", "Time that workers took.", "counter");
        let work = *self.work.lock().unwrap_or_else(|e| e.into_inner());
        for ((_, name), time) in WORK.iter().zip(work) {
            page.line("work_seconds_total", &format!("{{work=\"{name}\"}}"), time.as_secs_f64());
        }
        page.head("refusals_total", "Calls and streams that ended with an error.", "counter");
        for (code, count) in self.refusals.iter().enumerate() {
            if count.get() > 0 {
                let reason = format!("{{reason=\"{:?}\"}}", Code::from_i32(code as i32));
                page.line("refusals_total", &reason, count.get());
            }
        }
        page.0
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        _ = writeln!(self.0, "# HELP smidgen_{name} {help}\n# TYPE smidgen_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl fmt::Display) {
        _ = writeln!(self.0, "smidgen_{name}{labels} {value}");
    }
}
