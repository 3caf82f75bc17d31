//! What a run made in its output folder before it could start.

use std::fs;
use std::path::{Path, PathBuf};

/// Removes the folders and files that were not there before, unless the run starts.
#[derive(Debug)]
pub struct Created {
    /// Not there at first.
    files: Vec<PathBuf>,
    /// Not there at first, the innermost first.
    folders: Vec<PathBuf>,
}

impl Created {
    /// Looks at what is missing of `folder` and of its `files`, before they are made.
    pub fn watch(folder: &Path, files: impl IntoIterator<Item = PathBuf>) -> Self {
        let is_missing = |path: &Path| path.symlink_metadata().is_err();
        let ancestors = folder.ancestors().filter(|a| !a.as_os_str().is_empty());
        Self {
            files: files.into_iter().filter(|file| is_missing(file)).collect(),
            folders: ancestors.take_while(|a| is_missing(a)).map(Path::to_owned).collect(),
        }
    }

    /// All of it stays.
    pub fn keep(mut self) {
        self.files.clear();
        self.folders.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        // The error that ended the run is the one to tell; a folder with other files stays.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for folder in &self.folders {
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_created_goes() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let make = |folder: &str, keep: bool| {
            let files = ["a", "b"].map(|name| at(folder).join(name));
            let created = Created::watch(&at(folder), files.clone());
            fs::create_dir_all(at(folder)).unwrap();
            files.iter().for_each(|file| fs::write(file, "").unwrap());
            if keep {
                created.keep()
            }
        };
        make("x/y", false);
        assert!(!at("x").exists());
        make("x/y", true);
        fs::remove_file(at("x/y/b")).unwrap();
        make("x/y", false);
        assert!(at("x/y/a").exists() && !at("x/y/b").exists());
    }
}
