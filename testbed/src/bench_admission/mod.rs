//! What admission costs, beside a server that does nothing. `docs/benchmarks.md` has the method and the bars.

mod client;
mod figures;
mod noop;
mod objects;
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kimup_testbed::ApiStub;
use rustls::ClientConfig;
use serde_json::Value;

use client::Connection;
use figures::{Figure, quartiles};
use objects::Reviews;
use server::{Server, SyncSocket};

pub use noop::serve as serve_noop;

/// The hidden command that makes this program the no-op server, followed by its address.
pub const NOOP: &str = "serve-noop";

const IMAGES: usize = 10_000;
const MANY_IMAGES: usize = 100_000;
const CONNECTIONS: usize = 8;
/// Admissions, and Image changes, a second.
const RATE: u32 = 1_000;
/// Sizes of the reviews in bytes, with the most CPU time of a request compared with the no-op's.
const SIZES: [(usize, f64); 3] = [(4_000, 1.8), (10_000, 1.8), (76_000, 2.2)];
/// Of which size also Pods are sent that a rollout has stamped, as most Pods of a cluster are.
const STAMPED: usize = SIZES[1].0;
const MIB: f64 = 1_048_576.0;
/// For a server to finish what it does after an answer.
const SETTLE: Duration = Duration::from_millis(10);

/// How long and how often is measured.
struct Effort {
    rounds: usize,
    round: Duration,
    paced_rounds: usize,
    paced: Duration,
    starts: usize,
    many: bool,
}

impl Effort {
    fn of(quick: bool) -> Self {
        let ms = Duration::from_millis;
        if quick {
            Self { rounds: 5, round: ms(150), paced_rounds: 3, paced: ms(1000), starts: 3, many: false }
        } else {
            Self { rounds: 15, round: ms(250), paced_rounds: 9, paced: ms(2000), starts: 5, many: true }
        }
    }
}

/// Ratios of CPU time bear some company, latencies none.
fn warn_of_others() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default();
    if load > 0.5 {
        println!("the machine is not quiet (load {load}): latencies and times will say little");
    }
}

/// What a profiler is to see.
#[derive(Clone, Copy)]
pub enum Load {
    /// Reviews of 10 KB, as fast as they are answered.
    Reviews,
    /// New connections, as fast as they are made.
    Connections,
    /// Reviews of 4 KB at [`RATE`].
    Paced,
}

/// Loads both servers in turn until this process is killed.
pub fn hold(kimup: &Path, load: Load) -> Result<bool> {
    kimup_testbed::install_crypto_provider();
    server::move_to_load()?;
    let effort = Effort::of(true);
    let bench = Bench::start(kimup, cluster(IMAGES)?, effort)?;
    println!("under load: kimup is process {}, the no-op server {}", bench.kimup.id(), bench.noop.id());
    let (small, usual) = (requests(SIZES[0].0, false), requests(SIZES[1].0, false));
    let turn = Duration::from_secs(10);
    loop {
        for server in [&bench.kimup, &bench.noop] {
            let before = server.cpu_time()?;
            let done = match load {
                Load::Reviews => client::closed_loop(&mut bench.connect(server)?, &usual, turn)?,
                Load::Connections => client::handshakes(server.address, &bench.tls, CONNECTIONS, turn)?,
                Load::Paced => client::paced(&mut bench.connect(server)?, &small, RATE, turn)?.len() as u64,
            };
            let each = micros(server.cpu_time()?.saturating_sub(before)) / real(done);
            println!("{done} in 10 s by process {}, {each:.1} us of CPU time each", server.id());
        }
    }
}

/// Runs it; whether every bar is met.
pub fn run(kimup: &Path, quick: bool) -> Result<bool> {
    kimup_testbed::install_crypto_provider();
    server::move_to_load()?;
    warn_of_others();
    let effort = Effort::of(quick);
    let file = figures_file(quick)?;
    let before = figures::read(&file)?;
    let mut figures = Vec::new();
    let (empty, full) = (cluster(0)?, cluster(IMAGES)?);
    let bench = Bench::start(kimup, full, effort)?;
    bench.check_answers()?;
    for (size, bar) in SIZES {
        figures.push(bench.cpu_per_request(size, false)?.at_most(bar));
    }
    figures.push(bench.cpu_per_request(STAMPED, true)?);
    figures.push(bench.handshakes()?);
    figures.extend(bench.paced()?);
    figures.extend(bench.changing()?);
    figures.push(bench.requests_elsewhere()?);
    figures.extend(bench.memory_and_start(kimup, &empty)?);
    let good = figures::report(&figures, before.as_ref());
    figures::write(&file, &figures, before.as_ref())?;
    println!("\nthe best of each is kept in {}; a later run compares with it", file.display());
    Ok(good)
}

/// Beside the build, so that it goes with it.
fn figures_file(quick: bool) -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("this program is in no target folder")?;
    Ok(target.join(if quick { "bench-admission-quick.json" } else { "bench-admission.json" }))
}

fn cluster(images: usize) -> Result<ApiStub> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let api = runtime.block_on(ApiStub::start())?;
    for number in 0..objects::NAMESPACES {
        api.put(objects::namespace(number))?;
    }
    for number in 0..images {
        api.put(objects::settled_image(number))?;
    }
    Ok(api)
}

/// Both servers, with connections to them.
struct Bench {
    api: ApiStub,
    sync: SyncSocket,
    effort: Effort,
    tls: Arc<ClientConfig>,
    kimup: Server,
    noop: Server,
}

/// What a round gives.
struct Round {
    per_request: Duration,
    p99: Duration,
    /// CPU time by wall time.
    core: f64,
}

impl Bench {
    fn start(kimup: &Path, api: ApiStub, effort: Effort) -> Result<Self> {
        let sync = SyncSocket::listen()?;
        let (noop, kimup) = (Server::noop()?, Server::kimup(kimup, &api, &sync.path)?);
        Ok(Self { api, sync, effort, tls: client::tls()?, kimup, noop })
    }

    fn connect(&self, server: &Server) -> Result<Vec<Connection>> {
        (0..CONNECTIONS).map(|_| Connection::open(server.address, &self.tls)).collect()
    }

    /// Each Pod gets its patch, for half of its containers.
    fn check_answers(&self) -> Result<()> {
        let mut connection = Connection::open(self.kimup.address, &self.tls)?;
        let sent = SIZES.into_iter().map(|(size, _)| (size, false)).chain([(STAMPED, true)]);
        for (size, stamped) in sent {
            let reviews = Reviews::of(size, IMAGES, stamped);
            for body in &reviews.bodies {
                let answer: Value = serde_json::from_slice(connection.exchange(&client::request(body))?)?;
                let tags = tags(&answer).with_context(|| format!("the answer is {answer}"))?;
                let right = tags.len() == reviews.covered && tags.iter().all(|tag| tag == objects::SETTLED);
                ensure!(right, "{tags:?} are set, in {} containers: {answer}", reviews.covered);
            }
        }
        Ok(())
    }

    /// CPU time of both for requests of a size, as fast as they can.
    fn cpu_per_request(&self, size: usize, stamped: bool) -> Result<Figure> {
        let requests = requests(size, stamped);
        let (mut ours, mut noops) = (self.connect(&self.kimup)?, self.connect(&self.noop)?);
        let (mut ratios, mut kimup_ns, mut noop_ns) = (Vec::new(), Vec::new(), Vec::new());
        let round = |server: &Server, connections: &mut [Connection]| -> Result<f64> {
            let before = server.cpu_time()?;
            let answered = client::closed_loop(connections, &requests, self.effort.round)?;
            thread::sleep(SETTLE);
            Ok(micros(server.cpu_time()?.saturating_sub(before)) / real(answered))
        };
        round(&self.kimup, &mut ours)?; // warms the caches, and is not counted
        round(&self.noop, &mut noops)?;
        for _ in 0..self.effort.rounds {
            let (kimup, noop) = (round(&self.kimup, &mut ours)?, round(&self.noop, &mut noops)?);
            ratios.push(kimup / noop);
            kimup_ns.push(kimup);
            noop_ns.push(noop);
        }
        let what = if stamped { ", stamped" } else { "" };
        let note = format!("{:.1} and {:.1} us", quartiles(kimup_ns).1, quartiles(noop_ns).1);
        Ok(Figure::ratio(format!("CPU per request of {} KB{what}", size / 1000), ratios).note(note))
    }

    /// CPU time of a connection that is opened and closed.
    fn handshakes(&self) -> Result<Figure> {
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        let round = |server: &Server| -> Result<f64> {
            let before = server.cpu_time()?;
            let opened = client::handshakes(server.address, &self.tls, CONNECTIONS, self.effort.round)?;
            thread::sleep(SETTLE);
            Ok(real(opened) / server.cpu_time()?.saturating_sub(before).as_secs_f64())
        };
        for _ in 0..self.effort.rounds {
            let (kimup, noop) = (round(&self.kimup)?, round(&self.noop)?);
            ratios.push(kimup / noop);
            rates.push(kimup);
        }
        let note = format!("{:.0} a second and core", quartiles(rates).1);
        Ok(Figure::ratio("new TLS connections per core", ratios).at_least(0.9).note(note))
    }

    fn paced_round(&self, server: &Server, connections: &mut [Connection], requests: &[Vec<u8>]) -> Result<Round> {
        let (before, began) = (server.cpu_time()?, Instant::now());
        let took = client::paced(connections, requests, RATE, self.effort.paced)?;
        thread::sleep(SETTLE);
        let (cpu, wall) = (server.cpu_time()?.saturating_sub(before), began.elapsed());
        let p99 = took.get(took.len() * 99 / 100).copied().context("no answers")?;
        let per_request = cpu / u32::try_from(took.len())?;
        Ok(Round { per_request, p99, core: cpu.as_secs_f64() / wall.as_secs_f64() })
    }

    /// At a rate that leaves most of the core idle.
    fn paced(&self) -> Result<Vec<Figure>> {
        let requests = requests(SIZES[0].0, false);
        let (mut ours, mut noops) = (self.connect(&self.kimup)?, self.connect(&self.noop)?);
        let (mut ratios, mut cores, mut p99s, mut work) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.effort.paced_rounds {
            let kimup = self.paced_round(&self.kimup, &mut ours, &requests)?;
            let noop = self.paced_round(&self.noop, &mut noops, &requests)?;
            ratios.push(kimup.p99.as_secs_f64() / noop.p99.as_secs_f64());
            work.push(kimup.per_request.as_secs_f64() / noop.per_request.as_secs_f64());
            cores.push(kimup.core * 100.0);
            p99s.push((micros(kimup.p99), micros(noop.p99)));
        }
        let (kimup, noop): (Vec<f64>, Vec<f64>) = p99s.into_iter().unzip();
        let note = format!("{:.0} and {:.0} us", quartiles(kimup).1, quartiles(noop).1);
        let core = quartiles(cores);
        Ok(vec![
            Figure::ratio("p99 at 1,000 admissions/s", ratios).at_most(2.0).note(note),
            Figure { spread: Some((core.0, core.2)), ..Figure::new("of a core meanwhile", core.1, "%") }.at_most(5.0),
            Figure::ratio("CPU per request meanwhile", work),
        ])
    }

    /// The same while Images change.
    fn changing(&self) -> Result<[Figure; 2]> {
        let requests = requests(SIZES[0].0, false);
        let mut ours = self.connect(&self.kimup)?;
        let (mut ratios, mut p99s, mut cores, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for turn in 0..self.effort.paced_rounds {
            let quiet = self.paced_round(&self.kimup, &mut ours, &requests)?;
            let stop = AtomicBool::new(false);
            let busy = thread::scope(|scope| {
                let changes = scope.spawn(|| self.change_images(turn, &stop));
                let busy = self.paced_round(&self.kimup, &mut ours, &requests);
                stop.store(true, Ordering::SeqCst);
                let (last, rate) = changes.join().ok().context("a thread panicked")??;
                rates.push(rate);
                self.check_taken_in(last, turn)?;
                busy
            })?;
            ratios.push(busy.p99.as_secs_f64() / quiet.p99.as_secs_f64());
            p99s.push(micros(busy.p99));
            cores.push(busy.core * 100.0);
        }
        let note = format!("{:.0} us, {:.1} % of a core", quartiles(p99s).1, quartiles(cores).1);
        let reached = Figure::new("Image changes a second, all taken in", quartiles(rates).1, "");
        Ok([
            Figure::ratio("p99 with 1,000 Image changes/s by quiet", ratios).at_most(1.1).note(note),
            reached.at_least(0.95 * f64::from(RATE)),
        ])
    }

    /// Changes one Image after the other at [`RATE`] until it is told to stop; which one was the last, and how many a second it were.
    fn change_images(&self, turn: usize, stop: &AtomicBool) -> Result<(usize, f64)> {
        let (began, mut changed) = (Instant::now(), 0);
        while !stop.load(Ordering::SeqCst) {
            let due = began + Duration::from_secs(1) * u32::try_from(changed)? / RATE;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.api.put(objects::changed_image(nth_changed(changed), turn))?;
            changed += 1;
        }
        let rate = real(changed as u64) / began.elapsed().as_secs_f64();
        Ok((nth_changed(changed.saturating_sub(1)), rate))
    }

    /// Waits until Pods get what the change of this Image says: all before it is known then.
    fn check_taken_in(&self, image: usize, turn: usize) -> Result<()> {
        let mut connection = Connection::open(self.kimup.address, &self.tls)?;
        let (request, began) = (client::request(&objects::review_of_image(image)), Instant::now());
        loop {
            let answer: Value = serde_json::from_slice(connection.exchange(&request)?)?;
            if tags(&answer)? == [objects::changed_tag(turn)] {
                return Ok(());
            }
            ensure!(began.elapsed() < client::DEADLINE, "change {turn} of Image {image} is not seen: {answer}");
        }
    }

    /// Requests to the API server and questions to sync while 10,000 Pods are admitted: the fewest of three times, as what
    /// kimup asks from time to time, whoever comes, may fall among them.
    fn requests_elsewhere(&self) -> Result<Figure> {
        let requests = requests(SIZES[0].0, false);
        let mut connection = Connection::open(self.kimup.address, &self.tls)?;
        let count = || self.api.requests() + self.sync.connects();
        let mut fewest = u64::MAX;
        for _ in 0..3 {
            let before = count();
            for request in requests.iter().cycle().take(10_000) {
                connection.exchange(request)?;
            }
            fewest = fewest.min(count() - before);
        }
        Ok(Figure::new("requests elsewhere in 10,000 admissions", real(fewest), "").at_most(0.0))
    }

    /// A fresh process that has just become ready.
    fn started(&self, program: &Path, api: &ApiStub) -> Result<Started> {
        let kimup = Server::kimup(program, api, &self.sync.path)?;
        thread::sleep(Duration::from_millis(200));
        let (resident, anonymous) = (real(kimup.rss()?) / MIB, real(kimup.anonymous()?) / MIB);
        Ok(Started { resident, anonymous, ready: kimup.ready_after.as_secs_f64() * 1000.0 })
    }

    fn memory_and_start(&self, program: &Path, empty: &ApiStub) -> Result<Vec<Figure>> {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..self.effort.starts {
            without.push(self.started(program, empty)?);
            with.push(self.started(program, &self.api)?);
        }
        let median = |all: &[Started], what: fn(&Started) -> f64| quartiles(all.iter().map(what).collect());
        let idle = median(&without, |s| s.resident).1;
        let heap = median(&without, |s| s.anonymous).1;
        let more = median(&with, |s| s.resident).1 - idle;
        let heap_more = median(&with, |s| s.anonymous).1 - heap;
        let (low, ready, high) = median(&with, |s| s.ready);
        let ready = Figure { spread: Some((low, high)), ..Figure::new("ready with 10,000 Images", ready, " ms") };
        let loaded = real(self.kimup.rss()?) / MIB;
        let mut figures = vec![
            Figure::new("memory idle, no Images", idle, " MiB").at_most(16.0).steady().note(format!("heap {heap:.2}")),
            Figure::new("memory of 10,000 Images more", more, " MiB")
                .at_most(5.0)
                .steady()
                .note(format!("heap {heap_more:.2}")),
            Figure::new("memory after all of the above", loaded, " MiB").steady(),
            ready.at_most(500.0),
        ];
        if self.effort.many {
            let many = self.started(program, &cluster(MANY_IMAGES)?)?;
            let note = format!("aim: 30; heap {:.2}; ready in {:.0} ms", many.anonymous, many.ready);
            figures.push(Figure::new("memory with 100,000 Images", many.resident, " MiB").steady().note(note));
        }
        Ok(figures)
    }
}

/// Memory in MiB, time in ms.
struct Started {
    resident: f64,
    anonymous: f64,
    ready: f64,
}

fn requests(size: usize, stamped: bool) -> Vec<Vec<u8>> {
    Reviews::of(size, IMAGES, stamped).bodies.iter().map(|body| client::request(body)).collect()
}

/// Which Image is changed as the nth.
fn nth_changed(nth: usize) -> usize {
    nth * 7919 % IMAGES
}

/// The tags that an answer sets.
fn tags(answer: &Value) -> Result<Vec<String>> {
    let response = &answer["response"];
    ensure!(response["allowed"] == true, "not allowed: {answer}");
    let patch = STANDARD.decode(response["patch"].as_str().context("no patch")?)?;
    let patch: Vec<Value> = serde_json::from_slice(&patch)?;
    let images = patch.iter().filter(|op| op["path"].as_str().is_some_and(|path| path.ends_with("/image")));
    let tag = |op: &Value| Some(op["value"].as_str()?.rsplit_once(':')?.1.to_owned());
    Ok(images.filter_map(tag).collect())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[allow(clippy::cast_precision_loss)] // far below 2^53
fn real(number: u64) -> f64 {
    number as f64
}
