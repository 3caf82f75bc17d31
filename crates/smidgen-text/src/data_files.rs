//! Which files a data path names.

use std::path::{Path, PathBuf};

use crate::error::{Result, TextError};

/// The files of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataFiles {
    /// What is trained on.
    pub train: Option<PathBuf>,
    /// What losses are reported on while training.
    pub valid: Option<PathBuf>,
    /// What losses are reported on at the end.
    pub test: Option<PathBuf>,
}

impl DataFiles {
    /// The files that `path` names: a folder's `train`, `valid` and `test`, each `.jsonl` or
    /// `.txt`; a single file is `train`.
    ///
    /// # Errors
    /// There is nothing at `path`, the folder has none of the three, or has one in both forms.
    pub fn resolve(path: &Path) -> Result<Self> {
        if !path.metadata().map_err(TextError::io(path))?.is_dir() {
            return Ok(Self { train: Some(path.to_owned()), ..Self::default() });
        }
        let files = Self {
            train: split_file(path, "train")?,
            valid: split_file(path, "valid")?,
            test: split_file(path, "test")?,
        };
        if files == Self::default() {
            return Err(TextError::data(
                path,
                "the folder has none of train.jsonl, valid.jsonl, test.jsonl (or .txt)",
            ));
        }
        Ok(files)
    }
}

fn split_file(folder: &Path, split: &str) -> Result<Option<PathBuf>> {
    let [jsonl, txt] = ["jsonl", "txt"].map(|form| folder.join(format!("{split}.{form}")));
    match (jsonl.is_file(), txt.is_file()) {
        (true, true) => Err(TextError::data(
            folder,
            format!("{split}.jsonl and {split}.txt are both there; keep one"),
        )),
        (true, false) => Ok(Some(jsonl)),
        (false, true) => Ok(Some(txt)),
        (false, false) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(DataFiles::resolve(folder.path()).is_err());
        assert!(DataFiles::resolve(&at("nothing")).is_err());
        std::fs::write(at("train.jsonl"), "").unwrap();
        std::fs::write(at("valid.txt"), "").unwrap();
        let files = DataFiles::resolve(folder.path()).unwrap();
        assert_eq!(files.train, Some(at("train.jsonl")));
        assert_eq!(files.valid, Some(at("valid.txt")));
        assert_eq!(files.test, None);
        assert_eq!(DataFiles::resolve(&at("valid.txt")).unwrap().train, Some(at("valid.txt")));
        std::fs::write(at("train.txt"), "").unwrap();
        assert!(DataFiles::resolve(folder.path()).unwrap_err().to_string().contains("keep one"));
    }
}
