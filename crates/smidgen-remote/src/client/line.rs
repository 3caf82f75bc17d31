//! A connection: made, spoken over, and what its end means.

use std::error::Error as StdError;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use smidgen_train::LinkError;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tonic::{Code, Request, Status, Streaming};

use crate::proto::from_device::Message as Say;
use crate::proto::from_server::Message as Answer;
use crate::proto::side_tuning_client::SideTuningClient;
use crate::proto::{
    Attach, CloseRequest, FromDevice, FromServer, MESSAGE_BYTES_MAX, NetworkRequest, OpenReply,
    OpenRequest, read_numbers,
};

const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 128 << 10;
const STACK: usize = 512 << 10;
/// A server that is silent for so long is asked whether it is there, and has as long to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Where a server is, and how to speak to it.
#[derive(Clone)]
pub struct RemoteConfig {
    /// `https://host:port`; `http://` with a loopback address only.
    pub url: String,
    /// The authority that the server's certificate is by, PEM; without it, the web's own (Mozilla's
    /// list).
    pub ca: Option<Vec<u8>>,
    /// How the device shows who it is, where the server asks for that.
    pub identity: Option<ClientIdentity>,
    /// The token that the server knows.
    pub token: String,
    /// The longest wait for an answer, 1 s at least; a busy server has other devices' work to do
    /// first. Also for a connection.
    pub timeout: Duration,
    /// How long it is tried to connect again before the run is given up.
    pub retry_for: Duration,
    /// Once it is set, a server that can't be reached is not tried again: [`RemoteError::Stopped`],
    /// and [`LinkError::Stopped`] of a link. A server that is there is still waited for.
    pub stop: Arc<AtomicBool>,
}

/// A device's certificate.
#[derive(Clone)]
pub struct ClientIdentity {
    /// The certificate and those between it and the authority, PEM.
    pub certificate: Vec<u8>,
    /// Its key, PEM.
    pub key: Vec<u8>,
}

impl fmt::Debug for RemoteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RemoteConfig");
        debug.field("url", &self.url).field("timeout", &self.timeout);
        debug.field("retry_for", &self.retry_for).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

/// Why a server does not train.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A setting that can't be.
    #[error("{0}")]
    Setting(String),
    /// The server is there and refuses; trying again changes nothing.
    #[error("{url}: {reason}")]
    Refused {
        /// Where it is.
        url: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// No connection, however often it was tried.
    #[error(
        "{url} could not be reached for {} s: {reason}; the steps that it confirmed are safe: \
         resume the run when it is back", .tried.as_secs()
    )]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What went wrong last.
        reason: String,
        /// How long it was tried.
        tried: Duration,
    },
    /// No connection, and the caller wants no other try.
    #[error(
        "{url} can't be reached: {reason}; the steps that it confirmed are safe: resume the run when \
         it is back"
    )]
    Stopped {
        /// Where it should be.
        url: String,
        /// What went wrong last.
        reason: String,
    },
    /// The connection is made again and again, and no step comes to its end.
    #[error("{url}: the connection was lost {tries} times within one step, at last so: {reason}")]
    Unstable {
        /// Where the server is.
        url: String,
        /// What went wrong last.
        reason: String,
        /// How often it was lost.
        tries: usize,
    },
    /// The system gives no thread.
    #[error("no thread for the connection: {0}")]
    System(io::Error),
}

impl From<RemoteError> for LinkError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Stopped { .. } => Self::Stopped(error.into()),
            error => Self::failed(error),
        }
    }
}

/// What ended a call.
#[derive(Debug)]
pub(super) enum Failure {
    /// Trying again changes nothing.
    Final(RemoteError),
    /// The line.
    Lost(String),
}

impl Failure {
    /// The server does not keep to the protocol, as far as it is known here.
    pub fn unexpected(what: &str) -> Self {
        Self::Lost(format!("the server sent {what}"))
    }
}

/// Puts the token into each call.
#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Client = SideTuningClient<InterceptedService<Channel, Bearer>>;

/// A connection with a stream that is attached to a session.
pub(super) struct Line {
    client: Client,
    say: mpsc::Sender<FromDevice>,
    answers: Streaming<FromServer>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

/// How much of a network was taken.
#[derive(Debug)]
pub(super) struct Taken {
    /// Numbers in all.
    due: usize,
    count: usize,
    /// The step that it is of.
    step: Option<u64>,
}

impl Taken {
    /// Nothing of `due` numbers.
    pub fn none(due: usize) -> Self {
        Self { due, count: 0, step: None }
    }
}

/// Calls a server from a thread that may wait; another one moves the bytes.
pub(super) struct Caller {
    config: RemoteConfig,
    endpoint: Endpoint,
    bearer: Bearer,
    handle: Handle,
    /// Ends the thread.
    _stop: oneshot::Sender<()>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Caller {
    pub fn new(config: RemoteConfig) -> Result<Self, RemoteError> {
        let setting = |what: String| RemoteError::Setting(what);
        let endpoint = endpoint(&config)?;
        let bearer = format!("Bearer {}", config.token).parse();
        let bearer = bearer.map_err(|_| setting("a token is visible ASCII".to_owned()))?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .thread_stack_size(STACK)
            .build()
            .map_err(RemoteError::System)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new()
            .name("smidgen-link".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })
            .map_err(RemoteError::System)?;
        Ok(Self { config, endpoint, bearer: Bearer(bearer), handle, _stop: stop })
    }

    pub fn retry_for(&self) -> Duration {
        self.config.retry_for
    }

    pub fn unreachable(&self, reason: String, tried: Duration) -> RemoteError {
        RemoteError::Unreachable { url: self.config.url.clone(), reason, tried }
    }

    /// Waits, and tells whether there is to be another try.
    pub fn pause(&self, wait: Duration) -> bool {
        /// How often the flag is looked at.
        const LOOK: Duration = Duration::from_millis(100);
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.config.stop.load(Ordering::Relaxed) {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(LOOK));
        }
    }

    pub fn stopped(&self, reason: String) -> RemoteError {
        RemoteError::Stopped { url: self.config.url.clone(), reason }
    }

    pub fn gave_up(&self, failure: &Failure, tries: usize) -> RemoteError {
        let reason = match failure {
            Failure::Final(error) => error.to_string(),
            Failure::Lost(why) => why.clone(),
        };
        RemoteError::Unstable { url: self.config.url.clone(), reason, tries }
    }

    /// Opens the session and attaches a stream to it.
    pub fn open(&self, open: &OpenRequest) -> Result<(Line, OpenReply), Failure> {
        let mut client = self.connect()?;
        let reply = self.wait(client.open(open.clone()))?.into_inner();
        // Room for one message: the next one waits until this one is on its way.
        let (say, messages) = mpsc::channel(1);
        let attach = Attach { session: open.session.clone() };
        let first = FromDevice { message: Some(Say::Attach(attach)) };
        // There is room: nothing was said before.
        _ = say.try_send(first);
        let answers = self.wait(client.train(ReceiverStream::new(messages)))?.into_inner();
        Ok((Line { client, say, answers }, reply))
    }

    pub fn send(&self, line: &mut Line, message: Say) -> Result<(), Failure> {
        let message = FromDevice { message: Some(message) };
        let sent = self.in_time(line.say.send(message));
        match sent {
            Ok(Ok(())) => Ok(()),
            Err(_) => Err(Failure::Lost("the server took nothing any more".to_owned())),
            // The stream is over: it says why, behind what else it had to say.
            Ok(Err(_)) => loop {
                self.receive(line)?;
            },
        }
    }

    pub fn receive(&self, line: &mut Line) -> Result<Answer, Failure> {
        match self.wait(line.answers.message())? {
            Some(FromServer { message: Some(answer) }) => Ok(answer),
            Some(_) => Err(Failure::unexpected("a message of no kind")),
            None => Err(Failure::Lost("the server ended the stream".to_owned())),
        }
    }

    /// Gives the network's numbers to `take`, from behind those that were taken before.
    pub fn network(
        &self,
        line: &mut Line,
        session: &[u8],
        taken: &mut Taken,
        take: &mut dyn FnMut(&[f32]),
    ) -> Result<(), Failure> {
        let request = NetworkRequest { session: session.to_vec() };
        let mut parts = self.wait(line.client.network(request))?.into_inner();
        let (mut come, due) = (0, 4 * taken.due);
        let mut numbers = Vec::new();
        while come < due {
            let Some(part) = self.wait(parts.message())? else {
                return Err(Failure::Lost("the network broke off".to_owned()));
            };
            let is_due = part.offset == come as u64 && part.total == due as u64;
            let length = part.bytes.len();
            if !is_due || length == 0 || length > due - come || !length.is_multiple_of(4) {
                return Err(Failure::unexpected("a network of another size"));
            }
            if *taken.step.get_or_insert(part.step) != part.step {
                return Err(self.refused("the network moved while it was read".to_owned()));
            }
            let skipped = (4 * taken.count).saturating_sub(come).min(length);
            numbers.resize((length - skipped) / 4, 0.0);
            read_numbers(&part.bytes[skipped..], &mut numbers);
            if !numbers.is_empty() {
                take(&numbers);
            }
            taken.count += numbers.len();
            come += length;
        }
        Ok(())
    }

    pub fn close(&self, session: &[u8]) -> Result<(), Failure> {
        let mut client = self.connect()?;
        let request = CloseRequest { session: session.to_vec() };
        self.wait(client.close(request)).map(|_| ())
    }

    fn connect(&self) -> Result<Client, Failure> {
        let connected = self.in_time(self.endpoint.connect());
        let channel = match connected {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(self.failure(chain(&error), &error, None)),
            Err(_) => return Err(Failure::Lost("no connection came about".to_owned())),
        };
        Ok(SideTuningClient::with_interceptor(channel, self.bearer.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Waits as long as is allowed.
    fn in_time<T>(&self, what: impl Future<Output = T>) -> Result<T, Elapsed> {
        // The clock is the runtime's: a wait is made within it.
        self.handle.block_on(async { timeout(self.config.timeout, what).await })
    }

    /// Waits for an answer, as long as is allowed.
    fn wait<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
        match self.in_time(answer) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => {
                let mut text = status.message().to_owned();
                if let Some(source) = status.source() {
                    text = format!("{text}: {}", chain(source));
                }
                Err(self.failure(text, &status, Some(status.code())))
            }
            Err(_) => {
                let seconds = self.config.timeout.as_secs();
                Err(Failure::Lost(format!("no answer came for {seconds} s")))
            }
        }
    }

    fn refused(&self, reason: String) -> Failure {
        Failure::Final(RemoteError::Refused { url: self.config.url.clone(), reason })
    }

    /// What an error means: certificates that don't fit and what the server refuses stay so.
    fn failure(
        &self,
        text: String,
        error: &(dyn StdError + 'static),
        code: Option<Code>,
    ) -> Failure {
        if let Some(what) = certificate_error(error).or_else(|| alert_in(&text)) {
            return self.refused(what);
        }
        match code {
            Some(Code::Unauthenticated | Code::PermissionDenied) => {
                self.refused(format!("{text}; give the token that the server was started with"))
            }
            Some(
                Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::ResourceExhausted
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Unimplemented
                | Code::DataLoss,
            ) => self.refused(text),
            _ => Failure::Lost(text),
        }
    }
}

fn endpoint(config: &RemoteConfig) -> Result<Endpoint, RemoteError> {
    let setting = |what: String| RemoteError::Setting(format!("{}: {what}", config.url));
    if config.timeout < Duration::from_secs(1) {
        return Err(setting("an answer takes up to a second at least".to_owned()));
    }
    let uri: Uri = config.url.parse().map_err(|e| setting(format!("no address: {e}")))?;
    let is_plain = match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(_)) => false,
        (Some("http"), Some(host)) if is_loopback(host) => true,
        (Some("http"), Some(_)) => {
            let what =
                "the token and the taps would go over the network for all to read; use https";
            return Err(setting(what.to_owned()));
        }
        _ => return Err(setting("an address is https://HOST:PORT".to_owned())),
    };
    let endpoint = Endpoint::from(uri)
        .connect_timeout(config.timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .buffer_size(8)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    if is_plain {
        return Ok(endpoint);
    }
    let mut tls = ClientTlsConfig::new().timeout(config.timeout);
    tls = match &config.ca {
        Some(ca) => tls.ca_certificate(Certificate::from_pem(ca)),
        None => tls.with_webpki_roots(),
    };
    if let Some(ClientIdentity { certificate, key }) = &config.identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    endpoint.tls_config(tls).map_err(|e| setting(chain(&e)))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
}

/// What is wrong with the device's certificate, if the server said so. That comes when the connection
/// is in use already, and HTTP/2 hands only the text on.
fn alert_in(text: &str) -> Option<String> {
    const ALERTS: [(&str, &str); 8] = [
        ("CertificateExpired", "has expired; renew it"),
        ("CertificateRequired", "is missing; the server asks for one"),
        ("UnknownCA", "is none that the server accepts"),
        ("BadCertificate", "is none that the server accepts"),
        ("CertificateUnknown", "is none that the server accepts"),
        ("UnsupportedCertificate", "is none that the server accepts"),
        ("DecryptError", "is none that the server accepts"),
        ("AccessDenied", "is refused"),
    ];
    let (_, alert) = text.split_once("received fatal alert: ")?;
    let (name, what) = ALERTS.iter().find(|(name, _)| alert.starts_with(name))?;
    Some(format!("the device's certificate {what} ({name})"))
}

/// What is wrong with the server's certificate, if that is what an error comes from.
fn certificate_error(error: &(dyn StdError + 'static)) -> Option<String> {
    use rustls::{CertificateError as Bad, Error as Tls};
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<Tls>());
        let tls = tls.or_else(|| error.downcast_ref::<Tls>());
        if let Some(Tls::InvalidCertificate(bad)) = tls {
            let what = match bad {
                Bad::Expired | Bad::ExpiredContext { .. } => "has expired; renew it there",
                Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                    "is not valid yet; see to the clocks"
                }
                Bad::UnknownIssuer | Bad::BadSignature => {
                    "is by an unknown authority; give that one's certificate"
                }
                Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                    "is not for this host; use the name that is in it"
                }
                _ => "is not accepted",
            };
            return Some(format!("the server's certificate {what} ({bad})"));
        }
        next = inner.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source());
    }
    None
}

/// An error with all that it comes from.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

/// A number from 0 to 1, another one each time.
pub(super) fn chance() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}
