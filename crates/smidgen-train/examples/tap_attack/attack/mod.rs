//! What a server could learn of a text from the taps and gradients of side tuning: attacks by one
//! who has the public model and nothing else. docs/threat-model.md states what came out.

#![allow(dead_code)] // The example and the tests each take what they need.

pub mod greedy;
pub mod labels;
pub mod nearest;
pub mod rotation;
pub mod view;
pub mod walker;

/// The share of `found` that is in `truth` at the same place.
pub fn share(found: &[u32], truth: &[u32]) -> f64 {
    let same = found.iter().zip(truth).filter(|(a, b)| a == b).count();
    same as f64 / truth.len().max(1) as f64
}
