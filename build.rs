//! Packs the relocations of a release binary (`DT_RELR`): unpacked they are 0.7 MB that the loader reads at each start and
//! that stay in memory. Whoever runs such a binary needs glibc 2.36 (Debian 12), so it is done where that builds it.
//! And sets `cfg(fuzzing)`, as cargo-fuzz does, with the feature of that name: to check what only the fuzz targets see.

use std::env;
use std::process::Command;

/// The first version of glibc whose loader reads packed relocations.
const GLIBC: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_FUZZING").is_some() {
        println!("cargo::rustc-cfg=fuzzing");
    }
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let native = env::var("HOST").ok() == env::var("TARGET").ok();
    let linux = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if native && linux && is("PROFILE", "release") && glibc().is_some_and(|version| version >= GLIBC) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc, as `getconf` says it: `glibc 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
