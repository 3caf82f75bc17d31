//! Training over a network comes to the same bits as training in one process, whatever happens on
//! the way: steps under way, lost connections, a server that is killed, caches that are full or
//! damaged.

mod wire;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use smidgen_remote::{RemoteConfig, RemoteError, RemoteLink, Server};
use smidgen_train::{LinkError, SideLink, TapFormat};
use wire::{Dummy, Process, Road, bits, metric, numbers, open, remote, session, settings, shape};

fn server(place: &Path) -> Server {
    Server::start(settings(place)).expect("a server")
}

#[test]
fn the_network_is_the_same_over_the_wire() {
    let place = tempfile::tempdir().expect("a folder");
    let server = server(place.path());
    for (id, format) in (1..).zip([TapFormat::F16, TapFormat::Q8, TapFormat::Q4]) {
        let dummy = Dummy::new(shape(format));
        let expected = bits(&dummy.expected());
        for window in [1, 2, 4] {
            let dummy = Dummy { window, ..dummy.clone() };
            let mut link = open(server.local_addr(), 16 * window as u8 + id, &dummy.shape);
            let start = numbers(&mut link).expect("the start");
            assert_eq!(bits(&start), bits(&dummy.shape.start(wire::SEED)));
            let (found, anew) = dummy.train(&mut link).expect("trained");
            assert_eq!((bits(&found), anew), (expected.clone(), 0), "{format:?} {window}");
            link.close().expect("closed");
        }
    }
    assert_eq!(metric(&server, "steps_total"), 90.0);
    assert_eq!(metric(&server, "sessions_stored"), 0.0);
}

#[test]
fn outputs_larger_than_all_windows_arrive() {
    let place = tempfile::tempdir().expect("a folder");
    let server = server(place.path());
    // An output of 640 KB, and four times as much of taps.
    let dummy = Dummy { rows: 5000, steps: 2, window: 2, ..Dummy::new(shape(TapFormat::F16)) };
    let (found, _) = dummy.train(&mut open(server.local_addr(), 1, &dummy.shape)).expect("trained");
    assert_eq!(bits(&found), bits(&dummy.expected()));
}

#[test]
fn a_session_goes_on_where_it_was() {
    let place = tempfile::tempdir().expect("a folder");
    let dummy = Dummy::new(shape(TapFormat::Q8));
    let expected = bits(&dummy.expected());
    let mut found = Vec::new();
    for steps in [3, 4, 10] {
        // A new server each time, with the old one's files.
        let server = server(place.path());
        let resume = steps > 3;
        let session = wire::session(1, &dummy.shape);
        let session = smidgen_remote::RemoteSession { resume, ..session };
        let mut link = RemoteLink::open(remote(server.local_addr()), session).expect("a link");
        let part = Dummy { steps, ..dummy.clone() };
        found = part.train(&mut link).expect("trained").0;
        assert_eq!(link.confirmed().expect("a step"), steps);
        drop(link);
        server.stop();
        server.join().expect("ended");
    }
    assert_eq!(bits(&found), expected);
}

#[test]
fn a_cut_connection_changes_nothing() {
    let place = tempfile::tempdir().expect("a folder");
    let server = server(place.path());
    for (id, window) in [(1, 1), (2, 3)] {
        let dummy = Dummy { window, steps: 40, ..Dummy::new(shape(TapFormat::F16)) };
        let expected = bits(&dummy.expected());
        // A step sends some 6,000 bytes, so no connection gets far.
        let road = Road::new(server.local_addr(), Some(20_000));
        let mut link = open(road.address, id, &dummy.shape);
        let (found, anew) = dummy.train(&mut link).expect("trained");
        assert_eq!(bits(&found), expected, "{window}");
        let connections = road.count.load(Ordering::Relaxed);
        assert!(anew > 2 && connections > 4, "{anew}, {connections} connections");
    }
}

#[test]
fn a_killed_server_comes_back_to_the_same_end() {
    let place = tempfile::tempdir().expect("a folder");
    let dummy = Dummy { window: 2, steps: 60, samples: 4, ..Dummy::new(shape(TapFormat::F16)) };
    let expected = bits(&dummy.expected());
    let mut process = Process::start("serve_for_another_process", place.path(), 1);
    let road = Road::new(process.address, None);
    let mut link = open(road.address, 1, &dummy.shape);
    let training = thread::spawn(move || dummy.train(&mut link).expect("trained"));
    let mut kills = 0;
    while !training.is_finished() {
        thread::sleep(Duration::from_millis(60 + 37 * kills));
        if kills == 6 {
            continue;
        }
        kills += 1;
        process.kill();
        // With other numbers of threads: no bit depends on them.
        process = Process::start("serve_for_another_process", place.path(), kills as usize);
        road.lead_to(process.address);
        road.cut();
    }
    let (found, anew) = training.join().expect("no panic");
    assert_eq!(bits(&found), expected);
    assert!(kills > 1 && anew > 0, "{kills} kills, begun anew {anew} times: too fast a machine");
}

#[test]
#[ignore = "what `Process` starts"]
fn serve_for_another_process() {
    wire::serve(|_| {});
}

#[test]
fn a_server_that_stays_away_is_given_up() {
    let place = tempfile::tempdir().expect("a folder");
    let server = server(place.path());
    let dummy = Dummy::new(shape(TapFormat::F16));
    let retry_for = Duration::from_millis(700);
    let config = RemoteConfig { retry_for, ..remote(server.local_addr()) };
    let mut link = RemoteLink::open(config.clone(), session(1, &dummy.shape)).expect("a link");
    link.begin(1, &dummy.batch(1)).expect("begun");
    drop(server);
    let mut output = vec![0.0; dummy.rows * 32];
    let error = link.output(1, 0, &mut output).expect_err("no server");
    let LinkError::Failed(error) = error else { panic!("{error}") };
    let said = error.to_string();
    assert!(said.contains("could not be reached") && said.contains("resume the run"), "{said}");
    let error = RemoteLink::open(config, session(2, &dummy.shape)).expect_err("no server");
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
}

#[test]
fn a_server_that_stays_away_is_not_waited_for_by_who_stops() {
    let place = tempfile::tempdir().expect("a folder");
    let server = server(place.path());
    let dummy = Dummy::new(shape(TapFormat::F16));
    let stop = Arc::new(AtomicBool::new(false));
    let (retry_for, timeout) = (Duration::from_secs(600), Duration::from_secs(600));
    let at = remote(server.local_addr());
    let config = RemoteConfig { retry_for, timeout, stop: Arc::clone(&stop), ..at };
    let mut link = RemoteLink::open(config.clone(), session(1, &dummy.shape)).expect("a link");
    dummy.train(&mut link).expect("trained");
    drop(server);
    let stopper = thread::spawn(move || {
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
    });
    let error = link.begin(dummy.steps + 1, &dummy.batch(1)).expect_err("no server");
    let LinkError::Stopped(error) = error else { panic!("{error}") };
    let said = error.to_string();
    assert!(said.contains("can't be reached") && said.contains("resume the run"), "{said}");
    stopper.join().expect("a thread");
    let error = RemoteLink::open(config, session(2, &dummy.shape)).expect_err("no server");
    assert!(matches!(error, RemoteError::Stopped { .. }), "{error}");
}

#[test]
fn taps_are_sent_once() {
    let place = tempfile::tempdir().expect("a folder");
    let dummy = Dummy { steps: 12, epoch: 4, window: 2, ..Dummy::new(shape(TapFormat::Q8)) };
    let expected = bits(&dummy.expected());
    let server = server(place.path());
    let mut sent = 0;
    let mut link = open(server.local_addr(), 1, &dummy.shape);
    dummy.try_train(&mut link, &mut sent).expect("trained");
    let found = numbers(&mut link).expect("numbers");
    assert_eq!((sent, bits(&found)), (12, expected.clone()));
    assert_eq!(metric(&server, "cache_misses_total"), 12.0);
    assert_eq!(metric(&server, "cache_hits_total"), 24.0);
    assert_eq!(metric(&server, "cache_entries"), 12.0);

    // Another session of the same token, behind a restart, with another network.
    drop((link, server));
    let server = self::server(place.path());
    let config = smidgen_train::SideConfig { width: 3, ..*dummy.shape.config() };
    let other = smidgen_train::SideShape::new(config, 4, 32).expect("a shape");
    let other = Dummy { shape: other, ..dummy.clone() };
    sent = 0;
    let mut link = open(server.local_addr(), 2, &other.shape);
    other.try_train(&mut link, &mut sent).expect("trained");
    assert_eq!(sent, 0);
    // Neither another owner's nor another model's taps are shared.
    let theirs = RemoteConfig { token: "another".to_owned(), ..remote(server.local_addr()) };
    let mut link = RemoteLink::open(theirs, session(3, &dummy.shape)).expect("a link");
    assert_eq!(link.begin(1, &dummy.batch(1)).expect("begun"), [true; 3]);
    let model = smidgen_remote::RemoteSession {
        fingerprint: b"another model".to_vec(),
        ..session(4, &dummy.shape)
    };
    let mut link = RemoteLink::open(remote(server.local_addr()), model).expect("a link");
    assert_eq!(link.begin(1, &dummy.batch(1)).expect("begun"), [true; 3]);

    // Damage: a flipped bit, a file that is gone, one that is cut.
    let mut files: Vec<_> = fs::read_dir(place.path().join("taps"))
        .expect("files")
        .map(|file| file.expect("a file").path())
        .collect();
    files.sort();
    let mut bytes = fs::read(&files[0]).expect("taps");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&files[0], &bytes).expect("written");
    fs::remove_file(&files[1]).expect("removed");
    fs::write(&files[2], &bytes[..20]).expect("written");
    let mut link = open(server.local_addr(), 5, &dummy.shape);
    let (found, anew) = dummy.train(&mut link).expect("trained");
    assert_eq!(bits(&found), expected);
    assert_eq!(anew, 3);
    assert_eq!(metric(&server, "cache_damaged_total"), 3.0);
    assert_eq!(metric(&server, "cache_entries"), 12.0);
}

#[test]
fn the_cache_keeps_to_its_bytes_and_drops_what_was_not_used_for_longest() {
    let place = tempfile::tempdir().expect("a folder");
    let dummy = Dummy { samples: 1, steps: 6, ..Dummy::new(shape(TapFormat::Q8)) };
    let expected = bits(&dummy.expected());
    let file = |step| 32 + dummy.taps(step, 0).len() as u64;
    // The last three samples, and not one byte more.
    let most = file(4) + file(5) + file(6);
    let mut config = settings(place.path());
    config.cache_bytes_max = most;
    let server = Server::start(config.clone()).expect("a server");
    let (found, _) = dummy.train(&mut open(server.local_addr(), 1, &dummy.shape)).expect("trained");
    assert_eq!(bits(&found), expected);
    assert_eq!(metric(&server, "cache_bytes"), most as f64);
    assert_eq!(metric(&server, "cache_evicted_total"), 3.0);
    // The fourth is used again, so the fifth goes when another one comes.
    let mut link = open(server.local_addr(), 2, &dummy.shape);
    let asked = Dummy { epoch: 1, ..dummy.clone() };
    let of = |number| dummy.sample(number, 0).1;
    assert_eq!(link.begin(1, &[of(4)]).expect("begun"), [false]);
    let mut output = vec![0.0; of(4).rows * 32];
    link.output(1, 0, &mut output).expect("from the cache");
    drop(link);
    let mut link = open(server.local_addr(), 3, &dummy.shape);
    assert_eq!(link.begin(1, &[of(1)]).expect("begun"), [true]);
    link.taps(1, 0, &asked.taps(1, 0)).expect("given");
    let mut output = vec![0.0; of(1).rows * 32];
    link.output(1, 0, &mut output).expect("computed");
    drop((link, server));
    // The order outlives the server.
    let server = Server::start(config).expect("a server");
    let mut link = open(server.local_addr(), 4, &dummy.shape);
    let wanted = link.begin(1, &[of(4), of(5), of(1)]).expect("begun");
    assert_eq!(wanted, [false, true, false]);
}

#[test]
fn without_a_cache_taps_come_each_time() {
    let place = tempfile::tempdir().expect("a folder");
    let mut config = settings(place.path());
    config.cache_bytes_max = 0;
    let server = Server::start(config).expect("a server");
    let dummy = Dummy { steps: 6, epoch: 2, ..Dummy::new(shape(TapFormat::F16)) };
    let mut sent = 0;
    let mut link = open(server.local_addr(), 1, &dummy.shape);
    dummy.try_train(&mut link, &mut sent).expect("trained");
    assert_eq!((sent, metric(&server, "cache_bytes")), (18, 0.0));
}
