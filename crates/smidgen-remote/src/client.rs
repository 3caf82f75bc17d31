//! The device's end.
//!
//! What it takes beside the device's own memory: 0.3 to 0.7 MB of heap, TLS and all, held under 1 MB by
//! `tests/client_memory.rs`: HTTP/2 windows of 64 KiB a stream and 128 KiB a connection, as many bytes
//! on their way out as the server has room for (256 KiB), and pieces of 64 KiB of messages, held some
//! three times. Beside it a thread with a stack of 512 KiB, touched as far as it is used. Outputs wait
//! on the server until they are asked for, so nothing grows with a sample but labels, 16 bytes each on
//! their way; only a device that begins a step between a step's outputs has one of them held here.

mod line;

pub use line::{ClientIdentity, RemoteConfig, RemoteError};

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smidgen_train::{LinkError, LossOn, SideLabel, SideLink, SideSample, SideShape};

use crate::proto::from_device::Message as Say;
use crate::proto::from_server::Message as Answer;
use crate::proto::{
    Ask, Begin, Confirmed, Gradient, Hash, LABEL_BYTES, Labels, Limits, Loss, OpenRequest, Output,
    PART_BYTES, Sample, Settings, StepHash, Taps, Update, VERSION, Wanted, label_bytes,
    read_numbers, to_bytes,
};
use line::{Caller, Failure, Line, Taken};

/// The first wait before another try, and the longest.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(15)];
/// Tries of a step that end with the line's loss, before the run is given up.
const TRIES_MAX: usize = 20;

/// A session on a server.
#[derive(Clone, Debug)]
pub struct RemoteSession {
    /// Its name: 16 random bytes, the same for all of a run. Who knows them and has the token can go
    /// on with the session.
    pub id: [u8; 16],
    /// The side network.
    pub shape: SideShape,
    /// Which frozen model the taps are of, 1 to 64 bytes, such as its file's SHA-256.
    pub fingerprint: Vec<u8>,
    /// What the network's start is drawn from, as [`SideShape::start`] does.
    pub seed: u64,
    /// Of AdamW, 0 to 1.
    pub weight_decay: f64,
    /// Who computes the loss. The server has to have the same model for it.
    pub loss: LossOn,
    /// The session is on the server already, with the same settings.
    pub resume: bool,
}

/// A link to a network that is trained on a server. Not to be used within async code: its calls wait.
#[derive(Debug)]
pub struct RemoteLink {
    caller: Caller,
    open: OpenRequest,
    shape: SideShape,
    limits: Limits,
    line: Option<Line>,
    confirmed: u64,
    /// Sum of the losses of that step, if the server computes them.
    loss: Option<f64>,
    /// Begun and not confirmed.
    steps: VecDeque<Step>,
    /// Outputs that were asked for and not taken whole, and what came of them and was not taken.
    outputs: VecDeque<Incoming>,
    come: Vec<u8>,
    /// Times in turn that the line was lost since the last step was confirmed.
    losses: usize,
}

/// A step under way, as the device knows it.
#[derive(Debug)]
struct Step {
    number: u64,
    /// Numbers of each sample's output, by place.
    numbers: Vec<usize>,
    /// Bytes of taps that were given, by place.
    given: Vec<u64>,
    /// The place whose gradient is being given, and how many bytes of it were.
    gradient: (usize, u64),
    /// Outputs that were asked for.
    asked: usize,
    hash: StepHash,
    /// Rate and hash, once the update was sent.
    update: Option<(f64, Hash)>,
}

/// An output that was asked for, in bytes.
#[derive(Debug)]
struct Incoming {
    step: u64,
    place: usize,
    due: usize,
    come: usize,
    taken: usize,
}

impl RemoteLink {
    /// Bytes that a link takes on the device, at most: what is told above, TLS among it.
    pub const HELD_BYTES: u64 = 1_000_000;

    /// Connects and opens the session, or finds it again. Tries for as long as `config` says.
    ///
    /// # Errors
    /// All of [`RemoteError`].
    pub fn open(config: RemoteConfig, session: RemoteSession) -> Result<Self, RemoteError> {
        let RemoteSession { id, shape, fingerprint, seed, weight_decay, loss, resume } = session;
        let open = OpenRequest {
            version: VERSION,
            session: id.to_vec(),
            settings: Some(Settings::of(&shape)),
            fingerprint,
            seed,
            weight_decay,
            resume,
            loss: Loss::from(loss).into(),
        };
        let mut link = Self {
            caller: Caller::new(config)?,
            open,
            shape,
            limits: Limits::default(),
            line: None,
            confirmed: 0,
            loss: None,
            steps: VecDeque::new(),
            outputs: VecDeque::new(),
            come: Vec::new(),
            losses: 0,
        };
        link.connect()?;
        Ok(link)
    }

    /// What the server allows. A run with more steps under way, more samples a step or more rows a
    /// sample is refused.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Has the server forget the session. The network is lost where it was not fetched before.
    ///
    /// # Errors
    /// All of [`RemoteError`].
    pub fn close(mut self) -> Result<(), RemoteError> {
        self.line = None;
        let session = self.open.session.clone();
        let mut patience = Patience::new(self.caller.retry_for());
        loop {
            match self.caller.close(&session) {
                Ok(()) => return Ok(()),
                Err(failure) => patience.wait(&self.caller, failure)?,
            }
        }
    }

    /// Connects until there is a line, or no hope.
    fn connect(&mut self) -> Result<(), RemoteError> {
        let mut patience = Patience::new(self.caller.retry_for());
        loop {
            match self.attach() {
                Ok(()) => return Ok(()),
                Err(failure) => patience.wait(&self.caller, failure)?,
            }
        }
    }

    /// One try. What was under way and is not confirmed is over.
    fn attach(&mut self) -> Result<(), Failure> {
        self.line = None;
        self.outputs.clear();
        self.come.clear();
        let (mut line, reply) = self.caller.open(&self.open)?;
        // From here on it is there: a reply that is lost must not have it taken for another's.
        self.open.resume = true;
        self.limits = reply.limits.unwrap_or_default();
        let Answer::Confirmed(confirmed) = self.caller.receive(&mut line)? else {
            return Err(Failure::unexpected("an answer before Confirmed"));
        };
        let ended = self.steps.iter().find(|step| step.number == confirmed.step);
        if let Some((rate, hash)) = ended.and_then(|step| step.update) {
            // That it is the same step is for the server to say.
            let step = confirmed.step;
            let update = Update { step, rate, hash: hash.to_vec() };
            self.caller.send(&mut line, Say::Update(update))?;
            match self.caller.receive(&mut line)? {
                Answer::Confirmed(again) if again.step == step => {}
                _ => return Err(Failure::unexpected("another answer than Confirmed")),
            }
        }
        self.is_confirmed(confirmed);
        self.line = Some(line);
        Ok(())
    }

    fn is_confirmed(&mut self, Confirmed { step, loss }: Confirmed) {
        if step > self.confirmed {
            self.losses = 0;
        }
        (self.confirmed, self.loss) = (step, loss);
        self.steps.retain(|other| other.number > step);
    }

    /// Behind a failure: connects again. What was under way and not confirmed is to be begun anew:
    /// whatever is asked of it from here on says so.
    fn recover(&mut self, failure: Failure) -> Result<(), LinkError> {
        self.line = None;
        self.losses += 1;
        if let Failure::Final(error) = failure {
            return Err(error.into());
        }
        if self.losses > TRIES_MAX {
            return Err(self.caller.gave_up(&failure, TRIES_MAX).into());
        }
        self.connect()?;
        self.steps.clear();
        Ok(())
    }

    fn lost(&mut self, failure: Failure) -> LinkError {
        self.recover(failure).err().unwrap_or(LinkError::StartedAnew)
    }

    fn send(&mut self, message: Say) -> Result<(), Failure> {
        let line = self.line.as_mut().ok_or_else(|| Failure::unexpected("no line"))?;
        self.caller.send(line, message)
    }

    /// The next answer that is not about something confirmed, which is noted.
    fn receive(&mut self) -> Result<Answer, Failure> {
        let line = self.line.as_mut().ok_or_else(|| Failure::unexpected("no line"))?;
        let answer = self.caller.receive(line)?;
        if let Answer::Confirmed(confirmed) = &answer {
            self.is_confirmed(*confirmed);
        }
        Ok(answer)
    }

    /// A step under way, if it is not lost.
    fn step(&mut self, number: u64) -> Result<&mut Step, LinkError> {
        let step = self.steps.iter_mut().find(|step| step.number == number);
        step.ok_or(LinkError::StartedAnew)
    }

    fn try_begin(&mut self, step: u64, samples: &[SideSample]) -> Result<Vec<bool>, Failure> {
        let mut hash = StepHash::new(step);
        let sent = samples.iter().map(|sample| {
            let rows = u32::try_from(sample.rows).unwrap_or(u32::MAX);
            hash.sample(&sample.key, rows);
            Sample { key: sample.key.to_vec(), rows }
        });
        let sent = sent.collect();
        self.send(Say::Begin(Begin { step, samples: sent }))?;
        let numbers = samples.iter().map(|s| s.rows.saturating_mul(self.shape.hidden()));
        self.steps.push_back(Step {
            number: step,
            numbers: numbers.collect(),
            given: vec![0; samples.len()],
            gradient: (0, 0),
            asked: 0,
            hash,
            update: None,
        });
        let samples = samples.len();
        let bits = loop {
            match self.receive()? {
                Answer::Wanted(Wanted { step: of, bits }) if of == step => break bits,
                Answer::Output(output) => self.comes(&output)?,
                Answer::Confirmed(_) => {}
                Answer::Wanted(_) => return Err(Failure::unexpected("another step's answer")),
            }
        };
        let wanted =
            (0..samples).map(|at| bits.get(at / 8).is_some_and(|b| b >> (at % 8) & 1 == 1));
        Ok(wanted.collect())
    }

    fn ask(&mut self, step: u64, place: usize) -> Result<(), Failure> {
        let Some(under_way) = self.steps.iter_mut().find(|s| s.number == step) else {
            return Err(Failure::unexpected("a step that is not under way"));
        };
        let due = under_way.numbers.get(place).map(|numbers| 4 * numbers);
        if let (true, Some(due)) = (under_way.asked == place, due) {
            under_way.asked += 1;
            self.outputs.push_back(Incoming { step, place, due, come: 0, taken: 0 });
            self.send(Say::Ask(Ask { step, place: place as u32 }))?;
        }
        Ok(())
    }

    /// A piece of an output comes.
    fn comes(&mut self, output: &Output) -> Result<(), Failure> {
        let Output { step, place, offset, bytes } = output;
        let expected = self.outputs.iter_mut().find(|output| output.come < output.due);
        let fits = expected.filter(|due| {
            due.step == *step
                && due.place == *place as usize
                && due.come as u64 == *offset
                && bytes.len() <= due.due - due.come
                && bytes.len().is_multiple_of(4)
        });
        let Some(due) = fits else {
            return Err(Failure::unexpected("another output than what is due"));
        };
        due.come += bytes.len();
        self.come.extend_from_slice(bytes);
        Ok(())
    }

    fn try_output(&mut self, step: u64, place: usize, out: &mut [f32]) -> Result<(), Failure> {
        self.ask(step, place)?;
        let mut done = 0;
        loop {
            let Some(output) = self.outputs.front_mut() else {
                return Err(Failure::unexpected("an output that was not asked for"));
            };
            let (rest, left) = (&mut out[done / 4..], output.due - output.taken);
            if (output.step, output.place) != (step, place) || left < 4 * rest.len() {
                return Err(Failure::unexpected("an output of another size"));
            }
            let took = self.come.len().min(4 * rest.len());
            read_numbers(&self.come[..took], rest);
            self.come.drain(..took);
            (done, output.taken) = (done + took, output.taken + took);
            if done == 4 * out.len() {
                break;
            }
            match self.receive()? {
                Answer::Output(output) => self.comes(&output)?,
                Answer::Confirmed(_) => {}
                Answer::Wanted(_) => return Err(Failure::unexpected("an answer to no Begin")),
            }
        }
        if self.outputs.front().is_some_and(|output| output.taken == output.due) {
            self.outputs.pop_front();
            // So that it is there when this one's gradient was given.
            self.ask(step, place + 1)?;
        }
        Ok(())
    }
}

impl SideLink for RemoteLink {
    fn confirmed(&mut self) -> Result<u64, LinkError> {
        Ok(self.confirmed)
    }

    fn begin(&mut self, step: u64, samples: &[SideSample]) -> Result<Vec<bool>, LinkError> {
        if step != self.confirmed + self.steps.len() as u64 + 1 {
            return Err(LinkError::StartedAnew);
        }
        self.try_begin(step, samples).map_err(|failure| self.lost(failure))
    }

    fn taps(&mut self, step: u64, place: usize, bytes: &[u8]) -> Result<(), LinkError> {
        for bytes in bytes.chunks(PART_BYTES) {
            let Some(given) = self.step(step)?.given.get_mut(place) else {
                return Err(LinkError::failed(format!("step {step} has no place {place}")));
            };
            let offset = *given;
            *given += bytes.len() as u64;
            let taps = Taps { step, place: place as u32, offset, bytes: bytes.to_vec() };
            self.send(Say::Taps(taps)).map_err(|failure| self.lost(failure))?;
        }
        Ok(())
    }

    fn labels(
        &mut self,
        step: u64,
        place: usize,
        scale: f32,
        labels: &[SideLabel],
    ) -> Result<(), LinkError> {
        self.step(step)?.hash.scale(scale);
        let mut offset = 0;
        for labels in labels.chunks(PART_BYTES / LABEL_BYTES) {
            let bytes = label_bytes(labels);
            self.step(step)?.hash.bytes(&bytes);
            let length = bytes.len() as u64;
            let labels = Labels { step, place: place as u32, offset, bytes, scale };
            self.send(Say::Labels(labels)).map_err(|failure| self.lost(failure))?;
            offset += length;
        }
        Ok(())
    }

    fn output(&mut self, step: u64, place: usize, output: &mut [f32]) -> Result<(), LinkError> {
        self.step(step)?;
        self.try_output(step, place, output).map_err(|failure| self.lost(failure))
    }

    fn gradient(&mut self, step: u64, place: usize, gradient: &[f32]) -> Result<(), LinkError> {
        for numbers in gradient.chunks(PART_BYTES / 4) {
            let bytes = to_bytes(numbers);
            let under_way = self.step(step)?;
            under_way.hash.bytes(&bytes);
            let (of, given) = under_way.gradient;
            let offset = if of == place { given } else { 0 };
            under_way.gradient = (place, offset + bytes.len() as u64);
            let gradient = Gradient { step, place: place as u32, offset, bytes };
            self.send(Say::Gradient(gradient)).map_err(|failure| self.lost(failure))?;
        }
        Ok(())
    }

    fn update(&mut self, step: u64, rate: f64) -> Result<(), LinkError> {
        let under_way = self.step(step)?;
        let hash = under_way.hash.clone().end(rate);
        under_way.update = Some((rate, hash));
        let update = Update { step, rate, hash: hash.to_vec() };
        self.send(Say::Update(update)).map_err(|failure| self.lost(failure))
    }

    fn confirm(&mut self, step: u64) -> Result<Option<f64>, LinkError> {
        while self.confirmed < step {
            self.step(step)?;
            let answer = self.receive().and_then(|answer| match answer {
                Answer::Output(output) => self.comes(&output),
                Answer::Confirmed(_) => Ok(()),
                Answer::Wanted(_) => Err(Failure::unexpected("an answer to no Begin")),
            });
            if let Err(failure) = answer {
                // It may be done all the same.
                self.recover(failure)?;
            }
        }
        Ok(self.loss)
    }

    fn numbers(&mut self, take: &mut dyn FnMut(&[f32])) -> Result<(), LinkError> {
        let session = self.open.session.clone();
        let mut taken = Taken::none(self.shape.len());
        loop {
            let tried = match self.line.as_mut() {
                Some(line) => self.caller.network(line, &session, &mut taken, take),
                None => Err(Failure::unexpected("no line")),
            };
            let Err(failure) = tried else { return Ok(()) };
            self.recover(failure)?;
        }
    }
}

/// How long it is tried, and the waits between.
struct Patience {
    until: Instant,
    retry_for: Duration,
    wait: Duration,
}

impl Patience {
    fn new(retry_for: Duration) -> Self {
        Self { until: Instant::now() + retry_for, retry_for, wait: BACK_OFF[0] }
    }

    /// Waits before the next try, if there is to be one: half of the wait is by chance, so that
    /// devices don't come back all at once.
    fn wait(&mut self, caller: &Caller, failure: Failure) -> Result<(), RemoteError> {
        let why = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Lost(why) => why,
        };
        let wait = self.wait.mul_f64(0.5 + 0.5 * line::chance());
        if Instant::now() + wait >= self.until {
            return Err(caller.unreachable(why, self.retry_for));
        }
        if !caller.pause(wait) {
            return Err(caller.stopped(why));
        }
        // Slowly at first: what a server says of a certificate can be lost with the connection that it
        // closes, and is heard at one of the next tries.
        self.wait = self.wait.mul_f64(1.25).min(BACK_OFF[1]);
        Ok(())
    }
}
