//! Whole runs over given sequences.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use smidgen_text::TokenFileWriter;
use smidgen_train::{
    Base, Dataset, Length, MemoryBudget, Planned, PrepareOptions, Projection, Sequence, Session,
    TokenFile, TokenFileKind, TrainConfig, WindowSpec, prepare,
};

/// Nobody cancels.
pub static NEVER: AtomicBool = AtomicBool::new(false);

/// The real model of this file name.
pub fn real_model(file: &str) -> PathBuf {
    let folder = std::env::var_os("SMIDGEN_TEST_MODELS").filter(|v| !v.is_empty());
    let folder = folder.expect("SMIDGEN_TEST_MODELS is not set: run `cargo xtask test`");
    PathBuf::from(folder).join(file)
}

/// `sequences` as data, in their order; the file goes to `folder`.
pub fn dataset(base: &Base, folder: &Path, sequences: &[Sequence]) -> Dataset {
    let path = folder.join("sequences.tokens");
    let tokenizer = base.tokenizer().expect("a tokenizer");
    let kind = TokenFileKind::Samples;
    let mut writer = TokenFileWriter::create(&path, kind, &tokenizer, true).expect("a file");
    for sequence in sequences {
        writer.push_sample(sequence).expect("a sample");
    }
    writer.finish([0; 32]).expect("a token file");
    let longest = sequences.iter().map(|s| s.ids.len()).max().expect("sequences");
    let window =
        WindowSpec { max_seq_length: longest, chunks: None, bos: false, single_token: false };
    Dataset::open(TokenFile::open(&path).expect("a token file"), &window).expect("sequences")
}

/// The first windows of a text file, of `length` tokens each.
pub fn text_windows(base: &Base, text: &Path, length: usize, count: usize) -> Vec<Sequence> {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = folder.path().join("text.tokens");
    let (options, budget) = (PrepareOptions::default(), MemoryBudget::Unlimited);
    prepare(base, text, &options, budget, &tokens, &NEVER, &mut |_| {}).expect("tokens");
    let window =
        WindowSpec { max_seq_length: length, chunks: Some(count), bos: false, single_token: false };
    let data = Dataset::open(TokenFile::open(&tokens).expect("a token file"), &window);
    let data = data.expect("windows");
    let read = |window| {
        let mut sequence = Sequence::default();
        data.read(window, &mut sequence).expect("a window");
        sequence
    };
    (0..count).map(read).collect()
}

/// The same of a text of ours, which is long enough for a few hundred tokens.
pub fn own_windows(base: &Base, length: usize, count: usize) -> Vec<Sequence> {
    const TEXT: &str = "The ferry leaves at six. Its captain counts the lamps along the quay, one \
                        for every year that he has crossed, and when the last one is behind him he \
                        turns the wheel to the north and tells the cook to put the kettle on. Rain \
                        or no rain, the tea is ready when the island comes out of the dark.\n";
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("text.txt");
    fs::write(&path, TEXT.repeat(1 + length * count / 60)).expect("a text");
    text_windows(base, &path, length, count)
}

/// A run over `sequences` in their order, `steps` long.
pub fn config(sequences_a_step: usize, steps: u64) -> TrainConfig {
    TrainConfig {
        length: Length::Iters(steps),
        batch_size: sequences_a_step,
        shuffle: false,
        memory: MemoryBudget::Unlimited,
        threads: 1,
        ..TrainConfig::default()
    }
}

/// Such a run, planned. Its files go to `folder`.
pub fn planned(base: Base, folder: &Path, sequences: &[Sequence], config: TrainConfig) -> Planned {
    let data = dataset(&base, folder, sequences);
    Planned::new(base, data, 0, config).expect("a plan")
}

/// The same run by one thread and by two, with all memory, as little as can be, and scratch files
/// in `folder`: ways that must not change a bit.
pub fn ways(config: &TrainConfig, folder: &Path) -> Vec<TrainConfig> {
    let (all, least) = (MemoryBudget::Unlimited, MemoryBudget::Min);
    let spool = Some(folder.to_owned());
    let ways = [(1, all, None), (2, all, None), (1, least, None), (2, least, spool)];
    let of = |(threads, memory, spool)| TrainConfig { threads, memory, spool, ..config.clone() };
    ways.map(of).into()
}

/// What came of a run, to the bit.
#[derive(Debug, PartialEq)]
pub struct Trained {
    pub losses: Vec<f64>,
    /// MeZO's, of all steps.
    pub projections: Vec<Projection>,
    pub numbers: Vec<f32>,
}

/// Takes the steps that are left.
pub fn finish(session: &mut Session) -> Trained {
    let (mut losses, mut projections) = (Vec::new(), Vec::new());
    while !session.is_finished() {
        losses.push(session.step(&NEVER).expect("a step").loss);
        projections.extend_from_slice(session.projections());
    }
    Trained { losses, projections, numbers: numbers(session) }
}

/// The adapter's numbers, wherever they are.
pub fn numbers(session: &mut Session) -> Vec<f32> {
    let folder = tempfile::tempdir().expect("a folder");
    let adapter = folder.path().join("adapter");
    session.save(&adapter).expect("an adapter");
    let adapter = smidgen_train::Adapter::load(session.base(), &adapter).expect("an adapter").0;
    super::numbers(&adapter).to_vec()
}

/// A whole run from its plan to its end.
pub fn train(model: &Path, folder: &Path, sequences: &[Sequence], config: TrainConfig) -> Trained {
    let base = Base::open(model).expect("a model");
    finish(&mut planned(base, folder, sequences, config).start().expect("a session"))
}
