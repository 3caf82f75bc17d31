//! The tiny model of each family, trained over a network: losses and side networks are those of a
//! trainer in the device's process, bit for bit.

#[path = "../../smidgen-train/tests/common/mod.rs"]
mod common;
mod side;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use candle_core::Device;
use common::{FAMILIES, Run, golden_batches, golden_json, golden_model, repository};
use side::TOKENS;
use smidgen_graph::{Backward, LoraSpec};
use smidgen_remote::{LocalLink, RemoteLink, RemoteSession, Server, ServerConfig, SideTrainer};
use smidgen_train::{
    Base, LossOn, SideConfig, SideGate, SideHead, SideLink, SideNetwork, SideShape, TapFormat,
};
use wire::{DECAY, Road, SEED, bits, remote, session, settings};

const STEPS: u64 = 8;
/// Bytes to the server until a connection is cut, and where it is told labels in place of gradients.
const CUT: u64 = 20_000;
const CUT_LABELS: u64 = 1_800;

#[test]
fn a_model_trains_over_the_wire_as_it_does_at_home() {
    let (mut id, mut confirmed) = (0, 0.0);
    for family in FAMILIES {
        let place = tempfile::tempdir().expect("a folder");
        let model = golden_model(family);
        let file = repository(&format!("tests/golden/{family}.gguf"));
        let base = Base::open(file).expect("a model");
        let has_model = ServerConfig { model: Some(Arc::new(base)), ..settings(place.path()) };
        let server = Server::start(has_model).expect("a server");
        let fingerprint = model.base.fingerprint().expect("a fingerprint").as_bytes().to_vec();
        let batches = golden_batches(&golden_json(family));
        let ways = [
            (TapFormat::F16, 1, LossOn::Device),
            (TapFormat::F16, 3, LossOn::Device),
            (TapFormat::Q4, 2, LossOn::Device),
            (TapFormat::F16, 2, LossOn::Trainer),
            (TapFormat::Q8, 3, LossOn::Trainer),
        ];
        for (format, window, loss) in ways {
            let usual = SideConfig::usual(model.info.layers);
            let config = SideConfig { width: 6, gate: SideGate::Ladder, format, ..usual };
            let shape = SideShape::new(config, model.info.layers, model.info.hidden);
            let shape = shape.expect("a shape");
            let train = |link: Box<dyn SideLink>, window, folder| {
                let lora = LoraSpec { rank: 0, scale: 0.0, dropout: 0.0, modules: Vec::new() };
                let run = Run::new(lora, model.info.layers, TOKENS);
                let backward = match loss {
                    LossOn::Device => Backward::Head,
                    LossOn::Trainer => Backward::Nothing,
                };
                let mut engine = model.engine(&Run { backward, ..run });
                let mut run = side::run_of(side::TOKENS, &shape, link, loss, window, folder);
                let steps = 1..=STEPS;
                let losses = side::train(&mut engine, &mut run, &batches, steps, STEPS, 1e-2);
                let losses: Vec<u64> = losses.iter().map(|loss| loss.to_bits()).collect();
                (losses, bits(run.network().expect("the network").numbers()))
            };
            let start = SideNetwork::new(shape.clone(), 1.0, shape.start(SEED));
            let trainer = SideTrainer::new(&start, DECAY, Device::Cpu).expect("a trainer");
            let home = match loss {
                LossOn::Device => LocalLink::new(trainer),
                LossOn::Trainer => {
                    let head = SideHead::new(&model.base, 2).expect("a head");
                    LocalLink::with_head(trainer, head)
                }
            };
            let expected = train(Box::new(home), 0, None);
            let open = |address, id| {
                let fingerprint = fingerprint.clone();
                let session = RemoteSession { loss, fingerprint, ..session(id, &shape) };
                RemoteLink::open(remote(address), session).expect("a link")
            };
            id += 1;
            let link = open(server.local_addr(), id);
            let found = train(Box::new(link), window, Some(place.path()));
            assert_eq!(found, expected, "{family} {format:?} {window} {loss:?}");
            // Connections that are cut at any place of a step.
            id += 1;
            let cut = if loss == LossOn::Trainer { CUT_LABELS } else { CUT };
            let road = Road::new(server.local_addr(), Some(cut));
            let link = open(road.address, id);
            let found = train(Box::new(link), window, Some(place.path()));
            assert_eq!(found, expected, "{family} {format:?} {window} {loss:?}, cut");
            let connections = road.count.load(Ordering::Relaxed);
            assert!(connections > 2, "{connections}");
        }
        confirmed += wire::metric(&server, "steps_total");
    }
    assert_eq!(confirmed, (STEPS * u64::from(id)) as f64);
}
