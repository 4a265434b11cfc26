//! Ports from the kernel, for programs that cannot take one themselves.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};

/// A port on 127.0.0.1 that nobody listened on a moment ago and that this process has not given out before. Another
/// process may still take it first: start what listens there with a retry.
pub fn free_port() -> Result<u16> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    for _ in 0..100 {
        let listener = TcpListener::bind("127.0.0.1:0").context("asking the kernel for a port")?;
        let port = listener.local_addr()?.port();
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if given.get_or_insert_default().insert(port) {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1")
}
