//! Reading an adapter's folder.

use std::collections::BTreeMap;
use std::path::Path;

use super::{AdapterConfig, Factor, KEY_PREFIX, LoraShape, WEIGHTS_FILE};
use crate::error::{Error, Result};
use crate::tensor_file::TensorFile;

/// Rows and columns.
type Dims = [usize; 2];

/// An adapter whose folder has been checked. Its matrices are read on demand.
#[derive(Debug)]
pub struct Adapter {
    config: AdapterConfig,
    file: TensorFile,
    modules: BTreeMap<String, LoraShape>,
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
        let file = TensorFile::open(&path)?;
        let modules = pair(&path, matrices(&file)?, config.r)?;
        Ok(Self { config, file, modules })
    }

    /// The adapter's settings.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The path of each module within the base, such as `model.layers.0.self_attn.q_proj`, and its
    /// shape; sorted by path.
    pub fn modules(&self) -> impl ExactSizeIterator<Item = (&str, LoraShape)> {
        self.modules.iter().map(|(path, shape)| (path.as_str(), *shape))
    }

    /// Reads one matrix, row by row, into `out`; F16 and BF16 are widened.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Adapter`] where a number is infinite or no number.
    ///
    /// # Panics
    /// If there is no such module, or `out` is not as long as [`LoraShape::dims`] say.
    pub fn read(&self, module: &str, factor: Factor, out: &mut [f32]) -> Result<()> {
        let shape = self.modules.get(module).unwrap_or_else(|| panic!("no module {module}"));
        let [rows, cols] = shape.dims(factor);
        assert_eq!(out.len(), rows * cols, "numbers of {module} {factor:?}");
        self.file.read(&factor.key(module), out)
    }
}

/// The file's tensors as matrices.
fn matrices(file: &TensorFile) -> Result<BTreeMap<String, Dims>> {
    let matrix = |(name, shape): (&str, &[usize])| {
        let wrong = |what| Error::adapter(file.path(), format!("tensor {name:?} {what}"));
        if let Some(dtype) = file.unreadable(name) {
            return Err(wrong(format!("is of type {dtype:?}, not F32, F16 or BF16")));
        }
        let dims = Dims::try_from(shape)
            .map_err(|_| wrong(format!("has {} dimensions, not 2", shape.len())))?;
        Ok((name.to_owned(), dims))
    };
    file.tensors().map(matrix).collect()
}

/// Puts the A and B of each module together and checks them against each other and the rank.
fn pair(
    path: &Path,
    matrices: BTreeMap<String, Dims>,
    rank: usize,
) -> Result<BTreeMap<String, LoraShape>> {
    let mut halves: BTreeMap<String, [Option<Dims>; 2]> = BTreeMap::new();
    for (key, dims) in matrices {
        let (module, factor) = split_key(&key).ok_or_else(|| {
            let expected = "base_model.model.<module>.lora_A.weight or .lora_B.weight";
            Error::adapter(path, format!("unexpected tensor {key:?}: not {expected}"))
        })?;
        halves.entry(module.to_owned()).or_default()[factor as usize] = Some(dims);
    }
    if halves.is_empty() {
        return Err(Error::adapter(path, "the adapter has no module"));
    }
    let join = |(module, halves): (String, [Option<Dims>; 2])| {
        let [Some(a), Some(b)] = halves else {
            let what =
                format!("module {module} lacks its lora_A or lora_B; save the adapter again");
            return Err(Error::adapter(path, what));
        };
        let shape = LoraShape { rank, inputs: a[1], outputs: b[0] };
        if a != shape.dims(Factor::A) || b != shape.dims(Factor::B) {
            let what = format!(
                "module {module} has lora_A {:?} and lora_B {:?}, but rank {rank} wants \
                 [{rank}, inputs] and [outputs, {rank}]; the folder's two files belong to two adapters",
                a, b
            );
            return Err(Error::adapter(path, what));
        }
        Ok((module, shape))
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
