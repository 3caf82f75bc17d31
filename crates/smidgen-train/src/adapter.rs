//! LoRA adapters: which projections have one, their numbers, and the PEFT folder they live in.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use smidgen_graph::{Architecture, Factor, LoraSpec};
use smidgen_kernels::Philox;
use smidgen_models::SITES;
use smidgen_weights::{
    Adapter as PeftAdapter, AdapterConfig, AdapterWriter, BaseModel, LoraShape,
    TargetModules as PeftTargets, gguf_rows_to_hf, hf_rows_to_gguf,
};

use crate::base::Base;
use crate::error::{Error, Result};

/// Which projections get an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TargetModules {
    /// All seven projections of a layer.
    #[default]
    AllLinear,
    /// Those named, in checkpoints' names (`q_proj`, `self_attn.q_proj`) or GGUF's (`attn_q`).
    Names(Vec<String>),
}

impl TargetModules {
    /// Module paths below the layer, in the order of a layer.
    ///
    /// # Errors
    /// A name that no projection has, or no name at all.
    pub fn modules(&self) -> Result<Vec<String>> {
        let Self::Names(names) = self else {
            return Ok(SITES.iter().map(|s| s.module.to_owned()).collect());
        };
        let mut chosen = BTreeSet::new();
        for name in names {
            let matches = |site: &smidgen_graph::Site| {
                let last = site.module.rsplit('.').next();
                name == site.module || Some(name.as_str()) == last || name == site.tensor
            };
            let at = SITES.iter().position(matches).ok_or_else(|| {
                let known: Vec<_> =
                    SITES.iter().filter_map(|s| s.module.rsplit('.').next()).collect();
                Error::setting(format!(
                    "no projection is called {name:?}; --target-modules takes all-linear or some \
                     of {}",
                    known.join(", ")
                ))
            })?;
            chosen.insert(at);
        }
        if chosen.is_empty() {
            return Err(Error::setting("--target-modules names no projection"));
        }
        Ok(chosen.into_iter().map(|i| SITES[i].module.to_owned()).collect())
    }
}

/// What kind of adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Columns of B.
    pub rank: usize,
    /// The branch is scaled by alpha / rank.
    pub alpha: f64,
    /// Probability that an input of the branch is dropped in training.
    pub dropout: f64,
    /// Which projections.
    pub targets: TargetModules,
    /// Only the last so many layers; none for all.
    pub num_layers: Option<usize>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = TargetModules::AllLinear;
        Self { rank: 8, alpha: 16.0, dropout: 0.0, targets, num_layers: None }
    }
}

/// Something worth telling that is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterNote(pub String);

/// An adapter: its kind, and all its numbers in one run, layer by layer.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(crate) spec: LoraSpec,
    pub(crate) first_layer: usize,
    /// The numbers; A is `[rank, inputs]`, B is held transposed, `[rank, outputs]`.
    pub(crate) values: Vec<f32>,
    slots: Vec<Slot>,
    config: LoraConfig,
    use_rslora: bool,
}

#[derive(Clone, Debug)]
struct Slot {
    layer: usize,
    module: String,
    factor: Factor,
    rank: usize,
    cols: usize,
    range: Range<usize>,
}

impl Slot {
    fn path(&self) -> String {
        format!("model.layers.{}.{}", self.layer, self.module)
    }
}

impl Adapter {
    /// No adapter at all: the base alone.
    pub fn none(base: &Base) -> Self {
        let config = LoraConfig { num_layers: Some(0), ..LoraConfig::default() };
        Self {
            spec: LoraSpec { rank: 0, scale: 0.0, dropout: 0.0, modules: Vec::new() },
            first_layer: base.info.layers,
            values: Vec::new(),
            slots: Vec::new(),
            config,
            use_rslora: false,
        }
    }

    /// A new adapter that changes nothing yet: A uniform in +-1/sqrt(inputs), as PEFT starts it
    /// (the same numbers on every machine for a seed), B zero.
    ///
    /// # Errors
    /// A setting that can't be.
    pub fn new(base: &Base, config: &LoraConfig, seed: u64) -> Result<Self> {
        let mut adapter = Self::shaped(base, config, false)?;
        let random = Philox::new(seed);
        for (stream, slot) in adapter.slots.iter().enumerate() {
            if slot.factor == Factor::A {
                let numbers = &mut adapter.values[slot.range.clone()];
                random.uniform(stream as u64, 0, numbers);
                let bound = 1.0 / (slot.cols as f32).sqrt();
                numbers.iter_mut().for_each(|x| *x = bound * (2.0 * *x - 1.0));
            }
        }
        Ok(adapter)
    }

    fn shaped(base: &Base, config: &LoraConfig, use_rslora: bool) -> Result<Self> {
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
        let root = if use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        if !((alpha / root) as f32).is_finite() {
            return Err(Error::setting(format!("--lora-alpha {alpha}: it is too large")));
        }
        let spec = LoraSpec {
            rank,
            scale: (alpha / root) as f32,
            dropout: dropout as f32,
            modules: config.targets.modules()?,
        };
        let first_layer = layers - trained;
        let slots = slots(base.blocks.as_ref(), &spec, first_layer);
        let len = slots.last().map_or(0, |s| s.range.end);
        let values = vec![0.0; len];
        Ok(Self { spec, first_layer, values, slots, config: config.clone(), use_rslora })
    }

    /// Reads a PEFT folder for this model, and what is worth telling about it.
    ///
    /// # Errors
    /// The folder can't be read, or holds an adapter of another kind, model or shape.
    pub fn load(base: &Base, folder: &Path) -> Result<(Self, Vec<AdapterNote>)> {
        let wrong = |what: String| Error::Adapter { path: folder.to_owned(), what };
        let mut notes = Vec::new();
        match BaseModel::read(folder)? {
            Some(record) if record.fingerprint != base.record()?.fingerprint => {
                return Err(wrong(format!(
                    "it was trained on {} ({}), whose weights are not those of {}; give that model",
                    record.file_name,
                    record.architecture,
                    base.path.display()
                )));
            }
            Some(_) => {}
            None => notes.push(AdapterNote(format!(
                "{} does not say which weights it was trained on; taken as it is",
                folder.display()
            ))),
        }
        let file = PeftAdapter::open(folder)?;
        let settings = file.config();
        let (first, targets) = covered(base, &file).map_err(wrong)?;
        let config = LoraConfig {
            rank: settings.r,
            alpha: settings.lora_alpha,
            dropout: settings.lora_dropout,
            targets,
            num_layers: Some(base.info.layers - first),
        };
        let mut adapter = Self::shaped(base, &config, settings.use_rslora)
            .map_err(|e| wrong(format!("its settings can't be: {e}")))?;
        for i in 0..adapter.slots.len() {
            adapter.read_slot(base, &file, i).map_err(wrong)?;
        }
        Ok((adapter, notes))
    }

    fn read_slot(
        &mut self,
        base: &Base,
        file: &PeftAdapter,
        at: usize,
    ) -> std::result::Result<(), String> {
        let slot = &self.slots[at];
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
        let numbers = &mut self.values[slot.range.clone()];
        match slot.factor {
            Factor::A => file.read(&path, smidgen_weights::Factor::A, numbers),
            Factor::B => {
                let mut rows = vec![0.0; slot.range.len()];
                let read = file.read(&path, smidgen_weights::Factor::B, &mut rows);
                if let Some(heads) = permutation(base, &slot.module) {
                    let hf = rows.clone();
                    hf_rows_to_gguf(&hf, &mut rows, heads, slot.rank);
                }
                transpose(&rows, slot.cols, slot.rank, numbers);
                read
            }
        }
        .map_err(|e| e.to_string())
    }

    /// Writes a PEFT folder. Each file is replaced whole or not at all, the settings last.
    ///
    /// # Errors
    /// A number is infinite or no number: nothing is written then. A file can't be written.
    pub fn save(&self, base: &Base, folder: &Path) -> Result<()> {
        if let Some(slot) =
            self.slots.iter().find(|s| self.values[s.range.clone()].iter().any(|x| !x.is_finite()))
        {
            let what = format!(
                "{} {:?} holds numbers that are not finite, so the adapter is not saved and an \
                 earlier one is left as it was; lower the learning rate",
                slot.path(),
                slot.factor
            );
            return Err(Error::Adapter { path: folder.to_owned(), what });
        }
        let names: Vec<String> = self
            .spec
            .modules
            .iter()
            .filter_map(|m| m.rsplit('.').next().map(str::to_owned))
            .collect();
        let config = AdapterConfig {
            base_model_name_or_path: Some(base.info.name.clone()),
            revision: None,
            r: self.config.rank,
            lora_alpha: self.config.alpha,
            lora_dropout: self.config.dropout,
            target_modules: PeftTargets::Names(names),
            use_rslora: self.use_rslora,
        };
        let mut shapes: BTreeMap<String, LoraShape> = BTreeMap::new();
        for slot in &self.slots {
            let empty = LoraShape { rank: slot.rank, inputs: 0, outputs: 0 };
            let shape = shapes.entry(slot.path()).or_insert(empty);
            match slot.factor {
                Factor::A => shape.inputs = slot.cols,
                Factor::B => shape.outputs = slot.cols,
            }
        }
        let mut writer = AdapterWriter::create(folder, &config, &base.record()?, &shapes)?;
        for slot in &self.slots {
            let numbers = &self.values[slot.range.clone()];
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

    /// Trainable numbers.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Numbers in the largest B.
    pub(crate) fn largest_b(&self) -> usize {
        let sizes = self.slots.iter().filter(|s| s.factor == Factor::B).map(|s| s.range.len());
        sizes.max().unwrap_or(0)
    }

    /// Whether there is nothing to train.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Every factor: its layer, its module path below the layer, which of the two it is, and its
    /// place in [`Adapter::values`].
    pub fn factors(&self) -> impl Iterator<Item = (usize, &str, Factor, Range<usize>)> {
        self.slots.iter().map(|s| (s.layer, s.module.as_str(), s.factor, s.range.clone()))
    }

    /// All numbers; A is `[rank, inputs]`, B is held transposed, `[rank, outputs]`, in the model
    /// file's order of rows.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same, to set.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

fn slots(model: &dyn Architecture, spec: &LoraSpec, first: usize) -> Vec<Slot> {
    let mut slots = Vec::new();
    let mut at = 0;
    for layer in first..model.layers() {
        let block = model.layer_block(model.layer_kind(layer), Some(spec), smidgen_graph::GRAIN);
        for param in block.params {
            let range = at..at + param.len();
            at = range.end;
            let (rank, cols) = (param.rows, param.cols);
            slots.push(Slot {
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
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(layer, module)| Some((layer.parse::<usize>().ok()?, module)))
            .filter(|(layer, module)| {
                *layer < base.info.layers && SITES.iter().any(|s| s.module == *module)
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
    SITES.iter().find(|s| s.module == module).and_then(|s| base.info.permutation(*s))
}

/// `to[c][r] = from[r][c]`.
fn transpose(from: &[f32], rows: usize, cols: usize, to: &mut [f32]) {
    for (r, row) in from.chunks_exact(cols).enumerate() {
        for (c, &x) in row.iter().enumerate() {
            to[c * rows + r] = x;
        }
    }
}
