//! The command line as clap gets it: `_` in flag names made `-`, and flags of a `--config` file put
//! in front of those that were typed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{ArgAction, ArgMatches, Command};
use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::{Marker, TScalarStyle};

/// A larger file is no file of flags.
const MAX_BYTES: u64 = 1 << 20;

/// One key of a file and the values under it: one, or those of a list, or none for an empty one.
#[derive(Debug, PartialEq)]
struct Entry {
    key: String,
    values: Vec<String>,
    line: usize,
}

/// Command-line arguments with the flags of the `--config` file, if there is one, put in where
/// they were not typed.
pub fn expand(typed: Vec<OsString>, command: &Command) -> Result<Vec<OsString>, clap::Error> {
    let mut args = with_hyphens(typed);
    // What a file gives need not be typed.
    let relaxed = command.clone().mut_subcommands(|c| c.mut_args(|a| a.required(false)));
    let Ok(matches) = relaxed.try_get_matches_from(&args) else {
        return Ok(args);
    };
    let Some((name, given)) = matches.subcommand() else { return Ok(args) };
    let Ok(Some(path)) = given.try_get_one::<PathBuf>("config") else { return Ok(args) };
    let mut command = command.clone();
    command.build();
    let subcommand = command.find_subcommand_mut(name).expect("it matched").clone();
    let flags =
        read(path).and_then(|entries| flags(&entries, &subcommand, given)).map_err(|what| {
            let message = format!("{}: {what}\n", path.display());
            clap::Error::raw(ErrorKind::InvalidValue, message).with_cmd(&subcommand)
        })?;
    args.splice(2..2, flags.into_iter().map(OsString::from));
    Ok(args)
}

/// `--max_seq_length=8` as `--max-seq-length=8`; what comes after `--` stays.
fn with_hyphens(typed: Vec<OsString>) -> Vec<OsString> {
    let mut flags_ended = false;
    let change = |arg: OsString| {
        flags_ended |= arg == "--";
        let Some(text) = arg.to_str().filter(|t| t.starts_with("--") && !flags_ended) else {
            return arg;
        };
        match text.split_once('=') {
            Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
            None => text.replace('_', "-").into(),
        }
    };
    typed.into_iter().map(change).collect()
}

/// The arguments that the entries stand for, but for those typed or in conflict with one typed.
fn flags(
    entries: &[Entry],
    subcommand: &Command,
    typed: &ArgMatches,
) -> Result<Vec<String>, String> {
    let known: Vec<&clap::Arg> = subcommand
        .get_arguments()
        .filter(|a| !matches!(a.get_id().as_str(), "config" | "help"))
        .collect();
    let names = |arg: &clap::Arg| -> Vec<String> {
        let aliases = arg.get_visible_aliases().unwrap_or_default();
        arg.get_long().into_iter().chain(aliases).map(str::to_owned).collect()
    };
    let find = |key: &str| known.iter().copied().find(|a| names(a).iter().any(|n| n == key));
    let is_typed = |arg: &clap::Arg| {
        typed.value_source(arg.get_id().as_str()) == Some(clap::parser::ValueSource::CommandLine)
    };
    let mut out = Vec::new();
    for Entry { key, values, line } in entries {
        let key = key.replace('_', "-");
        let Some(mut arg) = find(&key) else {
            let all: Vec<String> = known.iter().flat_map(|a| names(a)).collect();
            let near = all.iter().min_by_key(|n| strsim::damerau_levenshtein(n, &key));
            let near = near.expect("there are flags");
            return Err(format!("line {line}: no flag is called {key:?}; the nearest is {near:?}"));
        };
        let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
        let mut name = key.clone();
        if is_switch {
            match values.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["true"] => {}
                ["false"] => {
                    name = key.strip_prefix("no-").map_or(format!("no-{key}"), str::to_owned);
                    match find(&name) {
                        Some(opposite) => arg = opposite,
                        None => continue,
                    }
                }
                _ => return Err(format!("line {line}: {key} is either true or false")),
            }
        }
        let conflicts = subcommand.get_arg_conflicts_with(arg);
        let overridden = is_typed(arg) || conflicts.into_iter().any(is_typed);
        let opposite = find(name.strip_prefix("no-").unwrap_or(&format!("no-{name}")));
        if overridden || opposite.is_some_and(is_typed) || values.is_empty() {
            continue;
        }
        let flag = match is_switch {
            true => format!("--{name}"),
            false => format!("--{name}={}", values.join(",")),
        };
        let alone = subcommand.clone().mut_args(|a| a.required(false));
        if let Err(error) = alone.try_get_matches_from(["", &flag]) {
            let told = error.to_string();
            let first = told.lines().next().unwrap_or_default();
            return Err(format!("line {line}: {}", first.trim_start_matches("error: ")));
        }
        out.push(flag);
    }
    Ok(out)
}

fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let bytes = path.metadata().map_err(|e| e.to_string())?.len();
    if bytes > MAX_BYTES {
        return Err(format!("{bytes} bytes are too many for a file of flags"));
    }
    parse(&std::fs::read_to_string(path).map_err(|e| e.to_string())?)
}

/// The keys and values of a YAML mapping without inner mappings. Works on the parser's events, so
/// the depth of a file costs no stack, and values stay as they are written.
fn parse(text: &str) -> Result<Vec<Entry>, String> {
    const EXPECTED: &str = "expected lines such as `lora-rank: 8`";
    let mut parser = Parser::new_from_str(text);
    let mut entries: Vec<Entry> = Vec::new();
    let (mut in_mapping, mut in_list, mut wants_value) = (false, false, false);
    loop {
        let (event, at): (Event, Marker) = parser.next_token().map_err(|e| e.to_string())?;
        let line = at.line();
        match event {
            Event::StreamEnd => return Ok(entries),
            Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
            Event::DocumentStart if entries.is_empty() => {}
            Event::MappingStart(..) if !in_mapping => in_mapping = true,
            Event::MappingEnd => in_mapping = false,
            Event::SequenceStart(..) if wants_value && !in_list => in_list = true,
            Event::SequenceEnd => (in_list, wants_value) = (false, false),
            Event::Scalar(text, style, ..) if in_mapping => {
                if !wants_value {
                    if entries.iter().any(|e| e.key == text) {
                        return Err(format!("line {line}: {text} stands twice"));
                    }
                    entries.push(Entry { key: text, values: vec![], line });
                    wants_value = true;
                    continue;
                }
                let is_null = style == TScalarStyle::Plain
                    && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL");
                if !is_null {
                    let entry = entries.last_mut().expect("its key came first");
                    entry.values.push(text);
                }
                wants_value = in_list;
            }
            // An empty file is a document with one empty scalar.
            Event::Scalar(text, ..) if text.is_empty() && entries.is_empty() => {}
            _ => return Err(format!("line {line}: {EXPECTED}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn entries(text: &str) -> Vec<(String, Vec<String>)> {
        parse(text).unwrap().into_iter().map(|e| (e.key, e.values)).collect()
    }

    #[test]
    fn keys_and_values() {
        let text = "# settings\nlora_rank: 8\nlearning-rate: 1e-4\ndata: \"a b.txt\"\n\
                    target_modules: [q_proj, v_proj]\nchunks:\n";
        let expected: [(&str, &[&str]); 5] = [
            ("lora_rank", &["8"]),
            ("learning-rate", &["1e-4"]),
            ("data", &["a b.txt"]),
            ("target_modules", &["q_proj", "v_proj"]),
            ("chunks", &[]),
        ];
        let expected = expected.map(|(key, values)| {
            (key.to_owned(), values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>())
        });
        assert_eq!(entries(text), expected);
        assert_eq!(entries(""), []);
        assert_eq!(entries("---\niters: 3\n...\n").len(), 1);
    }

    #[test]
    fn no_mapping_of_flags() {
        for text in
            ["- a\n- b", "a: {b: 1}", "a: [[1]]", "a: 1\na: 2", "a: *b", "just text", "a: ["]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).is_err());
    }

    fn expanded(yaml: &str, typed: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.yaml");
        std::fs::write(&path, yaml).unwrap();
        let line = format!("smidgen train -c {} {typed}", path.display());
        let typed = line.split_whitespace().map(OsString::from).collect();
        let args = expand(typed, &crate::args::Cli::command()).map_err(|e| e.to_string())?;
        let from_file = args.iter().skip(2).take_while(|a| *a != "-c");
        Ok(from_file.map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_command_line_wins() {
        let yaml = "model: m.gguf\niters: 5\nlora_r: 4\nmask-prompt: false\nno-shuffle: true\n";
        let all = "--model=m.gguf --iters=5 --lora-r=4 --no-mask-prompt --no-shuffle";
        assert_eq!(expanded(yaml, "--data d").unwrap(), all);
        assert_eq!(
            expanded(yaml, "--epochs 2 --lora_rank 2 --mask_prompt").unwrap(),
            "--model=m.gguf --no-shuffle"
        );
        assert_eq!(expanded("no-shuffle: false\nbos: false", "").unwrap(), "");
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let error = expanded("lora-rnak: 8", "").unwrap_err();
        assert!(error.contains("line 1") && error.contains("\"lora-rank\""), "{error}");
        assert!(expanded("bos: 3", "").unwrap_err().contains("true or false"));
        assert!(expanded("config: x", "").is_err());
    }

    #[test]
    fn hyphens() {
        let typed = ["s", "train", "--lora_rank=a_b", "--max_seq_length", "x_y", "--", "--a_b"];
        let changed = with_hyphens(typed.map(OsString::from).to_vec());
        let expected = ["s", "train", "--lora-rank=a_b", "--max-seq-length", "x_y", "--", "--a_b"];
        assert_eq!(changed, expected.map(OsString::from));
    }
}
