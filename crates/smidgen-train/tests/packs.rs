//! Packed samples are the samples: a step of a pack is a step of its samples, bit for bit, whatever
//! memory and threads it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use smidgen_graph::Gradients;
use smidgen_train::{
    Base, Dataset, Length, LoraConfig, MemoryBudget, Planned, PrepareOptions, TokenFile,
    TrainConfig, WindowSpec, prepare,
};

static NEVER: AtomicBool = AtomicBool::new(false);

const SENTENCE: &str = "The tide tables hang by the door and nobody reads them but the cat. ";

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo/demo.gguf")
}

/// Texts of so many characters each, as samples, or as one text.
fn write_data(folder: &Path, file: &str, lengths: &[usize]) -> PathBuf {
    let input = folder.join(file);
    let text = |&length: &usize| SENTENCE.chars().cycle().take(length).collect::<String>();
    let lines: Vec<String> = lengths
        .iter()
        .map(|length| match file.ends_with(".jsonl") {
            true => format!("{{\"text\": \"{}\"}}\n", text(length)),
            false => text(length),
        })
        .collect();
    fs::write(&input, lines.concat()).expect("a file");
    let out = input.with_extension("tokens");
    let base = Base::open(demo()).expect("the demo's model");
    let (options, budget) = (PrepareOptions::default(), MemoryBudget::Unlimited);
    prepare(&base, &input, &options, budget, &out, &NEVER, &mut |_| {}).expect("tokens");
    out
}

fn planned(tokens: &Path, max_seq_length: usize, config: &TrainConfig) -> Planned {
    let window = WindowSpec { max_seq_length, chunks: None, bos: false, single_token: false };
    let data = Dataset::open(TokenFile::open(tokens).unwrap(), &window).expect("sequences");
    let base = Base::open(demo()).expect("the demo's model");
    Planned::new(base, data, 0, config.clone()).expect("a plan")
}

/// Losses of all steps and the adapter after them, as bits.
fn train(planned: Planned) -> (Vec<u64>, Vec<u32>) {
    let mut session = planned.start().expect("a session");
    let mut losses = Vec::new();
    while !session.is_finished() {
        losses.push(session.step(&NEVER).expect("a step").loss.to_bits());
    }
    let mut adapter = session.finish().1.expect("an adapter");
    let shape = adapter.shape().clone();
    let pieces = shape.factors().map(|(.., range)| range);
    let values = adapter.values();
    let numbers = pieces.flat_map(|range| values.piece(range).expect("numbers").to_vec());
    (losses, numbers.map(f32::to_bits).collect())
}

/// As much memory and as little, on one thread and on two.
fn ways(config: &TrainConfig, folder: &Path) -> Vec<TrainConfig> {
    let spool = Some(folder.to_owned());
    let budgets = [
        (MemoryBudget::Unlimited, None),
        (MemoryBudget::Min, None),
        (MemoryBudget::Min, spool.clone()),
    ];
    let way = |(memory, spool): &(_, Option<PathBuf>), threads| TrainConfig {
        memory: *memory,
        spool: spool.clone(),
        threads,
        ..config.clone()
    };
    budgets.iter().flat_map(|budget| [1, 2].map(|threads| way(budget, threads))).collect()
}

fn config(dropout: f64) -> TrainConfig {
    TrainConfig {
        lora: LoraConfig { rank: 4, dropout, ..LoraConfig::default() },
        learning_rate: 3e-3,
        pack: true,
        ..TrainConfig::default()
    }
}

#[test]
fn memory_and_threads_change_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let lengths = [30, 700, 90, 45, 200, 1200, 60, 333, 18, 150, 410, 77];
    let tokens = write_data(folder.path(), "samples.jsonl", &lengths);
    for (batch_size, clip) in [(1, None), (2, Some(1.0))] {
        let config = TrainConfig { batch_size, clip, length: Length::Epochs(2), ..config(0.1) };
        let mut first = None;
        for way in ways(&config, folder.path()) {
            let planned = planned(&tokens, 300, &way);
            let packs = planned.packs().expect("packs");
            let per_epoch = packs.len().div_ceil(batch_size) as u64;
            assert!(packs.len() >= 3 && packs.most_samples() >= 3, "{packs:?}");
            assert_eq!(planned.steps(), 2 * per_epoch);
            let by_block = planned.plan().gradients == Gradients::Block;
            assert_eq!(by_block, batch_size == 1, "a pack is a pass");
            let found = train(planned);
            assert!(*first.get_or_insert(found.clone()) == found, "{way:?}");
        }
    }
}

#[test]
fn a_pack_is_a_batch_of_its_samples() {
    let folder = tempfile::tempdir().expect("a folder");
    // Within a band of rows and a block of attention's, and across several of both.
    for (name, lengths, room) in
        [("short.jsonl", [80, 20, 130], 256), ("long.jsonl", [1300, 40, 350], 1024)]
    {
        let tokens = write_data(folder.path(), name, &lengths);
        for dropout in [0.0, 0.1] {
            let packed =
                TrainConfig { length: Length::Iters(4), shuffle: false, ..config(dropout) };
            let apart = TrainConfig { pack: false, batch_size: lengths.len(), ..packed.clone() };
            let expected = train(planned(&tokens, room, &apart));
            for way in ways(&packed, folder.path()) {
                let planned = planned(&tokens, room, &way);
                let packs = planned.packs().expect("packs");
                assert_eq!((packs.len(), packs.get(0)), (1, &[0, 1, 2][..]));
                assert!(train(planned) == expected, "{name} with {way:?}");
            }
        }
    }
}

#[test]
fn a_text_has_nothing_to_pack() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = write_data(folder.path(), "text.txt", &[2000]);
    let window = WindowSpec { max_seq_length: 32, chunks: None, bos: false, single_token: false };
    let data = Dataset::open(TokenFile::open(&tokens).unwrap(), &window).expect("sequences");
    let base = Base::open(demo()).expect("the demo's model");
    let error = Planned::new(base, data, 0, config(0.0)).expect_err("no packs").to_string();
    assert!(error.contains("leave --pack out"), "{error}");
}
