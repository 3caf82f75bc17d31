//! Taps that were sent once, on disk: a file a sample, bounded in bytes, those dropped first that
//! were not used for longest.
//!
//! A file is the SHA-256 of its name and its taps, then the taps. Its time of modification is when it
//! was last used, so the order survives the server. What does not match its hash was never there.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use smidgen_train::{SampleKey, SideShape};

use super::metrics::Metrics;

const HASH: usize = 32;
/// Files that are being written.
const UNFINISHED: &str = "unfinished-";

/// What an entry is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EntryName([u8; HASH]);

/// What is the same for all entries of a session: whose they are, of which model, tapped how.
#[derive(Clone, Debug)]
pub(super) struct NameSpace(Sha256);

impl NameSpace {
    pub fn new(owner: &str, fingerprint: &[u8], shape: &SideShape) -> Self {
        let mut hash = Sha256::new();
        for part in [owner.as_bytes(), fingerprint] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update((shape.hidden() as u64).to_le_bytes());
        hash.update((shape.config().format.bits() as u64).to_le_bytes());
        shape.tapped().iter().for_each(|&layer| hash.update((layer as u64).to_le_bytes()));
        Self(hash)
    }

    pub fn entry(&self, key: &SampleKey) -> EntryName {
        EntryName(self.0.clone().chain_update(key).finalize().into())
    }
}

impl EntryName {
    fn file(&self) -> String {
        self.0.iter().fold(String::new(), |mut name, byte| {
            _ = write!(name, "{byte:02x}");
            name
        })
    }

    fn parse(name: &str) -> Option<Self> {
        let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
        let mut bytes = [0; HASH];
        let pairs = name.as_bytes().chunks_exact(2);
        if name.len() != 2 * HASH {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        let name_again = Self(bytes);
        (name_again.file() == name).then_some(name_again)
    }
}

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    limit: u64,
    metrics: Arc<Metrics>,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    entries: HashMap<EntryName, Entry>,
    /// Entries by when they were used last.
    used: BTreeMap<u64, EntryName>,
    /// Of all files.
    bytes: u64,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    /// Of the file.
    bytes: u64,
    used: u64,
    /// Steps under way that rely on it.
    pins: usize,
}

/// An entry that is not dropped as long as this lives.
#[derive(Debug)]
pub(super) struct Pinned {
    cache: Arc<Cache>,
    name: EntryName,
}

impl Cache {
    /// Opens the cache in `folder`, or makes it, of at most `limit` bytes.
    pub fn open(folder: &Path, limit: u64, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        fs::create_dir_all(folder)?;
        let mut found = Vec::new();
        for file in fs::read_dir(folder)? {
            let file = file?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(UNFINISHED) {
                fs::remove_file(file.path())?;
            } else if let Some(name) = EntryName::parse(&name) {
                let about = file.metadata()?;
                found.push((about.modified()?, name, about.len()));
            }
        }
        found.sort_by_key(|&(time, name, _)| (time, name.0));
        let mut index = Index::default();
        found.into_iter().for_each(|(_, name, bytes)| index.insert(name, bytes));
        let folder = folder.to_owned();
        let cache = Self { folder, limit, metrics, index: Mutex::default() };
        cache.make_room(&mut index, 0);
        cache.tell(&index);
        *cache.lock() = index;
        Ok(Arc::new(cache))
    }

    /// Relies on an entry of `bytes` bytes of taps, if it is there.
    pub fn pin(self: &Arc<Self>, name: EntryName, bytes: u64) -> Option<Pinned> {
        let mut index = self.lock();
        let entry = index.entries.get_mut(&name).filter(|e| e.bytes == bytes + HASH as u64);
        let Some(entry) = entry else {
            self.metrics.cache_misses.add(1);
            return None;
        };
        entry.pins += 1;
        self.metrics.cache_hits.add(1);
        Some(Pinned { cache: Arc::clone(self), name })
    }

    /// Keeps the taps of a sample, if there is room. Taps that can't be written are not kept.
    pub fn put(&self, name: EntryName, taps: &[u8]) -> io::Result<()> {
        let bytes = (HASH + taps.len()) as u64;
        let number = {
            let mut index = self.lock();
            let is_there = index.entries.get(&name).is_some_and(|e| e.bytes == bytes || e.pins > 0);
            if is_there || !self.make_room(&mut index, bytes) {
                return Ok(());
            }
            // Its room is taken before it is written, so that two at once don't take the same.
            index.bytes += bytes;
            index.clock += 1;
            index.clock
        };
        let written = self.write(name, number, taps);
        let mut index = self.lock();
        index.bytes -= bytes;
        if written.is_ok() {
            index.remove(name);
            index.insert(name, bytes);
        }
        self.tell(&index);
        written
    }

    /// `number` is another one for each file.
    fn write(&self, name: EntryName, number: u64, taps: &[u8]) -> io::Result<()> {
        let unfinished = self.folder.join(format!("{UNFINISHED}{number}"));
        let mut file = File::create(&unfinished)?;
        let written = file.write_all(&hash(name, taps)).and_then(|()| file.write_all(taps));
        match written.and_then(|()| fs::rename(&unfinished, self.path(name))) {
            Ok(()) => Ok(()),
            Err(e) => {
                _ = fs::remove_file(&unfinished);
                Err(e)
            }
        }
    }

    fn path(&self, name: EntryName) -> PathBuf {
        self.folder.join(name.file())
    }

    /// Drops entries until `more` bytes fit. Returns whether they do.
    fn make_room(&self, index: &mut Index, more: u64) -> bool {
        if more > self.limit {
            return false;
        }
        while index.bytes + more > self.limit {
            let entries = &index.entries;
            let oldest = index.used.values().find(|name| entries[*name].pins == 0).copied();
            let Some(oldest) = oldest else { return false };
            index.remove(oldest);
            self.metrics.cache_evicted.add(1);
            _ = fs::remove_file(self.path(oldest));
        }
        true
    }

    fn tell(&self, index: &Index) {
        self.metrics.cache_bytes.set(index.bytes);
        self.metrics.cache_entries.set(index.entries.len() as u64);
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Index {
    /// As the entry that was used last.
    fn insert(&mut self, name: EntryName, bytes: u64) {
        self.clock += 1;
        self.bytes += bytes;
        self.used.insert(self.clock, name);
        self.entries.insert(name, Entry { bytes, used: self.clock, pins: 0 });
    }

    fn remove(&mut self, name: EntryName) {
        if let Some(entry) = self.entries.remove(&name) {
            self.used.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    fn touch(&mut self, name: EntryName) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&name) {
            self.used.remove(&entry.used);
            entry.used = self.clock;
            self.used.insert(self.clock, name);
        }
    }
}

impl Pinned {
    /// The taps; None where they are gone or damaged, and then they are no longer an entry.
    pub fn read(&self) -> Option<Vec<u8>> {
        let cache = &self.cache;
        let path = cache.path(self.name);
        let taps = read(&path, self.name).ok().flatten();
        if taps.is_some() {
            if let Ok(file) = File::options().append(true).open(&path) {
                _ = file.set_modified(SystemTime::now());
            }
            cache.lock().touch(self.name);
        } else {
            cache.metrics.cache_damaged.add(1);
            let mut index = cache.lock();
            index.remove(self.name);
            cache.tell(&index);
            _ = fs::remove_file(&path);
        }
        taps
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(entry) = self.cache.lock().entries.get_mut(&self.name) {
            entry.pins = entry.pins.saturating_sub(1);
        }
    }
}

/// The taps in a file, where they are as they were.
fn read(path: &Path, name: EntryName) -> io::Result<Option<Vec<u8>>> {
    let mut file = File::open(path)?;
    let (mut found, mut taps) = ([0; HASH], Vec::new());
    file.read_exact(&mut found)?;
    file.read_to_end(&mut taps)?;
    Ok((found == hash(name, &taps)).then_some(taps))
}

fn hash(name: EntryName, taps: &[u8]) -> [u8; HASH] {
    Sha256::new_with_prefix(name.0).chain_update(taps).finalize().into()
}
