//! The flags.

use smidgen_kernels::{Format, Isa, Kernels};

pub const USAGE: &str = "\
Flags of the openblas bench (lists are separated by commas):
  --shapes INxOUT,..   inputs and outputs of the weights
  --directions LIST    forward (X Wᵀ), backward (dY W)
  --formats LIST       of Q5_0 Q8_0 Q4_K Q4_1 Q4_0 Q6_K Q5_K Q5_1 F16 BF16 F32
  --threads LIST       numbers of threads
  --tokens LIST        rows of X
  --pairs N            rounds a row of the table
  --isa NAME           avx512, avx2, neon, scalar [default: the best]
  --library FILE       OpenBLAS's shared library [default: libopenblas.so.0]
  --json               one JSON object a row, with the seconds of every round";

const FORMATS: [(&str, Format); 11] = [
    ("Q5_0", Format::Q5_0),
    ("Q8_0", Format::Q8_0),
    ("Q4_K", Format::Q4K),
    ("Q4_1", Format::Q4_1),
    ("Q4_0", Format::Q4_0),
    ("Q6_K", Format::Q6K),
    ("Q5_K", Format::Q5K),
    ("Q5_1", Format::Q5_1),
    ("F16", Format::F16),
    ("BF16", Format::Bf16),
    ("F32", Format::F32),
];

/// The formats of the table where none are named.
const DEFAULT_FORMATS: usize = 6;

/// Inputs and outputs: Qwen2.5-0.5B's MLP and attention, Gemma 3 4B's MLP, Qwen2.5-0.5B's head.
const SHAPES: [(usize, usize); 5] =
    [(896, 4864), (4864, 896), (896, 896), (2560, 10240), (896, 151_936)];

/// What is measured.
pub struct Options {
    pub shapes: Vec<(usize, usize)>,
    pub forward: Vec<bool>,
    pub formats: Vec<(&'static str, Format)>,
    pub threads: Vec<usize>,
    pub tokens: Vec<usize>,
    pub pairs: usize,
    pub kernels: Kernels,
    pub library: String,
    pub json: bool,
    /// Whether times are wanted, rather than a short test.
    pub is_bench: bool,
}

impl Options {
    fn new(is_bench: bool) -> Self {
        Self {
            shapes: if is_bench { SHAPES.to_vec() } else { vec![(512, 384)] },
            forward: vec![true, false],
            formats: FORMATS[..if is_bench { DEFAULT_FORMATS } else { FORMATS.len() }].to_vec(),
            threads: vec![1, 2],
            tokens: if is_bench { vec![256, 16] } else { vec![5] },
            pairs: if is_bench { 9 } else { 1 },
            kernels: Kernels::detect(),
            library: "libopenblas.so.0".to_owned(),
            json: false,
            is_bench,
        }
    }

    /// None if only the usage is wanted.
    pub fn parse(args: &[String]) -> Result<Option<Self>, String> {
        let mut options = Self::new(args.iter().any(|arg| arg == "--bench"));
        let mut args = args.iter().map(String::as_str);
        while let Some(flag) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{flag} needs a value"));
            match flag {
                "--bench" => {}
                "--help" => return Ok(None),
                "--json" => options.json = true,
                "--shapes" => options.shapes = list(value()?, shape)?,
                "--directions" => options.forward = list(value()?, is_forward)?,
                "--formats" => options.formats = list(value()?, format)?,
                "--threads" => options.threads = list(value()?, positive)?,
                "--tokens" => options.tokens = list(value()?, positive)?,
                "--pairs" => options.pairs = positive(value()?)?,
                "--isa" => options.kernels = isa(value()?)?,
                "--library" => options.library = value()?.to_owned(),
                _ => return Err(format!("unknown flag {flag}")),
            }
        }
        Ok(Some(options))
    }
}

fn list<T>(text: &str, item: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(item).collect()
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{text} is no positive number"))
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let (inputs, outputs) = text.split_once('x').ok_or_else(|| format!("{text} is not INxOUT"))?;
    Ok((positive(inputs)?, positive(outputs)?))
}

fn is_forward(text: &str) -> Result<bool, String> {
    match text {
        "forward" => Ok(true),
        "backward" => Ok(false),
        _ => Err(format!("no direction {text}")),
    }
}

fn format(text: &str) -> Result<(&'static str, Format), String> {
    let found = FORMATS.into_iter().find(|(name, _)| *name == text);
    found.ok_or_else(|| format!("no format {text}"))
}

fn isa(text: &str) -> Result<Kernels, String> {
    let name = |kernels: &Kernels| match kernels.isa() {
        Isa::Scalar => "scalar",
        Isa::Avx2 => "avx2",
        Isa::Avx512 => "avx512",
        Isa::Neon => "neon",
    };
    let found = Kernels::all().into_iter().find(|kernels| name(kernels) == text);
    found.ok_or_else(|| format!("this processor has no {text}"))
}
