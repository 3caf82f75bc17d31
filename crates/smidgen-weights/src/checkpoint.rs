//! A model's folder as `transformers` saves it: `config.json`, and the tensors in
//! `model.safetensors` or in the shards that `model.safetensors.index.json` lists.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use smidgen_kernels::Format;

use crate::error::{Error, Result};
use crate::json;
use crate::mapped::Mapped;
use crate::safetensors::{self, Stored};

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// A folder whose files have been checked. Numbers stay in the files until they are asked for.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: Value,
    shards: Vec<Mapped>,
    /// Each tensor and the number of its shard.
    tensors: BTreeMap<String, (usize, Stored)>,
}

/// A tensor of a checkpoint, in the file of its shard.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointTensor<'a> {
    /// The shard.
    pub file: &'a Mapped,
    /// How its numbers are stored.
    pub format: Format,
    /// Size of each dimension, the slowest first: `[outputs, inputs]` of a projection.
    pub shape: &'a [usize],
    /// Its first byte in the shard.
    pub start: u64,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a folder and checks the headers of all its shards.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::Malformed`]; [`Error::Checkpoint`] where files lack
    /// or contradict each other.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        let wrong = |what: String| Error::Checkpoint { path: folder.clone(), what };
        let Some(config) = json::read_optional(&folder.join(CONFIG_FILE))? else {
            return Err(wrong(format!("there is no {CONFIG_FILE}; give a model's folder")));
        };
        let index: Option<Index> = json::read_optional(&folder.join(INDEX_FILE))?;
        let mut names: Vec<&str> = match &index {
            Some(index) => index.weight_map.values().map(String::as_str).collect(),
            None => vec![WEIGHTS_FILE],
        };
        names.sort_unstable();
        names.dedup();
        let (mut shards, mut tensors) = (Vec::new(), BTreeMap::new());
        for name in names {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(wrong(format!("{INDEX_FILE} names {name:?}, which is no file of it")));
            }
            let path = folder.join(name);
            if index.is_none() && !path.exists() {
                return Err(wrong(format!(
                    "there is neither {WEIGHTS_FILE} nor {INDEX_FILE}; load the model with \
                     transformers and save it with save_pretrained"
                )));
            }
            if !path.exists() {
                let what = format!("{name} of {INDEX_FILE} is not there; download all shards");
                return Err(wrong(what));
            }
            let file = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
            for (tensor, stored) in safetensors::read(&path, &file)? {
                if tensors.contains_key(&tensor) {
                    return Err(wrong(format!("tensor {tensor:?} is in two shards")));
                }
                tensors.insert(tensor, (shards.len(), stored));
            }
            shards.push(Mapped::open(&path)?);
        }
        let listed = index.iter().flat_map(|index| index.weight_map.keys());
        if let Some(lacking) = listed.into_iter().find(|name| !tensors.contains_key(*name)) {
            return Err(wrong(format!("tensor {lacking:?} is in {INDEX_FILE} and in no shard")));
        }
        Ok(Self { folder, config, shards, tensors })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What `config.json` holds.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// A further file of settings, if it is there.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Json`].
    pub fn settings(&self, file: &str) -> Result<Option<Value>> {
        json::read_optional(&self.folder.join(file))
    }

    /// Names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of that name, if there is one.
    ///
    /// # Errors
    /// [`Error::TensorType`] where its numbers are not F32, F16 or BF16.
    pub fn tensor(&self, name: &str) -> Result<Option<CheckpointTensor<'_>>> {
        let Some((shard, stored)) = self.tensors.get(name) else { return Ok(None) };
        let file = &self.shards[*shard];
        let Some(format) = stored.format else {
            return Err(Error::TensorType {
                path: file.path().to_owned(),
                tensor: name.to_owned(),
                expected: "F32, F16 or BF16".to_owned(),
                found: stored.dtype.clone(),
            });
        };
        Ok(Some(CheckpointTensor { file, format, shape: &stored.shape, start: stored.range.start }))
    }
}
