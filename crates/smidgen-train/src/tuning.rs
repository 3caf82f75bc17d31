//! What was trained on a model: an adapter inside it, or a network beside it.

use std::path::Path;

use crate::adapter::{Adapter, AdapterNote};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::side::SideNetwork;

/// What was trained on a model.
#[derive(Debug)]
pub enum Tuning {
    /// A LoRA adapter, or none.
    Lora(Adapter),
    /// A side network.
    Side(SideNetwork),
}

impl From<Adapter> for Tuning {
    fn from(adapter: Adapter) -> Self {
        Self::Lora(adapter)
    }
}

impl From<SideNetwork> for Tuning {
    fn from(network: SideNetwork) -> Self {
        Self::Side(network)
    }
}

impl Tuning {
    /// What a folder holds, in memory, and what is worth telling about it.
    ///
    /// # Errors
    /// The folder can't be read, holds both kinds, or what belongs to another model.
    pub fn load(base: &Base, folder: &Path) -> Result<(Self, Vec<AdapterNote>)> {
        if !SideNetwork::is_in(folder) {
            let (adapter, notes) = Adapter::load(base, folder)?;
            return Ok((adapter.into(), notes));
        }
        if folder.join("adapter_config.json").exists() {
            let what = "it holds a LoRA adapter and a side network; move one of them away";
            return Err(Error::Adapter { path: folder.to_owned(), what: what.into() });
        }
        let (network, notes) = SideNetwork::load(base, folder)?;
        Ok((network.into(), notes))
    }
}
