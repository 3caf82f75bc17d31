//! An adapter as a GGUF LoRA, as llama.cpp takes it beside the base model's file.

use std::path::Path;

use smidgen_graph::Factor;
use smidgen_weights::{Format, GgufWriter, NewTensor};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::error::{Error, Result};

/// Numbers written at once.
const CHUNK_LEN: usize = 4096;

/// Writes `adapter` as a GGUF LoRA in F32 to `path` and gives the file's bytes: for each projection
/// `NAME.weight.lora_a` with `ne` = `[inputs, rank]` and `NAME.weight.lora_b` with
/// `[rank, outputs]`, rows in the order of the model's file. One factor at a time is turned in
/// memory.
///
/// # Errors
/// There is nothing to write, a number is infinite or no number, or the file can't be written; what
/// was at `path` is then as it was.
pub fn export_gguf(base: &Base, adapter: &mut Adapter, path: &Path) -> Result<u64> {
    if adapter.is_empty() {
        return Err(Error::setting("there is no adapter to export; give one with --adapter"));
    }
    adapter.check_finite(path)?;
    let record = base.record()?;
    let mut gguf = GgufWriter::create(path)?;
    gguf.str("general.architecture", base.info.family)?;
    gguf.str("general.type", "adapter")?;
    gguf.str("general.name", &format!("{} LoRA", base.info.name))?;
    gguf.u32("general.file_type", 0)?;
    gguf.str("adapter.type", "lora")?;
    gguf.f32("adapter.lora.alpha", adapter.shape().alpha_over_rank() as f32)?;
    gguf.str("smidgen.base.file_name", &record.file_name)?;
    gguf.str("smidgen.base.fingerprint", &record.fingerprint.to_string())?;

    let rank = adapter.config().rank;
    let factors: Vec<_> = adapter
        .shape()
        .factors()
        .map(|(layer, module, factor, range)| (tensor_name(base, layer, module), factor, range))
        .collect();
    let tensors: Vec<NewTensor> = factors
        .iter()
        .map(|(name, factor, range)| {
            let (rank, other) = (rank as u64, (range.len() / rank) as u64);
            let (suffix, shape) = match factor {
                Factor::A => ("lora_a", vec![other, rank]),
                Factor::B => ("lora_b", vec![rank, other]),
            };
            NewTensor { name: format!("{name}.{suffix}"), format: Format::F32, shape }
        })
        .collect();
    let mut out = gguf.tensors(&tensors)?;
    let mut bytes = Vec::with_capacity(CHUNK_LEN * size_of::<f32>());
    let mut turned = Vec::new();
    for (_, factor, range) in factors {
        let mut numbers = adapter.values().piece(range)?;
        if factor == Factor::B {
            turned.resize(numbers.len(), 0.0);
            crate::adapter::transpose(numbers, rank, numbers.len() / rank, &mut turned);
            numbers = &turned;
        }
        for numbers in numbers.chunks(CHUNK_LEN) {
            bytes.clear();
            bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
            out.write(&bytes)?;
        }
    }
    Ok(out.finish()?)
}

/// The tensor of the base that a layer's module stands for.
pub(crate) fn tensor_name(base: &Base, layer: usize, module: &str) -> String {
    let sites = base.info.sites;
    let site = sites.iter().find(|site| site.module == module).expect("one of the projections");
    format!("{}{}.weight", base.blocks.layer_prefix(layer), site.tensor)
}
