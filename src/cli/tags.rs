//! `kimup tags`: all tags of a repository, by the client that sync uses.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::policy::Repository;
use crate::policy::reference::Problem;
use crate::registry::{
    Cap, Client, Config, Credentials, Keyring, ListRequest, Listing, Progress, PullSecret, PullSecretError,
    RegistryError, Step,
};
use crate::telemetry::LogFormat;

use super::args::{Output, RegistryArgs};
use super::{Failure, input, install_tls_provider, registries, start_telemetry};

/// Largest docker config, CA bundle and password, in bytes.
const MAX_CONFIG: usize = 1024 * 1024;
const MAX_CA: usize = 1024 * 1024;
const MAX_PASSWORD: usize = 64 * 1024;
/// How often the progress line changes, and how long a list may take without one.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);
const LOG_LEVEL: &str = "warn";

/// Flags of `tags`.
#[derive(Args, Debug)]
pub struct TagsArgs {
    /// Repository without tag, such as alpine, ghcr.io/org/app or registry:5000/app.
    #[arg(value_parser = repository)]
    pub image: Repository,
    /// Credentials, as `docker login` writes them (config.json). Credential helpers are not run.
    #[arg(long, env = "KIMUP_DOCKER_CONFIG", value_name = "FILE")]
    pub docker_config: Option<PathBuf>,
    /// User name for the registry.
    #[arg(long, env = "KIMUP_USERNAME", requires = "password_stdin", conflicts_with = "docker_config")]
    pub username: Option<String>,
    /// Read the password, or a token, from standard input.
    #[arg(long, env = "KIMUP_PASSWORD_STDIN", requires = "username")]
    pub password_stdin: bool,
    /// PEM certificates to trust besides the system's.
    #[arg(long, env = "KIMUP_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Accept any certificate of the registry.
    #[arg(long, env = "KIMUP_INSECURE_SKIP_TLS_VERIFY")]
    pub insecure_skip_tls_verify: bool,
    /// Speak plain HTTP with the registry.
    #[arg(long, env = "KIMUP_PLAIN_HTTP")]
    pub plain_http: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub registry: RegistryArgs,
    /// Format of the result on stdout.
    #[arg(short, long, env = "KIMUP_OUTPUT", value_name = "FORMAT", default_value = "text")]
    pub output: Output,
    /// Format of the log on stderr.
    #[arg(long, env = "KIMUP_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace (each request, without secrets), or directives such as
    /// `info,kimup::registry=debug` [default: warn].
    #[arg(long, env = "KIMUP_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
}

fn repository(text: &str) -> Result<Repository, String> {
    Repository::parse(text).map_err(|error| match error.problem() {
        Problem::UnexpectedTag | Problem::UnexpectedDigest => {
            format!("{error}; give the repository alone: all its tags are listed")
        }
        _ => error.to_string(),
    })
}

/// The whole list, ready to be printed.
pub fn run(args: &TagsArgs) -> Result<Vec<u8>, Failure> {
    start_telemetry(args.log_format, args.log_level.as_deref().unwrap_or(LOG_LEVEL))?;
    let keyring = keyring(args)?;
    install_tls_provider();
    let progress = Progress::default();
    let client = Client::new(config(args, &progress)?)?;
    let endpoint = client.endpoint(&args.image)?;
    tracing::info!(image = %args.image, endpoint, "listing tags");
    let request = ListRequest {
        repository: args.image.clone(),
        keyring,
        insecure_skip_tls_verify: args.insecure_skip_tls_verify,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listing = runtime.block_on(with_progress(&args.image, &progress, client.list_tags(&request)));
    // A DNS look-up that still blocks must not hold up the end.
    runtime.shutdown_background();
    let listing = listing.map_err(|error| failed(args, error))?;
    let endpoint = &listing.endpoint;
    tracing::info!(
        tags = listing.tags().len(),
        endpoint,
        dropped = listing.dropped,
        requests = listing.requests,
        "listed tags"
    );
    match args.output {
        Output::Json => json(&args.image, &listing),
        Output::Text => {
            let _ = writeln!(io::stderr(), "{}", summary(&args.image, &listing));
            Ok(text(&listing))
        }
    }
}

fn config(args: &TagsArgs, progress: &Progress) -> anyhow::Result<Config> {
    let plain_http = if args.plain_http { vec![args.image.host().to_owned()] } else { Vec::new() };
    let extra_ca_pem = args.ca_file.as_ref().map(|path| input::read(path, MAX_CA).context("--ca-file")).transpose()?;
    Ok(Config {
        plain_http,
        registries: registries::read(args.registry.registry_config.as_deref())?,
        extra_ca_pem,
        own_credentials_only: true,
        limits: args.registry.limits(),
        progress: progress.clone(),
        ..Config::default()
    })
}

fn keyring(args: &TagsArgs) -> Result<Keyring, Failure> {
    if let Some(path) = &args.docker_config {
        return docker_config(path, input::read(path, MAX_CONFIG).context("--docker-config")?);
    }
    let Some(username) = &args.username else {
        return Ok(Keyring::default());
    };
    if username.is_empty() || username.contains(':') {
        return Err(Failure::usage(anyhow::anyhow!("--username: it must not be empty or hold a colon")));
    }
    let password = password(input::read_stdin(MAX_PASSWORD).context("--password-stdin")?).map_err(Failure::Usage)?;
    Ok(Keyring::for_registry(&args.image, Credentials::basic(username, password)))
}

/// The first line, as `echo` and `docker login --password-stdin` have it.
fn password(bytes: Vec<u8>) -> anyhow::Result<String> {
    // Not the error's own text: it holds the bytes.
    let mut text = String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("--password-stdin: it is not UTF-8"))?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    anyhow::ensure!(!text.is_empty(), "--password-stdin: standard input is empty");
    anyhow::ensure!(!text.contains(['\r', '\n']), "--password-stdin: there is more than one line");
    Ok(text)
}

fn docker_config(path: &Path, bytes: Vec<u8>) -> Result<Keyring, Failure> {
    let data = BTreeMap::from([(".dockerconfigjson".to_owned(), bytes)]);
    let secret = PullSecret { name: "docker-config", kind: "kubernetes.io/dockerconfigjson", data: &data };
    Keyring::from_secrets([secret]).map_err(|error| {
        let why = match error {
            PullSecretError::BadJson { line, column, .. } => {
                format!("it is no docker config.json (line {line}, column {column})")
            }
            PullSecretError::BadAuth { entry, .. } => {
                format!("the auth of entry {entry} of auths is not base64 of user:password")
            }
            other => other.to_string(),
        };
        Failure::from(anyhow::anyhow!("--docker-config {}: {why}", path.display()))
    })
}

/// One line on a terminal while `work` goes on, if it takes longer.
async fn with_progress<T>(image: &Repository, progress: &Progress, work: impl Future<Output = T>) -> T {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let mut work = std::pin::pin!(work);
    let mut shown = false;
    loop {
        if let Ok(done) = tokio::time::timeout(PROGRESS_PERIOD, &mut work).await {
            if shown {
                let _ = write!(io::stderr(), "\r\x1b[K");
            }
            return done;
        }
        shown = true;
        let _ = write!(io::stderr(), "\r\x1b[Klisting {image}: page {}", progress.page());
    }
}

/// The error with what to do about it on a command line.
fn failed(args: &TagsArgs, error: RegistryError) -> Failure {
    let next = next_step(args, &error);
    let error = anyhow::Error::from(error);
    Failure::Work(match next {
        Some(next) => anyhow::anyhow!("{error:#}; {next}"),
        None => error,
    })
}

fn next_step(args: &TagsArgs, error: &RegistryError) -> Option<&'static str> {
    let no_credentials = args.docker_config.is_none() && args.username.is_none();
    match error {
        RegistryError::Unauthorized { sent: false, .. } if no_credentials => {
            Some("give credentials with --docker-config, or --username and --password-stdin")
        }
        RegistryError::Unauthorized { sent: false, .. } if args.docker_config.is_some() => {
            Some("the docker config has none for this repository (credential helpers are not run)")
        }
        RegistryError::Unauthorized { sent: true, .. } => {
            Some("check the user name and password, and that this account may pull the repository")
        }
        RegistryError::Unreachable { step: Step::ClientCertificate, .. } => {
            Some("name one that it accepts as client-cert-file in --registry-config")
        }
        RegistryError::Unreachable { step: Step::Tls, .. } if !args.plain_http => {
            Some("name the registry's CA with --ca-file, or use --plain-http if it speaks no TLS")
        }
        RegistryError::TooMuch { cap: Cap::PageBytes(_), .. } => Some("raise --registry-max-page-bytes"),
        RegistryError::TooMuch { cap: Cap::Pages(_), .. } => Some("raise --registry-max-pages"),
        RegistryError::TooMuch { cap: Cap::Tags(_), .. } => Some("raise --registry-max-tags"),
        RegistryError::TooMuch { cap: Cap::ListBytes(_), .. } => Some("raise --registry-max-list-bytes"),
        RegistryError::Timeout { after, .. } if *after == args.registry.registry_deadline => {
            Some("raise --registry-deadline")
        }
        RegistryError::Timeout { .. } => Some("raise --registry-page-timeout"),
        _ => None,
    }
}

fn summary(image: &Repository, listing: &Listing) -> String {
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let (tags, requests) = (count(listing.tags().len(), "tag"), count(listing.requests, "request"));
    let dropped = match listing.dropped {
        0 => String::new(),
        number => format!(", {} left out as illegal", count(number, "tag")),
    };
    format!("{image}: {tags} from {}, {requests}{dropped}", listing.endpoint)
}

fn text(listing: &Listing) -> Vec<u8> {
    let mut out = Vec::with_capacity(listing.tags().map(|tag| tag.len() + 1).sum());
    for tag in listing.tags() {
        out.extend_from_slice(tag.as_bytes());
        out.push(b'\n');
    }
    out
}

fn json(image: &Repository, listing: &Listing) -> Result<Vec<u8>, Failure> {
    #[derive(Serialize)]
    struct Report<'a> {
        image: String,
        tags: Vec<&'a str>,
        dropped: usize,
        requests: usize,
    }
    let report = Report {
        image: image.to_string(),
        tags: listing.tags().collect(),
        dropped: listing.dropped,
        requests: listing.requests,
    };
    let mut out = serde_json::to_vec(&report)?;
    out.push(b'\n');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_come_without_tag() {
        let check = |text: &str, expected: Result<&str, &str>| match (repository(text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected),
            (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
            (found, _) => panic!("{text}: {found:?}"),
        };
        check("alpine", Ok("docker.io/library/alpine"));
        check("registry:5000/app", Ok("registry:5000/app"));
        check("alpine:3", Err("without a tag"));
        check("alpine:3", Err("give the repository alone"));
        check("registry:5000", Err("the path is missing"));
        check("Alpine", Err("lower case"));
        check("", Err("no name"));
        check(&format!("alpine@sha256:{}", "a".repeat(64)), Err("without a digest"));
    }

    #[test]
    fn a_password_is_one_line() {
        let check = |bytes: &[u8], expected: Result<&str, &str>| {
            let found = password(bytes.to_vec()).map_err(|error| error.to_string());
            match expected {
                Ok(password) => assert_eq!(found.as_deref(), Ok(password)),
                Err(part) => assert!(found.as_ref().is_err_and(|error| error.contains(part)), "{found:?}"),
            }
        };
        check(b"secret", Ok("secret"));
        check(b"secret\n", Ok("secret"));
        check(b"secret\r\n", Ok("secret"));
        check(b" se cret ", Ok(" se cret "));
        check(b"", Err("is empty"));
        check(b"\n", Err("is empty"));
        check(b"a\nb", Err("more than one line"));
        check(b"\xff", Err("not UTF-8"));
    }

    #[test]
    fn the_summary_counts() {
        let image = Repository::parse("alpine").unwrap();
        let check = |tags: &[&str], dropped: usize, requests: usize, expected: &str| {
            let tags = tags.iter().copied().collect();
            let text = summary(&image, &Listing { tags, dropped, requests, endpoint: "https://r".to_owned() });
            assert_eq!(text, format!("docker.io/library/alpine: {expected}"));
        };
        check(&[], 0, 3, "0 tags from https://r, 3 requests");
        check(&["1"], 1, 1, "1 tag from https://r, 1 request, 1 tag left out as illegal");
        check(&["1", "2"], 2, 2, "2 tags from https://r, 2 requests, 2 tags left out as illegal");
    }
}
