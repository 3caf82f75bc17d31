//! How fast the machine is: measured once, remembered in the user's cache folder.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use smidgen::{Rates, measure_rates};

use crate::error::{Failure, Result};
use crate::ui;

/// Rates by name, as files hold them.
type Named = BTreeMap<String, f64>;

/// The rates that plans start from: those of the file that was named, or the machine's own.
pub fn find(assumed: Option<&Path>, threads: usize, spool: Option<&Path>) -> Result<Rates> {
    match assumed {
        Some(path) if path == Path::new("reference") => Ok(Rates::REFERENCE),
        Some(path) => read(path),
        None => {
            let key = key(threads, spool);
            match remembered().remove(&key).as_ref().map(from_names) {
                Some(Ok(rates)) => Ok(rates),
                _ => measure(threads, spool),
            }
        }
    }
}

/// Measures the machine and remembers what was found.
pub fn measure(threads: usize, spool: Option<&Path>) -> Result<Rates> {
    let folder = spool.map(existing);
    let mut rates = measure_rates(threads, folder.as_deref())?;
    // As many digits as are worth remembering, so that what is remembered is what is used.
    rates.named().into_iter().for_each(|(_, rate)| *rate = four_digits(*rate));
    let mut all = remembered();
    all.insert(key(threads, spool), names(rates));
    if let Err(what) = remember(&all) {
        ui::warn(&format!("note: the machine's rates are measured anew each time: {what}"));
    }
    Ok(rates)
}

fn four_digits(rate: f64) -> f64 {
    format!("{rate:.3e}").parse().unwrap_or(rate)
}

/// As a file for `--assume-rates`.
pub fn json(rates: Rates) -> Result<String> {
    serde_json::to_string_pretty(&names(rates))
        .map_err(|e| Failure::File(format!("cannot write rates: {e}")))
}

fn read(path: &Path) -> Result<Rates> {
    let wrong = |what: String| {
        Failure::usage(format!(
            "--assume-rates {}: {what}; give a file that `smidgen bench rates` printed, or \
             `reference`",
            path.display()
        ))
    };
    let text = fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let named: Named = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    from_names(&named).map_err(wrong)
}

fn names(mut rates: Rates) -> Named {
    rates.named().map(|(name, rate)| (name.to_owned(), *rate)).into()
}

fn from_names(named: &Named) -> std::result::Result<Rates, String> {
    let mut rates = Rates::REFERENCE;
    let mut known = rates.named();
    if let Some(name) = named.keys().find(|name| known.iter().all(|(k, _)| k != name)) {
        return Err(format!("{name:?} is no rate"));
    }
    for (name, rate) in &mut known {
        let found = named.get(*name).ok_or(format!("{name:?} is missing"))?;
        if !(*found > 0.0 && found.is_finite()) {
            return Err(format!("{name:?} is {found}: it is above 0"));
        }
        **rate = *found;
    }
    Ok(rates)
}

/// What makes one measurement hold for another run: the program, the processor, the threads and
/// the disk.
fn key(threads: usize, spool: Option<&Path>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = model.map_or(std::env::consts::ARCH, |(_, name)| name);
    let disk = spool.and_then(|folder| fs::metadata(existing(folder)).ok()).map(|m| m.dev());
    let disk = disk.map_or("none".to_owned(), |device| device.to_string());
    format!("smidgen {version}, {processor}, {threads} threads, disk {disk}")
}

/// The folder, or the nearest one above it that is there already.
fn existing(folder: &Path) -> PathBuf {
    let there = folder.ancestors().find(|path| path.is_dir());
    there.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// The file of all measurements, in the user's cache folder.
fn cache_file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| {
        let home = variable("HOME")?;
        let folder = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        Some(home.join(folder))
    });
    cache.map(|folder| folder.join("smidgen").join("rates.json"))
}

/// All measurements; none where the file can't be read.
fn remembered() -> BTreeMap<String, Named> {
    let text = cache_file().and_then(|path| fs::read_to_string(path).ok());
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn remember(all: &BTreeMap<String, Named>) -> std::result::Result<(), String> {
    let path = cache_file().ok_or("there is no home folder")?;
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let text = serde_json::to_string_pretty(all).map_err(|e| e.to_string())?;
    // Replaced whole, so that another run never reads half of it.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(failed)?;
    file.persist(&path).map(|_| ()).map_err(|e| failed(e.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_back_from_their_names() {
        let named = names(Rates { products: 5e9, ..Rates::REFERENCE });
        assert_eq!(from_names(&named).map(|r| r.products), Ok(5e9));
        let with = |name: &str, rate| {
            let mut named = named.clone();
            named.insert(name.to_owned(), rate);
            from_names(&named).expect_err("a wrong file")
        };
        assert!(with("gemm", 1.0).contains("\"gemm\" is no rate"));
        assert!(with("lora", 0.0).contains("\"lora\" is 0"));
        let mut short = named.clone();
        short.remove("read");
        assert!(from_names(&short).expect_err("a short file").contains("\"read\" is missing"));
    }

    #[test]
    fn a_disk_is_that_of_the_nearest_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(existing(&folder.path().join("not/there")), folder.path());
        assert_eq!(key(2, Some(folder.path())), key(2, Some(&folder.path().join("later"))));
    }
}
