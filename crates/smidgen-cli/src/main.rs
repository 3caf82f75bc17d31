//! The command line of Smidgen.
fn main() {}
