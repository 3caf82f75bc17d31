//! What kind of adapter is asked for.

use std::collections::BTreeSet;
use std::path::PathBuf;

use smidgen_graph::Site;
use smidgen_models::ALL_SITES;

use crate::error::{Error, Result};

/// Which projections get an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TargetModules {
    /// All projections of a layer.
    #[default]
    AllLinear,
    /// Those named, in checkpoints' names (`q_proj`, `self_attn.q_proj`) or GGUF's (`attn_q`).
    Names(Vec<String>),
}

impl TargetModules {
    /// Whether the names are of projections that some family's layers have together.
    ///
    /// # Errors
    /// A name that no projection has, or no name at all.
    pub fn check(&self) -> Result<()> {
        let tried = ALL_SITES.map(|sites| self.modules(sites).map(drop)).into_iter();
        let either = |a: Result<()>, b: Result<()>| a.or_else(|first| b.map_err(|_| first));
        tried.reduce(either).unwrap_or(Ok(()))
    }

    /// Module paths below the layer of a model whose projections are `sites`, in the order of a
    /// layer.
    ///
    /// # Errors
    /// A name that none of these projections has, or no name at all.
    pub fn modules(&self, sites: &[Site]) -> Result<Vec<String>> {
        let Self::Names(names) = self else {
            return Ok(sites.iter().map(|s| s.module.to_owned()).collect());
        };
        let mut chosen = BTreeSet::new();
        for name in names {
            let matches = |site: &Site| {
                let last = site.module.rsplit('.').next();
                name == site.module || Some(name.as_str()) == last || name == site.tensor
            };
            let at = sites.iter().position(matches).ok_or_else(|| {
                let known: Vec<_> =
                    sites.iter().filter_map(|s| s.module.rsplit('.').next()).collect();
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
        Ok(chosen.into_iter().map(|i| sites[i].module.to_owned()).collect())
    }
}

/// What kind of adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Columns of B.
    pub rank: usize,
    /// The branch is scaled by alpha / rank.
    pub alpha: f64,
    /// Scales by alpha / sqrt(rank) instead: rank-stabilised LoRA (Kalajdzievski, 2023,
    /// arXiv:2312.03732).
    pub use_rslora: bool,
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
        Self { rank: 8, alpha: 16.0, use_rslora: false, dropout: 0.0, targets, num_layers: None }
    }
}

/// What the numbers of a new adapter are. Each makes B zero, and so an adapter that changes nothing
/// yet, but for LoftQ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// A uniform in +-1/sqrt(inputs).
    #[default]
    Uniform,
    /// A normal with a deviation of 1 / rank.
    Gaussian,
    /// scale B A corrects what quantisation took from the base's weights (Li et al., 2023,
    /// arXiv:2310.08659).
    Loftq {
        /// The weights before: a GGUF file, or a folder as `transformers` saves it.
        source: PathBuf,
    },
}

impl InitLoraWeights {
    /// As the flag takes it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Uniform => "default",
            Self::Gaussian => "gaussian",
            Self::Loftq { .. } => "loftq",
        }
    }
}
