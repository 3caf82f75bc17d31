//! `src/proto/generated.rs` belongs to `proto/side.proto`.

use std::fs;
use std::path::Path;

#[test]
fn generated_code_is_that_of_the_definition() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let definition = root.join("proto/side.proto");
    let files = protox::compile([&definition], [&root.join("proto")]).expect("a definition");
    let place = tempfile::tempdir().expect("a folder");
    tonic_prost_build::configure()
        .build_transport(false)
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .emit_rerun_if_changed(false)
        .out_dir(place.path())
        .compile_fds(files)
        .expect("code");
    let made = fs::read_to_string(place.path().join("smidgen.side.v1.rs")).expect("code");
    let held = root.join("src/proto/generated.rs");
    if fs::read_to_string(&held).ok().as_ref() != Some(&made) {
        fs::write(&held, made).expect("written");
        panic!("{} was not that of {}; it is now", held.display(), definition.display());
    }
}
