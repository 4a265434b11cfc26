//! Files that something else renews: certificates, keys and CAs. They are read again and again, and compared by bytes.

use std::io;
use std::path::Path;

use tokio::io::AsyncReadExt;

/// Largest file that is read, in bytes: more than a `ConfigMap` or Secret can hold.
const MAX_FILE: u64 = 1 << 20;

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
