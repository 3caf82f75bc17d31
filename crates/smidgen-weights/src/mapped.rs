//! A file mapped for reading, of which the caller says what is wanted in memory and what is not.
//!
//! The map is never written to, so every resident page of it is a clean page of the system's file
//! cache: dropping it costs a later page fault, never data.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::error::{Error, Result};

/// A whole regular file, mapped read-only.
///
/// The file must be neither truncated nor overwritten while it is mapped: the system ends a process
/// that touches a page beyond the new end (SIGBUS). Files are replaced safely by writing a new one
/// and renaming it into place, which leaves the mapped one whole.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl Mapped {
    /// Maps the file at `path`. No page of it is read yet.
    ///
    /// # Errors
    /// [`Error::Io`] where the file can't be opened or mapped, [`Error::Unusable`] where it is
    /// empty or no regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::io("open", path, source);
        let unusable = |why| Error::Unusable { path: path.to_owned(), why };
        // Looked at before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(unusable("it is no regular file"));
        }
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(unusable("it is empty"));
        }
        // SAFETY: the map is read-only and shared, and stays alive as long as any slice of it. That
        // nobody else changes the file meanwhile is the documented duty of the caller.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io("map", path, source))?;
        Ok(Self { path: path.to_owned(), file, map })
    }

    /// The path the file was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of the file. Touching them brings their pages into memory.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Has the system begin to read the pages of `range` (bytes) into its file cache, while this
    /// process goes on. Nothing is mapped, and an error shows when the pages are asked for.
    ///
    /// # Panics
    /// If `range` is not within the file.
    pub fn announce(&self, range: Range<usize>) {
        self.check(&range);
        if !range.is_empty() {
            let _ = self.map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }

    /// Brings the pages of `range` (bytes) into memory, from the disk where need be, and returns
    /// when they are there.
    ///
    /// # Errors
    /// [`Error::Io`] where the file can't be read or no longer reaches that far. Only Linux from
    /// 5.14 on tells; elsewhere such a file ends the process.
    ///
    /// # Panics
    /// If `range` is not within the file.
    pub fn prefetch(&self, range: Range<usize>) -> Result<()> {
        self.check(&range);
        if range.is_empty() {
            return Ok(());
        }
        // All of the range is asked for at once, then waited for. Waiting alone reads in the small
        // steps of the readahead window (10 MB not in the file cache: 22 ms against 16 ms).
        self.map
            .advise_range(Advice::WillNeed, range.start, range.len())
            .map_err(|source| Error::io("read ahead in", &self.path, source))?;
        #[cfg(target_os = "linux")]
        match self.map.advise_range(Advice::PopulateRead, range.start, range.len()) {
            // Unknown to this kernel.
            Err(source) if source.raw_os_error() == Some(libc::EINVAL) => {}
            populated => {
                return populated.map_err(|source| Error::io("read", &self.path, source));
            }
        }
        touch(&self.map[range]);
        Ok(())
    }

    /// Drops the pages of `range` (bytes, widened to whole pages) from this process. They stay in
    /// the system's file cache as long as it has room, and come back when they are touched. So do
    /// neighbours of `range`, which are dropped with it where one large page of the system (2 MB)
    /// reaches over its edge.
    ///
    /// # Panics
    /// If `range` is not within the file.
    pub fn release(&self, range: Range<usize>) {
        self.check(&range);
        if range.is_empty() {
            return;
        }
        // SAFETY: the mapping is shared, read-only and backed by a file: a dropped page is filled
        // again with the same bytes when it is touched, so slices of it stay valid.
        let dropped = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // The only errors are of a range outside the mapping or of a locked one; neither occurs.
        debug_assert!(dropped.is_ok(), "release of {range:?}: {dropped:?}");
    }

    /// Reads `out.len()` bytes at `offset` into `out`, past the map: no page of it becomes resident.
    ///
    /// # Errors
    /// [`Error::Io`] where the file can't be read or ends before.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, offset).map_err(|source| Error::io("read", &self.path, source))
    }

    /// Bytes of the pages of `range` that are resident in this process, or `None` where the system
    /// doesn't tell.
    ///
    /// This is the share of `range` in the process's resident set. `mincore` would answer for the
    /// system's file cache, in which released pages stay.
    ///
    /// # Panics
    /// If `range` is not within the file.
    pub fn resident_bytes(&self, range: Range<usize>) -> Option<usize> {
        self.check(&range);
        if range.is_empty() {
            return Some(0);
        }
        let page = page_size()?;
        let base = self.map.as_ptr() as usize;
        let pages = (base + range.start) / page..(base + range.end).div_ceil(page);
        Some(present_pages(pages)? * page)
    }

    fn check(&self, range: &Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.map.len(), "bytes {range:?}");
    }
}

/// Gives the heap's free pages back to the system, so that they no longer count as resident. Does
/// nothing where the C library is not glibc.
pub fn release_free_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: glibc's malloc_trim has no preconditions and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Reads a byte of every page.
fn touch(bytes: &[u8]) {
    // 4 KiB is the smallest page; where pages are larger, some are read twice.
    for &byte in bytes.iter().step_by(4096).chain(bytes.last()) {
        std::hint::black_box(byte);
    }
}

fn page_size() -> Option<usize> {
    // SAFETY: sysconf has no preconditions.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).ok().filter(|&bytes| bytes > 0)
}

/// How many of this process's pages of these numbers are in memory, from Linux's
/// `/proc/self/pagemap`: a little-endian 64-bit word a page, bit 63 set where it is present.
fn present_pages(pages: Range<usize>) -> Option<usize> {
    const WORD: usize = size_of::<u64>();
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    let mut words = [0; 1024 * WORD];
    let mut present = 0;
    let mut page = pages.start;
    while page < pages.end {
        let words = &mut words[..(pages.end - page).min(1024) * WORD];
        pagemap.read_exact_at(words, (page * WORD) as u64).ok()?;
        present += words.chunks_exact(WORD).filter(|word| word[WORD - 1] & 0x80 != 0).count();
        page += words.len() / WORD;
    }
    Some(present)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn reads_through_the_map_and_past_it() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let file = file_of(&bytes);
        let mapped = Mapped::open(file.path()).unwrap();
        assert_eq!(mapped.bytes(), bytes);
        let mut out = [0; 7];
        mapped.read_at(12_345, &mut out).unwrap();
        assert_eq!(out, bytes[12_345..12_352]);
        assert!(matches!(mapped.read_at(99_999, &mut out), Err(Error::Io { .. })));
    }

    #[test]
    fn refuses_what_it_cannot_map() {
        let folder = tempfile::tempdir().unwrap();
        let empty = file_of(b"");
        assert!(matches!(Mapped::open(folder.path()), Err(Error::Unusable { .. })));
        assert!(matches!(Mapped::open(empty.path()), Err(Error::Unusable { .. })));
        assert!(matches!(Mapped::open(folder.path().join("none")), Err(Error::Io { .. })));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn prefetched_pages_are_resident_until_released() {
        let file = file_of(&vec![7; 4 << 20]);
        let mapped = Mapped::open(file.path()).unwrap();
        let (first, second) = (0..1 << 20, 1 << 20..4 << 20);
        mapped.prefetch(first.clone()).unwrap();
        mapped.prefetch(second.clone()).unwrap();
        assert_eq!(mapped.resident_bytes(first.clone()), Some(1 << 20));
        mapped.release(first.clone());
        assert_eq!(mapped.resident_bytes(first.clone()), Some(0));
        mapped.prefetch(second.clone()).unwrap();
        assert_eq!(mapped.resident_bytes(second), Some(3 << 20));
        assert!(mapped.bytes()[first].iter().all(|&byte| byte == 7));
        mapped.release(0..4 << 20);
        touch(&mapped.bytes()[100..4 << 20]);
        assert_eq!(mapped.resident_bytes(0..4 << 20), Some(4 << 20));
        mapped.release(0..0);
        mapped.prefetch(5..5).unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn prefetch_beyond_a_truncated_end_is_an_error() {
        let file = file_of(&vec![7; 1 << 20]);
        let mapped = Mapped::open(file.path()).unwrap();
        file.as_file().set_len(4096).unwrap();
        let error = mapped.prefetch(0..1 << 20).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
