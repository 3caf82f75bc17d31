//! Encoding: no error above ggml's rule, what was decoded is found again, the same bytes from every
//! instruction set.

use smidgen_kernels::{Format, Kernels, Philox, Unencodable};

const ENCODED: [Format; 5] = [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_0];

fn encode(format: Format, numbers: &[f32]) -> Vec<u8> {
    let mut blocks = vec![0xa5; numbers.len() / format.block_len() * format.block_bytes()];
    format.encode(numbers, &mut blocks).expect("numbers in range");
    blocks
}

fn decode(format: Format, blocks: &[u8]) -> Vec<f32> {
    let mut numbers = vec![f32::NAN; blocks.len() / format.block_bytes() * format.block_len()];
    format.decode(blocks, &mut numbers);
    numbers
}

/// Sum of squared differences.
fn error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

/// A Q4_0 block by the rule of ggml's reference: the largest magnitude is put at -8.
fn plain_q4_0(numbers: &[f32]) -> Vec<f32> {
    let largest = numbers.iter().fold(0.0, |a: f32, &b| if b.abs() > a.abs() { b } else { a });
    let scale = largest / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let half = half::f16::from_f32(scale).to_f32();
    let value = |x: &f32| half * (f32::from((x * inverse + 8.5).min(15.0) as i8) - 8.0);
    numbers.iter().map(value).collect()
}

/// Blocks of 32 numbers of many kinds.
fn blocks() -> Vec<(String, Vec<f32>)> {
    let mut kinds: Vec<(String, Vec<f32>)> = Vec::new();
    for seed in 0..400 {
        let mut x = [0.0; 64];
        Philox::new(seed).uniform(0, 0, &mut x);
        // Nearly normal: the sum of pairs, cubed in part for heavy tails.
        let base: Vec<f32> = x.chunks_exact(2).map(|p| p[0] + p[1] - 1.0).collect();
        let mut put =
            |what: &str, numbers: Vec<f32>| kinds.push((format!("{what} {seed}"), numbers));
        put("even", x[..32].to_vec());
        put("two-sided", base.clone());
        put("heavy", base.iter().map(|x| 10.0 * x.powi(3)).collect());
        let mut outlier = base.clone();
        outlier[seed as usize % 32] = if seed % 2 == 0 { 40.0 } else { -40.0 };
        put("outlier", outlier);
        for power in [-30, -26, -24, -20, -14, 10, 17] {
            let factor = 2f32.powi(power);
            put(&format!("times 2^{power}"), base.iter().map(|x| x * factor).collect());
        }
        put("one sign", x[..32].iter().map(|x| -x - 0.5).collect());
    }
    for value in [0.0, -0.0, 1.0, -3.7, 1e-9, 65_504.0, -1e-40] {
        kinds.push((format!("constant {value}"), vec![value; 32]));
    }
    let mut lone = vec![0.0; 32];
    lone[7] = -0.3;
    kinds.push(("lone".into(), lone));
    kinds
}

/// Those that `format` can hold.
fn blocks_of(format: Format) -> impl Iterator<Item = (String, Vec<f32>)> {
    let largest = if format == Format::F16 { 65_504.0 } else { f32::MAX };
    blocks().into_iter().filter(move |(_, numbers)| numbers.iter().all(|x| x.abs() <= largest))
}

#[test]
fn q4_0_is_never_worse_than_the_plain_rule() {
    let (mut ours, mut theirs, mut better) = (0.0f64, 0.0f64, 0);
    for (what, numbers) in blocks() {
        let found = error(&decode(Format::Q4_0, &encode(Format::Q4_0, &numbers)), &numbers);
        let plain = error(&plain_q4_0(&numbers), &numbers);
        assert!(found <= plain, "{what}: {found:e} and by the plain rule {plain:e}");
        if what.starts_with("two-sided") {
            (ours, theirs) = (ours + found, theirs + plain);
            better += usize::from(found < plain);
        }
    }
    let ratio = f64::sqrt(ours / theirs);
    println!("two-sided blocks: rms error {ratio:.3} of the plain rule's, {better} of 400 better");
    assert!(ratio < 0.95 && better > 300, "{ratio} {better}");
}

#[test]
fn what_was_decoded_is_found_again() {
    let mut words = [0.0; 20];
    for seed in 0..5000 {
        Philox::new(seed).uniform(1, 0, &mut words);
        let word = |i: usize| (words[i] * 65_536.0) as u32;
        // A scale from 2^-13 to 2^13, and any codes; sometimes small ones only.
        let exponent = 2 + word(0) % 26;
        let mut block = vec![0; 18];
        let half = (word(1) as u16 & 0x83ff) | (exponent as u16) << 10;
        block[..2].copy_from_slice(&half.to_le_bytes());
        let spread = 1 + word(2) as u8 % 8;
        for (i, q) in block[2..].iter_mut().enumerate() {
            let [a, b] = [word(3 + i) as u8, (word(3 + i) >> 8) as u8];
            let code = |byte: u8| 8 + byte % (2 * spread) - spread;
            *q = code(a) | code(b) << 4;
        }
        let numbers = decode(Format::Q4_0, &block);
        assert_eq!(decode(Format::Q4_0, &encode(Format::Q4_0, &numbers)), numbers, "{block:x?}");
    }
    for format in ENCODED {
        for (what, numbers) in blocks_of(format) {
            let once = decode(format, &encode(format, &numbers));
            if format != Format::Q4_0 || !what.contains("^-2") && !what.contains("^-30") {
                assert_eq!(decode(format, &encode(format, &once)), once, "{what} {format:?}");
            }
        }
    }
}

#[test]
fn q8_0_is_that_of_ggml() {
    for (what, numbers) in blocks() {
        let largest = numbers.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let mut expected = half::f16::from_f32(scale).to_le_bytes().to_vec();
        expected.extend(numbers.iter().map(|x| (x * inverse).round() as i8 as u8));
        assert_eq!(encode(Format::Q8_0, &numbers), expected, "{what}");
    }
}

#[test]
fn floats_become_the_nearest() {
    for (what, numbers) in blocks_of(Format::F16) {
        let halves: Vec<u8> =
            numbers.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
        assert_eq!(encode(Format::F16, &numbers), halves, "{what}");
        let upper: Vec<u8> =
            numbers.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        assert_eq!(encode(Format::Bf16, &numbers), upper, "{what}");
        assert_eq!(decode(Format::F32, &encode(Format::F32, &numbers)), numbers, "{what}");
    }
}

#[test]
fn what_a_format_cannot_hold_is_found() {
    for format in ENCODED {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = vec![0.5; 96];
            numbers[70] = bad;
            let mut blocks = vec![0; 96 / format.block_len() * format.block_bytes()];
            let Unencodable { index, number } =
                format.encode(&numbers, &mut blocks).expect_err("a number out of range");
            assert_eq!((index, number.to_bits()), (70, bad.to_bits()), "{format:?}");
        }
    }
    for (format, largest) in [(Format::F16, 65_519.0), (Format::Q8_0, 8.3e6), (Format::Q4_0, 5.2e5)]
    {
        for (number, fits) in [(largest, true), (-largest, true), (1.1 * largest, false)] {
            let mut numbers = vec![0.0; 32];
            numbers[3] = number;
            let mut blocks = vec![0; 32 / format.block_len() * format.block_bytes()];
            let found = format.encode(&numbers, &mut blocks);
            assert_eq!(found.is_ok(), fits, "{format:?} {number}");
        }
    }
}

#[test]
fn every_instruction_set_encodes_alike() {
    for format in ENCODED {
        let numbers: Vec<f32> = blocks_of(format).flat_map(|(_, numbers)| numbers).collect();
        let expected = encode(format, &numbers);
        for kernels in Kernels::all() {
            let mut blocks = vec![0; expected.len()];
            kernels.encode_row(format, &numbers, &mut blocks).expect("numbers in range");
            assert!(blocks == expected, "{:?} {format:?}", kernels.isa());
        }
    }
}

#[test]
#[should_panic(expected = "has no encoder")]
fn other_formats_are_not_written() {
    let _ = Format::Q4K.encode(&[0.0; 256], &mut [0; 144]);
}
