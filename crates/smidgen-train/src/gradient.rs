//! The exact gradient by itself, and how MeZO's directions lie to it.

use std::f64::consts::PI;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use smidgen_graph::Gradients;
use smidgen_kernels::NormalKey;
use smidgen_runtime::{Engine, Pass};
use smidgen_text::Sequence;

use crate::adapter::Adapter;
use crate::base::Base;
use crate::error::Result;
use crate::method::Method;
use crate::planning::{DataSize, check_length, plan_or_remedies, process_row, request, settings};
use crate::step::fill;
use crate::train_config::TrainConfig;

/// The exact gradient of the mean loss over all targets of `sequences`, a number for each of the
/// adapter's, in its order; layers where `bypassed` says so are passed by, as
/// [`Method::Lcsb`] does. Of `config` the machine's settings are taken.
///
/// # Errors
/// The budget is too small, the caller cancelled, or those of the engine.
pub fn gradient(
    base: &Base,
    adapter: &mut Adapter,
    sequences: &[Sequence],
    bypassed: Vec<bool>,
    config: &TrainConfig,
    cancel: &AtomicBool,
) -> Result<Vec<f32>> {
    let config = TrainConfig { method: Method::Exact, ..config.clone() };
    let longest = sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0);
    check_length(base, longest)?;
    let size = DataSize { sequences: sequences.len(), longest, samples: 1 };
    let settings = settings(base, &config, longest);
    let mut request = request(base, adapter.shape(), &config, size, 0, &settings, process_row())?;
    (request.gradients, request.optimizer_state) = (Gradients::Whole, vec![]);
    let plan = Arc::new(plan_or_remedies(base, &request)?);
    let model = base.blocks.as_ref();
    let mut engine = Engine::new(model, Arc::clone(&base.weights), plan, &settings)?;
    let targets: usize = sequences.iter().map(Sequence::target_count).sum();
    let weight = 1.0 / targets.max(1) as f32;
    let mut pass = Pass { weight, bypassed, ..Pass::default() };
    let mut next = 0;
    while next < sequences.len() {
        next = fill(&mut pass, sequences, next, engine.plan().tokens);
        engine.train(&pass, &mut adapter.values, cancel, &mut |_, _, _| Ok(()))?;
    }
    Ok(engine.gradients().to_vec())
}

/// The cosine of two gradients; 0 where one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

/// How random directions lie to a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DirectionCosines {
    /// Numbers of the gradient, d.
    pub numbers: usize,
    /// Directions that were drawn.
    pub directions: usize,
    /// Mean of |cos(z, gradient)|.
    pub mean: f64,
    /// Standard error of that mean.
    pub standard_error: f64,
}

impl DirectionCosines {
    /// The mean that normal directions have in theory: sqrt(2 / (pi d)).
    pub fn expected(&self) -> f64 {
        (2.0 / (PI * self.numbers as f64)).sqrt()
    }
}

/// The cosines of `gradient` with the first `directions` directions of a MeZO run of `seed` that
/// takes one a step. A step's estimate g z has the same cosine, but for its sign.
pub fn direction_cosines(gradient: &[f32], directions: usize, seed: u64) -> DirectionCosines {
    let kernels = smidgen_kernels::Kernels::detect();
    let norm = gradient.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let mut direction = vec![0.0; gradient.len()];
    let cosines = (0..directions as u64).map(|sample| {
        let key = NormalKey { seed, sample };
        kernels.normals(key, 0, &mut direction);
        let length = direction.iter().map(|&z| f64::from(z) * f64::from(z)).sum::<f64>().sqrt();
        (kernels.dot_normals(key, 0, gradient) / (norm * length)).abs()
    });
    let cosines: Vec<f64> = cosines.collect();
    let count = directions.max(1) as f64;
    let mean = cosines.iter().sum::<f64>() / count;
    let spread = cosines.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let standard_error = (spread / count).sqrt();
    DirectionCosines { numbers: gradient.len(), directions, mean, standard_error }
}
