//! A histogram of durations that nobody waits for: `prometheus-client`'s own takes a lock for each observation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Durations, counted by their upper bounds; exposed in seconds. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The last one has no bound.
    buckets: Vec<Bucket>,
    /// All durations together, in nanoseconds: so the sum is exact, for 584 years of them.
    sum: AtomicU64,
}

#[derive(Debug)]
struct Bucket {
    /// As it is exposed.
    seconds: f64,
    /// The longest duration that it counts.
    nanoseconds: u64,
    /// Those that no bucket before it counts.
    count: AtomicU64,
}

impl Histogram {
    /// With these upper bounds, in seconds: finite, not negative and ascending.
    pub fn new(bounds: &[f64]) -> Self {
        let bounded = bounds.iter().map(|seconds| (*seconds, nanoseconds(Duration::from_secs_f64(*seconds))));
        let all = bounded.chain([(f64::INFINITY, u64::MAX)]);
        let buckets = all.map(|(seconds, nanoseconds)| Bucket { seconds, nanoseconds, count: AtomicU64::new(0) });
        Self { inner: Arc::new(Inner { buckets: buckets.collect(), sum: AtomicU64::new(0) }) }
    }

    /// One more. Two additions, and no lock.
    pub fn observe(&self, took: Duration) {
        let took = nanoseconds(took);
        // The sum first: whoever sees the count sees what was added for it, so that no mean is too small.
        self.inner.sum.fetch_add(took, Ordering::Relaxed);
        if let Some(bucket) = self.inner.buckets.iter().find(|bucket| took <= bucket.nanoseconds) {
            bucket.count.fetch_add(1, Ordering::Release);
        }
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let read = |bucket: &Bucket| (bucket.seconds, bucket.count.load(Ordering::Acquire));
        let buckets: Vec<(f64, u64)> = self.inner.buckets.iter().map(read).collect();
        // Not counted apart: the last bucket and the count are the same, whoever observes meanwhile.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.inner.sum.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

fn nanoseconds(of: Duration) -> u64 {
    u64::try_from(of.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::histogram;
    use prometheus_client::registry::{Metric, Registry};

    use super::*;

    const BOUNDS: [f64; 4] = [0.0005, 0.001, 0.25, 30.0];

    fn exposed(metric: impl Metric) -> String {
        let mut registry = Registry::default();
        registry.register("took_seconds", "How long it took", metric);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn it_is_exposed_as_the_librarys_own() {
        #[track_caller]
        fn check(nanoseconds: &[u64]) {
            let (own, library) = (Histogram::new(&BOUNDS), histogram::Histogram::new(BOUNDS));
            for took in nanoseconds.iter().map(|n| Duration::from_nanos(*n)) {
                own.clone().observe(took);
                library.observe(took.as_secs_f64());
            }
            assert_eq!(exposed(own), exposed(library));
        }
        check(&[]);
        check(&[0]);
        // At a bound, and beside it.
        for bound in [500_000, 1_000_000, 250_000_000, 30_000_000_000] {
            check(&[bound - 1]);
            check(&[bound]);
            check(&[bound + 1]);
        }
        check(&[86_400_000_000_000]);
        // Binary fractions of a second, whose sum a floating-point number holds exactly.
        check(&[1_953_125, 3_906_250, 250_000_000, 1_953_125, 500_000_000, 31_000_000_000, 0]);
    }

    #[test]
    fn nothing_is_lost_between_many_who_observe() {
        const EACH: u32 = 20_000;
        let histogram = Histogram::new(&BOUNDS);
        std::thread::scope(|scope| {
            for took in [1, 700_000, 31_000_000_000, 700_000] {
                let histogram = histogram.clone();
                scope.spawn(move || (0..EACH).for_each(|_| histogram.observe(Duration::from_nanos(took))));
            }
            // Whoever reads meanwhile finds one count.
            for _ in 0..100 {
                let text = exposed(histogram.clone());
                let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
                assert_eq!(value("took_seconds_count "), value("took_seconds_bucket{le=\"+Inf\"} "));
            }
        });
        let text = exposed(histogram);
        let check = |line: &str| assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        check("took_seconds_bucket{le=\"0.0005\"} 20000");
        check("took_seconds_bucket{le=\"0.001\"} 60000");
        check("took_seconds_bucket{le=\"30.0\"} 60000");
        check("took_seconds_bucket{le=\"+Inf\"} 80000");
        check("took_seconds_count 80000");
        check("took_seconds_sum 620028.00002");
    }
}
