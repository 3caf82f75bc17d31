//! Decoding of every format: against values made by the `gguf` Python package, and every
//! instruction set against plain Rust, bit for bit.

use safetensors::SafeTensors;
use smidgen_kernels::{Format, Kernels};

/// Formats and their names in GGUF.
const FORMATS: [(Format, &str); 11] = [
    (Format::F32, "F32"),
    (Format::F16, "F16"),
    (Format::Bf16, "BF16"),
    (Format::Q8_0, "Q8_0"),
    (Format::Q4_0, "Q4_0"),
    (Format::Q4_1, "Q4_1"),
    (Format::Q5_0, "Q5_0"),
    (Format::Q5_1, "Q5_1"),
    (Format::Q4K, "Q4_K"),
    (Format::Q5K, "Q5_K"),
    (Format::Q6K, "Q6_K"),
];

/// Holds that the values have the expected bits; any NaN stands for any other.
fn assert_same(values: &[f32], expected: &[f32], what: &str) {
    assert_eq!(values.len(), expected.len(), "{what}");
    for (i, (x, y)) in values.iter().zip(expected).enumerate() {
        let same = x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan();
        assert!(same, "{what}: number {i} is {x:?}, not {y:?}");
    }
}

#[test]
fn blocks_decode_as_in_gguf() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/blocks.safetensors");
    let file = std::fs::read(path).expect("tests/golden/blocks.safetensors is in the repository");
    let golden = SafeTensors::deserialize(&file).expect("a safetensors file");
    for (format, name) in FORMATS {
        let blocks = golden.tensor(&format!("{name}.raw")).expect(name);
        let values = golden.tensor(&format!("{name}.values")).expect(name);
        let expected: Vec<f32> =
            values.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let mut decoded = vec![f32::NAN; expected.len()];
        format.decode(blocks.data(), &mut decoded);
        assert_same(&decoded, &expected, name);
    }
}

#[test]
fn every_instruction_set_decodes_alike() {
    let mut state = 1u64;
    let mut byte = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for (format, name) in FORMATS {
        for count in [0, 1, 2, 3, 7, 16, 33, 200] {
            let bytes: Vec<u8> = (0..count * format.block_bytes()).map(|_| byte()).collect();
            let mut expected = vec![0.0; count * format.block_len()];
            format.decode(&bytes, &mut expected);
            for kernels in Kernels::all() {
                let mut decoded = vec![f32::NAN; expected.len()];
                kernels.decode_row(format, &bytes, &mut decoded);
                assert_same(&decoded, &expected, &format!("{:?} {name}", kernels.isa()));
            }
        }
    }
}

#[test]
#[should_panic(expected = "bytes of Q4K")]
fn a_part_of_a_block_is_refused() {
    Format::Q4K.decode(&[0; 143], &mut [0.0; 256]);
}

#[test]
#[should_panic(expected = "numbers of 2 blocks")]
fn room_for_too_few_numbers_is_refused() {
    Format::Q8_0.decode(&[0; 68], &mut [0.0; 32]);
}
