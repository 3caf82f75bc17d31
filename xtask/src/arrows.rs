//! Which crate may depend on which. The table is the architecture: arrows run only downwards.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::cargo;

/// Each crate with the workspace crates it may depend on, be it normally, for its build or for its
/// tests. A row names only rows above it, so there is no cycle.
const ARROWS: &[(&str, &[&str])] = &[
    ("smidgen-kernels", &[]),
    ("smidgen-graph", &[]),
    ("smidgen-text", &[]),
    // The block formats of quantised tensors live in kernels.
    ("smidgen-weights", &["smidgen-kernels"]),
    ("smidgen-models", &["smidgen-graph", "smidgen-weights"]),
    ("smidgen-runtime", &["smidgen-kernels", "smidgen-graph", "smidgen-weights"]),
    (
        "smidgen-train",
        &[
            "smidgen-kernels",
            "smidgen-graph",
            "smidgen-text",
            "smidgen-weights",
            "smidgen-models",
            "smidgen-runtime",
        ],
    ),
    ("smidgen-remote", TRAIN_AND_BELOW),
    ("smidgen", &["smidgen-remote", "smidgen-train"]),
    ("smidgen-cli", &["smidgen"]),
    ("xtask", &[]),
];

/// What stands on training may also name what training stands on.
const TRAIN_AND_BELOW: &[&str] = &[
    "smidgen-kernels",
    "smidgen-graph",
    "smidgen-text",
    "smidgen-weights",
    "smidgen-models",
    "smidgen-runtime",
    "smidgen-train",
];

/// What `cargo metadata --no-deps` says of the workspace, as far as it is read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
}

/// Fails with every arrow of the workspace that the table does not allow.
pub fn check() -> Result<()> {
    let output = cargo::command(&["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("could not start `cargo metadata`")?;
    ensure!(
        output.status.success(),
        "`cargo metadata` failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("could not read `cargo metadata`")?;
    let errors = violations(&metadata);
    if !errors.is_empty() {
        bail!("crate arrows (xtask/src/arrows.rs):\n  {}", errors.join("\n  "));
    }
    println!("Crate arrows: {} crates, as the table says.", metadata.packages.len());
    Ok(())
}

fn violations(metadata: &Metadata) -> Vec<String> {
    let in_workspace = |name: &str| metadata.packages.iter().any(|p| p.name == name);
    let mut errors = Vec::new();
    for Package { name, dependencies } in &metadata.packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(row, _)| row == name) else {
            errors.push(format!("{name} is not in the table"));
            continue;
        };
        let of_ours = dependencies.iter().map(|d| d.name.as_str()).filter(|d| in_workspace(d));
        errors.extend(
            of_ours
                .filter(|dependency| !allowed.contains(dependency))
                .map(|dependency| format!("{name} may not depend on {dependency}")),
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(packages: &[(&str, &[&str])]) -> Metadata {
        let dependency = |name: &&str| Dependency { name: name.to_string() };
        let packages = packages.iter().map(|(name, dependencies)| Package {
            name: name.to_string(),
            dependencies: dependencies.iter().map(dependency).collect(),
        });
        Metadata { packages: packages.collect() }
    }

    #[test]
    fn the_workspace_keeps_its_arrows() {
        check().unwrap();
    }

    #[test]
    fn rows_name_only_rows_above_them() {
        for (row, (name, allowed)) in ARROWS.iter().enumerate() {
            for dependency in *allowed {
                let above = ARROWS[..row].iter().any(|(above, _)| above == dependency);
                assert!(above, "{name} names {dependency}, which is not above it");
            }
        }
    }

    #[test]
    fn an_allowed_arrow_and_a_foreign_crate_pass() {
        let weights = ["smidgen-kernels", "memmap2"];
        let metadata = workspace(&[("smidgen-kernels", &[]), ("smidgen-weights", &weights)]);
        assert_eq!(violations(&metadata), [""; 0]);
    }

    #[test]
    fn an_arrow_upwards_is_named() {
        let metadata =
            workspace(&[("smidgen-kernels", &["smidgen-graph"]), ("smidgen-graph", &[])]);
        assert_eq!(violations(&metadata), ["smidgen-kernels may not depend on smidgen-graph"]);
    }

    #[test]
    fn a_crate_outside_the_table_is_named() {
        let metadata = workspace(&[("smidgen-utils", &[])]);
        assert_eq!(violations(&metadata), ["smidgen-utils is not in the table"]);
    }
}
