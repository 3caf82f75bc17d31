//! Random runs of tiny models, each watched from outside: refused with an amount, or finished
//! within the budget and the plan.
//!
//! What counts is anonymous and shared memory, `RssAnon` + `RssShmem` of `/proc/PID/status`; that
//! no file is mapped to be written, whose pages would count too, is looked up in `/proc/PID/maps`.
//!
//! A run takes some tens of milliseconds, so `status` is read about ten thousand times a second,
//! and what the run counted itself at the ends of its phases is held to the plan too. For what is
//! shorter than the time between two looks there is the kernel's high-water mark, `VmHWM`: exact,
//! but of all resident pages, those of mapped files (the program itself, the model) among them.
//! Where the mark rose between two looks, what counted when it rose is the mark less the file pages
//! of that moment: those of the look that had more, and at most a weight window that came and went
//! in between. So the mark less these must not be above the plan.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

const RUNS: u64 = 300;

/// Between two looks: a core that only looks would be taken from the run.
const PAUSE: Duration = Duration::from_micros(30);

const TEXT: &str = "A kite went up over the salt flats at noon. The girl who held the string let \
                    it out hand over hand, and the wind took all of it. By two the kite was a red \
                    crumb beside the sun; by three her arms were tired, and she tied the string to \
                    the gate of the pump house and ate her bread in its shade.\n";

/// Beyond its least plan a run gets this much more before a refusal is wrong: the line "process"
/// of a plan is measured, and another process's differs by some steps of 64 KiB.
const PROCESS_SLACK: u64 = 512 << 10;

/// Runs that go on at a time: most of a tiny run is its plan, which takes one thread.
const WORKERS: u64 = 2;

#[test]
fn each_run_is_refused_or_stays_within_its_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    write_data(folder.path());
    let path = folder.path();
    let runs: Vec<Run> = thread::scope(|scope| {
        let work = |first: u64| {
            move || {
                (first..RUNS)
                    .step_by(WORKERS as usize)
                    .map(|seed| run(seed, path))
                    .collect::<Vec<Run>>()
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|first| scope.spawn(work(first))).collect();
        let joined =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|e| resume_unwind(e)));
        joined.flatten().collect()
    });
    let wrong: Vec<String> = runs.iter().filter_map(|run| run.wrong.clone()).collect();
    let refused = runs.iter().filter(|run| run.is_refused).count();
    println!("{} finished, {refused} refused, {} wrong", runs.len() - refused, wrong.len());
    if !wrong.is_empty() {
        panic!("in {}:\n{}", folder.keep().display(), wrong.join("\n"));
    }
    let fewest = runs.len() / 20;
    assert!(
        (fewest..runs.len() / 2).contains(&refused),
        "{refused} refused: budgets are drawn badly"
    );
}

/// How a run ended.
struct Run {
    is_refused: bool,
    /// Its command line, and what was wrong with it.
    wrong: Option<String>,
}

/// The run that belongs to `seed`.
fn run(seed: u64, folder: &Path) -> Run {
    let mut random = Random(seed);
    let flags = random.flags();
    let budget = random.budget(&flags, folder);
    let line = format!("train {flags} --memory {} -o out-{seed}", budget.flag);
    let (output, seen) = watch(&line, folder);
    let code = output.status.code();
    let wrong = match code {
        Some(0) => wrong_finish(&output, &budget, &seen),
        Some(3) => {
            let is_left = folder.join(format!("out-{seed}")).exists();
            wrong_refusal(&output, &budget).or(is_left.then(|| "it left a folder".to_owned()))
        }
        _ => Some(format!("{}: {}", output.status, said(&output))),
    };
    let wrong = wrong.map(|what| format!("smidgen {line}\n    {what}"));
    Run { is_refused: code == Some(3), wrong }
}

const FAMILIES: [&str; 4] = ["llama", "qwen2", "gemma3", "opt"];

/// The data of all runs; token files stand beside the text, one a family.
fn write_data(folder: &Path) {
    fs::write(folder.join("text.txt"), TEXT.repeat(8)).expect("a text");
    let sample = |n: usize| {
        let completion = &TEXT[..20 + 37 * n % 230];
        format!("{}\n", serde_json::json!({ "prompt": "?", "completion": completion }))
    };
    fs::write(folder.join("samples.jsonl"), (0..12).map(sample).collect::<String>()).expect("data");
    for family in FAMILIES {
        fs::copy(golden(family), folder.join(format!("{family}.gguf"))).expect("a golden model");
        let line = format!("data text.txt -m {family}.gguf --out {family}.tokens");
        let output = command(&line, folder).output().expect("the program");
        assert!(output.status.success(), "{line}: {}", said(&output));
    }
}

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/golden/{family}.gguf"))
}

fn command(line: &str, folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
    command.current_dir(folder).args(line.split_whitespace()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The last line on stderr, which is the error where there is one.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("").to_owned()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// A budget, and the plans between which it was drawn.
struct Budget {
    flag: String,
    /// The least plan.
    least: u64,
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    fn number(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.number(1, n) == 1
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.number(0, choices.len() as u64 - 1) as usize]
    }

    /// A run but for its budget.
    fn flags(&mut self) -> String {
        let family = self.of(&FAMILIES);
        let tokens = format!("{family}.tokens");
        let data = self.of(&["text.txt", "samples.jsonl", &tokens]).to_owned();
        let mut line = format!("-m {family}.gguf --data {data} --json");
        let (length, rank) = (self.number(8, 64), self.number(1, 16));
        let (batch, accumulation) = (self.number(1, 3), self.number(1, 2));
        let (iters, threads) = (self.number(2, 3), self.number(1, 2));
        let numbers = format!(
            " --max-seq-length {length} --lora-rank {rank} --batch-size {batch} \
             --grad-accumulation-steps {accumulation} --iters {iters} --threads {threads} \
             --target-modules {}",
            self.targets(family)
        );
        line += &numbers;
        if data == "samples.jsonl" && self.one_in(2) {
            line += " --pack";
        }
        let layers = self.number(1, 3);
        line += &self.method(layers);
        for (n, flag) in [
            (3, &*format!("--num-layers {layers}")),
            (3, "--no-spool"),
            (4, "--valid-data samples.jsonl --steps-per-eval 2"),
            (4, "--save-every 1"),
        ] {
            if self.one_in(n) {
                line += " ";
                line += flag;
            }
        }
        line
    }

    /// A method, of which LCSB has its turn in as many layers as are trained or fewer, and what
    /// goes with it.
    fn method(&mut self, layers: u64) -> String {
        let optimizer = self.of(&["sgd", "adamw"]);
        let method = match self.number(1, 4) {
            1 => {
                let eps = self.of(&["1e-3", "1e-2"]);
                return format!(" --method mezo --zo-samples {} --zo-eps {eps}", self.number(1, 3));
            }
            2 => {
                let (taken, order) = (self.number(1, layers), self.of(&["cyclic", "random"]));
                format!("lcsb --layers-per-step {taken} --layer-order {order}")
            }
            _ => "exact".to_owned(),
        };
        let clip = if self.one_in(3) { " --max-grad-norm 0.5" } else { "" };
        let dropout = if self.one_in(3) { " --lora-dropout 0.1" } else { "" };
        format!(" --method {method} --optimizer {optimizer}{clip}{dropout}")
    }

    fn targets(&mut self, family: &str) -> String {
        let all: &[&str] = match family {
            "opt" => &["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
            _ => &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        };
        let chosen = self.number(0, (1 << all.len()) - 1);
        let names = all.iter().enumerate().filter(|(i, _)| chosen >> i & 1 == 1);
        match names.map(|(_, name)| *name).collect::<Vec<_>>() {
            names if names.is_empty() || self.one_in(3) => "all-linear".to_owned(),
            names => names.join(","),
        }
    }

    /// From a quarter below the least plan to a quarter above the largest, in equal factors.
    fn budget(&mut self, flags: &str, folder: &Path) -> Budget {
        let planned = |memory: &str| {
            let line = format!("plan {flags} --memory {memory}");
            let output = command(&line, folder).output().expect("the program");
            let planned = report(&output)["planned_peak_bytes"].as_u64();
            planned.unwrap_or_else(|| panic!("smidgen {line}: {}", said(&output)))
        };
        let (least, most) = (planned("min"), planned("unlimited"));
        let (low, high) = (least as f64 * 0.75, most as f64 * 1.25);
        let part = self.number(0, 1 << 20) as f64 / f64::from(1 << 20);
        let bytes = low * (high / low).powf(part);
        let word = self.of(&["min", "unlimited", "auto"]);
        let flag = if self.one_in(10) { word.to_owned() } else { (bytes as u64).to_string() };
        Budget { flag, least }
    }
}

/// What was seen of a run, in bytes.
#[derive(Default)]
struct Seen {
    /// The most that counted at any look.
    peak: u64,
    /// The most that counted between two looks, as the high-water mark has it, model pages that
    /// came and went in between among it.
    mark: u64,
    looks: u64,
    /// A file that is mapped to be written.
    written_map: Option<String>,
}

/// Runs `line` and looks at it until it ends.
fn watch(line: &str, folder: &Path) -> (Output, Seen) {
    let mut child = command(line, folder).spawn().expect("the program");
    let open = |name: &str| File::open(format!("/proc/{}/{name}", child.id()));
    let (status, maps) = (open("status").expect("status"), open("maps").expect("maps"));
    let (mut seen, mut before, mut text) = (Seen::default(), None::<Look>, vec![0; 1 << 16]);
    while child.try_wait().expect("a child").is_none() {
        let Some(now) = Look::at(&status, &mut text) else { continue };
        seen.peak = seen.peak.max(now.counted);
        if let Some(before) = before.replace(now)
            && now.mark > before.mark
        {
            seen.mark = seen.mark.max(now.mark.saturating_sub(now.file.max(before.file)));
        }
        if seen.looks.is_multiple_of(64) {
            seen.written_map = seen.written_map.or_else(|| written_map(&maps, &mut text));
        }
        seen.looks += 1;
        thread::sleep(PAUSE);
    }
    (child.wait_with_output().expect("its output"), seen)
}

/// A reading of `status`, in bytes.
#[derive(Clone, Copy)]
struct Look {
    counted: u64,
    file: u64,
    /// The high-water mark of all that is resident.
    mark: u64,
}

impl Look {
    /// Nothing where the process has just ended.
    fn at(status: &File, buffer: &mut [u8]) -> Option<Self> {
        let length = status.read_at(buffer, 0).ok()?;
        let text = std::str::from_utf8(&buffer[..length]).ok()?;
        let mut lines = text.lines();
        // In the order of the file.
        let mut field = |name: &str| {
            let number = lines.find_map(|line| line.strip_prefix(name))?;
            number.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        let (mark, anonymous) = (field("VmHWM:")?, field("RssAnon:")?);
        let (file, shared) = (field("RssFile:")?, field("RssShmem:")?);
        Some(Self { counted: anonymous + shared, file, mark })
    }
}

/// The first line of `maps` that is a shared mapping of a file, open to writes.
fn written_map(maps: &File, buffer: &mut [u8]) -> Option<String> {
    let length = maps.read_at(buffer, 0).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    let is_written = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        let permissions = words.next().unwrap_or("");
        permissions.contains('w') && permissions.contains('s') && words.nth(2) != Some("0")
    };
    text.lines().find(is_written).map(str::to_owned)
}

fn wrong_finish(output: &Output, budget: &Budget, seen: &Seen) -> Option<String> {
    let report = report(output);
    let number = |key: &str| report[key].as_u64();
    let (Some(planned), Some(own)) = (number("planned_peak_bytes"), number("peak_memory_bytes"))
    else {
        return Some(format!("no peaks in its report: {report}"));
    };
    let allowed = budget.flag.parse().unwrap_or(u64::MAX).min(planned);
    if let Some(map) = &seen.written_map {
        return Some(format!("a file is mapped to be written: {map}"));
    }
    let window = number("weight_window_bytes").unwrap_or(0);
    let peak = seen.peak.max(own).max(seen.mark.saturating_sub(window));
    (planned.max(peak) > allowed).then(|| {
        format!(
            "planned {planned} bytes, counted {own} by itself, {} from outside, {} by the mark",
            seen.peak, seen.mark
        )
    })
}

/// A refusal names an amount of memory, and is due.
fn wrong_refusal(output: &Output, budget: &Budget) -> Option<String> {
    let said = said(output);
    let words: Vec<&str> = said.split_whitespace().collect();
    let is_amount = |pair: &[&str]| {
        let unit = pair[1].trim_end_matches([',', '.', ';']);
        pair[0].parse::<f64>().is_ok() && ["kB", "MB", "GB", "bytes"].contains(&unit)
    };
    if !words.windows(2).any(is_amount) {
        return Some(format!("refused without an amount: {said}"));
    }
    let is_due = budget.flag.parse().is_ok_and(|bytes: u64| bytes < budget.least + PROCESS_SLACK);
    (!is_due).then(|| format!("refused though {} bytes would do: {said}", budget.least))
}
