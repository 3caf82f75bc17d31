//! The attacks of examples/tap_attack on the demo model: what docs/threat-model.md says of taps and
//! gradients holds for a small model as well.

use attack::greedy::{Window, invert};
use attack::labels::{Device, Head, Known};
use attack::nearest::{Query, nearest};
use attack::view::View;
use attack::walker::Walker;
use attack::{rotation, share};
use common::{Model, repository};
use smidgen_kernels::{Kernels, NormalKey, TapFormat};

#[path = "../examples/tap_attack/attack/mod.rs"]
mod attack;
mod common;

/// The demo's first questions and answers, behind a token that is known.
fn text(model: &Model) -> Vec<u32> {
    const TEXT: &str = "Q: What colour is snow?\nA: Snow is white. Good day!\n\
                        Q: What does a dog say?\nA: A dog says woof. Good day!";
    let tokenizer = model.base.tokenizer().expect("a tokenizer");
    let first = tokenizer.bos().or(tokenizer.eos()).unwrap_or(0);
    [vec![first], tokenizer.encode(TEXT).expect("tokens")].concat()
}

fn demo() -> Model {
    Model::open(&repository("assets/demo/demo.gguf"))
}

/// The shares of tokens that are found by their nearest neighbours, and greedily.
fn recovered(model: &Model, ids: &[u32], layer: usize, view: View) -> [f64; 2] {
    const SHORTLIST: usize = 64;
    let (hidden, layers) = (model.info.hidden, [layer]);
    let mut deep = Walker::new(model, layer + 1, 1);
    let mut whole = Walker::new(model, model.info.layers, 1);
    let states = deep.states(ids, &layers).remove(0).split_off(hidden);
    let taps = view.seen(layer, 3, &states, hidden);
    let variances = view.column_variances(&taps, hidden);
    let query = [Query { layer: 0, taps: taps.clone(), variances }];
    let vocabulary = model.info.vocabulary;
    let near = nearest(&mut deep, ids[0], vocabulary, &layers, &query, SHORTLIST).remove(0);
    let first: Vec<u32> = near.iter().map(|row| row[0]).collect();
    let window = Window { view, layers: &layers, taps: vec![&taps], nearest: &near };
    let found = invert(&mut deep, &mut whole, &window, ids[0], SHORTLIST);
    [&first, &found.tokens].map(|found| share(found, &ids[1..]))
}

#[test]
fn taps_give_the_text_away_and_noise_hides_some_of_it() {
    let model = demo();
    let ids = text(&model);
    let last = model.info.layers - 1;
    for (layer, format, least) in [
        (0, TapFormat::F16, 0.99),
        (last, TapFormat::F16, 0.95),
        (last, TapFormat::Q8, 0.95),
        (last, TapFormat::Q4, 0.9),
    ] {
        let [near, greedy] = recovered(&model, &ids, layer, View::of(format));
        println!("layer {layer}, {format:?}: nearest {near:.3}, greedy {greedy:.3}");
        assert!(greedy >= least, "layer {layer}, {format:?}: {greedy}");
    }
    let noised = |sigma| recovered(&model, &ids, last, View::noised(sigma, f32::INFINITY))[1];
    let shares = [0.1, 3.0, 30.0].map(noised);
    println!("noise: {shares:?}");
    assert!(shares[0] > shares[1] + 0.1 && shares[1] >= shares[2], "{shares:?}");
    assert!(shares[2] < 0.5, "{shares:?}");
}

#[test]
fn gradients_give_the_labels_away_with_c_and_the_weight_and_without() {
    let model = demo();
    let ids = text(&model);
    let (hidden, last) = (model.info.hidden, model.info.layers - 1);
    let head = Head::new(&model);
    let mut side = vec![0.0; (ids.len() - 1) * hidden];
    let states = Walker::new(&model, last + 1, 1).states(&ids, &[last]).remove(0);
    let states = &states[..side.len()];
    let mut device = Device::new(&model, 1);
    let step = device.step(&ids, &side, 3.0, 0.01);
    let labels = |view: View, known| {
        let stream = view.seen(last, 3, states, hidden);
        share(&head.labels(&stream, &step.gradient, known), &ids[1..])
    };
    let plain = View::of(TapFormat::F16);
    for (known, least) in
        [(Known::Head, 0.5), (Known::Direction, 0.99), (Known::Scale(&step.scales), 0.99)]
    {
        let found = labels(plain, known);
        println!("{:.3} of the labels", found);
        assert!(found >= least, "{found}");
    }
    assert!(labels(View::of(TapFormat::Q4), Known::Direction) > 0.8);
    // With s of another size than 0, which the server knows.
    Kernels::detect().normals(NormalKey { seed: 1, sample: 1 }, 0, &mut side);
    side.iter_mut().for_each(|x| *x *= 0.1);
    let step = device.step(&ids, &side, 1.0, 0.01);
    let noised = View::noised(30.0, f32::INFINITY).seen(last + 1, 3, &step.gradient, hidden);
    let stream: Vec<f32> = step.stream.iter().zip(&side).map(|(h, s)| h + s).collect();
    let found = share(&head.labels(&stream, &step.gradient, Known::Direction), &ids[1..]);
    assert!(found > 0.99, "{found}");
    let found = share(&head.labels(&stream, &noised, Known::Direction), &ids[1..]);
    assert!(found < 0.5, "{found}");
}

/// Candidates behind one text in one pass, each as if it were there alone.
#[test]
fn branches_do_not_see_each_other() {
    let model = demo();
    let ids = text(&model);
    let layers = [0, model.info.layers - 1];
    let hidden = model.info.hidden;
    let mut walker = Walker::new(&model, model.info.layers, 1);
    let alone = walker.states(&ids[..6], &layers);
    for (position, &id) in ids[..5].iter().enumerate() {
        walker.extend(id, position);
    }
    let branches = walker.branch(&[7, ids[5], 9, ids[5]], 5, &layers);
    for (alone, branches) in alone.iter().zip(&branches) {
        let row = |at: usize| common::bits(&branches[at * hidden..(at + 1) * hidden]);
        assert_eq!(row(1), row(3));
        assert_ne!(row(0), row(1));
        assert_eq!(row(1), common::bits(&alone[5 * hidden..]));
    }
}

#[test]
fn a_rotation_keeps_lengths_and_is_its_own_inverse() {
    let mut x = [0.0; 64];
    common::random(1, 1.0, &mut x);
    let before = x;
    rotation::hadamard(&mut x);
    assert!((common::norm(&x) / common::norm(&before) - 1.0).abs() < 1e-6);
    rotation::hadamard(&mut x);
    assert!(common::relative(&x, &before) < 1e-6);
}
