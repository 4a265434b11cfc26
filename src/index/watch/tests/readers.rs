//! Who asks never waits for a snapshot that is being made, and never sees half of one.

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::task::Poll;
use std::time::Instant;

use tracing::{Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::*;
use crate::api::annotations::NamespaceSettings;
use crate::index::{Answer, PodFacts, PodView, answer};

const READERS: usize = 3;
/// Snapshots, one after the other.
const SNAPSHOTS: usize = 1_000;
/// Every so many the writer is held while it makes one.
const HELD: usize = 50;
/// So many answers each reader gets meanwhile.
const ANSWERS: usize = 20;
/// A reader that waits for the writer waits for ever.
const STUCK: Duration = Duration::from_secs(60);

struct Stage {
    index: Arc<Index>,
    answers: [AtomicUsize; READERS],
    held: AtomicUsize,
    over: AtomicBool,
}

/// What is logged of an Image that cannot be read holds the writer where it stands: in the middle of its changes.
struct Hold(Arc<Stage>);

impl<S: Subscriber> Layer<S> for Hold {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() != Level::WARN {
            return;
        }
        let Stage { index, answers, held, .. } = &*self.0;
        let (before, since) = (index.snapshot(), Instant::now());
        for answered in answers {
            let goal = answered.load(Ordering::SeqCst) + ANSWERS;
            while answered.load(Ordering::SeqCst) < goal {
                assert!(since.elapsed() < STUCK, "a reader waits for the snapshot that is being made");
                std::thread::yield_now();
            }
        }
        assert!(Arc::ptr_eq(&before, &index.snapshot()));
        held.fetch_add(1, Ordering::SeqCst);
    }
}

/// Ends the readers, also when the writer panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The Images `x` and `y` with the same tag, and sometimes one between them that cannot be read.
fn batch(number: usize) -> VecDeque<Change> {
    let change = |listed| Change::Image(None, Box::new(Event::Apply(listed)));
    let image = |name: &str| change(good("shop", name, &format!("1.0.{number}")));
    let holds = number.is_multiple_of(HELD).then(|| change(broken("shop", &format!("z-{number}"), "uid")));
    [image("x")].into_iter().chain(holds).chain([image("y")]).collect()
}

/// These batches, with a pause after each so that the writer makes a snapshot of it.
fn changes(shutdown: CancellationToken) -> BoxStream<'static, Change> {
    let (mut number, mut waiting) = (1, batch(1));
    futures::stream::poll_fn(move |context| {
        if let Some(change) = waiting.pop_front() {
            return Poll::Ready(Some(change));
        }
        number += 1;
        if number > SNAPSHOTS {
            shutdown.cancel();
            return Poll::Ready(None);
        }
        waiting = batch(number);
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .boxed()
}

fn write(stage: &Arc<Stage>, mut collector: Collector) {
    let _over = Over(&stage.over);
    let shutdown = CancellationToken::new();
    let mut all = SelectAll::new();
    all.push(changes(shutdown.clone()));
    // Of which this writer goes on.
    collector.missing.clear();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let subscriber = tracing_subscriber::registry().with(Hold(Arc::clone(stage)));
    tracing::subscriber::with_default(subscriber, || {
        runtime.block_on(run(Arc::clone(&stage.index), all, collector, shutdown));
    });
}

/// Asks until the writer has ended. Returns the number of the last snapshot seen.
fn read(stage: &Stage, reader: usize) -> usize {
    let settings = NamespaceSettings { enabled: true, ..NamespaceSettings::default() };
    let pod = PodView::new(PodFacts { namespace: "shop", settings, ..PodFacts::default() });
    let mut last = 0;
    loop {
        let over = stage.over.load(Ordering::SeqCst);
        assert!(stage.index.is_ready());
        let snapshot = stage.index.snapshot();
        let number = |name: &str| -> usize {
            let text = format!("ghcr.io/org/{name}:1.0.0");
            match answer(snapshot.namespace("shop"), &pod, "app", &text) {
                Answer::Run { reference, .. } => reference.rsplit_once('.').unwrap().1.parse().unwrap(),
                other => panic!("{other:?}"),
            }
        };
        let (x, y) = (number("x"), number("y"));
        assert_eq!(x, y, "half of the changes");
        assert!(x >= last, "{x} after {last}");
        last = x;
        stage.answers[reader].fetch_add(1, Ordering::SeqCst);
        if over {
            return last;
        }
    }
}

#[test]
fn readers_go_on_while_a_snapshot_is_made() {
    let mut collector = Collector::new(&Scope::All);
    list(&mut collector, None, &[good("shop", "x", "1.0.0"), good("shop", "y", "1.0.0")]);
    let index = Index::fixed(collector.snapshot.clone());
    let (answers, held, over) = Default::default();
    let stage = Arc::new(Stage { index, answers, held, over });
    std::thread::scope(|scope| {
        let reading = std::array::from_fn::<_, READERS, _>(|reader| {
            let stage = &stage;
            scope.spawn(move || read(stage, reader))
        });
        write(&stage, collector);
        assert_eq!(reading.map(|reader| reader.join().unwrap()), [SNAPSHOTS; READERS]);
    });
    assert_eq!(stage.held.load(Ordering::SeqCst), SNAPSHOTS / HELD);
}
