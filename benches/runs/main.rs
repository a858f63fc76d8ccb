//! Cost of a run: the real server with its database on disk, flows of calls to a provider that
//! answers at once, and clients that wait for each run's end.
//!
//! `make bench-runs` prints the tables, `make bench-runs-quick` short ones. The server and the
//! provider are separate processes, so that the server's CPU time is counted alone; this process
//! runs the clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
mod client;
mod fill;
mod processes;

use std::io::Write;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use client::{Client, Measured};
use processes::{Server, Upstream};

/// Targets, printed beside the results.
const AIM_RUNS_PER_S: f64 = 2_000.0;
const AIM_CPU_MS: f64 = 0.7;
const AIM_P99_MS: f64 = 5.0;
/// The cost of a run counts as flat up to this ratio to its cost with an empty database; the noise
/// is as large.
const AIM_RATIO: f64 = 1.15;

/// Number of concurrent runs of a busy server.
const BUSY: usize = 16;
/// Nodes of the wide flow, without edges.
const WIDE_NODES: usize = 100;
/// The window is split into this many alternating turns, because the load of the machine changes.
const TURNS: u32 = 4;
/// Not measured: opens connections, starts threads, prepares statements.
const WARM_UP: Duration = Duration::from_millis(500);
/// Number of runs that wait for their provider during the memory measurement.
const WAITING_RUNS: usize = 200;
/// Answer time of that provider: longer than the measurement.
const SLOW: Duration = Duration::from_secs(60);
/// Time limit for the server to start all of them.
const SETTLE: Duration = Duration::from_millis(1_500);

struct Plan {
    /// Total measuring time of each row.
    window: Duration,
    /// Numbers of stored runs.
    stored: &'static [u64],
}

const FULL: Plan =
    Plan { window: Duration::from_secs(12), stored: &[0, 10_000, 100_000, 1_000_000] };

const QUICK: Plan = Plan { window: Duration::from_secs(4), stored: &[0, 10_000, 100_000] };

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["server", data, url] => processes::serve(data.as_ref(), url),
        ["upstream", delay_ms] => {
            processes::answer(Duration::from_millis(delay_ms.parse().unwrap()));
        }
        ["busy", seconds] => busy(Duration::from_secs(seconds.parse().unwrap())),
        ["quick"] => bench(&QUICK),
        [] => bench(&FULL),
        other => panic!("unknown arguments {other:?}; there are `quick`, `busy SECONDS` and none"),
    }
}

fn bench(plan: &Plan) {
    let began = Instant::now();
    let upstream = Upstream::start(Duration::ZERO);
    costs(plan, &upstream);
    flatness(plan, &upstream);
    memory();
    println!("took {:.0} s", began.elapsed().as_secs_f64());
}

/// Keeps the server busy for a profiler.
fn busy(window: Duration) {
    let upstream = Upstream::start(Duration::ZERO);
    let mut rig = Rig::start(&upstream, 0);
    println!("the server is process {}", rig.server.id());
    let measured = rig.measure(rig.row, BUSY, window);
    println!("{:.0} runs/s, {:.3} ms CPU", measured.per_second(), measured.cpu_ms());
}

fn costs(plan: &Plan, upstream: &Upstream) {
    let mut rig = Rig::start(upstream, 0);
    println!(
        "To write a page and sync it takes {:.2} ms here. CPU is the server's own; bytes are the database's growth, and what was written to the disk for it.",
        sync_ms(&rig)
    );
    println!(
        "{:<22} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10}  aims",
        "flow", "at a time", "runs/s", "p50 ms", "p99 ms", "CPU ms", "DB bytes", "disk bytes"
    );
    for (name, flow, at_a_time) in [
        ("3 agents in a row", rig.row, 1),
        ("3 agents in a row", rig.row, BUSY),
        ("100 agents, no edges", rig.wide, 1),
        ("100 agents, no edges", rig.wide, BUSY),
    ] {
        let measured = rig.measure(flow, at_a_time, plan.window);
        let is_row = flow == rig.row;
        let mut aims = Vec::new();
        if is_row && at_a_time == 1 {
            aims.push(aim("p99 < 5 ms", measured.ms(0.99) < AIM_P99_MS));
        }
        if is_row && at_a_time == BUSY {
            let is_fast = measured.per_second() >= AIM_RUNS_PER_S;
            aims.push(aim("2000 runs/s", is_fast));
            aims.push(aim("CPU <= 0.7 ms", measured.cpu_ms() <= AIM_CPU_MS));
        }
        println!(
            "{name:<22} {at_a_time:>9} {:>9.0} {:>9.2} {:>9.2} {:>10.3} {:>10.0} {:>10.0}  {}",
            measured.per_second(),
            measured.ms(0.5),
            measured.ms(0.99),
            measured.cpu_ms(),
            measured.per_run(measured.db_bytes),
            measured.per_run(measured.disk_bytes),
            aims.join(", ")
        );
    }
}

fn aim(text: &str, is_met: bool) -> String {
    format!("{text}: {}", if is_met { "met" } else { "missed" })
}

fn flatness(plan: &Plan, upstream: &Upstream) {
    println!(
        "3 agents in a row, {BUSY} at a time, with so many runs in the database already (their rows are copies of one real run's, written with SQL while no server had it open):"
    );
    println!(
        "{:>9} {:>9} {:>9} {:>10} {:>10} {:>7}  aim",
        "stored", "MB", "fill s", "runs/s", "CPU ms", "ratio"
    );
    let mut rigs: Vec<Rig> = Vec::new();
    for &stored in plan.stored {
        rigs.push(Rig::start(upstream, stored));
    }
    let mut measured: Vec<Measured> = rigs.iter().map(|_| Measured::default()).collect();
    for _ in 0..TURNS {
        for (rig, measured) in rigs.iter_mut().zip(&mut measured) {
            *measured += rig.measure(rig.row, BUSY, plan.window / TURNS);
        }
    }
    let base = measured[0].cpu_ms();
    for ((rig, measured), stored) in rigs.iter().zip(&measured).zip(plan.stored) {
        let ratio = measured.cpu_ms() / base;
        println!(
            "{stored:>9} {:>9.0} {:>9.1} {:>10.0} {:>10.3} {ratio:>7.2}  {}",
            rig.filled_bytes as f64 / 1e6,
            rig.fill_time.as_secs_f64(),
            measured.per_second(),
            measured.cpu_ms(),
            aim("flat", ratio <= AIM_RATIO)
        );
    }
}

fn memory() {
    let upstream = Upstream::start(SLOW);
    for (wait, what) in [(false, "nobody waiting for it"), (true, "a client waiting for it")] {
        let mut rig = Rig::start(&upstream, 0);
        // Excludes the memory that the first request allocates.
        Client::connect(rig.server.address).execute(rig.row, false);
        std::thread::sleep(SETTLE);
        let before = rig.server.rss_kb();
        let mut clients: Vec<Client> = Vec::new();
        for _ in 0..WAITING_RUNS {
            if wait || clients.is_empty() {
                clients.push(Client::connect(rig.server.address));
            }
            let client = clients.last_mut().unwrap();
            if wait {
                client.ask(rig.row, true);
            } else {
                client.execute(rig.row, false);
            }
        }
        std::thread::sleep(SETTLE);
        let each = (rig.server.rss_kb() - before) as f64 / WAITING_RUNS as f64;
        println!(
            "{WAITING_RUNS} runs at a slow provider: {each:.1} kB RSS for each, {what}; {before} kB before"
        );
    }
}

/// Lower bound of a commit in milliseconds.
fn sync_ms(rig: &Rig) -> f64 {
    const TIMES: u32 = 200;
    let mut file = std::fs::File::create(rig.dir.path().join("sync")).unwrap();
    let began = Instant::now();
    for _ in 0..TIMES {
        file.write_all(&[0; 4_096]).unwrap();
        file.sync_data().unwrap();
    }
    began.elapsed().as_secs_f64() * 1e3 / f64::from(TIMES)
}

/// A server process with its database and its flows.
struct Rig {
    server: Server,
    /// Three agents in a row.
    row: i64,
    /// Many agents without edges.
    wide: i64,
    filled_bytes: u64,
    fill_time: Duration,
    dir: TempDir,
}

impl Rig {
    fn start(upstream: &Upstream, stored: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start(dir.path(), &upstream.url);
        let mut client = Client::connect(server.address);
        let row = client.save(&client::row_of_agents(3));
        let wide = client.save(&client::agents_without_edges(WIDE_NODES));
        let mut fill_time = Duration::ZERO;
        if stored > 0 {
            client.execute(row, true);
            drop(client);
            server.stop();
            let began = Instant::now();
            fill::fill(dir.path(), stored);
            fill_time = began.elapsed();
            server = Server::start(dir.path(), &upstream.url);
        }
        let filled_bytes = fill::size(dir.path());
        Self { server, row, wide, filled_bytes, fill_time, dir }
    }

    fn measure(&mut self, flow: i64, at_a_time: usize, window: Duration) -> Measured {
        let mut clients: Vec<Client> =
            (0..at_a_time).map(|_| Client::connect(self.server.address)).collect();
        client::run(&mut clients, flow, WARM_UP);
        let (db_bytes, disk_bytes) = (fill::size(self.dir.path()), self.server.written_bytes());
        let cpu = self.server.cpu();
        let mut measured = client::run(&mut clients, flow, window);
        measured.cpu = self.server.cpu() - cpu;
        measured.db_bytes = fill::size(self.dir.path()) - db_bytes;
        measured.disk_bytes = self.server.written_bytes() - disk_bytes;
        measured
    }
}
