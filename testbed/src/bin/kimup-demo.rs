//! `kimup-demo`: the main job of kimup on a real control plane and a real registry, as a person would do it. `make demo`.

#[path = "../demo/mod.rs"]
mod demo;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: kimup-demo --kimup PROGRAM [--keep]

  --kimup PROGRAM  the kimup to show
  --keep           leave everything running, and print how to look around and how to stop it";

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (kimup, keep) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--kimup", kimup] => (kimup, false),
        ["--kimup", kimup, "--keep"] | ["--keep", "--kimup", kimup] => (kimup, true),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match demo::run(PathBuf::from(kimup), keep).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nkimup-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
