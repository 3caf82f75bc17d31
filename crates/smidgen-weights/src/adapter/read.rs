//! Reading an adapter's folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use smidgen_kernels::Format;

use super::{AdapterConfig, Factor, KEY_PREFIX, LoraShape, WEIGHTS_FILE};
use crate::error::{Error, Result};
use crate::safetensors::{self, Stored};

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// A matrix in the file.
#[derive(Clone, Debug)]
struct Matrix {
    format: Format,
    /// Rows and columns.
    dims: [usize; 2],
    /// Its bytes in the file.
    range: Range<u64>,
}

/// An adapter whose folder has been checked. Its matrices are read on demand.
#[derive(Debug)]
pub struct Adapter {
    config: AdapterConfig,
    path: PathBuf,
    file: File,
    modules: BTreeMap<String, Module>,
}

#[derive(Debug)]
struct Module {
    shape: LoraShape,
    a: Matrix,
    b: Matrix,
}

impl Adapter {
    /// Opens the adapter in `folder` and checks its settings and the shapes of all its matrices.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::Malformed`]; [`Error::Adapter`] where it is no plain
    /// LoRA adapter, or its parts contradict each other.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let config = AdapterConfig::read(folder)?;
        let path = folder.join(WEIGHTS_FILE);
        if !path.exists() && folder.join("adapter_model.bin").exists() {
            let what = "holds adapter_model.bin, a pickle, which is not readable; load the adapter \
                        with PEFT and save it again with save_pretrained(safe_serialization=True)";
            return Err(Error::adapter(folder, what));
        }
        if !path.exists() {
            let what =
                format!("there is no {WEIGHTS_FILE}; give a folder that holds a PEFT adapter");
            return Err(Error::adapter(folder, what));
        }
        let file = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
        let matrices = matrices(&path, safetensors::read(&path, &file)?)?;
        let modules = pair(&path, matrices, config.r)?;
        Ok(Self { config, path, file, modules })
    }

    /// The adapter's settings.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The path of each module within the base, such as `model.layers.0.self_attn.q_proj`, and its
    /// shape; sorted by path.
    pub fn modules(&self) -> impl ExactSizeIterator<Item = (&str, LoraShape)> {
        self.modules.iter().map(|(path, module)| (path.as_str(), module.shape))
    }

    /// Reads one matrix, row by row, into `out`; F16 and BF16 are widened.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Adapter`] where a number is infinite or no number.
    ///
    /// # Panics
    /// If there is no such module, or `out` is not as long as [`LoraShape::dims`] say.
    pub fn read(&self, module: &str, factor: Factor, out: &mut [f32]) -> Result<()> {
        let found = self.modules.get(module).unwrap_or_else(|| panic!("no module {module}"));
        let matrix = match factor {
            Factor::A => &found.a,
            Factor::B => &found.b,
        };
        assert_eq!(out.len(), matrix.dims[0] * matrix.dims[1], "numbers of {module} {factor:?}");
        let mut chunk = [0; CHUNK_BYTES];
        let mut at = matrix.range.start;
        for out in out.chunks_mut(CHUNK_BYTES / matrix.format.block_bytes()) {
            let bytes = &mut chunk[..out.len() * matrix.format.block_bytes()];
            self.file
                .read_exact_at(bytes, at)
                .map_err(|source| Error::io("read", &self.path, source))?;
            at += bytes.len() as u64;
            matrix.format.decode(bytes, out);
            if !out.iter().all(|number| number.is_finite()) {
                let what = format!(
                    "{} holds a number that is not finite; take a save from before the loss became so",
                    factor.key(module)
                );
                return Err(Error::adapter(&self.path, what));
            }
        }
        Ok(())
    }
}

/// The file's tensors as matrices.
fn matrices(path: &Path, tensors: BTreeMap<String, Stored>) -> Result<BTreeMap<String, Matrix>> {
    let matrix = |(name, tensor): (String, Stored)| {
        let wrong = |what| Error::adapter(path, format!("tensor {name:?} {what}"));
        let Some(format) = tensor.format else {
            let what = format!("is of type {:?}, not F32, F16 or BF16", tensor.dtype);
            return Err(wrong(what));
        };
        let dims = <[usize; 2]>::try_from(tensor.shape)
            .map_err(|shape| wrong(format!("has {} dimensions, not 2", shape.len())))?;
        Ok((name, Matrix { format, dims, range: tensor.range }))
    };
    tensors.into_iter().map(matrix).collect()
}

/// Puts the A and B of each module together and checks them against each other and the rank.
fn pair(
    path: &Path,
    matrices: BTreeMap<String, Matrix>,
    rank: usize,
) -> Result<BTreeMap<String, Module>> {
    let mut halves: BTreeMap<String, [Option<Matrix>; 2]> = BTreeMap::new();
    for (key, matrix) in matrices {
        let (module, factor) = split_key(&key).ok_or_else(|| {
            let expected = "base_model.model.<module>.lora_A.weight or .lora_B.weight";
            Error::adapter(path, format!("unexpected tensor {key:?}: not {expected}"))
        })?;
        halves.entry(module.to_owned()).or_default()[factor as usize] = Some(matrix);
    }
    if halves.is_empty() {
        return Err(Error::adapter(path, "the adapter has no module"));
    }
    let join = |(module, halves): (String, [Option<Matrix>; 2])| {
        let [Some(a), Some(b)] = halves else {
            let what =
                format!("module {module} lacks its lora_A or lora_B; save the adapter again");
            return Err(Error::adapter(path, what));
        };
        let shape = LoraShape { rank, inputs: a.dims[1], outputs: b.dims[0] };
        if a.dims != shape.dims(Factor::A) || b.dims != shape.dims(Factor::B) {
            let what = format!(
                "module {module} has lora_A {:?} and lora_B {:?}, but rank {rank} wants \
                 [{rank}, inputs] and [outputs, {rank}]; the folder's two files belong to two adapters",
                a.dims, b.dims
            );
            return Err(Error::adapter(path, what));
        }
        Ok((module, Module { shape, a, b }))
    };
    halves.into_iter().map(join).collect()
}

fn split_key(key: &str) -> Option<(&str, Factor)> {
    let path = key.strip_prefix(KEY_PREFIX)?;
    let found = Factor::ALL
        .iter()
        .find_map(|&factor| Some((path.strip_suffix(factor.key_suffix())?, factor)))?;
    (!found.0.is_empty()).then_some(found)
}
