//! Many devices at once: none waits for ever, and the server's memory has a bound.

mod wire;

use std::thread;
use std::time::{Duration, Instant};

use smidgen_train::TapFormat;
use wire::{Dummy, Process, bits, open, shape};

#[test]
fn sessions_share_the_workers_fairly() {
    const SESSIONS: u8 = 32;
    let place = tempfile::tempdir().expect("a folder");
    let process = Process::start("serve_for_another_process", place.path(), 1);
    let dummy = Dummy { window: 2, steps: 12, ..Dummy::new(shape(TapFormat::F16)) };
    let expected = bits(&dummy.expected());
    let address = process.address;
    let links: Vec<_> = (0..SESSIONS).map(|id| open(address, id, &dummy.shape)).collect();
    let before = process.memory("VmHWM");
    let start = Instant::now();
    let devices = links.into_iter().map(|mut link| {
        let dummy = dummy.clone();
        thread::spawn(move || (dummy.train(&mut link).expect("trained").0, start.elapsed()))
    });
    let devices: Vec<_> = devices.collect();
    let ends: Vec<_> = devices.into_iter().map(|device| device.join().expect("no panic")).collect();
    assert!(ends.iter().all(|(found, _)| bits(found) == expected));
    let times = || ends.iter().map(|(_, time)| *time);
    let (first, last) = (times().min().expect("one"), times().max().expect("one"));
    assert!(last < 3 * first + Duration::from_secs(1), "from {first:?} to {last:?}");
    if let (Some(before), Some(after)) = (before, process.memory("VmHWM")) {
        // 2 MB a session, though each has HTTP/2 windows of 256 KiB, a network and its taps.
        let more = after.saturating_sub(before) / 1_000_000;
        assert!(more < 64, "{more} MB more for {SESSIONS} sessions");
    }
}

#[test]
#[ignore = "what `Process` starts"]
fn serve_for_another_process() {
    wire::serve(|_| {});
}
