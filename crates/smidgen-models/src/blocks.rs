//! What all blocks of a model name.

use smidgen_graph::{Architecture, Block, WeightSlot};

/// Every tensor that the blocks name, by its full name, once, in the order of the model.
pub(crate) fn weights(model: &dyn Architecture) -> Vec<WeightSlot> {
    let mut slots: Vec<WeightSlot> = Vec::new();
    let mut add = |block: Block, prefix: &str| {
        for slot in block.weights {
            let slot = WeightSlot { tensor: format!("{prefix}{}", slot.tensor), ..slot };
            // Only the head may name a tensor again: the embedding, which comes first.
            if slots.first() != Some(&slot) {
                slots.push(slot);
            }
        }
    };
    add(model.embedding_block(), "");
    for layer in 0..model.layers() {
        let block = model.layer_block(model.layer_kind(layer), None, smidgen_graph::GRAIN);
        add(block, &model.layer_prefix(layer));
    }
    add(model.head_block(), "");
    slots
}
