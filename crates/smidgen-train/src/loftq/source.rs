//! Weights from before quantisation: a GGUF file, or a checkpoint's folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use smidgen_models::checkpoint::{Convertible, Source as From};
use smidgen_weights::{Checkpoint, Gguf};

use super::LARGEST_ERROR;
use crate::base::Base;
use crate::convert::{RowOrder, Stored};
use crate::error::{Error, Result};

/// An open model.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Gguf(Gguf),
    Checkpoint(Checkpoint),
}

impl Source {
    /// Opens the model at `path`, which must be of the base's family.
    pub fn open(base: &Base, path: &Path) -> Result<Self> {
        let path = path.to_owned();
        if path.is_dir() {
            let files = Files::Checkpoint(Checkpoint::open(&path)?);
            return Ok(Self { path, files });
        }
        let gguf = Gguf::open(&path)?;
        let (family, wanted) = (gguf.str("general.architecture")?, base.info().family);
        if family != wanted {
            return Err(Error::setting(format!(
                "--loftq-source {}: its family is {family} and the base's {wanted}; give the model \
                 that the base was made from",
                path.display()
            )));
        }
        gguf.release_header();
        Ok(Self { path, files: Files::Gguf(gguf) })
    }

    /// The tensors of those names in GGUF files that are there, with their rows in the order of
    /// those; of a checkpoint, all.
    pub fn tensors<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<BTreeMap<String, Stored<'_>>> {
        match &self.files {
            Files::Gguf(gguf) => names
                .filter(|name| gguf.shape(name).is_ok())
                .map(|name| Ok((name.to_owned(), Stored::of(gguf, name)?)))
                .collect(),
            Files::Checkpoint(checkpoint) => {
                let model = Convertible::new(checkpoint)?;
                let stored = model.tensors().iter().filter_map(|tensor| {
                    let From::Stored(found, place) = &tensor.source else { return None };
                    let order = place.heads.map_or(RowOrder::AsStored, RowOrder::IntoGguf);
                    let (rows, cols) = (tensor.rows, tensor.cols);
                    let (file, format, start) = (found.file, found.format, found.start);
                    let stored = Stored { file, format, start, rows, cols, order };
                    Some((tensor.name.clone(), stored))
                });
                Ok(stored.collect())
            }
        }
    }

    /// A projection of the base that is not there, or in another shape.
    pub fn lacks(&self, name: &str) -> Error {
        Error::setting(format!(
            "--loftq-source {}: it has no {name} of the base's shape; give the model that the base \
             was made from",
            self.path.display()
        ))
    }

    /// Refuses a difference that no quantisation makes.
    pub fn check(&self, name: &str, norm: f64, error: f64) -> Result<()> {
        if !(norm.is_finite() && error.is_finite()) {
            return Err(Error::setting(format!(
                "--loftq-source {}: {name} holds numbers that are not finite, there or in the base",
                self.path.display()
            )));
        }
        if error > LARGEST_ERROR * norm {
            return Err(Error::setting(format!(
                "--loftq-source {}: {name} is not what the base was quantised from: they differ by \
                 {:.2} of its norm; give the model that the base was made from",
                self.path.display(),
                error / norm
            )));
        }
        Ok(())
    }
}
