//! The tiny model of each family, trained over a network: losses and side networks are those of a
//! trainer in the device's process, bit for bit.

#[path = "../../smidgen-train/tests/common/mod.rs"]
mod common;
mod side;
mod wire;

use std::sync::atomic::Ordering;

use candle_core::Device;
use common::{FAMILIES, Run, golden_batches, golden_json, golden_model};
use side::TOKENS;
use smidgen_graph::{Backward, LoraSpec};
use smidgen_remote::{LocalLink, Server, SideTrainer};
use smidgen_train::{SideConfig, SideGate, SideLink, SideNetwork, SideShape, TapFormat};
use wire::{DECAY, Road, SEED, bits, open, settings};

const STEPS: u64 = 8;
/// Bytes to the server until a connection is cut.
const CUT: u64 = 20_000;

#[test]
fn a_model_trains_over_the_wire_as_it_does_at_home() {
    let place = tempfile::tempdir().expect("a folder");
    let server = Server::start(settings(place.path())).expect("a server");
    let mut id = 0;
    for family in FAMILIES {
        let model = golden_model(family);
        let batches = golden_batches(&golden_json(family));
        for (format, window) in [(TapFormat::F16, 1), (TapFormat::F16, 3), (TapFormat::Q4, 2)] {
            let usual = SideConfig::usual(model.info.layers);
            let config = SideConfig { width: 6, gate: SideGate::Ladder, format, ..usual };
            let shape = SideShape::new(config, model.info.layers, model.info.hidden);
            let shape = shape.expect("a shape");
            let train = |link: Box<dyn SideLink>, window, folder| {
                let lora = LoraSpec { rank: 0, scale: 0.0, dropout: 0.0, modules: Vec::new() };
                let run = Run::new(lora, model.info.layers, TOKENS);
                let mut engine = model.engine(&Run { backward: Backward::Head, ..run });
                let mut run = side::run_boxed(&shape, link, window, folder);
                let steps = 1..=STEPS;
                let losses = side::train(&mut engine, &mut run, &batches, steps, STEPS, 1e-2);
                let losses: Vec<u64> = losses.iter().map(|loss| loss.to_bits()).collect();
                (losses, bits(run.network().expect("the network").numbers()))
            };
            let start = SideNetwork::new(shape.clone(), 1.0, shape.start(SEED));
            let trainer = SideTrainer::new(&start, DECAY, Device::Cpu).expect("a trainer");
            let expected = train(Box::new(LocalLink::new(trainer)), 0, None);
            id += 1;
            let link = open(server.local_addr(), id, &shape);
            let found = train(Box::new(link), window, Some(place.path()));
            assert_eq!(found, expected, "{family} {format:?} {window}");
            // Connections that are cut at any place of a step.
            id += 1;
            let road = Road::new(server.local_addr(), Some(CUT));
            let link = open(road.address, id, &shape);
            let found = train(Box::new(link), window, Some(place.path()));
            assert_eq!(found, expected, "{family} {format:?} {window}, cut");
            let connections = road.count.load(Ordering::Relaxed);
            assert!(connections > 2, "{connections}");
        }
    }
    let confirmed = wire::metric(&server, "steps_total");
    assert_eq!(confirmed, (STEPS * u64::from(id)) as f64);
}
