//! One question, one answer over a Unix socket, between the two containers of a Pod.
//!
//! The client sends one line of JSON and gets one line of JSON: `{"answer": …}` or `{"error": "…"}`. Who may ask is
//! decided by the file: mode 0600, so only processes of the same user.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Largest question or answer, in bytes, its newline included.
const MAX_LINE: u64 = 64 * 1024;
/// Questions at once; further ones wait in the kernel's queue, which is short: who asks should not open more.
pub const MAX_CONNECTIONS: usize = 128;
/// For a question to arrive, and for its answer to be taken.
const LINE_DEADLINE: Duration = Duration::from_secs(5);
/// For the handler: the longest `timeoutSeconds` of a webhook.
const HANDLER_DEADLINE: Duration = Duration::from_secs(30);
/// For questions in flight when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// After an error of `accept`.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no answer, or no server.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The socket cannot be created: the folder is missing or not writable, or something else is at the path.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// Nobody listens: sync is not running, or not yet.
    #[error("cannot reach sync at {path}: {source}; is `kimup sync` running in this Pod?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No answer before the caller's deadline.
    #[error("no answer within {} ms", deadline.as_millis())]
    Timeout {
        /// The caller's deadline.
        deadline: Duration,
    },
    /// The connection broke, or the line is longer than 64 KiB.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// What arrived is not the JSON that was expected: the two sides are not of the same version.
    #[error("not understood: {0}")]
    Malformed(serde_json::Error),
    /// The server answered with an error.
    #[error("{0}")]
    Refused(String),
}

/// The line of the answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply<A> {
    Answer(A),
    Error(String),
}

/// Answers questions on the socket at `path` until `shutdown`, then gives those in flight 5 seconds.
///
/// A socket file that nobody listens on is replaced; one that somebody listens on, or a file of another kind, is an
/// error. A handler gets 30 seconds and is dropped when its client goes away.
pub async fn serve_socket<F, Fut, Q, A>(path: &Path, handler: F, shutdown: CancellationToken) -> Result<(), SocketError>
where
    F: Fn(Q) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = A> + Send + 'static,
    Q: DeserializeOwned + Send + 'static,
    A: Serialize + Send + 'static,
{
    let failed = |source| SocketError::Listen { path: path.to_owned(), source };
    let listener = listen(path).await.map_err(failed)?;
    let inode = fs::metadata(path).map_err(failed)?.ino();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let questions = TaskTracker::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&slots).acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        match shutdown.run_until_cancelled(accepted).await {
            None => break,
            Some((permit, Ok((stream, _)))) => {
                let handler = handler.clone();
                questions.spawn(async move {
                    if let Err(error) = one_question(stream, handler).await {
                        tracing::debug!(%error, "a question could not be answered");
                    }
                    drop(permit);
                });
            }
            Some((_, Err(error))) => {
                tracing::warn!(%error, "cannot accept questions, trying again");
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    // A successor may have put its own socket there.
    if fs::metadata(path).is_ok_and(|found| found.ino() == inode) {
        let _ = fs::remove_file(path);
    }
    questions.close();
    let _ = timeout(DRAIN, questions.wait()).await;
    Ok(())
}

/// Asks the server at `path` and waits for its answer, at most `deadline` in all.
pub async fn ask<Q, A>(path: &Path, question: &Q, deadline: Duration) -> Result<A, SocketError>
where
    Q: Serialize + Sync,
    A: DeserializeOwned,
{
    let asking = async {
        let stream =
            UnixStream::connect(path).await.map_err(|source| SocketError::Connect { path: path.to_owned(), source })?;
        let (read, mut write) = stream.into_split();
        write.write_all(&line(question)?).await?;
        let answer = read_line(&mut BufReader::new(read)).await?;
        match serde_json::from_slice(&answer).map_err(SocketError::Malformed)? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Error(error) => Err(SocketError::Refused(error)),
        }
    };
    timeout(deadline, asking).await.unwrap_or(Err(SocketError::Timeout { deadline }))
}

async fn one_question<F, Fut, Q, A>(stream: UnixStream, handler: F) -> Result<(), SocketError>
where
    F: Fn(Q) -> Fut,
    Fut: Future<Output = A>,
    Q: DeserializeOwned,
    A: Serialize,
{
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let late = |_| SocketError::Timeout { deadline: LINE_DEADLINE };
    let question = timeout(LINE_DEADLINE, read_line(&mut read)).await.map_err(late)??;
    let reply = match serde_json::from_slice(&question) {
        Err(error) => Reply::Error(format!("the question is not understood: {error}")),
        Ok(question) => tokio::select! {
            answer = timeout(HANDLER_DEADLINE, handler(question)) => match answer {
                Ok(answer) => Reply::Answer(answer),
                Err(_) => Reply::Error(format!("no answer within {HANDLER_DEADLINE:?}")),
            },
            () = gone(&mut read) => return Ok(()),
        },
    };
    let reply =
        line(&reply).or_else(|error| line(&Reply::<()>::Error(format!("the answer cannot be sent: {error}"))))?;
    timeout(LINE_DEADLINE, write.write_all(&reply)).await.map_err(late)??;
    Ok(())
}

/// Ends when the client has closed its side (or sends more than its one question, which nobody should).
async fn gone(read: &mut BufReader<OwnedReadHalf>) {
    let _ = read.read_u8().await;
}

fn line<T: Serialize>(value: &T) -> Result<Vec<u8>, SocketError> {
    let mut line = serde_json::to_vec(value).map_err(SocketError::Malformed)?;
    line.push(b'\n');
    if line.len() as u64 > MAX_LINE {
        return Err(SocketError::Broken(io::Error::other(format!("longer than {MAX_LINE} bytes"))));
    }
    Ok(line)
}

async fn read_line(read: &mut BufReader<OwnedReadHalf>) -> Result<Vec<u8>, SocketError> {
    let mut line = Vec::new();
    read.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        let error = match line.len() as u64 {
            MAX_LINE => io::Error::other(format!("longer than {MAX_LINE} bytes")),
            _ => io::ErrorKind::UnexpectedEof.into(),
        };
        return Err(SocketError::Broken(error));
    }
    Ok(line)
}

/// Binds at `path` so that nobody else can connect, not even for the moment between bind and chmod: the socket is made
/// in a folder of mode 0700 and renamed, which also replaces a stale one.
async fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("something that is no socket is there"));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        _ => {}
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    let folder = parent.join(format!(".{}", std::process::id()));
    let made = folder.join("s");
    let _ = fs::remove_dir_all(&folder); // left by a process of the same ID that was killed right here
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let listener = UnixListener::bind(&made).and_then(|listener| {
        fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
        fs::rename(&made, path)?;
        Ok(listener)
    });
    let _ = fs::remove_dir_all(&folder);
    listener
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    struct Bed {
        folder: tempfile::TempDir,
        shutdown: CancellationToken,
        server: Option<JoinHandle<Result<(), SocketError>>>,
    }

    impl Bed {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self { folder, shutdown: CancellationToken::new(), server: None }
        }
        fn path(&self) -> PathBuf {
            self.folder.path().join("sync.sock")
        }
        /// A server that doubles numbers; 1000 panics and 0 is never answered.
        async fn served() -> Self {
            let mut bed = Self::new();
            let handler = |number: u64| async move {
                assert_ne!(number, 1000);
                if number == 0 {
                    std::future::pending::<()>().await;
                }
                "2".repeat(usize::try_from(number).unwrap())
            };
            bed.serve(handler).await;
            bed
        }
        async fn serve<F, Fut>(&mut self, handler: F)
        where
            F: Fn(u64) -> Fut + Clone + Send + 'static,
            Fut: Future<Output = String> + Send + 'static,
        {
            let (path, shutdown) = (self.path(), self.shutdown.clone());
            let server = async move { serve_socket(&path, handler, shutdown).await };
            self.server = Some(tokio::spawn(server));
            while UnixStream::connect(self.path()).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
        async fn ask(&self, number: u64, deadline: Duration) -> Result<String, SocketError> {
            ask(&self.path(), &number, deadline).await
        }
    }

    #[tokio::test]
    async fn questions_are_answered() {
        let bed = Bed::served().await;
        assert_eq!(bed.ask(3, SOON).await.unwrap(), "222");
        let many = futures::future::join_all((1..300).map(|n| bed.ask(n, SOON))).await;
        assert!(many.into_iter().enumerate().all(|(i, answer)| answer.unwrap().len() == i + 1));
        let mode = fs::metadata(bed.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let left: Vec<_> = fs::read_dir(bed.folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        bed.shutdown.cancel();
        bed.server.unwrap().await.unwrap().unwrap();
        assert_eq!(fs::read_dir(bed.folder.path()).unwrap().count(), 0, "the socket is removed");
    }

    #[tokio::test]
    async fn what_can_go_wrong_is_told_apart() {
        let bed = Bed::served().await;
        let check = async |number: u64, kind: fn(&SocketError) -> bool| {
            let error = bed.ask(number, Duration::from_millis(500)).await.unwrap_err();
            assert!(kind(&error), "{number}: {error:?}");
        };
        check(0, |e| matches!(e, SocketError::Timeout { .. })).await;
        check(1000, |e| matches!(e, SocketError::Broken(_))).await;
        check(MAX_LINE, |e| matches!(e, SocketError::Refused(text) if text.contains("longer"))).await;
        let wrong = ask::<_, String>(&bed.path(), &"no number", SOON).await.unwrap_err();
        assert!(matches!(&wrong, SocketError::Refused(text) if text.contains("understood")), "{wrong}");
        let wrong = ask::<_, u64>(&bed.path(), &1, SOON).await.unwrap_err();
        assert!(matches!(wrong, SocketError::Malformed(_)), "{wrong}");
        let long = "x".repeat(usize::try_from(MAX_LINE).unwrap());
        let wrong = ask::<_, String>(&bed.path(), &long, SOON).await.unwrap_err();
        assert!(matches!(wrong, SocketError::Broken(_)), "{wrong}");
        let nobody = ask::<_, String>(Path::new("/nowhere"), &1, SOON).await.unwrap_err();
        assert!(matches!(nobody, SocketError::Connect { .. }), "{nobody}");
        assert_eq!(bed.ask(1, SOON).await.unwrap(), "2", "and the server goes on");
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_off() {
        let bed = Bed::served().await;
        let mut flood = UnixStream::connect(bed.path()).await.unwrap();
        let chunk = [b'1'; 4096];
        while flood.write_all(&chunk).await.is_ok() {}
    }

    #[tokio::test]
    async fn a_handler_ends_with_its_client() {
        struct Guard(Arc<Notify>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let mut bed = Bed::new();
        let dropped = Arc::new(Notify::new());
        let inner = Arc::clone(&dropped);
        bed.serve(move |_| {
            let guard = Guard(Arc::clone(&inner));
            async move {
                std::future::pending::<()>().await;
                drop(guard);
                String::new()
            }
        })
        .await;
        bed.ask(1, Duration::from_millis(100)).await.unwrap_err();
        timeout(SOON, dropped.notified()).await.expect("the handler goes on without its client");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else() {
        let stale = Bed::new();
        drop(UnixListener::bind(stale.path()).unwrap());
        let mut bed = stale;
        bed.serve(|number| async move { number.to_string() }).await;
        assert_eq!(bed.ask(7, SOON).await.unwrap(), "7");

        let check = async |path: &Path, reason: &str| {
            let handler = |number: u64| async move { number };
            let served = serve_socket(path, handler, CancellationToken::new());
            let error = timeout(SOON, served).await.expect("served").unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        check(&bed.path(), "another process listens there").await;
        let file = bed.folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        check(&file, "no socket is there").await;
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        check(&bed.folder.path().join("missing/sync.sock"), "No such file").await;
    }
}
