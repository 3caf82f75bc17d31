//! The server: many sessions of side tuning for devices of several owners.
//!
//! What a confirmed step left is in a file (`store.rs`) before the device hears of it, and a stream
//! begins with what that file holds: after a restart, a lost connection and a failure alike. Taps are
//! kept in files of their own (`cache.rs`), so that they are sent once. A session's stream is one task
//! (`session.rs`) over what came of its steps (`step.rs`).
//!
//! It prints nothing, reads no environment and tells what it does by way of `tracing`, without keys,
//! tokens or contents.

mod cache;
mod limits;
mod listener;
mod metrics;
mod service;
mod session;
mod shape;
mod step;
mod store;

pub use limits::{Limits, Token};

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use candle_core::Device;
use smidgen_train::{Base, SideHead};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic::{Request, Status};

use crate::proto::side_tuning_server::SideTuningServer;
use crate::proto::{Loss, MESSAGE_BYTES_MAX, OpenRequest};
use cache::Cache;
use limits::Tokens;
use metrics::Metrics;
use service::Service;
use session::Seat;
use store::{SessionId, Store};

/// Of an HTTP/2 stream and connection: bytes that come before they are asked for.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Calls at once on a connection.
const STREAMS_MAX: u32 = 32;
/// A peer that is silent for so long is asked whether it is there, and has as long to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long what is under way may take once the server is to stop.
const STOP: Duration = Duration::from_secs(10);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens; port 0 for any that is free.
    pub listen: SocketAddr,
    /// Without it, `listen` is a loopback address.
    pub tls: Option<ServerTls>,
    /// Who may train, at least one.
    pub tokens: Vec<Token>,
    /// What each of them may do.
    pub limits: Limits,
    /// The file with all sessions; made if it is not there.
    pub state: PathBuf,
    /// The folder with taps that were sent; made if it is not there.
    pub cache: PathBuf,
    /// Bytes of files in that folder; 0 to keep none.
    pub cache_bytes_max: u64,
    /// Where Prometheus finds /metrics, by plain HTTP and without a token.
    pub metrics: Option<SocketAddr>,
    /// Sessions that are worked for at the same time, at least 1. A session's taps are in memory as
    /// f32 while it is.
    pub workers: usize,
    /// Open connections, at least 1; the others wait.
    pub connections: usize,
    /// The model whose head losses are computed with, for devices that tell labels; of its file only
    /// the head's part is read. None to refuse them.
    pub model: Option<Arc<Base>>,
}

/// How a server shows who it is.
#[derive(Clone)]
pub struct ServerTls {
    /// Its certificate and those between it and the authority, PEM.
    pub certificate: Vec<u8>,
    /// Its key, PEM.
    pub key: Vec<u8>,
    /// The authority of the devices' certificates, PEM: devices without one are refused.
    pub client_ca: Option<Vec<u8>>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("client_ca", &self.client_ca.is_some()).finish()
    }
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting that can't be.
    #[error("{0}")]
    Setting(String),
    /// An address can't be listened at.
    #[error("can't listen at {address}: {error}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// The sessions' file.
    #[error("{}: {error}", .path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        error: Box<redb::Error>,
    },
    /// The cache's folder.
    #[error("{}: {error}", .path.display())]
    Cache {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// Certificates, the key, or what serves connections.
    #[error("{0}")]
    Transport(String),
    /// The system gives no thread.
    #[error("the server can't start: {0}")]
    System(io::Error),
    /// The model.
    #[error("the model: {0}")]
    Model(smidgen_train::Error),
}

/// A server that runs, until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    metrics_addr: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<Result<(), ServerError>>>,
}

impl Server {
    /// Starts a server in threads of its own.
    ///
    /// # Errors
    /// All of [`ServerError`].
    pub fn start(config: ServerConfig) -> Result<Self, ServerError> {
        config.check()?;
        let (stop, stopping) = watch::channel(false);
        let mut builder = tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE));
        if let Some(tls) = &config.tls {
            builder = builder.tls_config(tls.config()).map_err(transport)?;
        }
        let shared = Arc::new(Shared::open(&config, stopping)?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            // Beside those that compute, some that read the sessions' file.
            .max_blocking_threads(config.workers.saturating_add(8))
            .thread_name("smidgen-serve")
            .enable_all()
            .build()
            .map_err(ServerError::System)?;
        let (listener, local_addr) = listen(&runtime, config.listen)?;
        let mut metrics_addr = None;
        if let Some(address) = config.metrics {
            let (listener, address) = listen(&runtime, address)?;
            metrics_addr = Some(address);
            runtime.spawn(listener::metrics_page(listener, Arc::clone(&shared.metrics)));
        }
        let run = move || {
            let served = runtime.block_on(serve(builder, shared, listener, config.connections));
            runtime.shutdown_timeout(STOP);
            served
        };
        let thread = thread::Builder::new().name("smidgen-serve".to_owned()).spawn(run);
        let thread = Some(thread.map_err(ServerError::System)?);
        tracing::info!(%local_addr, "the server listens");
        Ok(Self { local_addr, metrics_addr, stop, thread })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where its metrics are.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// Whether it has ended, by itself or because it was told to.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(|thread| thread.is_finished())
    }

    /// Has it end: no new connections, and streams end behind the work at hand. Does not wait.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// What it ended by, if not by [`Server::stop`].
    pub fn join(mut self) -> Result<(), ServerError> {
        self.wait()
    }

    fn wait(&mut self) -> Result<(), ServerError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let broken = |_| ServerError::Transport("the server's thread broke down".to_owned());
        thread.join().map_err(broken)?
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = self.wait() {
            tracing::error!(%error, "the server ended");
        }
    }
}

impl ServerTls {
    fn config(&self) -> ServerTlsConfig {
        let identity = Identity::from_pem(&self.certificate, &self.key);
        let config = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE);
        match &self.client_ca {
            Some(ca) => config.client_ca_root(Certificate::from_pem(ca)),
            None => config,
        }
    }
}

impl ServerConfig {
    fn check(&self) -> Result<(), ServerError> {
        if self.tls.is_none() && !self.listen.ip().is_loopback() {
            return Err(ServerError::Setting(format!(
                "{} is no loopback address: tokens and taps would go over the network for all to \
                 read; give a certificate and its key",
                self.listen
            )));
        }
        for (what, count) in [("workers", self.workers), ("connections", self.connections)] {
            if !(1..=Semaphore::MAX_PERMITS).contains(&count) {
                return Err(ServerError::Setting(format!("{count} {what}: at least 1")));
            }
        }
        Ok(())
    }
}

fn listen(
    runtime: &Runtime,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), ServerError> {
    let bound = runtime.block_on(TcpListener::bind(address));
    let bound = bound.and_then(|listener| listener.local_addr().map(|at| (listener, at)));
    bound.map_err(|error| ServerError::Listen { address, error })
}

/// Serves until it is to stop.
async fn serve(
    mut builder: tonic::transport::Server,
    shared: Arc<Shared>,
    listener: TcpListener,
    connections: usize,
) -> Result<(), ServerError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<SideTuningServer<Service>>().await;
    let connections = listener::accept(listener, connections, Arc::clone(&shared.metrics));
    let (mut stopping, mut stopped) = (shared.stopping.clone(), shared.stopping.clone());
    let stop = async move {
        _ = stopping.wait_for(|&stop| stop).await;
        reporter.set_not_serving::<SideTuningServer<Service>>().await;
    };
    let service = SideTuningServer::new(Service(shared))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let served = builder
        .add_service(health)
        .add_service(service)
        .serve_with_incoming_shutdown(connections, stop);
    let late = async move {
        _ = stopped.wait_for(|&stop| stop).await;
        tokio::time::sleep(STOP).await;
    };
    tokio::select! {
        served = served => served.map_err(transport),
        () = late => Ok(()),
    }
}

/// An error with what it comes from.
fn transport(error: tonic::transport::Error) -> ServerError {
    let mut text = error.to_string();
    let mut error: &dyn std::error::Error = &error;
    while let Some(source) = error.source() {
        text = format!("{text}: {source}");
        error = source;
    }
    ServerError::Transport(text)
}

/// What all calls have in common.
#[derive(Debug)]
struct Shared {
    tokens: Tokens,
    limits: Limits,
    store: Arc<Store>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    /// Fair: first come, first served.
    workers: Arc<Semaphore>,
    seats: Mutex<HashMap<SessionId, Arc<Seat>>>,
    stopping: watch::Receiver<bool>,
    device: Device,
    model: Option<Model>,
}

/// What losses are computed with.
#[derive(Debug)]
struct Model {
    base: Arc<Base>,
    fingerprint: Vec<u8>,
    /// Heads that no worker has; there are never more than workers.
    heads: Mutex<Vec<SideHead>>,
}

impl Shared {
    fn open(config: &ServerConfig, stopping: watch::Receiver<bool>) -> Result<Self, ServerError> {
        let tokens = Tokens::new(config.tokens.clone())?;
        let metrics = Arc::new(Metrics::default());
        let of_state = |error: redb::Error| ServerError::State {
            path: config.state.clone(),
            error: Box::new(error),
        };
        let store = Store::open(&config.state).map_err(of_state)?;
        metrics.stored.set(store.count().map_err(of_state)?);
        let cache = Cache::open(&config.cache, config.cache_bytes_max, Arc::clone(&metrics));
        let of_cache = |error| ServerError::Cache { path: config.cache.clone(), error };
        let model = config.model.as_ref().map(|base| {
            let fingerprint = base.fingerprint()?.as_bytes().to_vec();
            Ok(Model { base: Arc::clone(base), fingerprint, heads: Mutex::default() })
        });
        Ok(Self {
            tokens,
            limits: config.limits,
            store: Arc::new(store),
            cache: cache.map_err(of_cache)?,
            metrics,
            workers: Arc::new(Semaphore::new(config.workers)),
            seats: Mutex::default(),
            stopping,
            device: Device::Cpu,
            model: model.transpose().map_err(ServerError::Model)?,
        })
    }

    /// Whose call this is.
    fn owner<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let header = request.metadata().get("authorization").and_then(|h| h.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        match token.and_then(|token| self.tokens.owner(token)) {
            Some(owner) => Ok(owner.to_owned()),
            None => {
                let status = Status::unauthenticated("the token is none of this server's");
                self.refuse(&status);
                Err(status)
            }
        }
    }

    /// Counts and logs what was refused. Texts of statuses are made here, so they tell no secrets.
    fn refuse(&self, status: &Status) {
        self.metrics.refuse(status.code());
        tracing::info!(code = ?status.code(), reason = status.message(), "refused");
    }

    /// Waits for what blocks.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        tokio::task::spawn_blocking(work).await.map_err(session::internal)?
    }

    /// Refuses a session whose loss can't be computed here and is to be.
    fn check_loss(&self, open: &OpenRequest) -> Result<(), Status> {
        let wrong = match (open.loss(), &self.model) {
            (Loss::OnDevice, _) => return Ok(()),
            (Loss::OnServer, None) => {
                "this server has no model to compute losses with: start it with one, or compute them \
                 on the device"
            }
            (Loss::OnServer, Some(model)) if model.fingerprint != open.fingerprint => {
                "this server's model is another one than the device's: use the same file on both, or \
                 compute losses on the device"
            }
            (Loss::OnServer, Some(_)) => return Ok(()),
        };
        Err(Status::failed_precondition(wrong))
    }

    /// A head for a worker, which gives it back.
    fn head(&self) -> Result<SideHead, Status> {
        let Some(model) = &self.model else { return Err(Status::internal("no model")) };
        let free = model.heads.lock().unwrap_or_else(|e| e.into_inner()).pop();
        // Sessions are worked for at the same time, each with a thread.
        free.map_or_else(|| SideHead::new(&model.base, 1), Ok).map_err(session::internal)
    }

    fn give_back(&self, head: SideHead) {
        if let Some(model) = &self.model {
            model.heads.lock().unwrap_or_else(|e| e.into_inner()).push(head);
        }
    }

    fn seat(&self, id: SessionId) -> Arc<Seat> {
        Arc::clone(self.seats().entry(id).or_default())
    }

    fn forget(&self, id: SessionId) {
        self.seats().remove(&id);
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(|e| e.into_inner())
    }
}
