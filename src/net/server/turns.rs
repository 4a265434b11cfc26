//! Turns for what keeps a processor for long, so that it keeps it from no request that is here already.

use std::future::poll_fn;
use std::task::Poll;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::yield_now;

/// So many tasks at a time may do it.
pub(super) struct Turns(Semaphore);

impl Turns {
    pub fn new(at_once: usize) -> Self {
        Self(Semaphore::new(at_once))
    }

    /// Waits for a turn, which ends when what is returned is dropped. What has arrived on other connections goes first.
    pub async fn take(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed; without a permit it would only not be counted.
        let turn = self.0.acquire().await.ok();
        let_others_go_first().await;
        turn
    }
}

/// Returns when the runtime has looked what has arrived, and every task has run that it woke for that.
pub(super) async fn let_others_go_first() {
    // The runtime wakes who waits here after it has looked, and of those that it has woken it runs the last one first.
    yield_now().await;
    // A task that wakes itself goes to the end of the queue.
    let mut is_last = false;
    poll_fn(|cx| {
        if is_last {
            return Poll::Ready(());
        }
        is_last = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_has_arrived_goes_first() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let order = runtime.block_on(async {
            tokio::spawn(async {
                let order = Arc::new(Mutex::new(Vec::new()));
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let mut readers = Vec::new();
                let mut writers = Vec::new();
                for nth in 0..3 {
                    let mut writer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                    let (mut reader, _) = listener.accept().await.unwrap();
                    let order = Arc::clone(&order);
                    readers.push(tokio::spawn(async move {
                        reader.read_u8().await.unwrap();
                        reader.read_u8().await.unwrap();
                        order.lock().unwrap().push(format!("reader {nth}"));
                    }));
                    writer.write_all(b"x").await.unwrap();
                    writers.push(writer);
                }
                // They all wait for their second byte by now.
                yield_now().await;
                yield_now().await;
                for writer in &writers {
                    assert_eq!(writer.try_write(b"x").unwrap(), 1);
                }
                Turns::new(1).take().await;
                order.lock().unwrap().push("turn".to_owned());
                for reader in readers {
                    reader.await.unwrap();
                }
                let mut order = order.lock().unwrap().clone();
                order.truncate(3);
                order.sort();
                order
            })
            .await
            .unwrap()
        });
        assert_eq!(order, ["reader 0", "reader 1", "reader 2"]);
    }
}
