//! Files that something else renews: certificates, keys and CAs. They are read again and again, and compared by bytes.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;

/// Largest file that is read, in bytes: more than a `ConfigMap` or Secret can hold.
const MAX_FILE: u64 = 1 << 20;
/// How often files are read. What is new is taken at the second look, so after two to four seconds.
pub(super) const POLL: Duration = Duration::from_secs(2);

/// What the file holds; an error if that is more than 1 MiB.
pub(super) async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// Lets through what two looks in a row found. A file that is being written can be cut where it is whole and good by itself:
/// a chain behind its leaf, a bundle behind its first CA.
pub(super) struct Settling<T>(Option<T>);

impl<T: PartialEq> Settling<T> {
    pub fn new() -> Self {
        Self(None)
    }

    /// `found` if the look before found the same; else it is kept for the next look.
    pub fn settled(&mut self, found: T) -> Option<T> {
        let before = self.0.take();
        if before.as_ref() == Some(&found) {
            return before;
        }
        self.0 = Some(found);
        None
    }

    /// A look that found nothing new, or nothing at all.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

/// What a look at a file that may have been renewed came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// What is in use already.
    Same,
    /// Something new and good, which the next look has to find too.
    Unsettled,
    /// Something new and good is in use from now on.
    Taken,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_looks_in_a_row_find_is_settled() {
        /// A look per letter, `-` finds nothing; the expectation has what is let through at each.
        fn check(looks: &str, expected: &str) {
            let mut settling = Settling::new();
            let found: String = looks
                .chars()
                .map(|look| {
                    if look == '-' {
                        settling.forget();
                        return '.';
                    }
                    settling.settled(look).unwrap_or('.')
                })
                .collect();
            assert_eq!(found, expected, "{looks}");
        }
        check("a", ".");
        check("aa", ".a");
        check("ab", "..");
        check("abb", "..b");
        check("aba", "...");
        check("abab", "....");
        check("a-a", "...");
        check("a-aa", "...a");
        check("aaaa", ".a.a");
    }
}
