//! Runs beside each other on one page: it needs no other file and no network.

use std::fmt::Write;

use crate::chart::{escaped, losses_svg};
use crate::commands::compare::{Comparison, figures};
use crate::run_page::document;

/// The page's text.
pub fn html(found: &Comparison) -> String {
    let model = escaped(&found.model);
    let title = format!("Methods on {model}");
    let mut body = format!("<h1>{title}</h1><pre>{}</pre>", escaped(&found.command));
    let _ = write!(
        body,
        "<p>Trained on {}, held out {} ({} targets), {} threads. Times are of the steps alone. \
         Losses at equal seconds are those after {:.0} s, when the shortest run that reached its end was over.</p>",
        escaped(&found.data),
        escaped(&found.held_out),
        found.held_out_targets,
        found.threads,
        found.equal_seconds
    );
    table(&mut body, found);
    type X = fn(&crate::commands::compare::HeldOut) -> f64;
    let by: [(&str, X); 2] = [("step", |e| e.step as f64), ("seconds", |e| e.seconds)];
    for (name, x) in by {
        let runs = found.runs.iter().map(|run| {
            let points = run.held_out.iter().map(|e| (x(e), e.loss)).collect();
            (run.run.clone(), points)
        });
        let _ = write!(body, "<h2>Held-out loss by {name}</h2>");
        body += &losses_svg(&format!("Held-out loss by {name}"), name, &runs.collect::<Vec<_>>());
    }
    let _ = write!(body, "<h2>Training loss by step</h2>");
    let runs = found.runs.iter().map(|run| (run.run.clone(), smoothed(&run.losses)));
    let runs: Vec<_> = runs.collect();
    body += &losses_svg("Training loss by step, in means of a fiftieth of a run", "step", &runs);
    document(&title, &body)
}

fn table(body: &mut String, found: &Comparison) {
    let Some(first) = found.runs.first() else { return };
    *body += "<table><tr><th>run";
    for (name, _) in figures(first) {
        let _ = write!(body, "<th>{name}");
    }
    *body += "</tr>";
    for run in &found.runs {
        let _ = write!(body, "<tr><td><code>{}</code>", escaped(&run.run));
        for (_, value) in figures(run) {
            let _ = write!(body, "<td class=\"n\">{}", escaped(&value));
        }
        *body += "</tr>";
    }
    *body += "</table>";
}

/// Means of a fiftieth of the losses, each at its last step.
fn smoothed(losses: &[f64]) -> Vec<(f64, f64)> {
    let size = losses.len().div_ceil(50).max(1);
    let means = losses.chunks(size).enumerate().map(|(i, chunk)| {
        let mean = chunk.iter().sum::<f64>() / chunk.len() as f64;
        ((i * size + chunk.len()) as f64, mean)
    });
    means.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_stand_at_their_last_step() {
        assert_eq!(smoothed(&[1.0, 3.0]), [(1.0, 1.0), (2.0, 3.0)]);
        let all: Vec<f64> = (1..=125).map(f64::from).collect();
        let found = smoothed(&all);
        assert_eq!((found[0], found[41]), ((3.0, 2.0), (125.0, 124.5)));
    }
}
