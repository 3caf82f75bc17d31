//! Side tuning by real processes: `smidgen serve` and devices that train on it, killed and gone on,
//! many at once, refused, and left without their server.
#![cfg(unix)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Place, stderr};
use serde_json::Value;

/// Devices at once, where `SMIDGEN_DEVICES` does not say how many.
const DEVICES: usize = 6;

const RUN: &str = "train -m MODEL --data DATA --method side --server-token token --batch-size 4 \
                   --side-width 16 --learning-rate 3e-3 --threads 1 --assume-rates reference";

/// A server that is killed with its test.
struct Server {
    child: Child,
    url: String,
    /// What it says goes on here, so that it never waits for a reader.
    _said: thread::JoinHandle<()>,
}

impl Server {
    /// A server of the folder `state`, at a port, 0 for any.
    fn start(place: &Place, port: u16, more: &str) -> Self {
        let line = format!("serve --state state --listen 127.0.0.1:{port} {more}");
        let mut child = place.command(&line).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = loop {
            let line = lines.next().expect("a server that starts").unwrap();
            if let Some((_, url)) = line.split_once("serves at ") {
                break url.to_owned();
            }
        };
        let said = thread::spawn(move || lines.for_each(|_| ()));
        Self { child, url, _said: said }
    }

    fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// The most memory that it had, in bytes.
    fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with_token() -> Place {
    let place = Place::empty();
    let made = place.run("serve --state state --new-token phone");
    assert!(made.status.success(), "{}", stderr(&made));
    fs::write(place.path("token"), made.stdout).unwrap();
    place
}

/// The network's file, and the losses of all steps.
fn result(place: &Place, run: &str) -> (Vec<u8>, Vec<(u64, String)>) {
    let network = fs::read(place.path(run).join("side_model.safetensors")).unwrap();
    let metrics = fs::read_to_string(place.path(run).join("smidgen/metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["step"].as_u64().unwrap(), line["loss"].to_string())
    };
    (network, metrics.lines().map(line).collect())
}

fn steps_in(place: &Place, run: &str) -> usize {
    let metrics = place.path(run).join("smidgen/metrics.jsonl");
    fs::read_to_string(metrics).map_or(0, |text| text.lines().count())
}

fn wait_for_steps(place: &Place, run: &str, steps: usize) {
    let begin = Instant::now();
    while steps_in(place, run) < steps {
        assert!(begin.elapsed() < Duration::from_secs(60), "too few steps were made");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_device_trains_and_what_it_trained_is_used() {
    let place = with_token();
    let server = Server::start(&place, 0, "-m MODEL --metrics 127.0.0.1:0");
    let line = format!("{RUN} --server {} --epochs 8 --valid-data DATA -o run", server.url);
    let report = place.report(&line);
    let losses = report["losses"].as_array().unwrap();
    let (first, last) = (&losses[0], &losses[losses.len() - 1]);
    assert!(last.as_f64() < Some(0.7 * first.as_f64().unwrap()), "{first} to {last}");
    let (planned, measured) = (&report["planned_peak_bytes"], &report["peak_memory_bytes"]);
    assert!(measured.as_u64() <= planned.as_u64(), "{measured} of {planned}");
    let valid = report["valid"][0]["loss"].as_f64().unwrap();
    let eval = place.report("eval -m MODEL --data DATA --adapter run --threads 1");
    assert!((eval["loss"].as_f64().unwrap() - valid).abs() < 1e-9, "{eval}");
    // The server computes the loss from a hidden state that is rounded to halves.
    let told = place.report(&format!("{line}-told --loss-on server"));
    let of_told = told["losses"].as_array().unwrap();
    let apart = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs();
    assert!(apart(&of_told[0], first) < 1e-3 && of_told[0] != *first, "{of_told:?}");
    assert!(
        apart(&of_told[of_told.len() - 1], last) < 0.05 * last.as_f64().unwrap(),
        "{of_told:?}"
    );
    assert!(apart(&told["valid"][0]["loss"], &report["valid"][0]["loss"]) < 0.05 * valid);
    // Nothing but the sizes depends on how the run went on.
    for (of, loss) in [("run", "device"), ("run-told", "server")] {
        for (more, run) in [("--window 0 --keep-hidden 1", "w0"), ("--window 3 --memory min", "w3")]
        {
            let run = format!("{of}-{run}");
            place.report(&format!(
                "{RUN} --server {} --epochs 8 --valid-data DATA -o {run} {more} --loss-on {loss}",
                server.url
            ));
            assert!(result(&place, &run) == result(&place, of), "{more} {loss}");
        }
    }
}

/// A class a prompt: one position of each sample is tapped, and its token is all that is learned.
#[test]
fn a_classification_is_learned_from_single_tokens() {
    let place = with_token();
    let server = Server::start(&place, 0, "-m MODEL");
    let lines = (0..48).map(|i| {
        let class = if i % 3 == 0 { "yes" } else { "no" };
        let word = if i % 3 == 0 { "apples" } else { "stones" };
        format!("{{\"prompt\": \"{i} {word} \", \"completion\": \"{class}, that is so.\"}}\n")
    });
    place.write("classes.jsonl", &lines.collect::<String>());
    let data = "-m MODEL --data classes.jsonl --single-token --threads 1";
    let before = place.report(&format!("eval {data}"));
    assert_eq!(before["targets"].as_u64(), Some(48), "{before}");
    for loss in ["device", "server"] {
        let report = place.report(&format!(
            "train {data} --method side --server {} --server-token token --side-width 16 --epochs 20 \
             --batch-size 8 --learning-rate 3e-3 --assume-rates reference --loss-on {loss} -o {loss}",
            server.url
        ));
        assert_eq!(report["steps"].as_u64(), Some(120), "{report}");
        let after = place.report(&format!("eval {data} --adapter {loss}"));
        let [before, after] = [&before, &after].map(|eval| eval["accuracy"].as_f64().unwrap());
        assert!(after > 0.95 && after > before, "{loss}: {before} to {after}");
    }
    let said = place.failure(&format!("train {data} --no-mask-prompt -o run"), 2);
    assert!(said.contains("--no-mask-prompt"), "{said}");
}

#[test]
fn killed_on_either_side_it_ends_the_same() {
    for loss in ["device", "server"] {
        killed(loss);
    }
}

fn killed(loss: &str) {
    let place = with_token();
    let mut server = Server::start(&place, 0, "-m MODEL");
    let port = server.port();
    let line = |run: &str| {
        format!(
            "{RUN} --server http://127.0.0.1:{port} --epochs 6 --save-every 5 --loss-on {loss} -o {run}"
        )
    };
    place.report(&line("whole"));
    let whole = result(&place, "whole");

    // The server, twice, while the device waits for it to be back.
    let mut device = place.command(&line("served"));
    let device = device.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    for steps in [7, 31] {
        wait_for_steps(&place, "served", steps);
        drop(server);
        thread::sleep(Duration::from_millis(100));
        server = Server::start(&place, port, "-m MODEL");
    }
    let output = device.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(result(&place, "served") == whole, "the server's end changed the run");

    // The device, at three places.
    for steps in [2, 23, 50] {
        let resumed = format!("{} --resume", line("device"));
        let mut device = place.command(&resumed).stdout(Stdio::null()).spawn().unwrap();
        wait_for_steps(&place, "device", steps);
        device.kill().unwrap();
        device.wait().unwrap();
    }
    place.report(&format!("{} --resume", line("device")));
    let (network, losses) = result(&place, "device");
    assert!(network == whole.0, "the device's end changed the network");
    // The line of a step that the server had confirmed when the device was killed may be missing.
    assert!(losses.iter().all(|line| whole.1.contains(line)) && losses.len() + 3 >= whole.1.len());
}

/// Every second device has the server compute its loss. What docs/side-tuning.md tells of 32 devices:
/// `SMIDGEN_DEVICES=32 cargo test --release -p
/// smidgen-cli --test side many -- --nocapture`.
#[test]
fn many_devices_at_once() {
    let devices = std::env::var("SMIDGEN_DEVICES").map_or(DEVICES, |n| n.parse().unwrap());
    let place = with_token();
    let server = Server::start(&place, 0, "--sessions 64 -m MODEL");
    let line = |run: usize| {
        let loss = if run.is_multiple_of(2) { "device" } else { "server" };
        let url = &server.url;
        format!("{RUN} --server {url} --epochs 3 --seed {run} --loss-on {loss} -o run-{run}")
    };
    let begin = Instant::now();
    place.report(&line(0));
    let alone = begin.elapsed();
    let peak_of_one = server.peak();
    let begin = Instant::now();
    let running: Vec<_> = (1..=devices)
        .map(|run| {
            let mut command = place.command(&line(run));
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ended: Vec<_> = running
        .into_iter()
        .map(|device| {
            let output = device.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            begin.elapsed()
        })
        .collect();
    let (first, last) = (ended.iter().min().unwrap(), ended.iter().max().unwrap());
    let steps = steps_in(&place, "run-0");
    assert!((1..=devices).all(|run| steps_in(&place, &format!("run-{run}")) == steps));
    println!(
        "one device: {steps} steps in {:.2} s, server's peak {:.1} MB; {devices} at once: the first ended \
         after {:.2} s, the last after {:.2} s, {:.2} times the throughput of one, server's peak \
         {:.1} MB",
        alone.as_secs_f64(),
        peak_of_one as f64 / 1e6,
        first.as_secs_f64(),
        last.as_secs_f64(),
        devices as f64 * alone.as_secs_f64() / last.as_secs_f64(),
        server.peak() as f64 / 1e6
    );
    assert!(server.peak() < peak_of_one + devices as u64 * 12_000_000);
}

#[test]
fn what_is_wrong_is_said() {
    let place = with_token();
    let server = Server::start(&place, 0, "");
    let url = &server.url;
    let side = "train -m MODEL --data DATA --method side --assume-rates reference -o run";
    let cases = [
        (side.to_owned(), 2, "name one with --server URL"),
        (format!("{side} --server {url}"), 2, "--server-token FILE"),
        (format!("{side} --server {url} --server-token none"), 1, "cannot read none"),
        (format!("{side} --server {url} --server-token token --lora-rank 4"), 2, "--lora-rank"),
        (format!("{side} --server {url} --server-token token --optimizer sgd"), 2, "adamw"),
        (format!("{side} --server {url} --server-token token --first-tap 99"), 2, "--first-tap 99"),
        (format!("{side} --server {url} --server-token token --tap-bits 5"), 2, "16, 8 or 4"),
        (format!("{side} --server {url} --server-token token --memory 1MB"), 3, "needs"),
        (format!("{side} --server {url} --server-token token --loss-on server"), 1, "has no model"),
        ("train -m MODEL --data DATA -o run --tap-bits 8".to_owned(), 2, "--method side"),
        ("train -m MODEL --data DATA -o run --loss-on server".to_owned(), 2, "--method side"),
        ("serve --state state -m none.gguf".to_owned(), 1, "none.gguf"),
        ("serve --state empty".to_owned(), 2, "--new-token"),
        ("serve --state state --listen 0.0.0.0:0".to_owned(), 1, "certificate"),
    ];
    for (line, code, expected) in cases {
        let said = place.failure(&line, code);
        assert!(said.contains(expected), "{line}: {said}");
    }
    place.write("other", "no such token\n");
    let said = place.failure(&format!("{side} --server {url} --server-token other"), 1);
    assert!(said.contains("token"), "{said}");
}

#[test]
fn a_lost_server_is_told_or_gone_on_without() {
    let place = with_token();
    let server = Server::start(&place, 0, "");
    let line = format!("{RUN} --server {} --epochs 40 --retry-for 1 -o", server.url);
    let told = place.command(&format!("{line} told")).stderr(Stdio::piped()).spawn().unwrap();
    let gone_on = format!("{line} run --fallback local");
    let gone_on = place.command(&gone_on).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&place, "told", 3);
    wait_for_steps(&place, "run", 3);
    drop(server);
    let told = told.wait_with_output().unwrap();
    let said = stderr(&told);
    assert_eq!(told.status.code(), Some(1), "{said}");
    assert!(said.contains("could not be reached") && said.contains("resume"), "{said}");
    let gone_on = gone_on.wait_with_output().unwrap();
    assert!(gone_on.status.success(), "{}", stderr(&gone_on));
    assert!(stderr(&gone_on).contains("Going on here, after"));
    assert!(place.path("run/local/adapter_model.safetensors").is_file());
    assert_eq!(steps_in(&place, "run") + steps_in(&place, "run/local"), 40 * 12);
}

/// Who stops a device waits for no server that is away, nor goes on without it; the run does when it is
/// back.
#[test]
fn a_signal_ends_the_wait_for_a_lost_server() {
    let place = with_token();
    let server = Server::start(&place, 0, "");
    let port = server.port();
    let line = format!("{RUN} --server {} --epochs 2 --fallback local -o run", server.url);
    let device = place.command(&line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&place, "run", 3);
    drop(server);
    thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    let sent = Command::new("kill").args(["-INT", &device.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = device.wait_with_output().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(20), "it waited for {:?}", begin.elapsed());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("can't be reached") && said.contains("resume the run"), "{said}");
    assert!(!place.path("run/local").exists(), "nobody asked it to go on");
    let _server = Server::start(&place, port, "");
    place.report(&format!("{line} --resume"));
    assert_eq!(steps_in(&place, "run"), 2 * 12);
}
