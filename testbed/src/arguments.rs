//! The command line of the programs here: a program to run, and a few switches.

use std::path::PathBuf;
use std::process::ExitCode;

/// `--kimup PROGRAM` and the switches that were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The kimup to run.
    pub kimup: PathBuf,
    switches: Vec<String>,
}

impl Arguments {
    /// Reads the arguments of this process. Otherwise the code to exit with, `usage` being said.
    pub fn read(usage: &str, switches: &[&str]) -> Result<Self, ExitCode> {
        let given: Vec<String> = std::env::args().skip(1).collect();
        if given.iter().any(|word| word == "--help" || word == "-h") {
            println!("{usage}");
            return Err(ExitCode::SUCCESS);
        }
        Self::parse(&given, switches).ok_or_else(|| {
            eprintln!("{usage}");
            ExitCode::from(2)
        })
    }

    fn parse(given: &[String], known: &[&str]) -> Option<Self> {
        let (mut kimup, mut switches) = (None, Vec::new());
        let mut words = given.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--kimup" if kimup.is_none() => kimup = Some(PathBuf::from(words.next()?)),
                word if known.contains(&word) => switches.push(word.to_owned()),
                _ => return None,
            }
        }
        Some(Self { kimup: kimup?, switches })
    }

    /// Whether a switch was given.
    pub fn has(&self, switch: &str) -> bool {
        self.switches.iter().any(|given| given == switch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_and_known_switches() {
        #[track_caller]
        fn check(line: &str, expected: Option<(&str, bool)>) {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let found = Arguments::parse(&words, &["--keep", "--quick"]);
            assert_eq!(
                found.map(|a| (a.kimup.display().to_string(), a.has("--keep"))),
                expected.map(|(p, k)| (p.to_owned(), k))
            );
        }
        check("--kimup /k", Some(("/k", false)));
        check("--kimup /k --keep", Some(("/k", true)));
        check("--keep --kimup /k", Some(("/k", true)));
        check("--quick --kimup /k", Some(("/k", false)));
        check("--keep", None);
        check("--kimup", None);
        check("--kimup a --kimup b", None);
        check("--kimup a --other", None);
        check("", None);
    }
}
