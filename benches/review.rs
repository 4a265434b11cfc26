//! What a review costs without a server around it: reading it, deciding, and writing the answer. Reviews and Images are
//! those of `make bench-admission`.

#[path = "../testbed/src/bench_admission/objects.rs"]
#[allow(dead_code)] // what only the other bench uses
mod objects;

use std::hint::black_box;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kimup::admission::review::{Review, Step};
use kimup::api::Image;
use kimup::index::{Entry, Seen, Snapshot};
use objects::Reviews;

const IMAGES: usize = 10_000;
const ROUND: Duration = Duration::from_millis(50);
const ROUNDS: usize = 21;

fn main() -> anyhow::Result<()> {
    let snapshot = snapshot()?;
    println!("microseconds of one review, median of {ROUNDS} rounds\n");
    println!("{:>9} {:>9} {:>9} {:>9} {:>9} {:>9}", "bytes", "read", "GB/s", "decide", "write", "all");
    for (size, stamped) in [(4_000, false), (10_000, false), (10_000, true), (76_000, false)] {
        let bodies = Reviews::of(size, IMAGES, stamped).bodies;
        let bytes = bodies.iter().map(Vec::len).sum::<usize>() / bodies.len();
        let read = median(&bodies, |body| Review::parse(body).is_ok());
        let decided = median(&bodies, |body| answer(body, &snapshot, false));
        let all = median(&bodies, |body| answer(body, &snapshot, true));
        #[allow(clippy::cast_precision_loss)]
        let speed = bytes as f64 / read / 1000.0;
        println!(
            "{bytes:9} {read:9.2} {speed:9.2} {:9.2} {:9.2} {all:9.2}{}",
            decided - read,
            all - decided,
            if stamped { "  stamped" } else { "" }
        );
    }
    Ok(())
}

fn answer(body: &[u8], snapshot: &Snapshot, write: bool) -> bool {
    let Ok(review) = Review::parse(body) else { return false };
    match review.decide(snapshot) {
        Ok(Step::Done(verdict)) if write => verdict.to_json().is_ok(),
        Ok(Step::Done(_)) => true,
        _ => false,
    }
}

/// Microseconds of one.
fn median(bodies: &[Vec<u8>], run: impl Fn(&[u8]) -> bool) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (began, mut done) = (Instant::now(), 0_u32);
            while began.elapsed() < ROUND {
                for body in bodies {
                    assert!(black_box(run(black_box(body))), "not answered");
                    done += 1;
                }
            }
            began.elapsed().as_secs_f64() * 1e6 / f64::from(done)
        })
        .collect();
    rounds.sort_unstable_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn snapshot() -> anyhow::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let labels = [("kimup.cloudavenue.io/enabled".to_owned(), "true".to_owned())].into();
    for number in 0..objects::NAMESPACES {
        let namespace = objects::namespace(number);
        snapshot.put_namespace(namespace["metadata"]["name"].as_str().unwrap_or_default(), &labels, &[].into());
    }
    for number in 0..IMAGES {
        let image: Image = serde_json::from_value(objects::settled_image(number))?;
        let names = (image.metadata.namespace.clone(), image.metadata.name.clone());
        let entry = Entry::read(&image, Timestamp::UNIX_EPOCH);
        let (namespace, name) = (names.0.unwrap_or_default(), names.1.unwrap_or_default());
        snapshot.put_image(&namespace, &name, Seen::Read(entry.into()));
    }
    Ok(snapshot)
}
