//! The way to a server of side tuning, as the flags of `train` say.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use smidgen::{
    ClientIdentity, DeviceSecret, Planned, RemoteConfig, RemoteLink, RemoteSession, RunFolder,
    SessionName,
};

use crate::args::SideArgs;
use crate::error::{Failure, Result};
use crate::stop::Stop;

/// A busy server has other devices' work to do first.
const TIMEOUT: Duration = Duration::from_secs(300);
const RETRY_FOR: u64 = 600;

/// Connects to the server for a run; one that goes on finds its session there. Gives the secret that
/// its samples' keys are made under too.
pub fn open(
    args: &SideArgs,
    planned: &Planned,
    folder: &RunFolder,
    resume: bool,
    stop: &Stop,
) -> Result<(RemoteLink, DeviceSecret)> {
    let Some(start) = planned.side()? else {
        return Err(Failure::usage("--server belongs to --method side"));
    };
    let config = config(args, stop)?;
    let session = RemoteSession {
        id: SessionName::open(&folder.session(), !resume)?.0,
        shape: start.shape,
        fingerprint: start.fingerprint,
        seed: start.seed,
        weight_decay: start.weight_decay,
        loss: start.loss,
        resume,
    };
    let secret = folder.secret();
    let secret = DeviceSecret::open(args.device_secret.as_deref().unwrap_or(&secret))?;
    let link =
        RemoteLink::open(config, session).map_err(|error| smidgen::Error::Link(error.into()))?;
    Ok((link, secret))
}

fn config(args: &SideArgs, stop: &Stop) -> Result<RemoteConfig> {
    let Some(url) = &args.server else {
        return Err(Failure::usage(
            "--method side trains on a server: name one with --server URL; `smidgen serve` starts \
             one",
        ));
    };
    let Some(token) = &args.server_token else {
        return Err(Failure::usage(format!(
            "{url} asks for a token: give the file that holds it with --server-token FILE; `smidgen \
             serve --new-token NAME` makes one"
        )));
    };
    let identity = match (&args.client_cert, &args.client_key) {
        (Some(certificate), Some(key)) => {
            Some(ClientIdentity { certificate: read(certificate)?, key: read(key)? })
        }
        _ => None,
    };
    let token = fs::read_to_string(token).map_err(Failure::file("read", token))?;
    Ok(RemoteConfig {
        url: url.clone(),
        ca: args.server_ca.as_deref().map(read).transpose()?,
        identity,
        token: token.trim().to_owned(),
        timeout: TIMEOUT,
        retry_for: Duration::from_secs(args.retry_for.unwrap_or(RETRY_FOR)),
        stop: Arc::clone(stop.flag()),
    })
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    fs::read(path.as_ref()).map_err(Failure::file("read", path.as_ref()))
}
