//! LoRA adapters: which projections have one, their numbers, and the PEFT folder they live in.

mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use smidgen_graph::{Factor, LoraSpec};
use smidgen_kernels::{Kernels, NormalKey, Philox};
use smidgen_runtime::Numbers;
use smidgen_weights::{
    Adapter as PeftAdapter, AdapterConfig, AdapterWriter, LoraShape, TargetModules as PeftTargets,
    gguf_rows_to_hf, hf_rows_to_gguf,
};

use crate::base::Base;
use crate::error::{Error, Result};
use crate::side::SideNetwork;
pub use settings::{InitLoraWeights, LoraConfig, TargetModules};

/// Something worth telling that is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterNote(pub String);

/// Which projections an adapter sits on, and where its numbers lie in their run.
#[derive(Clone, Debug)]
pub struct AdapterShape {
    spec: LoraSpec,
    first_layer: usize,
    slots: Vec<Slot>,
    config: LoraConfig,
}

/// An adapter: its kind, and all its numbers in one run, layer by layer.
#[derive(Debug)]
pub struct Adapter {
    shape: AdapterShape,
    /// The numbers; A is `[rank, inputs]`, B is held transposed, `[rank, outputs]`.
    pub(crate) values: Numbers,
}

/// What an adapter starts from, before its numbers are anywhere.
#[derive(Debug)]
pub struct AdapterStart {
    shape: AdapterShape,
    from: Origin,
}

#[derive(Debug)]
enum Origin {
    /// A uniform, by the seed.
    Uniform(u64),
    /// A normal, by the seed.
    Gaussian(u64),
    Folder(PathBuf, PeftAdapter),
}

#[derive(Clone, Debug)]
struct Slot {
    /// What checkpoints' names of a layer begin with.
    layers_path: &'static str,
    layer: usize,
    module: String,
    factor: Factor,
    rank: usize,
    cols: usize,
    range: Range<usize>,
}

impl Slot {
    fn path(&self) -> String {
        format!("{}.{}.{}", self.layers_path, self.layer, self.module)
    }
}

impl AdapterShape {
    /// The shape of the base alone: no adapter.
    fn none(base: &Base) -> Self {
        let config = LoraConfig { num_layers: Some(0), ..LoraConfig::default() };
        Self {
            spec: LoraSpec { rank: 0, scale: 0.0, dropout: 0.0, modules: Vec::new() },
            first_layer: base.info.layers,
            slots: Vec::new(),
            config,
        }
    }

    fn new(base: &Base, config: &LoraConfig) -> Result<Self> {
        let LoraConfig { rank, alpha, dropout, .. } = *config;
        if !(1..=1024).contains(&rank) {
            return Err(Error::setting(format!("--lora-rank {rank}: it lies between 1 and 1024")));
        }
        if !(alpha > 0.0 && alpha.is_finite()) {
            return Err(Error::setting(format!("--lora-alpha {alpha}: it must be above 0")));
        }
        if !(dropout >= 0.0 && (dropout as f32) < 1.0) {
            return Err(Error::setting(format!("--lora-dropout {dropout}: it lies in [0, 1)")));
        }
        let layers = base.info.layers;
        let trained = config.num_layers.unwrap_or(layers);
        if trained == 0 || trained > layers {
            return Err(Error::setting(format!(
                "--num-layers {trained}: the model has {layers} layers"
            )));
        }
        let divisor = if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        if !((alpha / divisor) as f32).is_finite() {
            return Err(Error::setting(format!("--lora-alpha {alpha}: it is too large")));
        }
        let spec = LoraSpec {
            rank,
            scale: (alpha / divisor) as f32,
            dropout: dropout as f32,
            modules: config.targets.modules(base.info.sites)?,
        };
        let first_layer = layers - trained;
        let slots = slots(base, &spec, first_layer);
        Ok(Self { spec, first_layer, slots, config: config.clone() })
    }

    /// Which projections of a layer it sits on, as the planner takes it.
    pub fn spec(&self) -> &LoraSpec {
        &self.spec
    }

    /// The lowest layer that has it.
    pub fn first_layer(&self) -> usize {
        self.first_layer
    }

    /// What kind of adapter it is.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The alpha that, over the rank, is the scale of the branch: larger by sqrt(rank) than that of
    /// the settings where they ask for rank-stabilised LoRA.
    pub(crate) fn alpha_over_rank(&self) -> f64 {
        let root = if self.config.use_rslora { (self.config.rank as f64).sqrt() } else { 1.0 };
        self.config.alpha * root
    }

    /// Trainable numbers.
    pub fn len(&self) -> usize {
        self.slots.last().map_or(0, |s| s.range.end)
    }

    /// Numbers in the largest B.
    pub(crate) fn largest_b(&self) -> usize {
        let sizes = self.slots.iter().filter(|s| s.factor == Factor::B).map(|s| s.range.len());
        sizes.max().unwrap_or(0)
    }

    /// Numbers in the factors of the largest layer.
    pub(crate) fn largest_layer(&self) -> usize {
        let of_a_layer = |s: &[Slot]| s.iter().map(|slot| slot.range.len()).sum();
        self.slots.chunk_by(|a, b| a.layer == b.layer).map(of_a_layer).max().unwrap_or(0)
    }

    /// Whether there is nothing to train.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Every factor: its layer, its module path below the layer, which of the two it is, and its
    /// place among all numbers.
    pub fn factors(&self) -> impl Iterator<Item = (usize, &str, Factor, Range<usize>)> {
        self.slots.iter().map(|s| (s.layer, s.module.as_str(), s.factor, s.range.clone()))
    }

    /// An adapter of this shape with the given numbers.
    ///
    /// # Panics
    /// If they are not as many as the shape has.
    pub fn adapter(self, values: Numbers) -> Adapter {
        assert_eq!(values.len(), self.len(), "one number for each of the shape's");
        Adapter { shape: self, values }
    }
}

impl AdapterStart {
    /// A new adapter that changes nothing yet: A uniform in +-1/sqrt(inputs), as PEFT starts it
    /// (the same numbers on every machine for a seed), B zero.
    ///
    /// # Errors
    /// A setting that can't be.
    pub fn random(base: &Base, config: &LoraConfig, seed: u64) -> Result<Self> {
        Ok(Self { shape: AdapterShape::new(base, config)?, from: Origin::Uniform(seed) })
    }

    /// The same with A normal of deviation 1 / rank, as PEFT starts it with
    /// `init_lora_weights="gaussian"`.
    ///
    /// # Errors
    /// A setting that can't be.
    pub fn gaussian(base: &Base, config: &LoraConfig, seed: u64) -> Result<Self> {
        Ok(Self { shape: AdapterShape::new(base, config)?, from: Origin::Gaussian(seed) })
    }

    /// A PEFT folder's adapter of this model, and what is worth telling about it.
    ///
    /// # Errors
    /// The folder can't be read, or holds an adapter of another kind, model or shape.
    pub fn folder(base: &Base, folder: &Path) -> Result<(Self, Vec<AdapterNote>)> {
        let wrong = |what: String| Error::Adapter { path: folder.to_owned(), what };
        if SideNetwork::is_in(folder) {
            return Err(wrong(
                "it holds a side network, which runs beside the model: eval, generate and chat take \
                 it, and nothing that needs a LoRA adapter can; give a LoRA adapter's folder"
                    .to_owned(),
            ));
        }
        let notes = base.check_record(folder)?;
        let file = PeftAdapter::open(folder)?;
        let settings = file.config();
        let (first, targets) = covered(base, &file).map_err(wrong)?;
        let config = LoraConfig {
            rank: settings.r,
            alpha: settings.lora_alpha,
            use_rslora: settings.use_rslora,
            dropout: settings.lora_dropout,
            targets,
            num_layers: Some(base.info.layers - first),
        };
        let shape = AdapterShape::new(base, &config)
            .map_err(|e| wrong(format!("its settings can't be: {e}")))?;
        for slot in &shape.slots {
            slot.check(&file).map_err(wrong)?;
        }
        Ok((Self { shape, from: Origin::Folder(folder.to_owned(), file) }, notes))
    }

    /// No adapter at all.
    pub(crate) fn none(base: &Base) -> Self {
        Self { shape: AdapterShape::none(base), from: Origin::Uniform(0) }
    }

    /// What kind of adapter it will be.
    pub fn shape(&self) -> &AdapterShape {
        &self.shape
    }

    /// The adapter with numbers that are still to be filled in: those of a saved state.
    pub(crate) fn unfilled(self, values: Numbers) -> Adapter {
        self.shape.adapter(values)
    }

    /// The adapter, its numbers in memory.
    ///
    /// # Errors
    /// The folder can't be read any more, or the system does not give the memory.
    pub fn in_memory(self, base: &Base) -> Result<Adapter> {
        let values = Numbers::in_memory(self.shape.len())?;
        self.make(base, values)
    }

    /// Fills `values`, which are as many as the shape has, and makes the adapter of them.
    ///
    /// # Errors
    /// The folder can't be read any more, or the values' file can't be written.
    pub fn make(self, base: &Base, mut values: Numbers) -> Result<Adapter> {
        for (stream, slot) in self.shape.slots.iter().enumerate() {
            let numbers = values.piece_mut(slot.range.clone())?;
            match &self.from {
                Origin::Uniform(seed) if slot.factor == Factor::A => {
                    Philox::new(*seed).uniform(stream as u64, 0, numbers);
                    let bound = 1.0 / (slot.cols as f32).sqrt();
                    numbers.iter_mut().for_each(|x| *x = bound * (2.0 * *x - 1.0));
                }
                Origin::Gaussian(seed) if slot.factor == Factor::A => {
                    // From the last stream back: training along normal numbers counts its own up.
                    let sample = u64::MAX - stream as u64;
                    let key = NormalKey { seed: *seed, sample };
                    Kernels::detect().normals(key, 0, numbers);
                    let deviation = 1.0 / slot.rank as f32;
                    numbers.iter_mut().for_each(|x| *x *= deviation);
                }
                Origin::Uniform(_) | Origin::Gaussian(_) => {}
                Origin::Folder(path, file) => slot
                    .read(base, file, numbers)
                    .map_err(|what| Error::Adapter { path: path.clone(), what })?,
            }
        }
        Ok(self.shape.adapter(values))
    }
}

impl Slot {
    /// Whether the file has it, and in this shape.
    fn check(&self, file: &PeftAdapter) -> std::result::Result<(), String> {
        let slot = self;
        let path = slot.path();
        let shapes: BTreeMap<&str, LoraShape> = file.modules().collect();
        let shape = shapes.get(path.as_str()).ok_or(format!("{path} is missing"))?;
        let found = if slot.factor == Factor::A { shape.inputs } else { shape.outputs };
        if (shape.rank, found) != (slot.rank, slot.cols) {
            return Err(format!(
                "{path} {:?} has rank {} and {found} columns where the model has {} and {}",
                slot.factor, shape.rank, slot.rank, slot.cols
            ));
        }
        Ok(())
    }

    /// Its numbers from the file, in our order.
    fn read(
        &self,
        base: &Base,
        file: &PeftAdapter,
        numbers: &mut [f32],
    ) -> std::result::Result<(), String> {
        let path = self.path();
        match self.factor {
            Factor::A => file.read(&path, smidgen_weights::Factor::A, numbers),
            Factor::B => {
                let mut rows = vec![0.0; self.range.len()];
                let read = file.read(&path, smidgen_weights::Factor::B, &mut rows);
                if let Some(heads) = permutation(base, &self.module) {
                    let hf = rows.clone();
                    hf_rows_to_gguf(&hf, &mut rows, heads, self.rank);
                }
                transpose(&rows, self.cols, self.rank, numbers);
                read
            }
        }
        .map_err(|e| e.to_string())
    }
}

impl Adapter {
    /// No adapter at all: the base alone.
    pub fn none(base: &Base) -> Self {
        Self { shape: AdapterShape::none(base), values: Vec::new().into() }
    }

    /// A new adapter in memory; see [`AdapterStart::random`].
    ///
    /// # Errors
    /// A setting that can't be.
    pub fn new(base: &Base, config: &LoraConfig, seed: u64) -> Result<Self> {
        AdapterStart::random(base, config, seed)?.in_memory(base)
    }

    /// A PEFT folder's adapter in memory; see [`AdapterStart::folder`].
    ///
    /// # Errors
    /// The folder can't be read, or holds an adapter of another kind, model or shape.
    pub fn load(base: &Base, folder: &Path) -> Result<(Self, Vec<AdapterNote>)> {
        let (start, notes) = AdapterStart::folder(base, folder)?;
        Ok((start.in_memory(base)?, notes))
    }

    /// Writes a PEFT folder. Each file is replaced whole or not at all, the settings last.
    ///
    /// # Errors
    /// A number is infinite or no number: nothing is written then. A file can't be written.
    pub fn save(&mut self, base: &Base, folder: &Path) -> Result<()> {
        self.check_finite(folder)?;
        let Self { shape, values } = self;
        let names: Vec<String> = shape
            .spec
            .modules
            .iter()
            .filter_map(|m| m.rsplit('.').next().map(str::to_owned))
            .collect();
        let config = AdapterConfig {
            base_model_name_or_path: Some(base.info.name.clone()),
            revision: None,
            r: shape.config.rank,
            lora_alpha: shape.config.alpha,
            lora_dropout: shape.config.dropout,
            target_modules: PeftTargets::Names(names),
            use_rslora: shape.config.use_rslora,
        };
        let mut shapes: BTreeMap<String, LoraShape> = BTreeMap::new();
        for slot in &shape.slots {
            let empty = LoraShape { rank: slot.rank, inputs: 0, outputs: 0 };
            let shape = shapes.entry(slot.path()).or_insert(empty);
            match slot.factor {
                Factor::A => shape.inputs = slot.cols,
                Factor::B => shape.outputs = slot.cols,
            }
        }
        let mut writer = AdapterWriter::create(folder, &config, &base.record()?, &shapes)?;
        for slot in &shape.slots {
            let numbers = values.piece(slot.range.clone())?;
            if slot.factor == Factor::A {
                writer.write(&slot.path(), smidgen_weights::Factor::A, numbers)?;
                continue;
            }
            let mut rows = vec![0.0; numbers.len()];
            transpose(numbers, slot.rank, slot.cols, &mut rows);
            if let Some(heads) = permutation(base, &slot.module) {
                let gguf = rows.clone();
                gguf_rows_to_hf(&gguf, &mut rows, heads, slot.rank);
            }
            writer.write(&slot.path(), smidgen_weights::Factor::B, &rows)?;
        }
        Ok(writer.finish()?)
    }

    /// Refuses numbers that are not finite, which were to be saved at `path`.
    pub(crate) fn check_finite(&mut self, path: &Path) -> Result<()> {
        let Self { shape, values } = self;
        for slot in &shape.slots {
            if values.piece(slot.range.clone())?.iter().all(|x| x.is_finite()) {
                continue;
            }
            let what = format!(
                "{} {:?} holds numbers that are not finite, so the adapter is not saved and an \
                 earlier one is left as it was; lower the learning rate",
                slot.path(),
                slot.factor
            );
            return Err(Error::Adapter { path: path.to_owned(), what });
        }
        Ok(())
    }

    /// Which projections it sits on, and where its numbers lie.
    pub fn shape(&self) -> &AdapterShape {
        &self.shape
    }

    /// What kind of adapter it is.
    pub fn config(&self) -> &LoraConfig {
        &self.shape.config
    }

    /// Trainable numbers.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether there is nothing to train.
    pub fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// All numbers; A is `[rank, inputs]`, B is held transposed, `[rank, outputs]`, in the model
    /// file's order of rows.
    pub fn values(&mut self) -> &mut Numbers {
        &mut self.values
    }

    /// The same, where they are in memory.
    pub fn held(&self) -> Option<&[f32]> {
        self.values.held()
    }
}

fn slots(base: &Base, spec: &LoraSpec, first: usize) -> Vec<Slot> {
    let (model, layers_path) = (base.blocks.as_ref(), base.info.layers_path);
    let mut slots = Vec::new();
    let mut at = 0;
    for layer in first..model.layers() {
        let block = model.layer_block(model.layer_kind(layer), Some(spec), smidgen_graph::GRAIN);
        for param in block.params {
            let range = at..at + param.len();
            at = range.end;
            let (rank, cols) = (param.rows, param.cols);
            slots.push(Slot {
                layers_path,
                layer,
                module: param.module,
                factor: param.factor,
                rank,
                cols,
                range,
            });
        }
    }
    slots
}

/// The lowest layer that an adapter covers, and which projections; the same in every layer above.
fn covered(base: &Base, file: &PeftAdapter) -> std::result::Result<(usize, TargetModules), String> {
    let mut layers: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for (path, _) in file.modules() {
        let (layer, module) = path
            .strip_prefix(base.info.layers_path)
            .and_then(|rest| rest.strip_prefix('.')?.split_once('.'))
            .and_then(|(layer, module)| Some((layer.parse::<usize>().ok()?, module)))
            .filter(|(layer, module)| {
                *layer < base.info.layers && base.info.sites.iter().any(|s| s.module == *module)
            })
            .ok_or(format!("{path} is no projection of a layer of this model"))?;
        layers.entry(layer).or_default().insert(module);
    }
    let (&first, modules) = layers.first_key_value().ok_or("it has no LoRA weights")?;
    let last = layers.last_key_value().map_or(first, |(last, _)| *last);
    if last + 1 != base.info.layers {
        return Err(format!(
            "its last layer is {last} and the model has {} layers; it belongs to another model",
            base.info.layers
        ));
    }
    if layers.len() != base.info.layers - first || layers.values().any(|m| m != modules) {
        return Err("it must cover the same projections in every layer from its lowest one \
                    to the last"
            .to_owned());
    }
    Ok((first, TargetModules::Names(modules.iter().map(|m| (*m).to_owned()).collect())))
}

fn permutation(base: &Base, module: &str) -> Option<usize> {
    base.info.sites.iter().find(|s| s.module == module).and_then(|s| base.info.permutation(*s))
}

/// `to[c][r] = from[r][c]`.
pub(crate) fn transpose(from: &[f32], rows: usize, cols: usize, to: &mut [f32]) {
    for (r, row) in from.chunks_exact(cols).enumerate() {
        for (c, &x) in row.iter().enumerate() {
            to[c * rows + r] = x;
        }
    }
}
