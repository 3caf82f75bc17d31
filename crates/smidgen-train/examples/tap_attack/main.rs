//! What taps and gradients of side tuning tell a server that has the public model:
//! `cargo run --release -p smidgen-train --example tap_attack -- MODEL.gguf TEXT.txt`, perhaps with
//!
//! ```text
//! --part nearest|greedy|labels|rotation   one of the four; all by default (greedy needs nearest)
//! --windows 8  --length 64                how much of the text's beginning is attacked
//! --layers 0,15,29  --together no         which layers, and whether the upper half at once as well
//! --bits 16,8,4  --sigmas 0.1,0.3,1,3     formats, and noise before 16 bits; `none` for neither
//! --clip 4                                cuts numbers off where there is noise
//! --shortlist 512  --threads 1            candidates a position
//! --greedy-windows 8                      how many of the windows are inverted greedily
//! ```
//!
//! Windows follow each other, each behind the token that its text begins with as a rule, which is
//! known. Tables are Markdown; seconds and candidates go to the standard error.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use attack::greedy::{Window, invert};
use attack::labels::{Device, Head, Known};
use attack::nearest::{Query, nearest};
use attack::view::View;
use attack::walker::{Walker, rms};
use attack::{rotation, share};
use common::Model;
use common::runs::text_windows;
use smidgen_kernels::{Kernels, NormalKey};
use smidgen_train::{SideConfig, TapFormat};

mod attack;
#[path = "../../tests/common/mod.rs"]
mod common;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, flags @ ..] = args.as_slice() else { panic!("give MODEL.gguf TEXT.txt") };
    let flags = Flags::new(flags);
    let model = Model::open(Path::new(model));
    let attacked = Attacked::new(&model, Path::new(text), &flags);
    let part = flags.text("part", "all");
    if ["all", "nearest", "greedy"].contains(&part.as_str()) {
        let lists = attacked.nearest();
        if part != "nearest" {
            attacked.greedy(&lists);
        }
    }
    if ["all", "labels"].contains(&part.as_str()) {
        attacked.labels();
    }
    if ["all", "rotation"].contains(&part.as_str()) {
        attacked.rotation();
    }
}

/// `--name value` pairs.
struct Flags(BTreeMap<String, String>);

impl Flags {
    fn new(flags: &[String]) -> Self {
        let pair = |pair: &[String]| match pair {
            [name, value] => (name.trim_start_matches("--").to_owned(), value.clone()),
            _ => panic!("{} has no value", pair[0]),
        };
        Self(flags.chunks(2).map(pair).collect())
    }

    fn text(&self, name: &str, usual: &str) -> String {
        self.0.get(name).map_or(usual, String::as_str).to_owned()
    }

    fn number(&self, name: &str, usual: usize) -> usize {
        self.0.get(name).map_or(usual, |text| text.parse().expect("a number"))
    }

    fn list<T: FromStr>(&self, name: &str, usual: &str) -> Vec<T> {
        let text = self.text(name, usual);
        let numbers = text.split(',').filter(|part| *part != "none");
        numbers.map(|part| part.parse().ok().expect("numbers between commas")).collect()
    }
}

/// A text, and what of it is sent.
struct Attacked<'a> {
    model: &'a Model,
    /// The token that each window begins with.
    first: u32,
    /// Each with its first token and one that is only a target at the end.
    windows: Vec<Vec<u32>>,
    layers: Vec<usize>,
    /// Those of the upper half, all seen at once; none where that is not asked for.
    together: Vec<usize>,
    views: Vec<View>,
    shortlist: usize,
    threads: usize,
    /// How many of the windows are inverted greedily.
    inverted: usize,
}

/// Rows x hidden of each window, by layer.
type States = Vec<Vec<Vec<f32>>>;

impl<'a> Attacked<'a> {
    fn new(model: &'a Model, text: &Path, flags: &Flags) -> Self {
        let (count, length) = (flags.number("windows", 8), flags.number("length", 64));
        let tokenizer = model.base.tokenizer().expect("a tokenizer");
        let first = tokenizer.bos().or(tokenizer.eos()).unwrap_or(0);
        let windows = text_windows(&model.base, text, length + 1, count);
        let windows = windows.into_iter().map(|window| [vec![first], window.ids].concat());
        let all = model.info.layers;
        let usual = [0, all / 4, all / 2, 3 * all / 4, all - 1].map(|layer| layer.to_string());
        let mut layers = flags.list("layers", &usual.join(","));
        layers.dedup();
        let together = match flags.text("together", "yes").as_str() {
            "yes" => SideConfig::usual(all).tapped(all),
            _ => vec![],
        };
        let format = |bits: &usize| match bits {
            16 => TapFormat::F16,
            8 => TapFormat::Q8,
            4 => TapFormat::Q4,
            _ => panic!("{bits} bits are not 16, 8 or 4"),
        };
        let clip = flags.text("clip", "inf").parse().expect("a number");
        let bits: Vec<usize> = flags.list("bits", "16,8,4");
        let sigmas: Vec<f32> = flags.list("sigmas", "0.1,0.3,1,3");
        let formats = bits.iter().map(|bits| View::of(format(bits)));
        let views = formats.chain(sigmas.iter().map(|sigma| View::noised(*sigma, clip)));
        Self {
            model,
            first,
            windows: windows.collect(),
            layers,
            together,
            views: views.collect(),
            shortlist: flags.number("shortlist", 512),
            threads: flags.number("threads", 1),
            inverted: flags.number("greedy-windows", count).min(count),
        }
    }

    fn hidden(&self) -> usize {
        self.model.info.hidden
    }

    /// Tapped positions of a window but its first, whose token is known.
    fn rows(&self) -> usize {
        self.windows[0].len() - 2
    }

    fn positions(&self) -> usize {
        self.windows.len() * self.rows()
    }

    fn truth(&self) -> Vec<u32> {
        self.windows.iter().flat_map(|window| window[1..=self.rows()].to_vec()).collect()
    }

    /// Normalised states of these rows behind some layers.
    fn states(&self, layers: &[usize]) -> States {
        let mut whole = Walker::new(self.model, self.model.info.layers, self.threads);
        let mut states = vec![Vec::new(); layers.len()];
        for window in &self.windows {
            for (states, all) in states.iter_mut().zip(whole.states(window, layers)) {
                states.push(all[self.hidden()..(self.rows() + 1) * self.hidden()].to_vec());
            }
        }
        states
    }

    /// What is seen of all windows behind a layer.
    fn seen(&self, view: &View, layer: usize, states: &[Vec<f32>]) -> Vec<f32> {
        let window =
            |(sample, states): (u64, &Vec<f32>)| view.seen(layer, sample, states, self.hidden());
        (0..).zip(states).flat_map(window).collect()
    }

    fn headings(&self, first: &str, more: &[String]) {
        println!("\n| {first} | {} |", more.join(" | "));
        println!("|---|{}", "---:|".repeat(more.len()));
    }

    /// For each view and layer the nearest tokens of each position.
    fn nearest(&self) -> Vec<Vec<Vec<Vec<u32>>>> {
        let begin = Instant::now();
        let states = self.states(&self.layers);
        let query = |view: &View, at: usize| {
            let taps = self.seen(view, self.layers[at], &states[at]);
            let variances = view.column_variances(&taps, self.hidden());
            Query { layer: at, taps, variances }
        };
        let count = self.layers.len();
        let queries: Vec<Query> =
            self.views.iter().flat_map(|view| (0..count).map(move |at| query(view, at))).collect();
        let depth = self.layers.iter().max().map_or(0, |layer| layer + 1);
        let mut walker = Walker::new(self.model, depth, self.threads);
        let vocabulary = self.model.info.vocabulary;
        let lists =
            nearest(&mut walker, self.first, vocabulary, &self.layers, &queries, self.shortlist);
        println!(
            "\nNearest token, of {} positions; in brackets: among the {} nearest.",
            self.positions(),
            self.shortlist
        );
        self.headings(
            "taps",
            &self.layers.iter().map(|l| format!("layer {l}")).collect::<Vec<_>>(),
        );
        let truth = self.truth();
        for (view, lists) in self.views.iter().zip(lists.chunks(count)) {
            let cell = |rows: &Vec<Vec<u32>>| {
                let first: Vec<u32> = rows.iter().map(|row| row[0]).collect();
                let among = rows.iter().zip(&truth).filter(|(row, token)| row.contains(token));
                let among = among.count() as f64 / truth.len() as f64;
                format!("{:.3} ({among:.3})", share(&first, &truth))
            };
            let cells: Vec<String> = lists.iter().map(cell).collect();
            println!("| {} | {} |", view.name(), cells.join(" | "));
        }
        eprintln!("nearest: {:.0} s", begin.elapsed().as_secs_f64());
        lists.chunks(count).map(<[_]>::to_vec).collect()
    }

    fn greedy(&self, lists: &[Vec<Vec<Vec<u32>>>]) {
        println!(
            "\nGreedy inversion, of {} positions, {} candidates at most.",
            self.inverted * self.rows(),
            self.shortlist
        );
        let mut sets: Vec<(Vec<usize>, usize)> =
            self.layers.iter().enumerate().map(|(at, &layer)| (vec![layer], at)).collect();
        let mut names: Vec<String> = self.layers.iter().map(|l| format!("layer {l}")).collect();
        if let Some(lowest) = self.together.first() {
            // Neighbours are those of the layer nearest to the lowest.
            let near = (0..self.layers.len()).min_by_key(|&at| self.layers[at].abs_diff(*lowest));
            sets.push((self.together.clone(), near.expect("a layer")));
            names.push(format!("layers {lowest} on"));
        }
        self.headings("taps", &names);
        let states: Vec<States> = sets.iter().map(|(layers, _)| self.states(layers)).collect();
        for (view, lists) in self.views.iter().zip(lists) {
            let cells: Vec<String> = sets
                .iter()
                .zip(&states)
                .map(|((layers, near), states)| self.invert(*view, layers, states, &lists[*near]))
                .collect();
            println!("| {} | {} |", view.name(), cells.join(" | "));
        }
    }

    /// The share of tokens that come back.
    fn invert(&self, view: View, layers: &[usize], states: &States, near: &[Vec<u32>]) -> String {
        let begin = Instant::now();
        let taps: Vec<Vec<f32>> = layers
            .iter()
            .zip(states)
            .map(|(layer, states)| self.seen(&view, *layer, states))
            .collect();
        let depth = layers.iter().max().map_or(0, |layer| layer + 1);
        let mut deep = Walker::new(self.model, depth, self.threads);
        let mut whole = Walker::new(self.model, self.model.info.layers, self.threads);
        let (rows, width) = (self.rows(), self.rows() * self.hidden());
        let (mut found, mut tried) = (Vec::new(), 0);
        for (at, nearest) in near.chunks(rows).take(self.inverted).enumerate() {
            let taps = taps.iter().map(|taps| &taps[at * width..(at + 1) * width]).collect();
            let window = Window { view, layers, taps, nearest };
            let recovered = invert(&mut deep, &mut whole, &window, self.first, self.shortlist);
            found.extend(recovered.tokens);
            tried += recovered.tried;
        }
        let share = share(&found, &self.truth()[..found.len()]);
        eprintln!(
            "greedy, {}, layers {layers:?}: {share:.3}, {:.1} candidates a position, {:.0} s",
            view.name(),
            tried as f64 / found.len() as f64,
            begin.elapsed().as_secs_f64()
        );
        format!("{share:.3}")
    }

    fn labels(&self) {
        let begin = Instant::now();
        let (head, last) = (Head::new(self.model), self.model.info.layers - 1);
        let mut device = Device::new(self.model, self.threads);
        let hidden = self.hidden();
        // Of row 0 as well: the known token's label is not.
        let labels: Vec<Vec<u32>> = self.windows.iter().map(|w| w[1..].to_vec()).collect();
        let truth = labels.concat();
        let whole = &mut Walker::new(self.model, last + 1, self.threads);
        let states: Vec<Vec<f32>> = self
            .windows
            .iter()
            .map(|w| whole.states(w, &[last])[0][..(w.len() - 1) * hidden].to_vec())
            .collect();
        let c = {
            let ids = &self.windows[0];
            rms(&device.step(ids, &vec![0.0; (ids.len() - 1) * hidden], 1.0, 1.0).stream)
        };
        let weight = 1.0 / truth.len() as f32;
        println!("\nLabels from gradients, of {}; RMS of s by columns.", truth.len());
        let sizes = [0.0f32, 0.3];
        let mut columns: Vec<Vec<(String, f64)>> = Vec::new();
        for size in sizes {
            let steps: Vec<_> = self
                .windows
                .iter()
                .enumerate()
                .map(|(sample, ids)| {
                    let mut side = vec![0.0; (ids.len() - 1) * hidden];
                    let key = NormalKey { seed: 9, sample: sample as u64 };
                    Kernels::detect().normals(key, 0, &mut side);
                    side.iter_mut().for_each(|x| *x *= size);
                    (device.step(ids, &side, c, weight), side)
                })
                .collect();
            let recover = |view: &View, is_known: bool, gradient_noise: f32, alone: bool| {
                let mut found = Vec::new();
                for (sample, ((step, side), states)) in (0..).zip(steps.iter().zip(&states)) {
                    let mut stream = view.seen(last, sample, states, hidden);
                    let rows = stream.chunks_exact_mut(hidden).zip(side.chunks_exact(hidden));
                    for ((x, s), h) in rows.zip(step.stream.chunks_exact(hidden)) {
                        let ratio = if is_known { c / rms(h) } else { 1.0 };
                        x.iter_mut().zip(s).for_each(|(x, s)| *x += ratio * s);
                    }
                    let noised = View::noised(gradient_noise, f32::INFINITY);
                    let gradient = match gradient_noise > 0.0 {
                        true => noised.seen(last + 1, sample, &step.gradient, hidden),
                        false => step.gradient.clone(),
                    };
                    let known = match (alone, is_known) {
                        (true, _) => Known::Head,
                        (_, true) => Known::Scale(&step.scales),
                        (_, false) => Known::Direction,
                    };
                    found.extend(head.labels(&stream, &gradient, known));
                }
                share(&found, &truth)
            };
            let plain = View::of(TapFormat::F16);
            let mut column = vec![("gradient alone".into(), recover(&plain, false, 0.0, true))];
            column.push((
                "taps at 16 bits, c and weight known".into(),
                recover(&plain, true, 0.0, false),
            ));
            for view in &self.views {
                let name = format!("taps at {}, neither known", view.name());
                column.push((name, recover(view, false, 0.0, false)));
            }
            for sigma in [0.1, 0.3, 1.0, 3.0] {
                let name = format!("noise on the gradient's rows, sigma {sigma}: gradient alone");
                column.push((name, recover(&plain, false, sigma, true)));
                let name = "the same, with taps at 16 bits".to_owned();
                column.push((name, recover(&plain, false, sigma, false)));
            }
            columns.push(column);
        }
        self.headings("the server has", &sizes.map(|s| format!("{s}")));
        for row in 0..columns[0].len() {
            let cells: Vec<String> =
                columns.iter().map(|column| format!("{:.3}", column[row].1)).collect();
            println!("| {} | {} |", columns[0][row].0, cells.join(" | "));
        }
        eprintln!("labels: {:.0} s", begin.elapsed().as_secs_f64());
    }

    fn rotation(&self) {
        let begin = Instant::now();
        let layers: Vec<usize> = (0..self.model.info.layers).collect();
        let states = self.states(&layers);
        let hidden = self.hidden();
        let block = 1 << hidden.trailing_zeros();
        println!("\nError of a tap, relative, over {} positions of each layer.", self.positions());
        self.headings("taps", &["mean", "worst layer", "upper half, mean"].map(str::to_owned));
        for (bits, limit) in [(8, 127.0), (4, 7.0)] {
            let mut blocks = vec![1, block.min(64), block];
            blocks.dedup();
            for block in blocks {
                let errors =
                    states.iter().map(|s| rotation::error(limit, &s.concat(), hidden, block));
                let errors: Vec<f64> = errors.collect();
                let mean = |e: &[f64]| e.iter().sum::<f64>() / e.len() as f64;
                let worst = (0..errors.len()).max_by(|a, b| errors[*a].total_cmp(&errors[*b]));
                let worst = worst.expect("a layer");
                println!(
                    "| {bits} bits, blocks of {block} | {:.4} | {:.4} (layer {worst}) | {:.4} |",
                    mean(&errors),
                    errors[worst],
                    mean(&errors[errors.len() / 2..])
                );
            }
        }
        eprintln!("rotation: {:.0} s", begin.elapsed().as_secs_f64());
    }
}
