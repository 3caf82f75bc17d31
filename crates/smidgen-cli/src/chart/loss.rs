//! How the loss of a run went.

use super::{Axis, Chart, Scale};

/// The training loss over steps as a line, and evaluations as dots; nats.
pub fn loss_svg(train: &[(f64, f64)], valid: &[(f64, f64)]) -> String {
    let all = || train.iter().chain(valid).filter(|p| p.1.is_finite());
    let steps = all().map(|p| p.0).fold(1.0, f64::max);
    let least = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let margin = 0.06 * (most - least).max(0.01 * most.abs());
    let x = Axis::new("step", Scale::Linear, 0.0, steps).ending_at(1.02 * steps);
    let y =
        Axis::new("loss, nats a token", Scale::Linear, (least - margin).max(0.0), most + margin);
    let title = match valid.is_empty() {
        true => "Training loss",
        false => "Training loss, and the valid data's (dots)",
    };
    let mut chart = Chart::new(title, x, y);
    let finite = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points.iter().copied().filter(|p| p.1.is_finite()).collect()
    };
    chart.line(&finite(train));
    for (step, loss) in finite(valid) {
        chart.point(step, loss, &format!("{loss:.3}"), &format!("after step {step}: {loss:.4}"));
    }
    chart.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_and_dots() {
        let train: Vec<_> = (1..=40).map(|i| (f64::from(i), 3.0 / f64::from(i))).collect();
        let svg = loss_svg(&train, &[(20.0, 1.25), (40.0, 1.125)]);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("after step 40: 1.1250") && svg.contains("loss, nats a token"));
    }

    #[test]
    fn nothing_seen_is_still_a_picture() {
        for train in [&[][..], &[(1.0, f64::NAN)], &[(1.0, 2.0)]] {
            let svg = loss_svg(train, &[]);
            assert!(
                svg.starts_with("<svg") && !svg.contains("NaN") && !svg.contains("inf"),
                "{svg}"
            );
        }
    }
}
