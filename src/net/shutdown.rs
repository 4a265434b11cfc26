//! Signals: the first one stops the process gracefully, the second one at once.

use std::io;

use futures::stream::{self, Stream, StreamExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that SIGTERM (the kubelet) and SIGINT (Ctrl-C) cancel.
///
/// A second signal ends the process with exit code 128 + its number, as a shell would report it: somebody does not want
/// to wait for the drain. Must be called within a runtime; an error means that the runtime cannot watch signals.
pub fn on_signals() -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let signals = stream::select(arrivals(SignalKind::terminate())?, arrivals(SignalKind::interrupt())?);
    tokio::spawn(watch(signals, token.clone(), |code| std::process::exit(code)));
    Ok(token)
}

/// The number of the signal, each time it arrives.
fn arrivals(kind: SignalKind) -> io::Result<impl Stream<Item = i32> + Unpin> {
    let number = kind.as_raw_value();
    let arrivals =
        stream::unfold(signal(kind)?, |mut signal: Signal| async move { signal.recv().await.map(|()| ((), signal)) });
    Ok(Box::pin(arrivals.map(move |()| number)))
}

async fn watch(mut signals: impl Stream<Item = i32> + Unpin, token: CancellationToken, exit: impl FnOnce(i32)) {
    let Some(signal) = signals.next().await else {
        return;
    };
    tracing::info!(signal, "stopping; a second signal ends the process at once");
    token.cancel();
    if let Some(signal) = signals.next().await {
        exit(128 + signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_signal_cancels_and_the_second_exits() {
        async fn check(signals: &[i32], cancelled: bool, exit_code: Option<i32>) {
            let token = CancellationToken::new();
            let mut code = None;
            let arrivals = stream::iter(signals.to_vec());
            watch(arrivals, token.clone(), |exit_code| code = Some(exit_code)).await;
            assert_eq!((token.is_cancelled(), code), (cancelled, exit_code), "{signals:?}");
        }
        check(&[], false, None).await;
        check(&[15], true, None).await;
        check(&[15, 2], true, Some(130)).await;
        check(&[2, 15], true, Some(143)).await;
    }

    #[tokio::test]
    async fn a_real_signal_arrives() {
        let token = on_signals().unwrap();
        let me = std::process::id().to_string();
        let sent = std::process::Command::new("kill").args(["-TERM", &me]).status().unwrap();
        assert!(sent.success());
        token.cancelled().await;
    }
}
