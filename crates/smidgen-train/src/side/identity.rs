//! What a device keeps to itself of a run of side tuning: the session's name and the secret that
//! sample keys are made under.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::{Error, Result};

/// What sample keys are made under: 32 random bytes that stay on the device. Runs that share it
/// find their samples' taps with the trainer again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceSecret(pub [u8; 32]);

impl std::fmt::Debug for DeviceSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceSecret")
    }
}

impl DeviceSecret {
    /// What noise is counted from: a number that the secret decides and that tells nothing of it.
    pub(super) fn noise_seed(&self) -> u64 {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any key length");
        mac.update(b"smidgen tap noise 1");
        let bytes = mac.finalize().into_bytes();
        u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))
    }

    /// The secret in the file `path`; a new one where there is no file, which is made, for its owner
    /// alone to read.
    ///
    /// # Errors
    /// The file can't be read or written, or holds anything but 32 bytes.
    pub fn open(path: &Path) -> Result<Self> {
        random_bytes(path, false).map(Self)
    }
}

/// A session's name with the trainer: 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionName(pub [u8; 16]);

impl SessionName {
    /// The name in the file `path`, which is made where it is missing; `anew` makes another one in
    /// any case.
    ///
    /// # Errors
    /// The file can't be read or written, or holds anything but 16 bytes.
    pub fn open(path: &Path, anew: bool) -> Result<Self> {
        random_bytes(path, anew).map(Self)
    }
}

/// The bytes of a file that holds as many; random ones where it is missing, or if it is to be made
/// `anew`.
fn random_bytes<const N: usize>(path: &Path, anew: bool) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    match File::open(path) {
        Ok(file) if !anew => {
            let mut found = Vec::new();
            file.take(N as u64 + 1).read_to_end(&mut found).map_err(Error::io("read", path))?;
            return found.try_into().map_err(|_| {
                let what = format!(
                    "{}: it does not hold {N} bytes; name another file, or remove this one",
                    path.display()
                );
                Error::setting(what)
            });
        }
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::io("read", path)(error));
        }
        _ => {}
    }
    let failed = |source| Error::io("create", path)(source);
    getrandom::fill(&mut bytes).map_err(|error| failed(error.into()))?;
    // Whole or not at all.
    let part = path.with_extension("tmp");
    let mut options = File::options();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(&part).map_err(failed)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&part, path).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_made_once() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("secret");
        let first = DeviceSecret::open(&path).unwrap();
        assert!(first == DeviceSecret::open(&path).unwrap() && first.0 != [0; 32]);
        let error = SessionName::open(&path, false).unwrap_err().to_string();
        assert!(error.contains("does not hold 16 bytes"), "{error}");
        let other = SessionName::open(&path, true).unwrap();
        assert_eq!(other, SessionName::open(&path, false).unwrap());
        assert!(SessionName::open(&place.path().join("no/such"), false).is_err());
    }
}
