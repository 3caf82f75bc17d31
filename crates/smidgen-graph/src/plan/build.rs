//! From a shape to a plan: places, programs and the table.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ends::Ends;
use super::search::{Estimate, Search, Shape};
use super::{Backward, Gradients, LayerPlan, LayerPrograms, Plan, padded};
use crate::layout::Program;
use crate::table;

/// Places behind the scratch region, given out in order.
struct Places {
    end: usize,
}

impl Places {
    fn take(&mut self, numbers: usize) -> usize {
        let at = self.end;
        self.end += numbers;
        at
    }
}

impl Search<'_> {
    /// The plan of a shape, which takes what was estimated.
    pub fn build(self, (shape, estimate): &(Shape, Estimate)) -> Plan {
        let (request, tiling) = (self.request, self.tilings[shape.tile]);
        let depths = self.depths(shape);
        let mut programs = Vec::new();
        let mut made: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut layers = Vec::new();
        let mut params = 0;
        for (layer, &depth) in depths.iter().enumerate() {
            let class = self.class_of[layer];
            let at = *made.entry((class, depth)).or_insert_with(|| {
                programs.push(self.programs(shape, class, depth));
                programs.len() - 1
            });
            let trained = self.trained().contains(&layer);
            layers.push(LayerPlan {
                programs: at,
                input: 0,
                output: 0,
                kept: vec![],
                trained,
                spooled: None,
                params,
            });
            params += programs[at].block.param_len();
        }
        let all = programs.iter().flat_map(|p: &LayerPrograms| {
            [p.forward.as_ref(), p.backward.as_ref(), Some(&p.infer)].into_iter().flatten()
        });
        let scratch = all.map(|p| p.scratch_len).max().unwrap_or(0);
        let stream = scratch.max(self.ends(shape.tile).scratch(request.backward));
        let mut places = Places { end: stream };
        let segments = self.segments(shape.segments);
        let last = match shape.segments {
            1 => self.place_inputs(shape, &mut layers, &mut places),
            _ => self.place_segments(&segments, &mut layers, &mut places),
        };
        let shared = self.place_kept(shape, &segments, &programs, &mut layers, &mut places);
        let spool_len = self.place_in_file(shape, &programs, &mut layers);
        let gradient_len = match request.gradients {
            _ if request.backward != Backward::Layers => 0,
            Gradients::Whole => params,
            Gradients::Block => programs.iter().map(|p| p.block.param_len()).max().unwrap_or(0),
        };
        let Estimate { peak, seconds, traffic: scratch_traffic } = *estimate;
        let vocabulary = self.ends(shape.tile).vocabulary();
        let hidden = self.model.hidden();
        let mut ends = self.ends.into_iter();
        let ends = ends.find(|ends| ends.rows.tile == tiling.rows).expect("ends for each tiling");
        let Ends { embedding, head, head_rows, .. } = ends;
        let weight_bytes =
            if shape.weights_stay { request.weights.all } else { request.weights.window };
        let mut plan = Plan {
            tokens: request.tokens,
            mlp_tile: tiling.mlp,
            row_tile: tiling.rows,
            head_rows: head_rows.all,
            programs,
            layers,
            segments,
            shared,
            paged: shape.paged,
            spool_len,
            embedding,
            head,
            stream,
            last,
            arena_len: places.end,
            param_len: params,
            gradient_len,
            gradients: request.gradients,
            rows: Vec::new(),
            peak_bytes: 0,
            flops: 0,
            seconds,
            scratch_traffic,
            weights_stay: shape.weights_stay,
            weight_bytes,
        };
        plan.rows = table::rows(&plan, request, hidden);
        plan.peak_bytes = plan.rows.iter().map(|r| r.bytes).sum();
        assert_eq!(plan.peak_bytes, peak, "a plan takes what was added up for it");
        plan.flops = plan.count_flops(hidden, vocabulary);
        plan
    }

    fn hidden_len(&self) -> usize {
        padded(self.request.tokens * self.model.hidden())
    }

    /// Inputs and outputs of one segment. Returns where the last output is.
    fn place_inputs(&self, shape: &Shape, layers: &mut [LayerPlan], places: &mut Places) -> usize {
        let mut input = places.take(self.hidden_len());
        // Where an input was that is in the scratch file by now.
        let mut free = None;
        let first_own = self.trained().start + shape.spooled;
        let in_place = self.in_place(shape);
        for (i, layer) in layers.iter_mut().enumerate() {
            (layer.input, layer.output) = (input, input);
            if layer.trained && !in_place {
                layer.output = free.take().unwrap_or_else(|| places.take(self.hidden_len()));
                input = layer.output;
                free = (i < first_own).then_some(layer.input);
            }
        }
        input
    }

    /// The same for several segments: an input for each, and inputs inside the one at work.
    fn place_segments(
        &self,
        segments: &[Range<usize>],
        layers: &mut [LayerPlan],
        places: &mut Places,
    ) -> usize {
        let starts: Vec<usize> = segments.iter().map(|_| places.take(self.hidden_len())).collect();
        let longest = segments.iter().map(|s| s.len()).max().unwrap_or(0);
        let inside: Vec<usize> = (0..longest).map(|_| places.take(self.hidden_len())).collect();
        let mut last = starts[0];
        for layer in &mut layers[..self.trained().start] {
            (layer.input, layer.output) = (last, last);
        }
        for (segment, &start) in segments.iter().zip(&starts) {
            let mut input = start;
            for (layer, &output) in layers[segment.clone()].iter_mut().zip(&inside) {
                (layer.input, layer.output) = (input, output);
                input = output;
            }
            last = input;
        }
        last
    }

    /// Kept values; returns the places that layers have in turn.
    fn place_kept(
        &self,
        shape: &Shape,
        segments: &[Range<usize>],
        programs: &[LayerPrograms],
        layers: &mut [LayerPlan],
        places: &mut Places,
    ) -> Range<usize> {
        let tokens = self.request.tokens;
        let trained = self.trained();
        let first_own = trained.start + shape.spooled;
        let len = |layer: &LayerPlan| -> usize {
            programs[layer.programs].kept.iter().map(|(_, cols)| padded(cols * tokens)).sum()
        };
        let shares = |i: usize| {
            trained.contains(&i) && (shape.segments > 1 || shape.spooled > 0 && i <= first_own)
        };
        let each = layers.iter().enumerate().filter(|(i, _)| shares(*i)).map(|(_, l)| len(l)).max();
        let each = each.unwrap_or(0);
        let in_turn = match shape.segments {
            1 => 1,
            _ => segments.iter().map(|s| s.len()).max().unwrap_or(0),
        };
        let start = places.take(each * in_turn);
        for (i, layer) in layers.iter_mut().enumerate().filter(|(_, l)| l.trained) {
            let mut at = if shares(i) {
                let segment = segments.iter().find(|s| s.contains(&i)).expect("a trained layer");
                let turn = if shape.segments > 1 { i - segment.start } else { 0 };
                start + turn * each
            } else {
                places.take(len(layer))
            };
            for (_, cols) in &programs[layer.programs].kept {
                layer.kept.push(at);
                at += padded(cols * tokens);
            }
        }
        start..start + each * in_turn
    }

    /// Places in the scratch file; returns how many numbers it holds.
    fn place_in_file(
        &self,
        shape: &Shape,
        programs: &[LayerPrograms],
        layers: &mut [LayerPlan],
    ) -> usize {
        let first = self.trained().start;
        let mut end = 0;
        for layer in &mut layers[first..first + shape.spooled] {
            layer.spooled = Some(end);
            let kept = programs[layer.programs].kept.iter().map(|(_, cols)| cols).sum::<usize>();
            end += (self.model.hidden() + kept) * self.request.tokens;
        }
        end
    }
}

impl Plan {
    fn count_flops(&self, hidden: usize, vocabulary: usize) -> u64 {
        let program = |p: &Program| -> u64 {
            let cols = |v: crate::ValueId| p.values[v.0 as usize].cols;
            p.steps.iter().map(|s| s.flops(self.tokens, cols)).sum()
        };
        let once = |l: &LayerPlan| {
            let p = &self.programs[l.programs];
            match (&p.forward, &p.backward) {
                (Some(f), Some(b)) => program(f) + program(b),
                _ => program(&p.infer),
            }
        };
        let layers: u64 = self.layers.iter().map(once).sum();
        let again = self.segments.iter().rev().skip(1).flat_map(|s| &self.layers[s.clone()]);
        let again: u64 = again.map(|l| program(&self.programs[l.programs].infer)).sum();
        layers + again + 4 * (self.tokens * hidden * vocabulary) as u64
    }
}
