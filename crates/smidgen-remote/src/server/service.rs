//! The protocol's calls.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use super::session::{Stream, internal, read};
use super::shape::shape_of;
use super::store::{Created, SessionId, Stored};
use crate::proto::from_device::Message as Said;
use crate::proto::side_tuning_server::SideTuning;
use crate::proto::{
    Attach, CloseReply, CloseRequest, FromDevice, FromServer, Loss, NetworkPart, NetworkRequest,
    OpenReply, OpenRequest, PART_BYTES, VERSION, to_bytes,
};

/// How long a stream may take to say whose it is.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);
const FINGERPRINT_BYTES_MAX: usize = 64;

/// The service, which is cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Service(pub Arc<Shared>);

type Parts<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl SideTuning for Service {
    type TrainStream = Parts<FromServer>;
    type NetworkStream = Parts<NetworkPart>;

    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<OpenReply>, Status> {
        let owner = self.0.owner(&request)?;
        self.counted(self.open(owner, request.into_inner()).await)
    }

    async fn train(
        &self,
        request: Request<Streaming<FromDevice>>,
    ) -> Result<Response<Self::TrainStream>, Status> {
        let owner = self.0.owner(&request)?;
        let mut messages = request.into_inner();
        let (answers, received) = mpsc::channel(1);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            match attach(&shared, &owner, &mut messages).await {
                Ok(stream) => stream.run(messages, answers).await,
                Err(status) => {
                    shared.refuse(&status);
                    _ = answers.send(Err(status)).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(received)))
    }

    async fn network(
        &self,
        request: Request<NetworkRequest>,
    ) -> Result<Response<Self::NetworkStream>, Status> {
        let owner = self.0.owner(&request)?;
        self.counted(self.network(owner, request.into_inner()).await)
    }

    async fn close(&self, request: Request<CloseRequest>) -> Result<Response<CloseReply>, Status> {
        let owner = self.0.owner(&request)?;
        self.counted(self.close(owner, request.into_inner()).await)
    }
}

impl Service {
    fn counted<T>(&self, result: Result<T, Status>) -> Result<Response<T>, Status> {
        result.map(Response::new).inspect_err(|status| self.0.refuse(status))
    }

    async fn open(&self, owner: String, open: OpenRequest) -> Result<OpenReply, Status> {
        if open.version != VERSION {
            return Err(Status::failed_precondition(format!(
                "the device speaks version {} of the protocol and the server {VERSION}: use the \
                 same version of Smidgen on both",
                open.version
            )));
        }
        let id = session_id(&open.session)?;
        let settings = open.settings.ok_or_else(|| Status::invalid_argument("no settings"))?;
        shape_of(&settings, self.0.limits.parameters).map_err(Status::invalid_argument)?;
        if !(1..=FINGERPRINT_BYTES_MAX).contains(&open.fingerprint.len()) {
            let what = format!("a fingerprint has 1 to {FINGERPRINT_BYTES_MAX} bytes");
            return Err(Status::invalid_argument(what));
        }
        if !(0.0..=1.0).contains(&open.weight_decay) {
            let what = format!("a weight decay of {}: it lies in 0 to 1", open.weight_decay);
            return Err(Status::invalid_argument(what));
        }
        if Loss::try_from(open.loss).is_err() {
            return Err(Status::invalid_argument("loss is none of this protocol's"));
        }
        self.0.check_loss(&open)?;
        let resume = open.resume;
        let session = Stored { owner, open: OpenRequest { resume: false, ..open } };
        let (store, limits) = (Arc::clone(&self.0.store), self.0.limits);
        let shared = Arc::clone(&self.0);
        let confirmed = self.0.blocking(move || {
            if resume {
                let found = store.find(id).map_err(internal)?;
                let found = found.filter(|s| s.owner == session.owner).ok_or_else(no_session)?;
                same(&found, &session)?;
                return Ok(store.confirmed(id).map_err(internal)?.0);
            }
            match store.create(id, &session, limits.sessions).map_err(internal)? {
                Created::New => {
                    shared.metrics.stored.add(1);
                    tracing::info!(owner = session.owner, "a session was opened");
                    Ok(0)
                }
                Created::TooMany => Err(Status::resource_exhausted(format!(
                    "{} sessions of this token: close one of them first",
                    limits.sessions
                ))),
                // Another's, which is not told.
                Created::Found(found, _) if found.owner != session.owner => {
                    Err(Status::already_exists("choose another name for this session"))
                }
                Created::Found(found, step) => {
                    same(&found, &session)?;
                    match step {
                        0 => Ok(0),
                        _ => Err(Status::already_exists(format!(
                            "this session has {step} steps already: resume it, or take a new name"
                        ))),
                    }
                }
            }
        });
        Ok(OpenReply { confirmed: confirmed.await?, limits: Some(self.0.limits.message()) })
    }

    async fn network(
        &self,
        owner: String,
        request: NetworkRequest,
    ) -> Result<Parts<NetworkPart>, Status> {
        let id = session_id(&request.session)?;
        let stored = find(&self.0, id, &owner).await?;
        let store = Arc::clone(&self.0.store);
        let limits = self.0.limits;
        let (step, bytes) = self
            .0
            .blocking(move || {
                if let Some(found) = store.network(id).map_err(internal)? {
                    return Ok(found);
                }
                let settings = stored.open.settings.unwrap_or_default();
                let shape = shape_of(&settings, limits.parameters);
                let shape = shape.map_err(Status::resource_exhausted)?;
                Ok((0, to_bytes(&shape.start(stored.open.seed))))
            })
            .await?;
        let (parts, received) = mpsc::channel(1);
        tokio::spawn(async move {
            let total = bytes.len() as u64;
            for (at, bytes) in bytes.chunks(PART_BYTES).enumerate() {
                let offset = (at * PART_BYTES) as u64;
                let part = NetworkPart { step, offset, total, bytes: bytes.to_vec() };
                if parts.send(Ok(part)).await.is_err() {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(received))
    }

    async fn close(&self, owner: String, request: CloseRequest) -> Result<CloseReply, Status> {
        let id = session_id(&request.session)?;
        match find(&self.0, id, &owner).await {
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(CloseReply {}),
            found => found?,
        };
        let seat = self.0.seat(id);
        let _place = seat.take().await?;
        let store = Arc::clone(&self.0.store);
        if self.0.blocking(move || store.remove(id).map_err(internal)).await? {
            self.0.metrics.stored.subtract(1);
            tracing::info!(owner, "a session was closed");
        }
        self.0.forget(id);
        Ok(CloseReply {})
    }
}

/// A stream's first message, and what it goes on with.
async fn attach(
    shared: &Arc<Shared>,
    owner: &str,
    messages: &mut Streaming<FromDevice>,
) -> Result<Stream, Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE, messages.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no message came"))?;
    let Some(Said::Attach(Attach { session })) = read(first)? else {
        return Err(Status::invalid_argument("a stream's first message is Attach"));
    };
    let id = session_id(&session)?;
    find(shared, id, owner).await?;
    let place = shared.seat(id).take().await?;
    // It may have been closed meanwhile.
    let stored = find(shared, id, owner).await?;
    tracing::info!(owner, "a device attached");
    Stream::open(shared, id, &stored, place).await
}

/// The session, if it is this owner's.
async fn find(shared: &Arc<Shared>, id: SessionId, owner: &str) -> Result<Stored, Status> {
    let store = Arc::clone(&shared.store);
    let found = shared.blocking(move || store.find(id).map_err(internal)).await?;
    found.filter(|session| session.owner == owner).ok_or_else(no_session)
}

fn no_session() -> Status {
    Status::not_found("this token has no such session: begin a new one")
}

fn session_id(bytes: &[u8]) -> Result<SessionId, Status> {
    SessionId::try_from(bytes).map_err(|_| {
        Status::invalid_argument(format!("a session's name has 16 bytes, not {}", bytes.len()))
    })
}

fn same(found: &Stored, session: &Stored) -> Result<(), Status> {
    match found == session {
        true => Ok(()),
        false => Err(Status::failed_precondition(
            "this session was opened with other settings, another model or another seed",
        )),
    }
}
