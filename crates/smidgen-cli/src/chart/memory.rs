//! What a run took over its time, beside its plan and its budget.

use smidgen::memory::{RunPhase, Sample};

use super::{Axis, Chart, Level, Scale};
use crate::ui::megabytes;

/// A budget that is further above all else than this is named in the title and not drawn.
const FAR: f64 = 2.5;

/// The counted memory of a run over time as a picture: phases are bands, the plan and the budget
/// are lines, all in bytes.
pub fn memory_trace_svg(samples: &[Sample], planned: Option<u64>, budget: Option<u64>) -> String {
    let points: Vec<_> = samples.iter().map(|s| (s.seconds, s.counted)).collect();
    draw(&points, planned, budget, |chart, scale| phases(chart, samples, scale))
}

/// The same of seconds and counted bytes alone.
pub fn memory_svg(points: &[(f64, u64)], planned: Option<u64>, budget: Option<u64>) -> String {
    draw(points, planned, budget, |_, _| {})
}

/// `ground` draws what lies under the curve; it is given the seconds of the time axis' unit.
fn draw(
    points: &[(f64, u64)],
    planned: Option<u64>,
    budget: Option<u64>,
    ground: impl FnOnce(&mut Chart, f64),
) -> String {
    let peak = points.iter().map(|p| p.1).max().unwrap_or(0);
    let highest = peak.max(planned.unwrap_or(0)).max(1) as f64;
    let near = budget.filter(|&bytes| bytes as f64 <= FAR * highest);
    let top = near.map_or(highest, |bytes| highest.max(bytes as f64));
    let seconds = points.last().map_or(0.0, |p| p.0);
    let (unit, scale) = unit_of(seconds);
    let mut title = format!("Memory of the run: peak {}", megabytes(peak));
    if let (Some(bytes), None) = (budget, near) {
        title += &format!(" of a budget of {}", megabytes(bytes));
    }
    let x = Axis::new(&format!("time, {unit}"), Scale::Linear, 0.0, seconds / scale);
    // Room above the highest line for its label.
    let top = 1.12 * top / 1e6;
    let y = Axis::new("counted memory, MB (10^6 bytes)", Scale::Linear, 0.0, top).ending_at(top);
    let mut chart = Chart::new(&title, x.ending_at(seconds / scale), y);
    ground(&mut chart, scale);
    let points: Vec<_> = points.iter().map(|p| (p.0 / scale, mb(p.1))).collect();
    chart.area(&points);
    if let Some(bytes) = near {
        chart.level(mb(bytes), Level::Second, &format!("budget {}", megabytes(bytes)));
    }
    if let Some(bytes) = planned {
        chart.level(mb(bytes), Level::First, &format!("plan {}", megabytes(bytes)));
    }
    chart.finish()
}

/// Bands of the phases, and their peaks as a legend.
fn phases(chart: &mut Chart, samples: &[Sample], scale: f64) {
    let end = samples.last().map_or(0.0, |s| s.seconds);
    let runs: Vec<_> = samples.chunk_by(|a, b| a.phase == b.phase).collect();
    // A sample tells of the time up to it: a band begins where the one before has ended.
    let mut from = 0.0;
    for run in &runs {
        let to = run.last().map_or(end, |s| s.seconds);
        let phase = run[0].phase;
        let steps = match (run[0].step, run[run.len() - 1].step) {
            (0, 0) => String::new(),
            (first, last) if first == last => format!(", step {last}"),
            (first, last) => format!(", steps {first} to {last}"),
        };
        chart.band(from / scale, to / scale, phase as usize, &format!("{phase}{steps}"));
        from = to;
    }
    for phase in RunPhase::ALL {
        let counted = samples.iter().filter(|s| s.phase == phase).map(|s| s.counted);
        if let Some(peak) = counted.max() {
            chart.legend(phase as usize, format!("{phase} {}", megabytes(peak)));
        }
    }
}

/// The unit in which a time is easiest to read, and its seconds.
fn unit_of(seconds: f64) -> (&'static str, f64) {
    match seconds {
        s if s < 300.0 => ("seconds", 1.0),
        s if s < 3.0 * 3600.0 => ("minutes", 60.0),
        _ => ("hours", 3600.0),
    }
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Sample> {
        let sample = |seconds: f64, step, phase, mb: f64| Sample {
            seconds,
            step,
            phase,
            counted: (mb * 1e6) as u64,
        };
        use RunPhase::{Evaluating, Preparing, Saving, Starting, Training};
        let mut all = vec![sample(0.5, 0, Preparing, 12.0), sample(1.0, 0, Starting, 60.0)];
        all.extend((1..=20).map(|i| sample(1.0 + i as f64, i, Training, 90.0 + (i % 3) as f64)));
        all.push(sample(23.0, 20, Evaluating, 91.0));
        all.push(sample(23.5, 20, Saving, 93.0));
        all
    }

    #[test]
    fn phases_lines_and_units_are_there() {
        let svg = memory_trace_svg(&samples(), Some(95_000_000), Some(100_000_000));
        for text in [
            "Memory of the run: peak 93.0 MB",
            "time, seconds",
            "counted memory, MB (10^6 bytes)",
            "plan 95.0 MB",
            "budget 100.0 MB",
            "preparing 12.0 MB",
            "<title>training, steps 1 to 20</title>",
            "evaluating 91.0 MB",
            "saving 93.0 MB",
            "prefers-color-scheme:dark",
        ] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert_eq!(svg.matches("class=\"level").count(), 2);
    }

    #[test]
    fn a_far_budget_does_not_flatten_the_picture() {
        let svg = memory_trace_svg(&samples(), Some(95_000_000), Some(1_000_000_000));
        assert!(svg.contains("of a budget of 1000.0 MB"));
        assert_eq!(svg.matches("class=\"level").count(), 1);
    }

    #[test]
    fn nothing_seen_is_still_a_picture() {
        for samples in [&[][..], &samples()[..1]] {
            let svg = memory_trace_svg(samples, None, None);
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn long_runs_have_long_units() {
        assert_eq!(unit_of(20.0).0, "seconds");
        assert_eq!(unit_of(1800.0), ("minutes", 60.0));
        assert_eq!(unit_of(1e5), ("hours", 3600.0));
    }
}
