//! How long the API server may say nothing.

use std::time::Duration;

/// On a watch the API server sends a bookmark every minute if nothing else.
pub const SILENCE: Duration = Duration::from_secs(90);

/// A client's configuration that gives up what is not answered for `silence`, a watch included, and tries nothing twice by
/// itself: kube's own retries would outlast every deadline here, and whoever calls tries again.
pub fn bounded(mut config: kube::Config, silence: Duration) -> kube::Config {
    config.default_retry = false;
    // A list that is never answered, and a connection whose other end is gone without a word.
    config.read_timeout = Some(silence);
    config.reset_reader_on_write = true;
    config
}
