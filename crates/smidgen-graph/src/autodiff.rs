//! Reverse-mode differentiation of a block graph.
//!
//! Nodes are walked from last to first. Each hands shares of gradients to its inputs; when the
//! walk reaches the op that made a value, all of its readers have spoken and the shares are
//! summed, in the order of the readers: values first, then one GEMM over all products through
//! frozen weights, then LoRA's products. Nothing is computed that no trainable factor needs.

use std::collections::BTreeMap;

use crate::block::{Block, Life, Value, ValueId};
use crate::ops::{Contribution, Emit};
use crate::step::{Start, Step};

/// A block turned into steps.
#[derive(Clone, Debug)]
pub struct Differentiated {
    /// The block's values followed by those that the rules made.
    pub values: Vec<Value>,
    /// Steps that compute the output from the input.
    pub forward: Vec<Step>,
    /// Steps of the rules, in order; they may read any forward value.
    pub backward: Vec<Step>,
    /// The hidden state that comes in.
    pub input: Option<ValueId>,
    /// The hidden state that goes out.
    pub output: Option<ValueId>,
    /// The gradient that comes in, if the block has an output.
    pub d_output: Option<ValueId>,
    /// The gradient that goes out, if it was asked for and there is one.
    pub d_input: Option<ValueId>,
}

/// Differentiates `block`. `input_wanted` says whether something below needs the gradient of the
/// block's input.
pub fn differentiate(block: &Block, input_wanted: bool) -> Differentiated {
    let mut emit = Emit::new(block.values.clone());
    for node in &block.nodes {
        node.op.forward(node, &mut emit);
    }
    let forward = std::mem::take(&mut emit.steps);
    let wanted = wanted_values(block, input_wanted);
    let mut walk = Walk { shares: BTreeMap::new(), gradients: BTreeMap::new() };
    let d_output = block.output.filter(|o| wanted[o.0 as usize]).map(|output| {
        let d = emit.value("d_output", emit.cols(output), Life::Plain);
        walk.shares.entry(output).or_default().push((usize::MAX, Contribution::Value(d)));
        d
    });
    for (index, node) in block.nodes.iter().enumerate().rev() {
        let inputs: Vec<bool> = node.inputs.iter().map(|v| wanted[v.0 as usize]).collect();
        if !node.op.has_params() && !inputs.contains(&true) {
            continue;
        }
        let dy = node.outputs.first().and_then(|&y| walk.gradient(y, &mut emit));
        if dy.is_none() && !node.outputs.is_empty() {
            continue;
        }
        node.op.backward(node, dy, &inputs, &mut emit);
        for (value, share) in emit.contributions.drain(..) {
            walk.shares.entry(value).or_default().push((index, share));
        }
    }
    let d_input = block.input.filter(|_| input_wanted).and_then(|v| walk.gradient(v, &mut emit));
    Differentiated {
        backward: emit.steps,
        values: emit.values,
        forward,
        input: block.input,
        output: block.output,
        d_output,
        d_input,
    }
}

/// Which values some trainable factor, or the input if it is wanted, has an influence on.
fn wanted_values(block: &Block, input_wanted: bool) -> Vec<bool> {
    let mut wanted = vec![false; block.values.len()];
    if let Some(input) = block.input {
        wanted[input.0 as usize] = input_wanted;
    }
    for node in &block.nodes {
        let any = node.op.has_params() || node.inputs.iter().any(|v| wanted[v.0 as usize]);
        node.outputs.iter().for_each(|v| wanted[v.0 as usize] = any);
    }
    wanted
}

struct Walk {
    /// Shares of each value's gradient with the number of the reader that gave them.
    shares: BTreeMap<ValueId, Vec<(usize, Contribution)>>,
    gradients: BTreeMap<ValueId, ValueId>,
}

impl Walk {
    /// The whole gradient of `value`, summed now; none if no reader gave a share.
    fn gradient(&mut self, value: ValueId, emit: &mut Emit) -> Option<ValueId> {
        if let Some(&done) = self.gradients.get(&value) {
            return Some(done);
        }
        let mut shares = self.shares.remove(&value)?;
        shares.sort_by_key(|(reader, _)| *reader);
        let cols = emit.cols(value);
        let name = format!("d_{}", emit.values[value.0 as usize].name);
        let mut sum: Option<ValueId> = None;
        let (mut products, mut last) = (Vec::new(), Vec::new());
        for (_, share) in shares {
            match share {
                Contribution::Products { frozen, lora } => {
                    products.extend(frozen);
                    last.extend(lora);
                }
                Contribution::Value(y) => {
                    sum = Some(match sum {
                        None => y,
                        Some(x) => {
                            let out = emit.value(&name, cols, Life::Plain);
                            emit.step(Step::Add { x, y, out });
                            out
                        }
                    });
                }
            }
        }
        products.extend(last);
        if !products.is_empty() {
            let out = emit.value(&name, cols, Life::Plain);
            let start = sum.map_or(Start::Zero, Start::Value);
            emit.step(Step::Gemm { out, start, scale: 1.0, terms: products });
            sum = Some(out);
        }
        let sum = sum.expect("a share is a value or products");
        self.gradients.insert(value, sum);
        Some(sum)
    }
}
