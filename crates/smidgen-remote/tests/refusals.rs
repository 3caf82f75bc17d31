//! What is refused, what is said of it, and that a session beside it goes on as if nothing were.

mod wire;

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prost::Message as _;
use prost::bytes::{Buf, BufMut, Bytes};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use smidgen_kernels::{Philox, TapRounding};
use smidgen_remote::proto::from_device::Message as Say;
use smidgen_remote::proto::side_tuning_client::SideTuningClient;
use smidgen_remote::proto::{
    Ask, Attach, Begin, FromDevice, FromServer, Gradient, Labels, NetworkRequest, OpenRequest,
    Sample, Settings, StepHash, Taps, Update, from_server,
};
use smidgen_remote::{
    ClientIdentity, Limits, RemoteConfig, RemoteError, RemoteLink, RemoteSession, Server,
    ServerConfig, ServerError, ServerTls, Token,
};
use smidgen_train::{Base, LinkError, LossOn, SideConfig, SideLink, SideShape, TapFormat};
use tokio::runtime::{Builder, Runtime};
use tokio_stream::{Stream, StreamExt as _};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use wire::{Dummy, TOKEN, bits, metric, metrics, open, remote, session, settings, shape};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn refused(config: RemoteConfig, session: RemoteSession) -> String {
    let start = Instant::now();
    let error = RemoteLink::open(config, session).expect_err("refused");
    assert!(start.elapsed() < Duration::from_secs(50), "{error}: tried for {:?}", start.elapsed());
    assert!(matches!(error, RemoteError::Refused { .. } | RemoteError::Setting(_)), "{error:?}");
    error.to_string()
}

#[test]
fn settings_that_cannot_be_are_refused_before_anything_listens() {
    let place = tempfile::tempdir().expect("a folder");
    let said = |change: &dyn Fn(&mut smidgen_remote::ServerConfig)| {
        let mut config = settings(place.path());
        change(&mut config);
        match Server::start(config) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("it started"),
        }
    };
    assert!(said(&|c| c.listen = "0.0.0.0:0".parse().expect("one")).contains("certificate"));
    assert!(said(&|c| c.tokens.clear()).contains("no token"));
    assert!(
        said(&|c| c.tokens = vec![Token::new("a", "x"), Token::new("a", "y")]).contains("\"a\"")
    );
    assert!(
        said(&|c| c.tokens = vec![Token::new("a", "x"), Token::new("b", "x")]).contains("\"b\"")
    );
    assert!(said(&|c| c.workers = 0).contains("0 workers"));
    assert!(said(&|c| c.connections = 0).contains("0 connections"));
    assert!(said(&|c| c.state = place.path().join("no/such")).contains("no/such"));
    let tls = ServerTls { certificate: b"?".to_vec(), key: b"?".to_vec(), client_ca: None };
    assert!(!said(&|c| c.tls = Some(tls.clone())).is_empty());
    let server = Server::start(settings(place.path())).expect("a server");
    // One process has the sessions' file.
    let second = Server::start(settings(place.path()));
    assert!(matches!(second, Err(ServerError::State { .. })), "{second:?}");
    let taken = server.local_addr();
    let other = tempfile::tempdir().expect("a folder");
    let mut config = settings(other.path());
    config.listen = taken;
    assert!(matches!(Server::start(config), Err(ServerError::Listen { .. })));
}

#[test]
fn a_device_is_told_what_is_wrong_with_its_settings() {
    let place = tempfile::tempdir().expect("a folder");
    let server = Server::start(settings(place.path())).expect("a server");
    let (config, shape) = (remote(server.local_addr()), shape(TapFormat::F16));
    let session = session(1, &shape);
    let url = |url: &str| RemoteConfig { url: url.to_owned(), ..config.clone() };
    assert!(refused(url("http://10.0.0.1:1"), session.clone()).contains("use https"));
    assert!(refused(url("ftp://10.0.0.1:1"), session.clone()).contains("https://HOST:PORT"));
    assert!(refused(url("https://a b"), session.clone()).contains("no address"));
    let token = RemoteConfig { token: "a\nb".to_owned(), ..config.clone() };
    assert!(refused(token, session.clone()).contains("visible ASCII"));
    let token = RemoteConfig { token: "open sesam".to_owned(), ..config.clone() };
    assert!(refused(token, session.clone()).contains("give the token"));
    let absent = RemoteSession { resume: true, ..session.clone() };
    assert!(refused(config.clone(), absent.clone()).contains("no such session"));

    let mut link = RemoteLink::open(config.clone(), session.clone()).expect("a link");
    Dummy { steps: 2, ..Dummy::new(shape.clone()) }.train(&mut link).expect("trained");
    // Another owner does not learn that it is there.
    let theirs = RemoteConfig { token: "another".to_owned(), ..config.clone() };
    assert!(refused(theirs.clone(), absent).contains("no such session"));
    assert!(refused(theirs, session.clone()).contains("another name"));
    assert!(refused(config.clone(), session.clone()).contains("has 2 steps already"));
    let other = SideConfig { width: 9, ..*shape.config() };
    let other = SideShape::new(other, 4, 32).expect("a shape");
    for change in [
        RemoteSession { shape: other, ..session.clone() },
        RemoteSession { seed: 5, ..session.clone() },
        RemoteSession { weight_decay: 0.5, ..session.clone() },
        RemoteSession { fingerprint: vec![1], ..session.clone() },
    ] {
        let change = RemoteSession { resume: true, ..change };
        assert!(refused(config.clone(), change).contains("opened with other settings"));
    }
    let empty = RemoteSession { id: [9; 16], fingerprint: Vec::new(), ..session.clone() };
    assert!(refused(config.clone(), empty).contains("1 to 64 bytes"));
    let decay = RemoteSession { id: [9; 16], weight_decay: f64::NAN, ..session };
    assert!(refused(config, decay).contains("weight decay"));
    assert_eq!(metric(&server, "sessions_stored"), 1.0);
}

#[test]
fn quotas_hold() {
    let place = tempfile::tempdir().expect("a folder");
    let mut config = settings(place.path());
    let dummy = Dummy::new(shape(TapFormat::F16));
    let parameters = dummy.shape.len() as u64;
    // The taps of one step with three samples of up to 7 rows.
    let step_bytes = dummy.batch(1).iter().map(|s| s.rows as u64).sum::<u64>() * 3 * 64;
    config.limits = Limits {
        sessions: 2,
        parameters,
        rows: 7,
        samples: 3,
        steps: 2,
        tap_bytes: step_bytes + 100,
    };
    let server = Server::start(config).expect("a server");
    let (at, shape) = (remote(server.local_addr()), &dummy.shape);
    let large = SideConfig { width: 9, ..*shape.config() };
    let large = SideShape::new(large, 4, 32).expect("a shape");
    let said = refused(at.clone(), session(1, &large));
    assert!(said.contains(&format!("allows {parameters}")), "{said}");
    let mut first = open(server.local_addr(), 1, shape);
    assert_eq!((first.limits().rows, first.limits().steps), (7, 2));
    let _second = open(server.local_addr(), 2, shape);
    assert!(refused(at.clone(), session(3, shape)).contains("close one"));
    // The other token has its own.
    let other = RemoteConfig { token: "another".to_owned(), ..at };
    _ = RemoteLink::open(other, session(3, shape)).expect("a link");

    let mut refused = |step, samples: &[_]| match first.begin(step, samples) {
        Err(LinkError::Failed(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let mut long = dummy.batch(1);
    long[1].rows = 8;
    assert!(refused(1, &long).contains("8 rows of a sample: the server allows 7"));
    let mut link = open(server.local_addr(), 1, shape);
    let mut refused = |step, samples: &[_]| match link.begin(step, samples) {
        Err(LinkError::Failed(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refused(1, &[long[0]; 4]).contains("4 samples of a step"));
    let mut link = open(server.local_addr(), 1, shape);
    link.begin(1, &dummy.batch(1)).expect("begun");
    let Err(LinkError::Failed(error)) = link.begin(2, &dummy.batch(2)) else { panic!("room") };
    assert!(error.to_string().contains("bytes of taps and labels under way"), "{error}");
    let mut link = open(server.local_addr(), 1, shape);
    let one = &dummy.batch(1)[..1];
    link.begin(1, one).expect("begun");
    link.begin(2, one).expect("begun");
    let Err(LinkError::Failed(error)) = link.begin(3, one) else { panic!("room") };
    assert!(error.to_string().contains("3 steps under way"), "{error}");
    assert!(metrics(&server).contains("refusals_total{reason=\"ResourceExhausted\"} "));
}

/// A certificate's authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: Vec<u8>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("settings");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem().into_bytes();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key for `host`.
    fn sign(&self, host: &str, years: [i32; 2]) -> ClientIdentity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([host.to_owned()]).expect("settings");
        params.not_before = date_time_ymd(years[0], 1, 1);
        params.not_after = date_time_ymd(years[1], 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        ClientIdentity {
            certificate: certificate.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        }
    }
}

const NOW: [i32; 2] = [2020, 2090];

#[test]
fn certificates_are_checked_on_both_sides() {
    let place = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let start = |identity: ClientIdentity, client_ca| {
        let ClientIdentity { certificate, key } = identity;
        let mut config = settings(place.path());
        config.tls = Some(ServerTls { certificate, key, client_ca });
        Server::start(config).expect("a server")
    };
    let shape = shape(TapFormat::F16);
    let at = |server: &Server, ca: &Authority| RemoteConfig {
        url: format!("https://localhost:{}", server.local_addr().port()),
        ca: Some(ca.pem.clone()),
        ..remote(server.local_addr())
    };
    let session = session(1, &shape);

    let server = start(ours.sign("localhost", NOW), None);
    let said = refused(at(&server, &theirs), session.clone());
    assert!(said.contains("unknown authority"), "{said}");
    let web = RemoteConfig { ca: None, ..at(&server, &ours) };
    let said = refused(web, session.clone());
    assert!(said.contains("unknown authority"), "{said}");
    let mut link = RemoteLink::open(at(&server, &ours), session.clone()).expect("a link");
    let dummy = Dummy { steps: 3, ..Dummy::new(shape.clone()) };
    let (found, _) = dummy.train(&mut link).expect("trained");
    assert_eq!(bits(&found), bits(&dummy.expected()));
    drop((link, server));

    let server = start(ours.sign("localhost", [2019, 2020]), None);
    let said = refused(at(&server, &ours), session.clone());
    assert!(said.contains("has expired; renew it"), "{said}");
    drop(server);
    let server = start(ours.sign("elsewhere", NOW), None);
    let said = refused(at(&server, &ours), session.clone());
    assert!(said.contains("not for this host"), "{said}");
    drop(server);

    // Devices need certificates too.
    let server = start(ours.sign("localhost", NOW), Some(ours.pem.clone()));
    let session = RemoteSession { id: [2; 16], ..session };
    let said = refused(at(&server, &ours), session.clone());
    assert!(said.contains("certificate is missing"), "{said}");
    let with = |identity| RemoteConfig { identity: Some(identity), ..at(&server, &ours) };
    let said = refused(with(theirs.sign("device", NOW)), session.clone());
    assert!(said.contains("none that the server accepts"), "{said}");
    let said = refused(with(ours.sign("device", [2019, 2020])), session.clone());
    assert!(said.contains("has expired"), "{said}");
    RemoteLink::open(with(ours.sign("device", NOW)), session).expect("a link");
}

/// Bytes as they are for messages.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A device that says what it likes.
struct Liar {
    runtime: Runtime,
    channel: Channel,
}

impl Liar {
    fn new(address: SocketAddr) -> Self {
        let runtime = runtime();
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = runtime.block_on(endpoint.connect()).expect("a connection");
        Self { runtime, channel }
    }

    fn request<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {TOKEN}").parse().expect("a header");
        request.metadata_mut().insert("authorization", bearer);
        request
    }

    /// What a stream ends with that gives these messages and no more; answers are read meanwhile.
    fn train(&self, messages: Vec<Bytes>) -> Status {
        self.end(tokio_stream::iter(messages))
    }

    /// The same where the device stays for more.
    fn stay(&self, messages: Vec<Bytes>) -> Status {
        self.end(tokio_stream::iter(messages).chain(tokio_stream::pending()))
    }

    fn end(&self, messages: impl Stream<Item = Bytes> + Send + 'static) -> Status {
        self.runtime.block_on(async {
            let mut client = tonic::client::Grpc::new(self.channel.clone());
            client.ready().await.expect("a connection");
            let path = "/smidgen.side.v1.SideTuning/Train".parse().expect("a path");
            let answers = client.streaming(Self::request(messages), path, Raw).await;
            let mut answers = match answers {
                Ok(answers) => answers.into_inner(),
                Err(status) => return status,
            };
            loop {
                match answers.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                }
            }
        })
    }
}

fn encoded(messages: impl IntoIterator<Item = Say>) -> Vec<Bytes> {
    let wrapped = messages.into_iter().map(|message| FromDevice { message: Some(message) });
    wrapped.map(|message| message.encode_to_vec().into()).collect()
}

fn attach(id: u8) -> Say {
    Say::Attach(Attach { session: vec![id; 16] })
}

fn begin(dummy: &Dummy, step: u64) -> Say {
    let samples = dummy.batch(step).into_iter();
    let samples = samples.map(|s| Sample { key: s.key.to_vec(), rows: s.rows as u32 });
    Say::Begin(Begin { step, samples: samples.collect() })
}

fn taps(step: u64, place: u32, offset: u64, bytes: Vec<u8>) -> Say {
    Say::Taps(Taps { step, place, offset, bytes })
}

/// A session that trains until it is told to stop, and must come to the right end.
struct Healthy {
    stop: Arc<AtomicBool>,
    training: thread::JoinHandle<(Dummy, Vec<f32>)>,
}

impl Healthy {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&stop);
        let training = thread::spawn(move || {
            let mut dummy = Dummy { window: 2, ..Dummy::new(shape(TapFormat::F16)) };
            // Another model's taps, which no other session finds in the cache.
            let fingerprint = b"healthy".to_vec();
            let session = RemoteSession { fingerprint, ..session(200, &dummy.shape) };
            let mut link = RemoteLink::open(remote(address), session).expect("a link");
            dummy.steps = 0;
            let mut sent = 0;
            while dummy.steps < 4 || !seen.load(Ordering::Relaxed) {
                dummy.steps += 2;
                dummy.try_train(&mut link, &mut sent).expect("undisturbed");
            }
            let found = wire::numbers(&mut link).expect("numbers");
            (dummy, found)
        });
        Self { stop, training }
    }

    fn ends_right(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (dummy, found) = self.training.join().expect("undisturbed");
        assert_eq!(bits(&found), bits(&dummy.expected()));
    }
}

#[test]
fn messages_that_cannot_be_end_their_own_stream() {
    let place = tempfile::tempdir().expect("a folder");
    let server = Server::start(settings(place.path())).expect("a server");
    let healthy = Healthy::start(server.local_addr());
    let dummy = Dummy { steps: 1, ..Dummy::new(shape(TapFormat::F16)) };
    let mut link = open(server.local_addr(), 1, &dummy.shape);
    dummy.train(&mut link).expect("trained");
    drop(link);
    let liar = Liar::new(server.local_addr());
    let all = |place| dummy.taps(2, place);
    let update = |step, rate, hash: Vec<u8>| Say::Update(Update { step, rate, hash });
    let gradient =
        |place, offset, bytes: Vec<u8>| Say::Gradient(Gradient { step: 2, place, offset, bytes });
    let bad = Code::InvalidArgument;
    let key = vec![0xaa; 16];
    let rows = dummy.batch(2)[0].rows as u32;
    let unknown = Say::Begin(Begin { step: 2, samples: vec![Sample { key, rows }] });
    let cases: Vec<(Vec<Say>, Code, &str)> = vec![
        (vec![begin(&dummy, 2)], bad, "first message is Attach"),
        (vec![Say::Attach(Attach { session: vec![1; 15] })], bad, "16 bytes, not 15"),
        (vec![attach(99)], Code::NotFound, "no such session"),
        (vec![attach(1), attach(1)], bad, "attached already"),
        (vec![attach(1), begin(&dummy, 3)], bad, "step 3 begins where 2 is due"),
        // The confirmed step again.
        (vec![attach(1), begin(&dummy, 1)], bad, "step 1 begins where 2 is due"),
        (vec![attach(1), update(1, 1e-2, vec![0; 32])], Code::AlreadyExists, "other contents"),
        (vec![attach(1), update(1, 1e-2, vec![0; 31])], bad, "32 bytes"),
        (vec![attach(1), update(2, 1e-2, vec![0; 32])], bad, "not under way"),
        (vec![attach(1), taps(2, 0, 0, all(0))], bad, "not under way"),
        (vec![attach(1), begin(&dummy, 2), taps(2, 3, 0, all(0))], bad, "no place 3"),
        (vec![attach(1), begin(&dummy, 2), taps(2, 0, 1, all(0))], bad, "came before"),
        (vec![attach(1), begin(&dummy, 2), taps(2, 0, 0, Vec::new())], bad, "0 bytes"),
        (vec![attach(1), begin(&dummy, 2), taps(2, 0, 0, vec![0; 9000])], bad, "9000 bytes"),
        (
            vec![attach(1), begin(&dummy, 2), taps(2, 0, 0, vec![0; 262_145])],
            bad,
            "go into a message",
        ),
        (
            vec![attach(1), begin(&dummy, 2), taps(2, 0, 0, all(0)), taps(2, 0, 0, all(0))],
            bad,
            "taps",
        ),
        (
            vec![attach(1), unknown.clone(), taps(2, 0, 0, vec![0xff; all(0).len()])],
            bad,
            "not finite",
        ),
        (vec![attach(1), begin(&dummy, 2), gradient(0, 0, vec![0; 4])], bad, "after its output"),
        (vec![attach(1), begin(&dummy, 2), update(2, 1e-2, vec![0; 32])], bad, "0 of 3"),
        (vec![attach(1), begin(&dummy, 2), update(2, f64::NAN, vec![0; 32])], bad, "NaN"),
        (vec![attach(1), Say::Ask(Ask { step: 2, place: 0 })], bad, "not under way"),
        (
            vec![attach(1), begin(&dummy, 2), Say::Ask(Ask { step: 2, place: 1 })],
            bad,
            "not the next",
        ),
        (
            vec![
                attach(1),
                begin(&dummy, 2),
                begin(&dummy, 3),
                Say::Ask(Ask { step: 3, place: 0 }),
            ],
            bad,
            "not the next",
        ),
        (
            vec![attach(1), Say::Begin(Begin { step: 2, samples: vec![Sample::default()] })],
            bad,
            "key of 0 bytes",
        ),
        (
            vec![
                attach(1),
                Say::Begin(Begin {
                    step: 2,
                    samples: vec![Sample { key: vec![0; 16], rows: u32::MAX }],
                }),
            ],
            Code::ResourceExhausted,
            "rows of a sample",
        ),
    ];
    for (messages, code, text) in cases {
        let what = format!("{messages:?}");
        let what = &what[..what.len().min(300)];
        let status = liar.stay(encoded(messages));
        assert_eq!(status.code(), code, "{what}: {status}");
        assert!(status.message().contains(text), "{what}: {status}");
    }
    // What is no message at all, or a long one.
    let status = liar.stay(vec![Bytes::from_static(b"\xff\xff\xff")]);
    assert_eq!(status.code(), bad, "{status}");
    let status = liar.stay(vec![Bytes::new()]);
    assert!(status.code() == bad && status.message().contains("kinds"), "{status}");
    let long = encoded([attach(1), taps(2, 0, 0, vec![0; 2 << 20])]);
    assert_eq!(liar.stay(long).code(), Code::OutOfRange);
    // The session is as it was.
    let again = RemoteSession { resume: true, ..session(1, &dummy.shape) };
    let mut link = RemoteLink::open(remote(server.local_addr()), again).expect("a link");
    let dummy = Dummy { steps: 3, ..dummy };
    assert_eq!(bits(&dummy.train(&mut link).expect("trained").0), bits(&dummy.expected()));
    healthy.ends_right();
}

#[test]
fn labels_are_for_a_server_that_has_the_model() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/qwen2.gguf");
    let base = Base::open(file).expect("a model");
    let (layers, hidden) = (base.info().layers, base.info().hidden);
    let vocabulary = base.info().vocabulary as u32;
    let fingerprint = base.fingerprint().expect("a fingerprint").as_bytes().to_vec();
    let config = SideConfig { width: 4, ..SideConfig::usual(layers) };
    let shape = SideShape::new(config, layers, hidden).expect("a shape");
    let told = |id| RemoteSession {
        fingerprint: fingerprint.clone(),
        loss: LossOn::Trainer,
        ..session(id, &shape)
    };
    let refused = |server: &Server, session| {
        let patient = remote(server.local_addr());
        RemoteLink::open(patient, session).expect_err("no model").to_string()
    };
    let place = tempfile::tempdir().expect("a folder");
    let server = Server::start(settings(place.path())).expect("a server");
    let error = refused(&server, told(1));
    assert!(error.contains("has no model"), "{error}");

    drop(server);
    let of = settings(place.path());
    let server = Server::start(ServerConfig { model: Some(Arc::new(base)), ..of });
    let server = server.expect("a server");
    let other = RemoteSession { fingerprint: b"another".to_vec(), ..told(1) };
    let error = refused(&server, other);
    assert!(error.contains("another one than the device's"), "{error}");
    let healthy = Healthy::start(server.local_addr());
    for session in [told(1), RemoteSession { loss: LossOn::Device, ..told(2) }] {
        drop(RemoteLink::open(remote(server.local_addr()), session).expect("a link"));
    }
    // Two rows of taps, ones.
    let mut row = vec![0; TapFormat::F16.row_bytes(hidden)];
    TapFormat::F16.encode(TapRounding::Nearest, &vec![1.0; hidden], &mut row);
    let all = row.repeat(2 * shape.tapped().len());
    // Another sample each time: a server keeps the taps of those that it learned from.
    let key = Cell::new(0);
    let begin = || {
        key.set(key.get() + 1);
        let sample = Sample { key: vec![key.get(); 16], rows: 2 };
        Say::Begin(Begin { step: 1, samples: vec![sample] })
    };
    let label = |target: u32, rms: f32| [target.to_le_bytes(), rms.to_le_bytes()].concat();
    let good = [label(3, 1.0), label(4, 2.0)].concat();
    let labels = |place, offset, bytes: Vec<u8>| {
        Say::Labels(Labels { step: 1, place, offset, bytes, scale: 1.0 })
    };
    let nan = Labels { step: 1, place: 0, offset: 0, bytes: good.clone(), scale: f32::NAN };
    let rest = good[8..].to_vec();
    let other = Labels { step: 1, place: 0, offset: 8, bytes: rest, scale: 2.0 };
    let update = Say::Update(Update { step: 1, rate: 1e-2, hash: vec![0; 32] });
    let gradient = Say::Gradient(Gradient { step: 1, place: 0, offset: 0, bytes: vec![0; 4] });
    let ask = Say::Ask(Ask { step: 1, place: 0 });
    let taken = || vec![attach(1), begin(), taps(1, 0, 0, all.clone())];
    let with = |more: &[Say]| [taken(), more.to_vec()].concat();
    let cases = [
        (vec![attach(2), begin(), labels(0, 0, good.clone())], "loss on the device"),
        (with(&[ask]), "loss on the server"),
        (with(&[gradient]), "loss on the server"),
        (with(&[labels(1, 0, good.clone())]), "where place 0 is due"),
        (with(&[labels(0, 0, good.clone()), labels(0, 0, good.clone())]), "where place 1 is due"),
        (with(&[labels(0, 0, good[..7].to_vec())]), "7 bytes"),
        (with(&[labels(0, 0, Vec::new())]), "0 bytes"),
        (with(&[labels(0, 8, good.clone())]), "came before"),
        (with(&[labels(0, 0, good.repeat(2))]), "32 bytes"),
        (with(&[Say::Labels(nan)]), "scale of NaN"),
        (with(&[labels(0, 0, good[..8].to_vec()), Say::Labels(other)]), "scale of 2"),
        (with(std::slice::from_ref(&update)), "0 of 1"),
        (with(&[labels(0, 0, good.clone()), update]), "another hash"),
        (with(&[labels(0, 0, [label(3, 1.0), label(vocabulary, 1.0)].concat())]), "the loss"),
        (with(&[labels(0, 0, [label(3, 1.0), label(4, f32::NAN)].concat())]), "the loss"),
    ];
    let liar = Liar::new(server.local_addr());
    for (messages, text) in cases {
        let what = format!("{messages:?}");
        let what = &what[..what.len().min(300)];
        let status = liar.stay(encoded(messages));
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
        assert!(status.message().contains(text), "{what}: {status}");
    }
    healthy.ends_right();
}

#[test]
fn a_step_is_known_by_its_hash() {
    let place = tempfile::tempdir().expect("a folder");
    let server = Server::start(settings(place.path())).expect("a server");
    let shape = shape(TapFormat::F16);
    drop(open(server.local_addr(), 1, &shape));
    // A step without samples, so that its hash is easily made.
    let empty = Say::Begin(Begin { step: 1, samples: Vec::new() });
    let update = |rate: f64, of: f64| {
        let hash = StepHash::new(1).end(of).to_vec();
        Say::Update(Update { step: 1, rate, hash })
    };
    let liar = Liar::new(server.local_addr());
    let status = liar.stay(encoded([attach(1), empty.clone(), update(0.1, 0.2)]));
    assert!(status.message().contains("another hash"), "{status}");
    // Read until it is confirmed, then said again: in the same stream and in others.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.local_addr()));
    let runtime = runtime();
    runtime.block_on(async {
        let channel = endpoint.expect("an address").connect().await.expect("a connection");
        let mut client = SideTuningClient::new(channel);
        for messages in [
            vec![attach(1), empty, update(0.1, 0.1)],
            vec![attach(1), update(0.1, 0.1)],
            vec![attach(1), update(0.1, 0.1), update(0.1, 0.1)],
        ] {
            let (say, said) = tokio::sync::mpsc::channel(8);
            let due = messages.iter().filter(|m| matches!(m, Say::Update(_))).count();
            for message in messages {
                say.send(FromDevice { message: Some(message) }).await.expect("room");
            }
            let said = tokio_stream::wrappers::ReceiverStream::new(said);
            let mut answers =
                client.train(Liar::request(said)).await.expect("a stream").into_inner();
            let mut ones = 0;
            while ones < due {
                let answer = answers.message().await.expect("no error").expect("an answer");
                if let FromServer { message: Some(from_server::Message::Confirmed(c)) } = answer {
                    ones += usize::from(c.step == 1);
                }
            }
        }
    });
    let status = liar.stay(encoded([attach(1), update(0.2, 0.2)]));
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
}

#[test]
fn the_device_that_came_last_has_the_session() {
    let place = tempfile::tempdir().expect("a folder");
    let server = Server::start(settings(place.path())).expect("a server");
    let dummy = Dummy::new(shape(TapFormat::F16));
    let mut first = open(server.local_addr(), 1, &dummy.shape);
    first.begin(1, &dummy.batch(1)).expect("begun");
    let mut second = open(server.local_addr(), 1, &dummy.shape);
    assert_eq!(bits(&dummy.train(&mut second).expect("trained").0), bits(&dummy.expected()));
    drop(second);
    // The first one comes again and is told where the session is by now.
    let taps = dummy.taps(1, 0);
    let anew = (0..1000).find_map(|_| first.taps(1, 0, &taps).err());
    assert!(matches!(anew, Some(LinkError::StartedAnew)), "{anew:?}");
    assert_eq!(first.confirmed().expect("a step"), 10);
}

#[test]
fn no_bytes_bring_the_server_down() {
    let place = tempfile::tempdir().expect("a folder");
    let server = Server::start(settings(place.path())).expect("a server");
    let healthy = Healthy::start(server.local_addr());
    let dummy = Dummy::new(shape(TapFormat::F16));
    drop(open(server.local_addr(), 1, &dummy.shape));
    let mut good = vec![attach(1), begin(&dummy, 1), begin(&dummy, 2)];
    good.extend((0..3).map(|place| taps(1, place, 0, dummy.taps(1, place as usize))));
    good.extend((0..3).map(|place| Say::Ask(Ask { step: 1, place })));
    let gradient = vec![1; 5 * 32 * 4];
    good.push(Say::Gradient(Gradient { step: 1, place: 0, offset: 0, bytes: gradient }));
    good.push(Say::Update(Update { step: 1, rate: 1e-3, hash: vec![1; 32] }));
    let good = encoded(good);
    let liar = Liar::new(server.local_addr());
    let mut refused = 0;
    for case in 0..300u64 {
        let mut chances = [0.0f32; 64];
        Philox::new(1).uniform(case, 0, &mut chances);
        let mut next = chances.into_iter();
        let mut below = |n: usize| (next.next().expect("a chance") * n as f32) as usize;
        let mut messages = good.clone();
        for _ in 0..1 + below(3) {
            let at = below(messages.len()).max(usize::from(below(4) > 0)).min(messages.len() - 1);
            let mut bytes = messages[at].to_vec();
            match below(6) {
                0 => bytes.truncate(below(bytes.len().max(1))),
                1 => {
                    for _ in 0..1 + below(6) {
                        if let Some(byte) = bytes.get_mut(below(40)) {
                            *byte = below(256) as u8;
                        }
                    }
                }
                2 => bytes = (0..below(30)).map(|i| (case as usize * 31 + i * 7) as u8).collect(),
                3 => bytes.extend_from_slice(&[0xff; 11]),
                4 => {
                    messages.remove(at);
                    messages.insert(0, bytes.into());
                    continue;
                }
                _ => {
                    let other = below(messages.len());
                    messages.swap(at, other);
                    continue;
                }
            }
            messages[at] = bytes.into();
        }
        let status = liar.train(messages);
        assert_ne!(status.code(), Code::Internal, "{case}: {status}");
        refused += usize::from(status.code() != Code::Ok);
    }
    assert!(refused > 200, "{refused}");
    // Other calls, too.
    liar.runtime.block_on(async {
        let mut client = SideTuningClient::new(liar.channel.clone());
        let settings = Settings::of(&dummy.shape);
        for (field, value) in (0..8).flat_map(|f| [0, 1, 3, 7, 1 << 20, u32::MAX].map(|v| (f, v))) {
            let mut settings = settings;
            let fields = [
                &mut settings.layers,
                &mut settings.hidden,
                &mut settings.first_tap,
                &mut settings.every,
                &mut settings.width,
                &mut settings.reduction,
                &mut settings.tap_bits,
            ];
            match fields.into_iter().nth(field) {
                Some(field) => *field = value,
                None => settings.gate = value as i32,
            }
            let open = OpenRequest {
                version: 1,
                session: vec![100; 16],
                settings: Some(settings),
                fingerprint: vec![1],
                ..OpenRequest::default()
            };
            let reply = client.open(Liar::request(open)).await;
            let code = reply.err().map_or(Code::Ok, |status| status.code());
            let known = [Code::Ok, Code::InvalidArgument, Code::FailedPrecondition];
            assert!(known.contains(&code), "{settings:?}: {code:?}");
        }
        let other = OpenRequest { version: 2, ..OpenRequest::default() };
        let status = client.open(Liar::request(other)).await.expect_err("another version");
        assert!(status.message().contains("version 2"), "{status}");
        let request = NetworkRequest { session: Vec::new() };
        let status = client.network(Liar::request(request)).await.expect_err("no name");
        assert_eq!(status.code(), Code::InvalidArgument);
        let status = client.close(Request::new(Default::default())).await.expect_err("no token");
        assert_eq!(status.code(), Code::Unauthenticated);
    });
    healthy.ends_right();
}

#[test]
fn health_and_metrics_tell_of_the_server() {
    let place = tempfile::tempdir().expect("a folder");
    let server = Server::start(settings(place.path())).expect("a server");
    let runtime = runtime();
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.local_addr()));
        let channel = endpoint.expect("an address").connect().await.expect("a connection");
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
        for service in ["", "smidgen.side.v1.SideTuning"] {
            let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
            let reply = client.check(request).await.expect("a reply").into_inner();
            assert_eq!(reply.status, 1, "{service:?}: serving");
        }
    });
    let dummy = Dummy { steps: 2, ..Dummy::new(shape(TapFormat::F16)) };
    let mut link = open(server.local_addr(), 1, &dummy.shape);
    dummy.train(&mut link).expect("trained");
    assert_eq!(metric(&server, "sessions_attached"), 1.0);
    assert_eq!(metric(&server, "steps_total"), 2.0);
    assert!(metric(&server, "received_bytes_total") > 2.0 * 3.0 * 3.0 * 320.0);
    assert!(metric(&server, "sent_bytes_total") > 1000.0);
    assert!(metrics(&server).contains("work_seconds_total{work=\"commit\"} 0."));
    server.stop();
    server.join().expect("ended");
}
