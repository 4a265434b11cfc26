//! Commands as a person types them: printed, run by `sh`, their output shown as it is.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// The longest that one command may take; those that wait say a shorter time themselves.
const DEADLINE: Duration = Duration::from_secs(90);

/// Longest line of output that is shown whole, in characters.
const MAX_WIDTH: usize = 180;

/// How much of an output is shown.
#[derive(Clone, Copy)]
pub enum Show {
    All,
    /// The first lines.
    First(usize),
    /// The last lines.
    Last(usize),
}

/// The terminal and the environment of the commands.
pub struct Shell {
    folder: PathBuf,
    env: Vec<(String, String)>,
    colour: bool,
}

impl Shell {
    /// Commands run in `folder` with these variables on top of ours.
    pub fn new(folder: PathBuf, env: Vec<(String, String)>) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { folder, env, colour }
    }

    pub fn title(&self, text: &str) {
        println!("\n{}", self.styled("1;36", &format!("== {text}")));
    }

    pub fn say(&self, text: &str) {
        println!("{}", self.styled("36", &format!("# {text}")));
    }

    /// Prints a command that is run in another way.
    pub fn prompt(&self, command: &str) {
        println!("{} {}", self.styled("32", "$"), self.styled("1", command));
    }

    /// Prints and runs a command; its output. An error if it fails.
    pub async fn run(&self, command: &str, show: Show) -> Result<String> {
        self.prompt(command);
        let (success, output) = self.execute(command).await?;
        let show = if success { show } else { Show::All };
        for line in shorten(&output, show) {
            println!("{line}");
        }
        if !success {
            bail!("this command failed: {command}");
        }
        Ok(output)
    }

    /// Runs a command without showing it.
    pub async fn quietly(&self, command: &str) -> Result<String> {
        let (success, output) = self.execute(command).await?;
        if !success {
            bail!("this command failed: {command}: {}", output.trim());
        }
        Ok(output)
    }

    async fn execute(&self, command: &str) -> Result<(bool, String)> {
        // One pipe for both, so that the lines come in the order in which they were written.
        let script = format!("exec 2>&1\n{command}");
        let mut child = Command::new("sh")
            .args(["-ec", &script])
            .current_dir(&self.folder)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting sh")?;
        let mut pipe = child.stdout.take().context("sh has no stdout")?;
        let read = tokio::task::spawn_blocking(move || {
            let mut output = Vec::new();
            pipe.read_to_end(&mut output).map(|_| output)
        });
        let Ok(output) = tokio::time::timeout(DEADLINE, read).await else {
            let _ = child.kill(); // fails only if it has ended
            bail!("this command did not end within {DEADLINE:?}: {command}");
        };
        let output = String::from_utf8_lossy(&output??).into_owned();
        Ok((child.wait()?.success(), output))
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The lines to show; what is left out is told.
fn shorten(output: &str, show: Show) -> Vec<String> {
    let lines: Vec<String> = output.lines().map(cut).collect();
    let keep = match show {
        Show::All => lines.len(),
        Show::First(most) | Show::Last(most) => most,
    };
    let dropped = lines.len().saturating_sub(keep);
    // To tell that one line is left out would take a line.
    if dropped < 2 {
        return lines;
    }
    let told = format!("… ({dropped} more lines)");
    match show {
        Show::Last(_) => std::iter::once(told).chain(lines.into_iter().skip(dropped)).collect(),
        _ => lines.into_iter().take(keep).chain([told]).collect(),
    }
}

fn cut(line: &str) -> String {
    if line.chars().count() <= MAX_WIDTH {
        return line.to_owned();
    }
    line.chars().take(MAX_WIDTH - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_outputs_are_shortened_and_say_so() {
        #[track_caller]
        fn check(output: &str, show: Show, expected: &[&str]) {
            assert_eq!(shorten(output, show), expected);
        }
        check("a\nb\nc\n", Show::All, &["a", "b", "c"]);
        check("a\nb\nc\n", Show::First(3), &["a", "b", "c"]);
        check("a\nb\nc\n", Show::First(1), &["a", "… (2 more lines)"]);
        check("a\nb\nc\n", Show::First(2), &["a", "b", "c"]);
        check("a\nb\nc\n", Show::Last(1), &["… (2 more lines)", "c"]);
        check("", Show::Last(1), &[]);
        let (long, fits) = ("é".repeat(MAX_WIDTH + 1), "é".repeat(MAX_WIDTH));
        check(&fits, Show::All, &[&fits]);
        check(&long, Show::All, &[&format!("{}…", "é".repeat(MAX_WIDTH - 1))]);
    }
}
