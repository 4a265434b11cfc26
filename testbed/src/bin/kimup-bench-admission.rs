//! What admission costs `kimup webhook`, beside a server that does nothing. `make bench-admission`.

#[path = "../bench_admission/mod.rs"]
mod bench_admission;

use std::process::ExitCode;

use anyhow::Result;
use bench_admission::Load;
use kimup_testbed::Arguments;

const USAGE: &str =
    "usage: kimup-bench-admission --kimup PROGRAM [--quick | --hold | --hold-connections | --hold-paced]

  --kimup PROGRAM     the kimup to measure: a release build
  --quick             shorter rounds and fewer of them: figures that are less exact
  --hold              only load, with reviews of 10 KB and until it is stopped: for a profiler
  --hold-connections  the same with new connections
  --hold-paced        the same with 1,000 reviews of 4 KB a second";

const HOLDS: [(&str, Load); 3] =
    [("--hold", Load::Reviews), ("--hold-connections", Load::Connections), ("--hold-paced", Load::Paced)];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [bench_admission::NOOP, address] => noop(address).map(|()| true),
        _ => match Arguments::read(USAGE, &["--quick", "--hold", "--hold-connections", "--hold-paced"]) {
            Ok(arguments) => match HOLDS.iter().find(|(flag, _)| arguments.has(flag)) {
                Some((_, load)) => bench_admission::hold(&arguments.kimup, *load),
                None => bench_admission::run(&arguments.kimup, arguments.has("--quick")),
            },
            Err(code) => return code,
        },
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nkimup-bench-admission: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn noop(address: &str) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench_admission::serve_noop(address))
}
