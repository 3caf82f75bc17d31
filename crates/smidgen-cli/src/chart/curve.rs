//! What a step takes under each budget.

use super::{Axis, Chart, Scale};
use crate::ui::megabytes;

/// Budgets that differ by more than this factor are drawn by their ratios.
const WIDE: f64 = 6.0;

/// Budget against time as a picture: `points` are a budget in bytes, the seconds a step that are
/// predicted under it, and a label (empty for a point that is only part of the line), in rising
/// order of budgets. A budget between two points takes the plan of the smaller one.
pub fn curve_svg(points: &[(u64, f64, String)]) -> String {
    let budgets = points.iter().map(|p| p.0 as f64 / 1e6);
    let (least, most) = range(budgets);
    let (fastest, slowest) = range(points.iter().map(|p| p.1));
    let scale = if most > WIDE * least { Scale::Log } else { Scale::Linear };
    // Room for the last label, and for the curve to go on beyond the last point.
    let beyond = if scale == Scale::Log { most * (most / least).powf(0.12) } else { 1.15 * most };
    let from = if scale == Scale::Log { 0.9 * least } else { 0.0 };
    let x = Axis::new("budget, MB (10^6 bytes)", scale, from, beyond).ending_at(beyond);
    let margin = 0.12 * (slowest - fastest).max(0.1 * slowest);
    let y_range = ((fastest - margin).max(0.0), slowest + margin);
    let y = Axis::new("predicted time, seconds a step", Scale::Linear, y_range.0, y_range.1);
    let mut chart = Chart::new("Time of a step under each budget", x, y);
    let line: Vec<_> = points.iter().map(|p| (p.0 as f64 / 1e6, p.1)).collect();
    chart.steps(&line);
    for (bytes, seconds, label) in points.iter().filter(|p| !p.2.is_empty()) {
        let title = format!("{label}: {}, {seconds:.3} seconds a step", megabytes(*bytes));
        chart.point(*bytes as f64 / 1e6, *seconds, label, &title);
    }
    chart.finish()
}

/// The least and the most, 0 and 0 for none.
fn range(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let numbers: Vec<f64> = numbers.filter(|n| n.is_finite()).collect();
    let least = numbers.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0);
    (least, numbers.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(all: &[(u64, f64, &str)]) -> Vec<(u64, f64, String)> {
        all.iter().map(|&(mb, s, label)| (mb * 1_000_000, s, label.to_owned())).collect()
    }

    #[test]
    fn points_and_units_are_there() {
        let svg = curve_svg(&points(&[(34, 5.8, "min"), (150, 5.2, "150 MB"), (398, 4.6, "all")]));
        for text in [
            "budget, MB (10^6 bytes)",
            "predicted time, seconds a step",
            ">min</text>",
            ">150 MB</text>",
            "<title>all: 398.0 MB, 4.600 seconds a step</title>",
            // Ratios: 34 to 398 MB.
            ">50</text>",
            ">200</text>",
        ] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 3);
    }

    #[test]
    fn near_budgets_are_drawn_by_their_differences() {
        let svg = curve_svg(&points(&[(100, 2.0, "a"), (200, 1.5, "b")]));
        assert!(svg.contains(">0</text>") && svg.contains(">150</text>"), "{svg}");
    }

    #[test]
    fn few_points_are_still_a_picture() {
        for all in [&[][..], &[(34, 5.8, "min")], &[(34, 0.0, "min"), (34, 0.0, "again")]] {
            let svg = curve_svg(&points(all));
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
