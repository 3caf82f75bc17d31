//! A session's stream: one task, which reads messages, has workers do what can be done, one job at a
//! time, and sends what was asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tonic::{Code, Status, Streaming};

use smidgen_train::{LossOn, SampleKey, SideNetwork, SideShape};

use super::Shared;
use super::cache::{NameSpace, Pinned};
use super::metrics::Work;
use super::shape::shape_of;
use super::step::{Job, Source, Steps};
use super::store::{SessionId, Stored};
use crate::error::Error;
use crate::proto::from_device::Message as Said;
use crate::proto::{
    Confirmed, FromDevice, FromServer, Hash, Loss, Wanted, from_server::Message as Answer, to_bytes,
};
use crate::trainer::SideTrainer;

/// How long a device may take to make room for a stream's last word.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What is known of an open session in memory, as long as a device is at it.
#[derive(Debug)]
pub(super) struct Seat {
    /// Number of the stream that has the session; the others end.
    holder: watch::Sender<u64>,
    /// Held by the stream that works.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Default for Seat {
    fn default() -> Self {
        Self { holder: watch::Sender::new(0), turn: Arc::default() }
    }
}

/// A stream's right to a session. Ends when another one takes it.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    holder: watch::Receiver<u64>,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Seat {
    /// Takes the session from whoever has it, and waits until that one's work is done.
    pub async fn take(&self) -> Result<Place, Status> {
        let mut number = 0;
        self.holder.send_modify(|holder| {
            *holder += 1;
            number = *holder;
        });
        let place = Place {
            number,
            holder: self.holder.subscribe(),
            _turn: Arc::clone(&self.turn).lock_owned().await,
        };
        let has_it = *place.holder.borrow() == number;
        if has_it { Ok(place) } else { Err(taken()) }
    }
}

impl Place {
    fn was_lost(&self) -> bool {
        *self.holder.borrow() != self.number || self.holder.has_changed().is_err()
    }

    async fn is_lost(&mut self) {
        let number = self.number;
        // Without a sender, the session was closed.
        _ = self.holder.wait_for(|&holder| holder != number).await;
    }
}

fn taken() -> Status {
    Status::aborted("another stream took this session, or it was closed")
}

/// One stream at work.
pub(super) struct Stream {
    shared: Arc<Shared>,
    id: SessionId,
    shape: SideShape,
    names: NameSpace,
    place: Place,
    steps: Steps,
    /// Of the confirmed step, and the sum of its losses if they are computed here.
    hash: Hash,
    loss: Option<f64>,
    /// None while a worker has it.
    trainer: Option<Box<SideTrainer>>,
    answers: VecDeque<FromServer>,
    /// Answers that are no outputs: a device that does not read them is not read further.
    unread: usize,
}

/// What came of a job.
enum Done {
    Output(Vec<u8>),
    Added,
    Learned(f64),
    Confirmed(Hash, Option<f64>),
}

type Worker = JoinHandle<Result<(Box<SideTrainer>, Done), Status>>;

impl Stream {
    /// Goes on from the session's last confirmed step.
    pub async fn open(
        shared: &Arc<Shared>,
        id: SessionId,
        stored: &Stored,
        place: Place,
    ) -> Result<Self, Status> {
        let open = &stored.open;
        let settings = open.settings.as_ref().ok_or_else(|| Status::internal("no settings"))?;
        let loss_on = match open.loss() {
            Loss::OnDevice => LossOn::Device,
            Loss::OnServer => LossOn::Trainer,
        };
        // The server may have been started anew without its model.
        shared.check_loss(open)?;
        let shape =
            shape_of(settings, shared.limits.parameters).map_err(Status::resource_exhausted)?;
        let names = NameSpace::new(&stored.owner, &open.fingerprint, &shape);
        let (seed, decay) = (open.seed, open.weight_decay);
        let (store, of_shape) = (Arc::clone(&shared.store), shape.clone());
        let device = shared.device.clone();
        let load = shared.blocking(move || {
            let (confirmed, hash, loss) = store.confirmed(id).map_err(internal)?;
            let trainer = match store.state(id).map_err(internal)? {
                Some(state) => SideTrainer::resume(of_shape, decay, &state, device),
                None => {
                    let start = of_shape.start(seed);
                    SideTrainer::new(&SideNetwork::new(of_shape, 1.0, start), decay, device)
                }
            };
            let trainer = trainer.map_err(status)?;
            Ok((confirmed, hash, loss, Box::new(trainer)))
        });
        let (confirmed, hash, loss, trainer) = load.await?;
        let first = Answer::Confirmed(Confirmed { step: confirmed, loss });
        Ok(Self {
            shared: Arc::clone(shared),
            id,
            shape,
            names,
            place,
            steps: Steps::new(confirmed, shared.limits, loss_on),
            hash,
            loss,
            trainer: Some(trainer),
            answers: [FromServer { message: Some(first) }].into(),
            unread: 1,
        })
    }

    /// Works until the device leaves or something is wrong.
    pub async fn run(
        mut self,
        mut messages: Streaming<FromDevice>,
        answers: mpsc::Sender<Result<FromServer, Status>>,
    ) {
        let shared = Arc::clone(&self.shared);
        let _attached = shared.metrics.attached.hold();
        let mut worker = None;
        let end = self.work(&mut messages, &answers, &mut worker).await;
        if let Some(worker) = worker {
            // The session's next stream begins behind what this one did.
            if let Ok(Ok((_, Done::Confirmed(..)))) = worker.await {
                shared.metrics.steps.add(1);
            }
        }
        let confirmed = self.steps.confirmed();
        let Err(status) = end else {
            tracing::info!(confirmed, "a device left");
            return;
        };
        shared.refuse(&status);
        _ = tokio::time::timeout(LAST_WORD, answers.send(Err(status))).await;
    }

    async fn work(
        &mut self,
        messages: &mut Streaming<FromDevice>,
        answers: &mpsc::Sender<Result<FromServer, Status>>,
        worker: &mut Option<Worker>,
    ) -> Result<(), Status> {
        let mut stopping = self.shared.stopping.clone();
        let unread_max = 2 * self.shared.limits.steps as usize + 2;
        loop {
            if worker.is_none() {
                if *stopping.borrow() {
                    return Err(Status::unavailable("the server stops"));
                }
                if self.place.was_lost() {
                    return Err(taken());
                }
                *worker = self.next_job();
            }
            if let Some(parts) = self.steps.next_output() {
                let answers = parts.into_iter().map(Answer::Output);
                self.answers.extend(answers.map(|a| FromServer { message: Some(a) }));
            }
            let is_idle = worker.is_none();
            let done = async {
                match worker.as_mut() {
                    Some(worker) => worker.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // What is lost ends behind the job at hand, at the loop's beginning.
                _ = stopping.wait_for(|&stop| stop), if is_idle => {}
                () = self.place.is_lost(), if is_idle => {}
                result = done => {
                    *worker = None;
                    self.is_done(result)?;
                }
                room = answers.reserve(), if !self.answers.is_empty() => {
                    let Ok(room) = room else { return Ok(()) };
                    if let Some(answer) = self.answers.pop_front() {
                        let is_output = matches!(answer.message, Some(Answer::Output(_)));
                        self.unread -= usize::from(!is_output);
                        room.send(Ok(answer));
                    }
                }
                message = messages.message(), if self.unread < unread_max => {
                    match read(message)? {
                        Some(message) => self.take(message)?,
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    fn take(&mut self, message: Said) -> Result<(), Status> {
        match message {
            Said::Attach(_) => Err(Status::invalid_argument("this stream is attached already")),
            Said::Begin(begin) => {
                let step = begin.step;
                let (cache, names) = (&self.shared.cache, &self.names);
                let cached = |key: &_, bytes| cache.pin(names.entry(key), bytes);
                let bits = self.steps.begin(begin, &self.shape, cached)?;
                self.answer(Answer::Wanted(Wanted { step, bits }));
                Ok(())
            }
            Said::Taps(taps) => self.steps.taps(&taps, &self.shape),
            Said::Ask(ask) => self.steps.ask(&ask),
            Said::Gradient(gradient) => self.steps.gradient(&gradient, &self.shape),
            Said::Labels(labels) => self.steps.labels(&labels),
            Said::Update(update) => {
                if self.steps.update(&update, &self.hash)? {
                    let confirmed = Confirmed { step: update.step, loss: self.loss };
                    self.answer(Answer::Confirmed(confirmed));
                }
                Ok(())
            }
        }
    }

    fn answer(&mut self, answer: Answer) {
        self.unread += 1;
        self.answers.push_back(FromServer { message: Some(answer) });
    }

    /// Hands the next job to a worker, as soon as one is free: first come, first served.
    fn next_job(&mut self) -> Option<Worker> {
        let job = self.steps.next_job(&self.shape)?;
        let mut trainer = self.trainer.take()?;
        let (shared, id, names) = (Arc::clone(&self.shared), self.id, self.names.clone());
        Some(tokio::spawn(async move {
            let workers = Arc::clone(&shared.workers);
            let turn = {
                let _waiting = shared.metrics.waiting.hold();
                workers.acquire_owned().await.map_err(internal)?
            };
            let of = Arc::clone(&shared);
            let work = tokio::task::spawn_blocking(move || {
                let (start, kind) = (Instant::now(), job.kind());
                let done = job.run(&of, id, &names, &mut trainer);
                of.metrics.worked(kind, start);
                drop(turn);
                done.map(|done| (trainer, done))
            });
            work.await.map_err(broken)?
        }))
    }

    fn is_done(
        &mut self,
        result: Result<Result<(Box<SideTrainer>, Done), Status>, JoinError>,
    ) -> Result<(), Status> {
        let (trainer, done) = result.map_err(broken)??;
        self.trainer = Some(trainer);
        match done {
            Done::Output(output) => self.steps.computed(output),
            Done::Added => {}
            Done::Learned(loss) => self.steps.learned(loss),
            Done::Confirmed(hash, loss) => {
                (self.hash, self.loss) = (hash, loss);
                self.steps.confirm();
                self.shared.metrics.steps.add(1);
                let step = self.steps.confirmed();
                self.answer(Answer::Confirmed(Confirmed { step, loss }));
            }
        }
        Ok(())
    }
}

impl Job {
    fn kind(&self) -> Work {
        match self {
            Self::Forward { .. } | Self::Again { .. } => Work::Forward,
            Self::Backward { .. } => Work::Backward,
            Self::Learn { .. } => Work::Learn,
            Self::Commit { .. } => Work::Commit,
        }
    }

    fn run(
        self,
        shared: &Shared,
        id: SessionId,
        names: &NameSpace,
        trainer: &mut SideTrainer,
    ) -> Result<Done, Status> {
        match self {
            Self::Forward { place, key, rows, taps } => {
                let output = trainer.forward(place as u64, rows, &taps).map_err(status)?;
                keep(shared, names, &key, &taps);
                Ok(Done::Output(to_bytes(&output)))
            }
            Self::Again { place, rows, taps } => {
                let taps = cached(&taps)?;
                let output = trainer.forward(place as u64, rows, &taps).map_err(status)?;
                Ok(Done::Output(to_bytes(&output)))
            }
            Self::Learn { place, key, taps, labels, factors } => {
                let (taps, is_new) = match taps {
                    Source::Sent(taps) => (taps, true),
                    Source::Cached(taps) => (cached(&taps)?, false),
                    Source::Used => return Err(Status::internal("taps are used once")),
                };
                let mut head = shared.head()?;
                let sample = (place as u64, taps.as_slice());
                let learned = trainer.learn(&mut head, sample, &labels, factors);
                shared.give_back(head);
                let loss = learned.map_err(status)?;
                if is_new {
                    keep(shared, names, &key, &taps);
                }
                Ok(Done::Learned(loss))
            }
            Self::Backward { place, gradient } => {
                trainer.backward(place as u64, &gradient).map_err(status)?;
                Ok(Done::Added)
            }
            Self::Commit { step, rate, hash, loss } => {
                trainer.update(rate).map_err(status)?;
                let state = trainer.state().map_err(status)?;
                if state.steps != step {
                    return Err(Status::internal("a trainer lost count of its steps"));
                }
                shared.store.commit(id, (hash, loss), &state).map_err(internal)?;
                Ok(Done::Confirmed(hash, loss))
            }
        }
    }
}

/// Keeps taps that were sent.
fn keep(shared: &Shared, names: &NameSpace, key: &SampleKey, taps: &[u8]) {
    if let Err(error) = shared.cache.put(names.entry(key), taps) {
        tracing::warn!(%error, "taps can't be cached");
    }
}

/// Taps that were sent before.
fn cached(taps: &Pinned) -> Result<Vec<u8>, Status> {
    taps.read().ok_or_else(|| {
        tracing::warn!("cached taps were damaged or gone");
        Status::aborted("cached taps were lost: begin again")
    })
}

/// A message; None where the device has left, be it without a word.
pub(super) fn read(message: Result<Option<FromDevice>, Status>) -> Result<Option<Said>, Status> {
    match message {
        Ok(None) => Ok(None),
        Ok(Some(FromDevice { message: Some(message) })) => Ok(Some(message)),
        Ok(Some(_)) => Err(Status::invalid_argument("a message of none of this protocol's kinds")),
        Err(status) => match status.code() {
            // So tonic calls what is no message.
            Code::Internal => Err(Status::invalid_argument(status.message())),
            Code::OutOfRange | Code::Unimplemented => Err(status),
            _ => Ok(None),
        },
    }
}

/// What is wrong with what the device sent, or with the server.
fn status(error: Error) -> Status {
    match error {
        Error::Tensor(_) => internal(error),
        Error::Size { .. }
        | Error::NoOutput { .. }
        | Error::NotFinite { .. }
        | Error::NoHead
        | Error::Loss(_) => Status::invalid_argument(error.to_string()),
    }
}

/// The server's own failure: what it is goes to its log.
pub(super) fn internal(error: impl std::fmt::Display) -> Status {
    tracing::error!(%error, "the server failed");
    Status::internal("the server failed; its log says how")
}

fn broken(error: JoinError) -> Status {
    internal(error)
}
