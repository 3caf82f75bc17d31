//! Losses of several runs.

use super::{Axis, Chart, Scale};

/// A line for each run, named below; nats over what `x` names.
pub fn losses_svg(title: &str, x: &str, runs: &[(String, Vec<(f64, f64)>)]) -> String {
    let finite = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points.iter().copied().filter(|p| p.1.is_finite()).collect()
    };
    let all = || runs.iter().flat_map(|(_, points)| finite(points));
    let end = all().map(|p| p.0).fold(1.0, f64::max);
    let least = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let margin = 0.06 * (most - least).max(0.01 * most.abs());
    let x = Axis::new(x, Scale::Linear, 0.0, end).ending_at(1.02 * end);
    let y =
        Axis::new("loss, nats a token", Scale::Linear, (least - margin).max(0.0), most + margin);
    let mut chart = Chart::new(title, x, y);
    for (i, (name, points)) in runs.iter().enumerate() {
        chart.series(i, name, &finite(points));
    }
    chart.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_has_a_line_and_a_name() {
        let run = |name: &str, from: f64| {
            (name.to_owned(), vec![(0.0, from), (1.0, from - 1.0), (2.0, f64::NAN)])
        };
        let svg = losses_svg("Losses", "step", &[run("exact", 4.0), run("mezo <1>", 5.0)]);
        assert_eq!(svg.matches("class=\"series").count(), 2);
        assert!(svg.contains(">exact</text>") && svg.contains("mezo &lt;1&gt;"), "{svg}");
        assert!(!svg.contains("NaN"));
        assert!(losses_svg("none", "step", &[]).starts_with("<svg"));
    }
}
