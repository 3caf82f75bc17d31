//! Normalisation, rotary embedding, gate, element-wise operations, dropout and optimisers against
//! f64 references, finite differences and, bit for bit, every instruction set.

mod common;

use common::{LENGTHS, assert_close, finite_differences, random, same_on_all, wide};
use smidgen_kernels::{
    Activation, AdamW, DropoutKey, EIGHT_BIT_BLOCK, Kernels, MatMut, MatRef, Place, Rope,
    RopeStyle, RopeTable, Turn, eight_bit_words,
};

const ROWS: usize = 3;

fn inner(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum()
}

fn rmsnorm_f64(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    x.chunks(weight.len())
        .flat_map(|x| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let inv = 1.0 / (mean + f64::from(eps)).sqrt();
            x.iter().zip(weight).map(move |(x, &w)| x * inv * f64::from(w))
        })
        .collect()
}

#[test]
fn rmsnorm_both_ways() {
    const EPS: f32 = 1e-6;
    for n in LENGTHS {
        let (x, weight) = (random(1, ROWS * n, 3.0), random(2, n, 1.5));
        let dy = random(3, ROWS * n, 1.0);
        let y = same_on_all(|kernels| {
            let (mut y, mut inv) = (vec![0.0; ROWS * n], [0.0; ROWS]);
            let out = MatMut::new(&mut y, ROWS, n);
            kernels.rmsnorm(MatRef::new(&x, ROWS, n), &weight, EPS, out, &mut inv);
            y
        });
        let dx = same_on_all(|kernels| {
            let (mut y, mut inv, mut dx) = (vec![0.0; ROWS * n], [0.0; ROWS], vec![0.0; ROWS * n]);
            let x = MatRef::new(&x, ROWS, n);
            kernels.rmsnorm(x, &weight, EPS, MatMut::new(&mut y, ROWS, n), &mut inv);
            let dy = MatRef::new(&dy, ROWS, n);
            kernels.rmsnorm_backward(dy, x, &inv, &weight, MatMut::new(&mut dx, ROWS, n));
            dx
        });
        if n == 1 {
            // One column has nothing but its sign: the gradient is zero but for eps.
            assert!(dx.iter().all(|dx| dx.abs() < 1e-6), "{dx:?}");
        }
        if n > 1 {
            assert_close("y", &y, &rmsnorm_f64(&wide(&x), &weight, EPS), 5e-7);
            let loss = |x: &[f64]| inner(&rmsnorm_f64(x, &weight, EPS), &dy);
            assert_close("dx", &dx, &finite_differences(&wide(&x), loss), 2e-6);
        }
    }
}

fn layernorm_f64(x: &[f64], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f64> {
    x.chunks(weight.len())
        .flat_map(|x| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let inv = 1.0 / (variance + f64::from(eps)).sqrt();
            let scaled = x.iter().zip(weight).map(move |(x, &w)| (x - mean) * inv * f64::from(w));
            scaled.zip(bias).map(|(y, &b)| y + f64::from(b))
        })
        .collect()
}

#[test]
fn layernorm_both_ways() {
    const EPS: f32 = 1e-5;
    for n in LENGTHS.into_iter().chain([2048]) {
        let (weight, bias) = (random(2, n, 1.5), random(4, n, 0.5));
        // Rows that lie off zero, as a residual stream's may.
        let x: Vec<f32> = random(1, ROWS * n, 3.0).iter().map(|x| x + 2.0).collect();
        let dy = random(3, ROWS * n, 1.0);
        let run = |kernels: Kernels| {
            let (mut y, mut mean, mut inv) = (vec![0.0; ROWS * n], [0.0; ROWS], [0.0; ROWS]);
            let (x, out) = (MatRef::new(&x, ROWS, n), MatMut::new(&mut y, ROWS, n));
            kernels.layernorm(x, [&weight, &bias], EPS, out, &mut mean, &mut inv);
            (y, mean, inv)
        };
        let y = same_on_all(|kernels| {
            let (y, mean, inv) = run(kernels);
            [&y[..], &mean, &inv].concat()
        });
        let dx = same_on_all(|kernels| {
            let ((_, mean, inv), mut dx) = (run(kernels), vec![0.0; ROWS * n]);
            let (dy, x) = (MatRef::new(&dy, ROWS, n), MatRef::new(&x, ROWS, n));
            let out = MatMut::new(&mut dx, ROWS, n);
            kernels.layernorm_backward(dy, x, &mean, &inv, &weight, out);
            dx
        });
        if n == 1 {
            // One column is its own mean: the gradient is zero but for what is rounded, over eps.
            assert_eq!(y[..ROWS], [bias[0]; ROWS]);
            assert!(dx.iter().all(|dx| dx.abs() < 1e-5), "{dx:?}");
        }
        if n > 1 {
            let y = &y[..ROWS * n];
            assert_close("y", y, &layernorm_f64(&wide(&x), &weight, &bias, EPS), 1e-6);
        }
        // Two columns differ by a number that the norm all but takes away.
        if n > 2 && n < 300 {
            let loss = |x: &[f64]| inner(&layernorm_f64(x, &weight, &bias, EPS), &dy);
            assert_close("dx", &dx, &finite_differences(&wide(&x), loss), 5e-6);
        }
    }
}

#[test]
fn relu_both_ways() {
    for n in LENGTHS {
        let len = ROWS * n;
        let (x, da) = (random(1, len, 6.0), random(2, len, 1.0));
        let a = same_on_all(|kernels| {
            let mut a = x.clone();
            kernels.relu(MatMut::new(&mut a, ROWS, n));
            a
        });
        let relu = |x: &[f64]| x.iter().map(|x| x.max(0.0)).collect::<Vec<_>>();
        assert_close("a", &a, &relu(&wide(&x)), 0.0);
        let dx = same_on_all(|kernels| {
            let mut d = da.clone();
            kernels.relu_backward(MatRef::new(&a, ROWS, n), MatMut::new(&mut d, ROWS, n));
            d
        });
        let loss = |x: &[f64]| inner(&relu(x), &da);
        assert_close("dx", &dx, &finite_differences(&wide(&x), loss), 1e-8);
    }
    // The gradient at zero is zero, and what is not a number does not pass for one.
    for kernels in Kernels::all() {
        let (mut a, mut d) = ([-1.0, -0.0, 0.0, 2.0, f32::NAN, f32::INFINITY], [3.0; 6]);
        kernels.relu(MatMut::new(&mut a, 1, 6));
        kernels.relu_backward(MatRef::new(&a, 1, 6), MatMut::new(&mut d, 1, 6));
        assert_eq!((&a[..4], a[5]), (&[0.0, 0.0, 0.0, 2.0][..], f32::INFINITY));
        assert!(a[4].is_nan());
        assert_eq!(d, [0.0, 0.0, 0.0, 3.0, 3.0, 3.0]);
    }
}

fn gate_f64(activation: Activation, g: &[f64], u: &[f64]) -> Vec<f64> {
    let act = |g: f64| match activation {
        Activation::Silu => g / (1.0 + (-g).exp()),
        Activation::GeluTanh => {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            0.5 * g * (1.0 + z.tanh())
        }
    };
    g.iter().zip(u).map(|(&g, u)| act(g) * u).collect()
}

#[test]
fn gate_both_ways() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for n in LENGTHS {
            let len = ROWS * n;
            let (g, u, da) = (random(1, len, 6.0), random(2, len, 2.0), random(3, len, 1.0));
            let mat = |x| MatRef::new(x, ROWS, n);
            let a = same_on_all(|kernels| {
                let mut a = vec![0.0; len];
                kernels.gate(activation, mat(&g), mat(&u), MatMut::new(&mut a, ROWS, n));
                a
            });
            assert_close("a", &a, &gate_f64(activation, &wide(&g), &wide(&u)), 3e-7);
            let alone = same_on_all(|kernels| {
                let mut x = g.clone();
                kernels.activate(activation, MatMut::new(&mut x, ROWS, n));
                x
            });
            assert_close("act", &alone, &gate_f64(activation, &wide(&g), &vec![1.0; len]), 3e-7);
            let gradients = same_on_all(|kernels| {
                let mut d = vec![0.0; 2 * len];
                let (dg, du) = MatMut::new(&mut d, 2 * ROWS, n).split_at_row(ROWS);
                kernels.gate_backward(activation, mat(&g), mat(&u), mat(&da), dg, du);
                d
            });
            let loss_g = |g: &[f64]| inner(&gate_f64(activation, g, &wide(&u)), &da);
            let loss_u = |u: &[f64]| inner(&gate_f64(activation, &wide(&g), u), &da);
            let (dg, du) = gradients.split_at(len);
            assert_close("dg", dg, &finite_differences(&wide(&g), loss_g), 2e-6);
            assert_close("du", du, &finite_differences(&wide(&u), loss_u), 2e-6);
        }
    }
}

#[test]
fn gate_of_extreme_numbers() {
    let g = [-1e4, -100.0, -0.0, 0.0, 100.0, 1e4];
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for kernels in Kernels::all() {
            let (mut a, mut dg, mut du) = ([1.0; 6], [1.0; 6], [1.0; 6]);
            let (g, ones) = (MatRef::new(&g, 1, 6), MatRef::new(&[1.0; 6], 1, 6));
            kernels.gate(activation, g, ones, MatMut::new(&mut a, 1, 6));
            assert_eq!(a, [0.0, 0.0, 0.0, 0.0, 100.0, 1e4]);
            let (d0, d1) = (MatMut::new(&mut dg, 1, 6), MatMut::new(&mut du, 1, 6));
            kernels.gate_backward(activation, g, ones, ones, d0, d1);
            assert_eq!(dg, [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]);
            assert_eq!(du, a);
        }
    }
}

#[test]
fn rope_turns_pairs_and_back() {
    const HEADS: usize = 2;
    const FIRST: usize = 5;
    for (head_dim, half) in [(2, 1), (6, 3), (14, 7), (64, 32), (70, 33), (40, 10), (16, 0)] {
        let inv_freq: Vec<f32> =
            (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
        let table = RopeTable::new(&inv_freq, FIRST + ROWS);
        let cols = HEADS * head_dim;
        let x = random(1, ROWS * cols, 2.0);
        for style in [RopeStyle::Interleaved, RopeStyle::Halves] {
            let mut want = wide(&x);
            for (row, want) in want.chunks_mut(cols).enumerate() {
                for (head, i) in (0..HEADS).flat_map(|h| (0..half).map(move |i| (h, i))) {
                    let (a, b) = match style {
                        RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                        RopeStyle::Halves => (i, i + half),
                    };
                    let (a, b) = (head * head_dim + a, head * head_dim + b);
                    let (sin, cos) = f64::from((FIRST + row) as f32 * inv_freq[i]).sin_cos();
                    (want[a], want[b]) =
                        (want[a] * cos - want[b] * sin, want[b] * cos + want[a] * sin);
                }
            }
            let rope = |turn| Rope { table: &table, head_dim, style, turn };
            let y = same_on_all(|kernels| {
                let mut y = vec![0.0; ROWS * cols];
                let (x, out) = (MatRef::new(&x, ROWS, cols), MatMut::new(&mut y, ROWS, cols));
                kernels.rope(rope(Turn::Forth), FIRST, x, out);
                y
            });
            assert_close("y", &y, &want, 2e-7);
            let back = same_on_all(|kernels| {
                let mut x = y.clone();
                let x_mat = MatMut::new(&mut x, ROWS, cols);
                kernels.rope_in_place(rope(Turn::Back), FIRST, x_mat);
                x
            });
            assert_close("back", &back, &wide(&x), 3e-7);
        }
    }
}

#[test]
fn elementwise_operations() {
    for n in LENGTHS {
        let (x, y) = (random(1, n, 2.0), random(2, n, 2.0));
        let run = |f: &dyn Fn(Kernels, MatRef<'_>, MatMut<'_>)| {
            same_on_all(|kernels| {
                let mut y = y.clone();
                f(kernels, MatRef::new(&x, 1, n), MatMut::new(&mut y, 1, n));
                y
            })
        };
        let want = |f: &dyn Fn(f32, f32) -> f32| -> Vec<f32> {
            x.iter().zip(&y).map(|(&x, &y)| f(x, y)).collect()
        };
        assert_eq!(run(&|k, x, y| k.add(x, y)), want(&|x, y| y + x));
        assert_eq!(run(&|k, x, y| k.axpy(0.3, x, y)), want(&|x, y| x.mul_add(0.3, y)));
        assert_eq!(run(&|k, x, y| k.scale(0.3, x, y)), want(&|x, _| x * 0.3));
        assert_eq!(run(&|k, _, y| k.scale_in_place(0.3, y)), want(&|_, y| y * 0.3));
        assert_eq!(run(&|k, x, y| k.copy(x, y)), x);

        let dots = Kernels::all().into_iter().map(|k| (k.dot(&x, &y), k.sum_squares(&x)));
        let dots: Vec<_> = dots.map(|(a, b)| (a.to_bits(), b.to_bits())).collect();
        assert!(dots.iter().all(|bits| *bits == dots[0]));
        let want = inner(&wide(&x), &y);
        assert!((f64::from_bits(dots[0].0) - want).abs() < 1e-12 * (1.0 + n as f64));
    }
}

#[test]
fn dropout_is_the_same_however_the_matrix_is_cut() {
    const P: f32 = 0.3;
    let key = DropoutKey { seed: 1, step: 2, sample: 3, tensor: 4 };
    let (rows, cols) = (11, 203);
    let x = vec![1.0; rows * cols];
    let run = |key, height, width| {
        same_on_all(|kernels| {
            let mut y = vec![f32::NAN; rows * cols];
            for (first_row, band) in MatMut::new(&mut y, rows, cols).row_tiles(height) {
                for (first_col, tile) in band.col_tiles(width) {
                    let x = MatRef::new(&x, tile.rows(), tile.cols());
                    let place = Place { first_row, first_col, total_cols: cols };
                    kernels.dropout(key, place, P, x, tile);
                }
            }
            y
        })
    };
    let whole = run(key, rows, cols);
    for (height, width) in [(1, 1), (2, 67), (3, 64), (11, 1), (1, 203)] {
        assert_eq!(run(key, height, width), whole);
    }
    let kept = whole.iter().filter(|&&y| y == 1.0 / (1.0 - P)).count();
    let dropped = whole.iter().filter(|&&y| y == 0.0).count();
    assert_eq!(kept + dropped, whole.len());
    let rate = dropped as f64 / whole.len() as f64;
    assert!((rate - f64::from(P)).abs() < 0.03, "rate {rate}");
    for other in [
        DropoutKey { seed: 9, ..key },
        DropoutKey { step: 9, ..key },
        DropoutKey { sample: 9, ..key },
        DropoutKey { tensor: 9, ..key },
    ] {
        assert_ne!(run(other, rows, cols), whole);
    }
}

/// torch.optim.AdamW's formulas in f64.
fn adamw_f64(p: &mut f64, m: &mut f64, v: &mut f64, g: f64, step: i32, s: &AdamW) {
    *p *= 1.0 - s.lr * s.weight_decay;
    *m += (g - *m) * (1.0 - s.beta1);
    *v = *v * s.beta2 + (1.0 - s.beta2) * g * g;
    let step_size = s.lr / (1.0 - s.beta1.powi(step));
    let denominator = v.sqrt() / (1.0 - s.beta2.powi(step)).sqrt() + s.eps;
    *p -= step_size * *m / denominator;
}

#[test]
fn adamw_follows_its_formulas() {
    let settings = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    for n in LENGTHS {
        let start = random(1, n, 1.0);
        let got = same_on_all(|kernels| {
            let (mut p, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            for step in 1..=5 {
                kernels.adamw(&mut p, &random(10 + step, n, 0.1), &mut m, &mut v, settings, step);
            }
            [p, m, v].concat()
        });
        let mut want = [wide(&start), vec![0.0; n], vec![0.0; n]];
        for step in 1..=5 {
            let [p, m, v] = &mut want;
            for (i, g) in random(10 + step, n, 0.1).into_iter().enumerate() {
                adamw_f64(&mut p[i], &mut m[i], &mut v[i], g.into(), step as i32, &settings);
            }
        }
        for (got, want) in got.chunks(n.max(1)).zip(&want) {
            assert_close("adamw", got, want, 5e-7);
        }
    }
}

#[test]
fn eight_bit_adamw_has_the_same_bits_on_every_set() {
    let settings = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    for n in LENGTHS.into_iter().chain([255, 256, 257, 512, 1000]) {
        let words = eight_bit_words(n);
        let start = random(1, n, 1.0);
        let state = same_on_all(|kernels| {
            let (mut p, mut m, mut v) = (start.clone(), vec![0.0; words], vec![0.0; words]);
            for step in 1..=5 {
                let g = random(10 + step, n, 0.1);
                kernels.adamw_8bit(&mut p, &g, &mut m, &mut v, settings, step);
            }
            [p, m, v].concat()
        });
        // A block is its own: without the first one, the second has the same state.
        if n > EIGHT_BIT_BLOCK {
            let (rest, words) = (n - EIGHT_BIT_BLOCK, eight_bit_words(n - EIGHT_BIT_BLOCK));
            let (mut p, mut m, mut v) =
                (start[EIGHT_BIT_BLOCK..].to_vec(), vec![0.0; words], vec![0.0; words]);
            for step in 1..=5 {
                let g = &random(10 + step, n, 0.1)[EIGHT_BIT_BLOCK..];
                Kernels::detect().adamw_8bit(&mut p, g, &mut m, &mut v, settings, step);
            }
            assert_eq!(p, state[EIGHT_BIT_BLOCK..n], "{rest} of {n} numbers");
        }
    }
}

#[test]
fn eight_bit_words_hold_scales_and_codes() {
    for (numbers, words) in [(0, 0), (1, 2), (4, 2), (5, 3), (255, 65), (256, 65), (257, 67)] {
        assert_eq!(eight_bit_words(numbers), words, "{numbers} numbers");
    }
}

#[test]
fn sgd_follows_its_formula() {
    for n in LENGTHS {
        let (p, g) = (random(1, n, 1.0), random(2, n, 1.0));
        let got = same_on_all(|kernels| {
            let mut p = p.clone();
            kernels.sgd(&mut p, &g, 0.1, 0.01);
            p
        });
        let want: Vec<f64> =
            wide(&p).iter().zip(wide(&g)).map(|(p, g)| p - 0.1 * (g + 0.01 * p)).collect();
        assert_close("sgd", &got, &want, 2e-7);
    }
}

#[test]
fn momentum_follows_its_formula() {
    for n in LENGTHS {
        let p = random(1, n, 1.0);
        let got = same_on_all(|kernels| {
            let (mut p, mut buffer) = (p.clone(), vec![0.0; n]);
            for step in 0..3 {
                kernels.sgd_momentum(
                    &mut p,
                    &random(5 + step, n, 1.0),
                    &mut buffer,
                    0.9,
                    0.1,
                    0.01,
                );
            }
            [p, buffer].concat()
        });
        let (mut want, mut buffer) = (wide(&p), vec![0.0; n]);
        for step in 0..3 {
            for ((p, buffer), g) in want.iter_mut().zip(&mut buffer).zip(random(5 + step, n, 1.0)) {
                *buffer = 0.9 * *buffer + f64::from(g) + 0.01 * *p;
                *p -= 0.1 * *buffer;
            }
        }
        want.extend(buffer);
        assert_close("momentum", &got, &want, 3e-7);
    }
}

/// Parts that end within blocks: each number takes the step of its own rate, and the state is that
/// of any rate.
#[test]
fn eight_bit_parts_have_rates_of_their_own() {
    const ENDS: [usize; 5] = [10, 256, 300, 310, 900];
    let settings = |lr| AdamW { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let n = ENDS[4];
    let (start, words) = (random(1, n, 1.0), eight_bit_words(n));
    let run = |kernels: Kernels, rates: [f64; 5]| {
        let (mut p, mut m, mut v) = (start.clone(), vec![0.0; words], vec![0.0; words]);
        for step in 1..=3 {
            let parts = ENDS.into_iter().zip(rates.map(settings));
            let g = random(10 + step, n, 0.1);
            kernels.adamw_8bit_in_parts(&mut p, &g, &mut m, &mut v, parts, step);
        }
        [p, m, v].concat()
    };
    let [slow, fast] =
        [[1e-3; 5], [8e-3; 5]].map(|rates| same_on_all(|kernels| run(kernels, rates)));
    let mixed = same_on_all(|kernels| run(kernels, [1e-3, 8e-3, 1e-3, 8e-3, 1e-3]));
    // A state's words may be any bits, those of a NaN too.
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&mixed[n..]), bits(&slow[n..]));
    for i in 0..n {
        let part = ENDS.iter().position(|&end| i < end).expect("a part");
        let want = if part % 2 == 0 { &slow } else { &fast };
        assert_eq!(mixed[i], want[i], "number {i}");
    }
}
