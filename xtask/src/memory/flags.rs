//! The command lines of the memory tasks.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};

/// `--name value` pairs and the words between them.
#[derive(Debug)]
pub struct Flags {
    values: BTreeMap<&'static str, String>,
    pub words: Vec<String>,
}

impl Flags {
    /// Reads `args`; flags that are not among `known` are refused.
    pub fn parse(args: &[&str], known: &[&'static str]) -> Result<Self> {
        let (mut values, mut words) = (BTreeMap::new(), Vec::new());
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            if !arg.starts_with('-') {
                words.push(arg.to_owned());
                continue;
            }
            let name = known.iter().find(|&&name| name == arg);
            let name = name.with_context(|| format!("no flag of this task: {arg}"))?;
            let value = args.next().with_context(|| format!("{arg} wants a value"))?;
            values.insert(*name, (*value).to_owned());
        }
        Ok(Self { values, words })
    }

    /// The value of a flag, `default` where it is not given.
    pub fn get<T: FromStr<Err: Display>>(&self, name: &str, default: T) -> Result<T> {
        self.values.get(name).map_or(Ok(default), |value| number(name, value))
    }

    /// The values of a flag that takes several, with commas between them.
    pub fn list<T: FromStr<Err: Display>>(&self, name: &str, default: &str) -> Result<Vec<T>> {
        let text = self.values.get(name).map_or(default, String::as_str);
        text.split(',').filter(|t| !t.is_empty()).map(|value| number(name, value)).collect()
    }

    /// A file that must be named and be there.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        let path = PathBuf::from(self.values.get(name).with_context(|| format!("{name} FILE?"))?);
        ensure!(path.is_file(), "{name} {}: no such file", path.display());
        Ok(path)
    }

    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// For tasks that take flags only.
    pub fn no_words(self) -> Result<Self> {
        match self.words.first() {
            Some(word) => bail!("what is {word:?} for?"),
            None => Ok(self),
        }
    }
}

fn number<T: FromStr<Err: Display>>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|error| anyhow!("{name} {value}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_lists_and_words() {
        let known = ["--iters", "--threads"];
        let flags = Flags::parse(&["a", "--iters", "3", "b"], &known).unwrap();
        assert_eq!(flags.words, ["a", "b"]);
        assert_eq!(flags.get("--iters", 20).unwrap(), 3);
        assert_eq!(flags.list::<u32>("--threads", "1,2").unwrap(), [1, 2]);
        assert!(flags.no_words().is_err());
        for wrong in [["--itres", "3"], ["--iters", "x"]] {
            let parsed = Flags::parse(&wrong, &known);
            assert!(parsed.and_then(|flags| flags.get("--iters", 1)).is_err(), "{wrong:?}");
        }
        assert!(Flags::parse(&["--iters"], &known).is_err());
    }
}
