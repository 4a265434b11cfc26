//! `kimup-demo`: the main job of kimup on a real control plane and a real registry, as a person would do it. `make demo`.

#[path = "../demo/mod.rs"]
mod demo;

use std::process::ExitCode;

use kimup_testbed::Arguments;

const USAGE: &str = "usage: kimup-demo --kimup PROGRAM [--keep]

  --kimup PROGRAM  the kimup to show
  --keep           leave everything running, and print how to look around and how to stop it";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::read(USAGE, &["--keep"]) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let keep = arguments.has("--keep");
    match demo::run(arguments.kimup, keep).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nkimup-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
