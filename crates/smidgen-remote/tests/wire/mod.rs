//! A server on this machine, a device without a model, and what lies between them.

#![allow(dead_code)]

use std::env;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use candle_core::Device;
use smidgen_kernels::{Philox, TapRounding};
use smidgen_remote::{
    Limits, LocalLink, RemoteConfig, RemoteLink, RemoteSession, Server, ServerConfig, SideTrainer,
    Token,
};
use smidgen_train::{
    LinkError, LossOn, SideConfig, SideGate, SideLink, SideNetwork, SideSample, SideShape,
    TapFormat,
};

pub const TOKEN: &str = "open sesame";
pub const SEED: u64 = 11;
pub const DECAY: f64 = 0.01;

/// A server's settings, with all its files in `place`.
pub fn settings(place: &Path) -> ServerConfig {
    ServerConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        tls: None,
        tokens: vec![Token::new("first", TOKEN), Token::new("second", "another")],
        limits: Limits { sessions: 64, ..Limits::default() },
        state: place.join("sessions"),
        cache: place.join("taps"),
        cache_bytes_max: 64 << 20,
        metrics: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        workers: 2,
        connections: 128,
        model: None,
    }
}

pub fn remote(address: SocketAddr) -> RemoteConfig {
    RemoteConfig {
        url: format!("http://{address}"),
        ca: None,
        identity: None,
        token: TOKEN.to_owned(),
        timeout: Duration::from_secs(60),
        stop: Arc::default(),
        retry_for: Duration::from_secs(60),
    }
}

pub fn session(id: u8, shape: &SideShape) -> RemoteSession {
    RemoteSession {
        id: [id; 16],
        shape: shape.clone(),
        fingerprint: b"a model".to_vec(),
        seed: SEED,
        weight_decay: DECAY,
        loss: LossOn::Device,
        resume: false,
    }
}

/// A small network.
pub fn shape(format: TapFormat) -> SideShape {
    let config = SideConfig {
        first_tap: 1,
        every: 1,
        width: 8,
        reduction: 2,
        gate: SideGate::Ladder,
        format,
    };
    SideShape::new(config, 4, 32).expect("a shape")
}

pub fn local(shape: &SideShape) -> LocalLink {
    let network = SideNetwork::new(shape.clone(), 1.0, shape.start(SEED));
    LocalLink::new(SideTrainer::new(&network, DECAY, Device::Cpu).expect("a trainer"))
}

/// A device that has no model: taps and aims are made of chances.
#[derive(Clone, Debug)]
pub struct Dummy {
    pub shape: SideShape,
    pub steps: u64,
    pub samples: usize,
    pub rows: usize,
    /// Steps under way.
    pub window: u64,
    /// After so many steps the samples come again.
    pub epoch: u64,
}

impl Dummy {
    pub fn new(shape: SideShape) -> Self {
        Self { shape, steps: 10, samples: 3, rows: 5, window: 1, epoch: 1000 }
    }

    pub fn sample(&self, step: u64, place: usize) -> (u64, SideSample) {
        let number = (step - 1) % self.epoch * self.samples as u64 + place as u64;
        let mut key = [7; 16];
        key[..8].copy_from_slice(&number.to_le_bytes());
        (number, SideSample { key, rows: self.rows + number as usize % 3 })
    }

    pub fn batch(&self, step: u64) -> Vec<SideSample> {
        (0..self.samples).map(|place| self.sample(step, place).1).collect()
    }

    pub fn taps(&self, step: u64, place: usize) -> Vec<u8> {
        let (number, sample) = self.sample(step, place);
        let (hidden, format) = (self.shape.hidden(), self.shape.config().format);
        let mut bytes = Vec::new();
        let mut row = vec![0.0; hidden];
        for at in 0..(self.shape.tapped().len() * sample.rows) as u64 {
            Philox::new(3).uniform(number, at << 32, &mut row);
            row.iter_mut().for_each(|x| *x -= 0.5);
            let start = bytes.len();
            bytes.resize(start + format.row_bytes(hidden), 0);
            format.encode(TapRounding::Nearest, &row, &mut bytes[start..]);
        }
        bytes
    }

    /// Trains to the end, as a device does that begins anew where the link says so. Returns the
    /// network and how often that was.
    pub fn train(&self, link: &mut dyn SideLink) -> Result<(Vec<f32>, usize), LinkError> {
        let (mut anew, mut sent) = (0, 0);
        loop {
            match self.try_train(link, &mut sent) {
                Ok(()) => {}
                Err(LinkError::StartedAnew) => {
                    anew += 1;
                    continue;
                }
                Err(error) => return Err(error),
            }
            match numbers(link) {
                Ok(numbers) => return Ok((numbers, anew)),
                Err(LinkError::StartedAnew) => anew += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Trains on from the confirmed step; counts the samples whose taps were sent.
    pub fn try_train(&self, link: &mut dyn SideLink, sent: &mut usize) -> Result<(), LinkError> {
        let confirmed = link.confirmed()?;
        let mut begun = confirmed;
        for step in confirmed + 1..=self.steps {
            while begun < self.steps.min(step + self.window - 1) {
                begun += 1;
                let wanted = link.begin(begun, &self.batch(begun))?;
                assert_eq!(wanted.len(), self.samples);
                for place in (0..self.samples).filter(|&place| wanted[place]) {
                    *sent += 1;
                    let taps = self.taps(begun, place);
                    let (first, second) = taps.split_at(taps.len() / 3);
                    link.taps(begun, place, first)?;
                    link.taps(begun, place, second)?;
                }
            }
            for place in 0..self.samples {
                let (number, sample) = self.sample(step, place);
                let mut output = vec![0.0; sample.rows * self.shape.hidden()];
                link.output(step, place, &mut output)?;
                let mut aim = vec![0.0; output.len()];
                Philox::new(9).uniform(number, 0, &mut aim);
                output.iter_mut().zip(aim).for_each(|(x, aim)| *x = (*x - aim) / 8.0);
                link.gradient(step, place, &output)?;
            }
            link.update(step, 1e-2 / step as f64)?;
            link.confirm(step)?;
        }
        Ok(())
    }

    /// What training without a network in between comes to.
    pub fn expected(&self) -> Vec<f32> {
        self.train(&mut local(&self.shape)).expect("trained here").0
    }
}

/// The network as it is.
pub fn numbers(link: &mut dyn SideLink) -> Result<Vec<f32>, LinkError> {
    let mut numbers = Vec::new();
    link.numbers(&mut |piece| numbers.extend_from_slice(piece))?;
    Ok(numbers)
}

/// Numbers as they are, bit for bit.
pub fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// A way to a server that can be cut, and lead to another one.
pub struct Road {
    pub address: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    /// Connections so far.
    pub count: Arc<AtomicU64>,
}

impl Road {
    /// Each connection is cut when `bytes` have gone to the server, if any.
    pub fn new(to: SocketAddr, bytes: Option<u64>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (to, open) = (Arc::new(Mutex::new(to)), Arc::<Mutex<Vec<TcpStream>>>::default());
        let count = Arc::<AtomicU64>::default();
        let road = Self { address, to, open, count };
        let (to, open) = (Arc::clone(&road.to), Arc::clone(&road.open));
        let count = Arc::clone(&road.count);
        thread::spawn(move || {
            for device in listener.incoming() {
                let Ok(device) = device else { return };
                count.fetch_add(1, Ordering::Relaxed);
                let at = *to.lock().expect("no panic");
                let Ok(server) = TcpStream::connect(at) else { continue };
                [&device, &server].iter().for_each(|s| s.set_nodelay(true).expect("a socket"));
                let both = [&device, &server].map(|s| s.try_clone().expect("a handle"));
                open.lock().expect("no panic").extend(both);
                let pairs = [&device, &server].map(|s| s.try_clone().expect("a handle"));
                let [from_device, from_server] = pairs;
                thread::spawn(move || pump(from_device, server, bytes));
                thread::spawn(move || pump(from_server, device, None));
            }
        });
        road
    }

    pub fn lead_to(&self, to: SocketAddr) {
        *self.to.lock().expect("no panic") = to;
    }

    pub fn cut(&self) {
        for stream in self.open.lock().expect("no panic").drain(..) {
            _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, most: Option<u64>) {
    let (mut buffer, mut done) = ([0; 4096], 0);
    while let Ok(read) = from.read(&mut buffer) {
        done += read as u64;
        let is_over = most.is_some_and(|most| done > most);
        if read == 0 || is_over || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    _ = from.shutdown(Shutdown::Both);
    _ = to.shutdown(Shutdown::Both);
}

/// What a server in a process of its own is told by.
const PLACE: &str = "SMIDGEN_TEST_SERVER";

/// A server in a process of its own: this test program, which runs its test `name`, which calls
/// [`serve`].
pub struct Process {
    child: Child,
    pub address: SocketAddr,
}

impl Process {
    pub fn start(name: &str, place: &Path, threads: usize) -> Self {
        let mut child = Command::new(env::current_exe().expect("a path"))
            .args([name, "--exact", "--ignored", "--nocapture"])
            .env(PLACE, place)
            // So many threads compute a product.
            .env("RAYON_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let address = lines.find_map(|line| {
            let line = line.expect("a line");
            line.split_once("listens at ").map(|(_, at)| at.trim().parse().expect("an address"))
        });
        Self { child, address: address.expect("a server") }
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// A line of /proc's status, in bytes; None on other systems.
    pub fn memory(&self, line: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix(line))?;
        Some(1024 * line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().ok()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The server of a process, until nobody needs it; nothing where none is asked for.
pub fn serve(change: impl FnOnce(&mut ServerConfig)) {
    let Some(place) = env::var_os(PLACE).map(PathBuf::from) else { return };
    let mut config = settings(&place);
    change(&mut config);
    let server = Server::start(config).expect("a server");
    println!("listens at {}", server.local_addr());
    // The other end of this pipe goes with the process that wanted it.
    _ = std::io::stdin().read(&mut [0]);
}

/// The number behind a line of a server's metrics.
pub fn metric(server: &Server, name: &str) -> f64 {
    let page = metrics(server);
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("smidgen_{name} ")));
    line.unwrap_or_else(|| panic!("{name} in {page}")).parse().expect("a number")
}

pub fn metrics(server: &Server) -> String {
    let mut stream = TcpStream::connect(server.metrics_addr().expect("metrics")).expect("metrics");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").expect("asked");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    page
}

pub fn open(address: SocketAddr, id: u8, shape: &SideShape) -> RemoteLink {
    RemoteLink::open(remote(address), session(id, shape)).expect("a link")
}
