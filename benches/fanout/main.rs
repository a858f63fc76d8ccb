//! Cost of a delivery: real loopback sockets and the real server, compared in one run with a bare
//! loop of `send` over as many sockets.
//!
//! `make bench` prints the table, `make bench-quick` a short one. The server is a separate process,
//! so that its CPU time is counted alone; this process runs the clients.
//!
//! `cargo bench --bench fanout -- calm` measures the latency of well-behaved clients with and
//! without hundreds of misbehaving ones.
//!
//! `cargo bench --bench fanout -- serve --listen 127.0.0.1:PORT --rate R --size S` runs the real
//! server for external clients and publishes R events per second of S bytes each, with the send
//! time as `"t":<unix nanoseconds>` in the payload, until it is stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod abuse;
mod load;
mod server;

use std::time::{Duration, Instant};

use load::{Clients, Measured};
use server::{Child, Kind};

/// Total measuring time of each side of a row.
const WINDOW: Duration = Duration::from_millis(1_600);
const WINDOW_QUICK: Duration = Duration::from_millis(1_000);
/// The window is split into this many alternating turns, because the load of the machine changes.
const TURNS: u32 = 4;
/// Above this rate, loopback and the clients are the bottleneck.
const DELIVERIES_PER_S_MAX: u64 = 2_600_000;
const BYTES_PER_S_MAX: u64 = 600_000_000;
/// A row with fewer deliveries is too noisy.
const DELIVERIES_MIN: u64 = 1_000;

struct Plan {
    clients: &'static [usize],
    rates: &'static [u64],
    sizes: &'static [usize],
    window: Duration,
    /// Includes 7,000 clients and the misbehaving ones.
    is_full: bool,
}

const FULL: Plan = Plan {
    clients: &[100, 1_000, 5_000],
    rates: &[10, 100, 1_000, 2_000, 10_000],
    sizes: &[256, 4_096],
    window: WINDOW,
    is_full: true,
};

const QUICK: Plan = Plan {
    clients: &[100, 1_000],
    rates: &[50, 1_000, 2_000],
    sizes: &[256],
    window: WINDOW_QUICK,
    is_full: false,
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", rest @ ..] => server::serve(rest),
        ["calm"] => calm(),
        ["abuse", address] => abuse::run(address.parse().unwrap()),
        ["child", kind] => server::child(Kind::from_name(kind)),
        ["quick"] => bench(&QUICK),
        [] => bench(&FULL),
        other => panic!("unknown arguments {other:?}; there are `quick`, `calm`, `serve` and none"),
    }
}

fn bench(plan: &Plan) {
    let began = Instant::now();
    println!(
        "CPU is the server's own, per delivery; `bare` is a loop of send over as many sockets."
    );
    println!(
        "{:>7} {:>8} {:>6} {:>12} {:>9} {:>9} {:>9} {:>10} {:>10} {:>6} {:>5}",
        "clients",
        "events/s",
        "bytes",
        "deliveries/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "CPU µs",
        "bare µs",
        "ratio",
        "cut"
    );
    for &count in plan.clients {
        let mut ours = Rig::start(Kind::Ours, count);
        let mut bare = Rig::start(Kind::Bare, count);
        for &size in plan.sizes {
            for &rate in plan.rates {
                row(plan, count, size, rate, &mut ours, &mut bare);
            }
        }
        println!(
            "{count} clients connected in {:.2} s; {:.1} kB RSS and {:.2} descriptors each",
            ours.connect_s, ours.rss_kb_each, ours.fds_each
        );
    }
    if plan.is_full {
        let rig = Rig::start(Kind::Ours, 7_000);
        println!(
            "{} of 7000 clients connected in {:.2} s and were served; {:.1} kB RSS each",
            rig.clients.len(),
            rig.connect_s,
            rig.rss_kb_each
        );
        drop(rig);
        calm();
    }
    println!("took {:.0} s", began.elapsed().as_secs_f64());
}

/// Number of well-behaved clients, and the length of each measuring turn.
const CALM_CLIENTS: usize = 500;
const CALM_CLIENTS_LATER: usize = 50;
const CALM_RATE: u64 = 50;
const CALM_SIZE: usize = 1_024;
const CALM_WINDOW: Duration = Duration::from_millis(2_500);
/// Lead time of the misbehaving clients before the measurement.
const CALM_LEAD: Duration = Duration::from_millis(1_500);
const CALM_TURNS: u32 = 3;

fn calm() {
    println!(
        "{CALM_CLIENTS} clients at {CALM_RATE} events/s, beside 100 that never read, 100 that flood pings, 100 that send garbage, 200 half request heads and 50 resets at once, again and again:"
    );
    println!(
        "{:>12} {:>12} {:>9} {:>9} {:>6} {:>12} {:>5}",
        "descriptors", "disturbed", "p50 ms", "p99 ms", "ratio", "RSS MB", "cut"
    );
    for kind in [Kind::Ours, Kind::OursShort] {
        let mut rig = Rig::start(kind, CALM_CLIENTS);
        let mut alone = Measured::default();
        let mut beside = Measured::default();
        let (mut rss_alone_kb, mut rss_beside_kb) = (0, 0);
        for _ in 0..CALM_TURNS {
            alone += rig.measure(CALM_RATE, CALM_SIZE, CALM_WINDOW);
            rss_alone_kb = rig.child.usage().rss_kb.max(rss_alone_kb);
            let abuse = rig.child.abuse();
            std::thread::sleep(CALM_LEAD);
            beside += rig.measure(CALM_RATE, CALM_SIZE, CALM_WINDOW);
            rss_beside_kb = rig.child.usage().rss_kb.max(rss_beside_kb);
            drop(abuse);
            rig.child.wait_until_clients(CALM_CLIENTS);
        }
        let p99 = |measured: &Measured| measured.latency.value_at_quantile(0.99) as f64;
        for (name, measured, rss_kb) in
            [("no", &alone, rss_alone_kb), ("yes", &beside, rss_beside_kb)]
        {
            println!(
                "{:>12} {name:>12} {:>9.2} {:>9.2} {:>6.2} {:>12.1} {:>5}",
                if kind == Kind::OursShort { "run out" } else { "enough" },
                measured.latency.value_at_quantile(0.5) as f64 / 1e6,
                p99(measured) / 1e6,
                p99(measured) / p99(&alone),
                rss_kb as f64 / 1e3,
                measured.lost
            );
        }
        // The server still accepts connections.
        drop(Clients::connect(kind, rig.child.address, CALM_CLIENTS_LATER));
    }
}

fn row(plan: &Plan, count: usize, size: usize, rate: u64, ours: &mut Rig, bare: &mut Rig) {
    let offered = count as u64 * rate;
    let is_too_much = offered > DELIVERIES_PER_S_MAX || offered * size as u64 > BYTES_PER_S_MAX;
    if is_too_much || offered * plan.window.as_millis() as u64 / 1_000 < DELIVERIES_MIN {
        return;
    }
    let window = plan.window / TURNS;
    let mut measured = Measured::default();
    let mut yardstick = Measured::default();
    for _ in 0..TURNS {
        measured += ours.measure(rate, size, window);
        yardstick += bare.measure(rate, size, window);
    }
    let ms = |quantile: f64| measured.latency.value_at_quantile(quantile) as f64 / 1e6;
    println!(
        "{count:>7} {rate:>8} {size:>6} {:>12.0} {:>9.2} {:>9.2} {:>9.2} {:>10.2} {:>10.2} {:>6.2} {:>5}",
        measured.per_second(),
        ms(0.5),
        ms(0.99),
        ms(0.999),
        measured.cpu_us(),
        yardstick.cpu_us(),
        measured.cpu_us() / yardstick.cpu_us(),
        measured.lost,
    );
}

/// A server process and its clients.
struct Rig {
    kind: Kind,
    child: Child,
    clients: Clients,
    connect_s: f64,
    rss_kb_each: f64,
    fds_each: f64,
}

impl Rig {
    fn start(kind: Kind, count: usize) -> Self {
        let mut child = Child::start(kind);
        let before = child.usage();
        let began = Instant::now();
        let mut clients = Clients::connect(kind, child.address, count);
        let connect_s = began.elapsed().as_secs_f64();
        child.wait_for_clients(count);
        clients.settle();
        let after = child.usage();
        Self {
            kind,
            child,
            clients,
            connect_s,
            rss_kb_each: (after.rss_kb - before.rss_kb) as f64 / count as f64,
            fds_each: (after.fds - before.fds) as f64 / count as f64,
        }
    }

    fn measure(&mut self, rate: u64, size: usize, window: Duration) -> Measured {
        let before = self.child.cpu();
        let begun = self.child.publish(rate, size, window);
        let mut measured = self.clients.receive(begun, window);
        self.child.published();
        self.clients.receive_rest(&mut measured);
        // All deliveries have arrived, whichever thread sent them.
        measured.cpu = self.child.cpu() - before;
        measured.lost = self.clients.replace_lost(self.kind, self.child.address);
        measured
    }
}
