//! `smidgen serve`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use smidgen::{Base, Limits, Server, ServerConfig, ServerTls, Token};

use crate::args::{LogForm, ServeArgs};
use crate::error::{Failure, Result};
use crate::stop::Stop;
use crate::ui;

/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(100);

pub fn run(args: &ServeArgs, stop: &Stop) -> Result<()> {
    fs::create_dir_all(&args.state).map_err(Failure::file("create", &args.state))?;
    let list = args.state.join("tokens");
    if let Some(name) = &args.new_token {
        return new_token(&list, name);
    }
    match args.log {
        LogForm::Text => tracing_subscriber::fmt().with_writer(std::io::stderr).init(),
        LogForm::Json => tracing_subscriber::fmt().json().with_writer(std::io::stderr).init(),
    }
    let server =
        Server::start(config(args, &list)?).map_err(|error| Failure::Server(error.to_string()))?;
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    ui::warn(&format!("smidgen serves at {scheme}://{}", server.local_addr()));
    while stop.exit_code().is_none() && !server.is_finished() {
        std::thread::sleep(LOOK);
    }
    server.stop();
    server.join().map_err(|error| Failure::Server(error.to_string()))?;
    stop.exit_code().map_or(Ok(()), |code| Err(Failure::Interrupted(code)))
}

fn config(args: &ServeArgs, list: &Path) -> Result<ServerConfig> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Some(ServerTls {
            certificate: read(certificate)?,
            key: read(key)?,
            client_ca: args.client_ca.as_deref().map(read).transpose()?,
        }),
        _ => None,
    };
    let cores = || std::thread::available_parallelism().map_or(1, Into::into);
    Ok(ServerConfig {
        listen: args.listen,
        tls,
        tokens: tokens(list)?,
        limits: Limits {
            sessions: args.sessions,
            parameters: args.parameters,
            rows: args.rows,
            samples: args.samples,
            steps: args.steps,
            tap_bytes: args.tap_memory.0,
        },
        state: args.state.join("sessions.redb"),
        cache: args.state.join("taps"),
        cache_bytes_max: args.cache.0,
        metrics: args.metrics,
        workers: args.workers.map_or_else(cores, |n| n as usize),
        connections: args.connections,
        model: args.model.as_deref().map(Base::open).transpose()?.map(Arc::new),
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Failure::file("read", path))
}

/// The list of tokens: a name and the SHA-256 of a token a line, `#` before what is for people.
fn tokens(list: &Path) -> Result<Vec<Token>> {
    let none = || {
        Failure::usage(format!(
            "{} lists no token, so nobody could train; make one with --new-token NAME",
            list.display()
        ))
    };
    let text = match fs::read_to_string(list) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(none()),
        text => text.map_err(Failure::file("read", list))?,
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with('#'));
    let tokens: Vec<Token> = lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(at, line)| {
            parse(line).ok_or_else(|| {
                Failure::usage(format!(
                    "{}, line {}: it is to be a name and 64 hexadecimal digits",
                    list.display(),
                    at + 1
                ))
            })
        })
        .collect::<Result<_>>()?;
    if tokens.is_empty() { Err(none()) } else { Ok(tokens) }
}

fn parse(line: &str) -> Option<Token> {
    let (name, digits) = line.trim().split_once(char::is_whitespace)?;
    let digits = digits.trim();
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut sha256 = [0; 32];
    for (i, byte) in sha256.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(Token { name: name.to_owned(), sha256 })
}

/// Makes a token, which is told once and nowhere written.
fn new_token(list: &Path, name: &str) -> Result<()> {
    if name.is_empty() || name.starts_with('#') || name.contains(char::is_whitespace) {
        return Err(Failure::usage(format!(
            "--new-token {name:?}: a name has no spaces and does not begin with #"
        )));
    }
    let known = match list.exists() {
        true => fs::read_to_string(list).map_err(Failure::file("read", list))?,
        false => String::new(),
    };
    if known.lines().filter_map(parse).any(|token| token.name == name) {
        return Err(Failure::usage(format!(
            "{} has a token for {name}; take its line out to make another one",
            list.display()
        )));
    }
    let mut token = [0; 24];
    let failed = |error: getrandom::Error| Failure::Server(error.to_string());
    getrandom::fill(&mut token).map_err(failed)?;
    let token = hex(&token);
    let line = format!("{name} {}\n", hex(&Sha256::digest(&token)));
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(list)
        .map_err(Failure::file("write", list))?;
    file.write_all(line.as_bytes()).map_err(Failure::file("write", list))?;
    println!("{token}");
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_listed() {
        let place = tempfile::tempdir().unwrap();
        let list = place.path().join("tokens");
        let told = |result: Result<Vec<Token>>| result.unwrap_err().to_string();
        assert!(told(tokens(&list)).contains("--new-token"));
        new_token(&list, "phone").unwrap();
        new_token(&list, "board").unwrap();
        assert!(new_token(&list, "phone").unwrap_err().to_string().contains("take its line out"));
        assert!(new_token(&list, "a b").is_err());
        let names: Vec<_> = tokens(&list).unwrap().into_iter().map(|token| token.name).collect();
        assert_eq!(names, ["phone", "board"]);
        fs::write(&list, "# people\n\nphone 12\n").unwrap();
        assert!(told(tokens(&list)).contains("line 3"));
        fs::write(&list, format!("phone {}é", "1".repeat(62))).unwrap();
        assert!(told(tokens(&list)).contains("line 1"));
    }
}
