//! What a link to a server takes on the device, TLS and all, counted at the allocator.

mod wire;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair};
use smidgen_remote::{RemoteConfig, RemoteLink, ServerTls};
use smidgen_train::{SideLink, TapFormat};
use wire::{Dummy, Process, remote, session, shape};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: all is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Heap beside what the device gives and takes.
const MOST: usize = RemoteLink::HELD_BYTES as usize;

#[test]
fn a_link_takes_little_whatever_a_sample_takes() {
    let place = tempfile::tempdir().expect("a folder");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned()]).expect("settings");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    fs::write(place.path().join("certificate"), &certificate).expect("written");
    fs::write(place.path().join("key"), key.serialize_pem()).expect("written");
    let process = Process::start("serve_for_another_process", place.path(), 1);
    let config = RemoteConfig {
        url: format!("https://localhost:{}", process.address.port()),
        ca: Some(certificate.into_bytes()),
        ..remote(process.address)
    };
    for (id, rows) in [(1, 100), (2, 8000)] {
        let dummy = Dummy { rows, samples: 2, ..Dummy::new(shape(TapFormat::F16)) };
        let taps: Vec<Vec<u8>> = (0..2).map(|place| dummy.taps(1, place)).collect();
        let batch = dummy.batch(1);
        let mut output = vec![0.0; (rows + 3) * 32];
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let link = RemoteLink::open(config.clone(), session(id, &dummy.shape));
        let mut link = link.expect("a link");
        for step in 1..=4 {
            let wanted = link.begin(step, &batch).expect("begun");
            for place in (0..2).filter(|&place| wanted[place]) {
                link.taps(step, place, &taps[place]).expect("given");
            }
            for (place, sample) in batch.iter().enumerate() {
                let output = &mut output[..sample.rows * 32];
                link.output(step, place, output).expect("an output");
                link.gradient(step, place, output).expect("given");
            }
            link.update(step, 1e-3).expect("given");
            link.confirm(step).expect("done");
        }
        let took = PEAK.load(Ordering::Relaxed) - before;
        assert!(took < MOST, "{took} bytes with {rows} rows");
        println!("{took} bytes with {rows} rows");
    }
}

#[test]
#[ignore = "what `Process` starts"]
fn serve_for_another_process() {
    wire::serve(|config| {
        let place = config.state.with_file_name("");
        let read = |name| fs::read(place.join(name)).expect("PEM");
        let (certificate, key) = (read("certificate"), read("key"));
        config.tls = Some(ServerTls { certificate, key, client_ca: None });
    });
}
