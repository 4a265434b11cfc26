//! Logs: one line per event on stderr, as text or JSON.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

/// Target of the audit log (design section 5): one line per decision. Events of this target at level info and above are
/// written whatever `--log-level` says, because an audit trail that a log level can switch off is none.
pub const AUDIT_TARGET: &str = "kimup::audit";

/// The module of kube that logs whole response bodies when these do not parse. A body may be a Secret, so its events are
/// never written, whatever `--log-level` says; the error itself reaches kimup's own logs without the body.
const KUBE_BODIES_TARGET: &str = "kube_client::client";

/// How a log line looks (`--log-format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people: `2026-01-31T12:00:00Z INFO kimup::sync: message key=value`.
    #[default]
    Text,
    /// For log collectors: one JSON object a line, the event's fields at the top level.
    Json,
}

/// Why logging cannot start. Both are mistakes at start-up: the process should end with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `--log-level` is not a list of directives.
    #[error(
        "log level `{level}`: {reason}; use off, error, warn, info, debug or trace, or directives such as `info,kimup::sync=debug`"
    )]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A subscriber is installed already: [`init`] is for the start of the process, once.
    #[error("logging is set up already: call init once, at the start of the process")]
    AlreadyInitialised,
}

/// Installs the subscriber of the process, writing to stderr.
///
/// `level` is a level or a comma-separated list of `RUST_LOG` directives (`info,kimup::sync=debug,hyper=off`). A bare
/// word must be a level: `RUST_LOG` would read a misspelt level as the name of a module and switch all other logs off.
pub fn init(format: LogFormat, level: &str) -> Result<(), TelemetryError> {
    let filter = filter(level)?;
    let ansi = std::io::stderr().is_terminal();
    Registry::default()
        .with(layer(format, ansi, filter, std::io::stderr))
        .try_init()
        .map_err(|_| TelemetryError::AlreadyInitialised)
}

/// What is written: what `level` allows, and the audit log always.
fn filter<S: Subscriber>(level: &str) -> Result<impl Filter<S> + use<S>, TelemetryError> {
    let refuse = |reason: String| TelemetryError::Level { level: level.to_owned(), reason };
    if level.trim().is_empty() {
        return Err(refuse("is empty".to_owned()));
    }
    for word in level.split(',').map(str::trim) {
        let bare = !word.contains(['=', '[']);
        if word.is_empty() || bare && word.parse::<LevelFilter>().is_err() {
            return Err(refuse(format!("`{word}` is no level")));
        }
    }
    let chosen = EnvFilter::builder().with_regex(false).parse(level).map_err(|e| refuse(e.to_string()))?;
    let audit = filter_fn(|meta: &Metadata<'_>| meta.target() == AUDIT_TARGET && meta.level() <= &Level::INFO);
    let no_bodies = filter_fn(|meta: &Metadata<'_>| meta.target() != KUBE_BODIES_TARGET);
    Ok(chosen.and(no_bodies).or(audit))
}

fn layer<S, F, W>(format: LogFormat, ansi: bool, filter: F, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    F: Filter<S> + Send + Sync + 'static,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // Internal errors would be reported with eprintln!, which panics when stderr is closed: the very case they are about.
    let base = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    match format {
        LogFormat::Text => base.with_ansi(ansi).with_filter(filter).boxed(),
        LogFormat::Json => base.json().flatten_event(true).with_filter(filter).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str, emit: fn()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = Registry::default().with(layer(format, false, filter(level).unwrap(), move || writer.clone()));
        tracing::subscriber::with_default(subscriber, emit);
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    fn everything() {
        tracing::info!(target: "kimup::audit", "audited");
        tracing::debug!(target: "kimup::audit", "audit-debug");
        tracing::warn!(target: "kimup::sync", "sync-warn");
        tracing::debug!(target: "kimup::sync", "sync-debug");
        tracing::warn!(target: "kube_client::client", "a response body");
    }

    #[test]
    fn levels() {
        fn check(level: &str, written: &[&str]) {
            let text = logged(LogFormat::Text, level, everything);
            let seen: Vec<&str> = ["audited", "audit-debug", "sync-warn", "sync-debug", "body"]
                .into_iter()
                .filter(|word| text.contains(word))
                .collect();
            assert_eq!(seen, written, "at `{level}`: {text}");
        }
        check("off", &["audited"]);
        check("error", &["audited"]);
        check("info", &["audited", "sync-warn"]);
        check("INFO", &["audited", "sync-warn"]);
        check("warn,kimup::sync=debug", &["audited", "sync-warn", "sync-debug"]);
        check("kimup::audit=off", &["audited"]);
        check("trace,kube_client=trace", &["audited", "audit-debug", "sync-warn", "sync-debug"]);
    }

    #[test]
    fn bad_levels_are_named() {
        fn check(level: &str, part: &str) {
            let message = filter::<Registry>(level).err().expect("accepted").to_string();
            assert!(message.contains(part), "{message}");
        }
        check("", "is empty");
        check("  ", "is empty");
        check("verbose", "`verbose` is no level");
        check("info,kimup", "`kimup` is no level");
        check("info,", "`` is no level");
        check("kimup::sync=loud", "kimup::sync=loud");
    }

    #[test]
    fn json_is_one_object_a_line_with_flat_fields() {
        let text = logged(LogFormat::Json, "info", || {
            tracing::info!(image = "web", "line\nbreak");
            tracing::info!("second");
        });
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["image"], "web");
        assert_eq!(lines[0]["message"], "line\nbreak");
        assert_eq!(lines[0]["level"], "INFO");
    }
}
