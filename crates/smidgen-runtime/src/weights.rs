//! A model file bound to the blocks of a model: where each weight of each block lies.

use std::collections::BTreeSet;
use std::ops::Range;

use smidgen_graph::ops::HEAD_TILE;
use smidgen_graph::{Architecture, Block, WeightId, WeightPages};
use smidgen_kernels::QuantMatrix;
use smidgen_weights::{Gguf, Tensor};

use crate::error::{Error, Result};

/// The frozen tensors of a model, looked up and checked once.
///
/// Matrices stay in the mapped file. Vectors (norms and biases) are small and read into memory.
#[derive(Debug)]
pub struct ModelWeights {
    gguf: Gguf,
    layers: Vec<Vec<Bound>>,
    embedding: Vec<Bound>,
    head: Vec<Bound>,
    vectors: Vec<f32>,
    /// Where each layer's matrices lie in the file, as few ranges.
    ranges: Vec<Vec<Range<usize>>>,
}

/// One frozen tensor of a block.
#[derive(Clone, Debug)]
enum Bound {
    Matrix(Tensor),
    Vector(Range<usize>),
}

/// Which block of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockAt {
    Embedding,
    Layer(usize),
    Head,
}

impl BlockAt {
    /// A number that no other block of the model has.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Embedding => 0,
            Self::Head => 1,
            Self::Layer(layer) => layer as u32 + 2,
        }
    }
}

impl ModelWeights {
    /// Finds every tensor that the blocks of `model` name.
    ///
    /// # Errors
    /// A tensor that is missing, of an unreadable type or of another shape.
    pub fn bind(gguf: Gguf, model: &dyn Architecture) -> Result<Self> {
        let mut bound = Self {
            gguf,
            layers: Vec::new(),
            embedding: Vec::new(),
            head: Vec::new(),
            vectors: Vec::new(),
            ranges: Vec::new(),
        };
        bound.embedding = bound.bind_block(&model.embedding_block(), "")?;
        bound.head = bound.bind_block(&model.head_block(), "")?;
        for layer in 0..model.layers() {
            let block = model.layer_block(model.layer_kind(layer), None, smidgen_graph::GRAIN);
            let slots = bound.bind_block(&block, &model.layer_prefix(layer))?;
            bound.ranges.push(joined(slots.iter().filter_map(Bound::file_range).collect()));
            bound.layers.push(slots);
        }
        bound.vectors.shrink_to_fit();
        bound.check_all_used(model)?;
        Ok(bound)
    }

    /// A tensor that no block reads would be left out of the function that the model computes.
    fn check_all_used(&self, model: &dyn Architecture) -> Result<()> {
        let mut used: BTreeSet<String> = BTreeSet::new();
        let mut add = |block: &Block, prefix: &str| {
            used.extend(block.weights.iter().map(|slot| format!("{prefix}{}", slot.tensor)));
        };
        add(&model.embedding_block(), "");
        add(&model.head_block(), "");
        for layer in 0..model.layers() {
            let block = model.layer_block(model.layer_kind(layer), None, smidgen_graph::GRAIN);
            add(&block, &model.layer_prefix(layer));
        }
        used.extend(model.other_tensors().iter().map(|name| (*name).to_owned()));
        match self.gguf.tensor_names().find(|name| !used.contains(*name)) {
            Some(tensor) => Err(Error::Unused { tensor: tensor.to_owned() }),
            None => Ok(()),
        }
    }

    fn bind_block(&mut self, block: &Block, prefix: &str) -> Result<Vec<Bound>> {
        let mut slots = Vec::new();
        for slot in &block.weights {
            let name = format!("{prefix}{}", slot.tensor);
            let tensor = self.gguf.tensor(&name)?;
            if (tensor.rows, tensor.cols) != (slot.rows, slot.cols) {
                return Err(Error::Shape {
                    tensor: name,
                    found_rows: tensor.rows,
                    found_cols: tensor.cols,
                    rows: slot.rows,
                    cols: slot.cols,
                });
            }
            slots.push(if slot.rows == 1 {
                let values = self.gguf.vector_f32(&name)?;
                let start = self.vectors.len();
                self.vectors.extend_from_slice(&values);
                Bound::Vector(start..self.vectors.len())
            } else {
                Bound::Matrix(tensor)
            });
        }
        Ok(slots)
    }

    /// The model file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Numbers in all vectors together.
    pub fn vectors_len(&self) -> usize {
        self.vectors.len()
    }

    /// Rows of the embedding.
    pub fn vocabulary(&self) -> usize {
        self.embedding
            .iter()
            .find_map(|b| match b {
                Bound::Matrix(t) => Some(t.rows),
                Bound::Vector(_) => None,
            })
            .unwrap_or(0)
    }

    /// Numbers in the matrices that a token is multiplied by in one forward: the layers' and the
    /// head's.
    pub fn linear_numbers(&self) -> usize {
        let of = |bound: &Bound| match bound {
            Bound::Matrix(tensor) => tensor.rows * tensor.cols,
            Bound::Vector(_) => 0,
        };
        self.layers.iter().flatten().chain(&self.head).map(of).sum()
    }

    /// Bytes of the model file that a step has in memory: two layers that follow each other, or
    /// two tiles of the head, while it drops what it has used; all layers and the head otherwise.
    pub fn pages(&self) -> WeightPages {
        let bytes = |slots: &Vec<Bound>| -> usize {
            slots.iter().filter_map(Bound::file_range).map(|r| r.len()).sum()
        };
        let layers: Vec<usize> = self.layers.iter().map(bytes).collect();
        let two = layers.windows(2).map(|pair| pair[0] + pair[1]).max();
        let two = two.or(layers.first().copied()).unwrap_or(0);
        let tiles = self.head.iter().map(|b| match b {
            Bound::Matrix(t) => t.range.len() / t.rows.max(1) * HEAD_TILE.min(t.rows) * 2,
            Bound::Vector(_) => 0,
        });
        let head = bytes(&self.head);
        let all = layers.iter().sum::<usize>() + head;
        WeightPages { window: two.max(tiles.sum()) as u64, all: all as u64, head: head as u64 }
    }

    pub(crate) fn matrix(&self, at: BlockAt, id: WeightId) -> QuantMatrix<'_> {
        self.gguf.view(self.tensor(at, id))
    }

    pub(crate) fn tensor(&self, at: BlockAt, id: WeightId) -> &Tensor {
        match self.slot(at, id) {
            Bound::Matrix(tensor) => tensor,
            Bound::Vector(_) => panic!("weight {id:?} of {at:?} is a vector"),
        }
    }

    pub(crate) fn vector(&self, at: BlockAt, id: WeightId) -> &[f32] {
        match self.slot(at, id) {
            Bound::Vector(range) => &self.vectors[range.clone()],
            Bound::Matrix(_) => panic!("weight {id:?} of {at:?} is a matrix"),
        }
    }

    fn slot(&self, at: BlockAt, id: WeightId) -> &Bound {
        let slots = match at {
            BlockAt::Embedding => &self.embedding,
            BlockAt::Layer(layer) => &self.layers[layer],
            BlockAt::Head => &self.head,
        };
        &slots[id.0 as usize]
    }

    /// Has the system begin to bring some rows of a matrix into its file cache.
    pub(crate) fn announce_rows(&self, at: BlockAt, id: WeightId, rows: Range<usize>) {
        self.gguf.map().announce(row_bytes(self.tensor(at, id), rows));
    }

    /// Brings some rows of a matrix into memory.
    pub(crate) fn prefetch_rows(
        &self,
        at: BlockAt,
        id: WeightId,
        rows: Range<usize>,
    ) -> Result<()> {
        Ok(self.gguf.map().prefetch(row_bytes(self.tensor(at, id), rows))?)
    }

    /// Drops some rows of a matrix from this process's memory.
    pub(crate) fn release_rows(&self, at: BlockAt, id: WeightId, rows: Range<usize>) {
        self.gguf.map().release(row_bytes(self.tensor(at, id), rows));
    }

    /// Has the system begin to bring a layer's weights into its file cache.
    pub(crate) fn announce(&self, layer: usize) {
        for range in &self.ranges[layer] {
            self.gguf.map().announce(range.clone());
        }
    }

    /// Brings a layer's weights into memory.
    pub(crate) fn prefetch(&self, layer: usize) -> Result<()> {
        for range in &self.ranges[layer] {
            self.gguf.map().prefetch(range.clone())?;
        }
        Ok(())
    }

    /// Drops a layer's weights from this process's memory.
    pub(crate) fn release(&self, layer: usize) {
        for range in &self.ranges[layer] {
            self.gguf.map().release(range.clone());
        }
    }
}

/// Joins ranges that lie less than a page's readahead apart: a layer's tensors lie side by side,
/// with its norms between them.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    const GAP: usize = 64 * 1024;
    ranges.sort_by_key(|r| r.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end + GAP => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Where some rows of a matrix lie in the file.
fn row_bytes(tensor: &Tensor, rows: Range<usize>) -> Range<usize> {
    let row = tensor.range.len() / tensor.rows.max(1);
    tensor.range.start + rows.start * row..tensor.range.start + rows.end * row
}

impl Bound {
    fn file_range(&self) -> Option<Range<usize>> {
        match self {
            Self::Matrix(tensor) => Some(tensor.range.clone()),
            Self::Vector(_) => None,
        }
    }
}
