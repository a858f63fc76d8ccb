//! Reading the ledger: pages with every kind of filter, sums and the CSV of a million rows, from
//! the real server over HTTP; and the write cost that makes them fast.
//!
//! `make bench-ledger` prints the tables. The server is a separate process, so that its memory is
//! counted alone. So is the provider, which gets no calls here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
#[path = "../runs/client.rs"]
mod client;
mod fill;
#[allow(dead_code)]
#[path = "../runs/processes.rs"]
mod processes;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use flowledger::time::Timestamp;
use hdrhistogram::Histogram;

use client::Client;
use fill::{Books, DAYS, MS_PER_DAY};
use processes::{Server, Upstream};

/// Number of rows.
const ROWS: u64 = 1_000_000;
/// Target for each page and each summary, printed beside the results.
const AIM_MS: f64 = 50.0;
/// Target for the growth of the server's memory during a CSV export.
const AIM_CSV_KB: i64 = 4_096;
/// Target for the write cost of a call, relative to the former indexes.
const AIM_RATIO: f64 = 1.10;
/// Repetitions of each query after a first one.
const TIMES: usize = 30;
/// Time limit for the server to note its blocks and build the daily rollup.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Total calls written for each set of indexes.
const CALLS: u64 = 96_000;
/// The calls are split into this many alternating turns, because the load of the machine changes.
const TURNS: u64 = 6;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["server", data, url] => processes::serve(data.as_ref(), url),
        ["upstream", delay_ms] => {
            processes::answer(Duration::from_millis(delay_ms.parse().unwrap()));
        }
        [] => bench(),
        other => panic!("unknown arguments {other:?}; there are none"),
    }
}

fn bench() {
    let began = Instant::now();
    reading();
    writing();
    println!("took {:.0} s", began.elapsed().as_secs_f64());
}

fn aim(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}

fn reading() {
    let upstream = Upstream::start(Duration::ZERO);
    let dir = tempfile::tempdir().unwrap();
    // Creates the database.
    Server::start(dir.path(), &upstream.url).stop();
    let newest = Timestamp::now().0;
    let began = Instant::now();
    fill::fill(dir.path(), ROWS, newest);
    let (filled, bytes) = (began.elapsed(), fill::size(dir.path()));
    let began = Instant::now();
    let mut server = Server::start(dir.path(), &upstream.url);
    wait_until_ready(dir.path());
    println!(
        "{ROWS} rows over {DAYS} days, {:.0} MB; filled in {:.1} s. The server noted its blocks and summed up its days in {:.1} s, {:.1} bytes for each row.",
        bytes as f64 / 1e6,
        filled.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        (fill::size(dir.path()) - bytes) as f64 / ROWS as f64
    );
    println!(
        "{:<64} {:>9} {:>9} {:>9}  aim: p99 < {AIM_MS} ms (of {TIMES}: the slowest)",
        "GET", "bytes", "p50 ms", "p99 ms"
    );
    let mut client = Client::connect(server.address);
    let mut worst: f64 = 0.0;
    for target in targets(newest) {
        let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        let length = get(&mut client, &target);
        for _ in 0..TIMES {
            let asked = Instant::now();
            get(&mut client, &target);
            times.saturating_record(u64::try_from(asked.elapsed().as_nanos()).unwrap());
        }
        let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1e6;
        worst = worst.max(ms(0.99));
        println!(
            "{:<64} {length:>9} {:>9.2} {:>9.2}  {}",
            target.trim_start_matches("/api/"),
            ms(0.5),
            ms(0.99),
            aim(ms(0.99) < AIM_MS)
        );
    }
    println!("the slowest: {worst:.1} ms: {}", aim(worst < AIM_MS));
    csv(&mut server);
    server.stop();
}

/// Fetches a target and returns the length of its body.
fn get(client: &mut Client, target: &str) -> usize {
    let text = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    client.stream.write_all(text.as_bytes()).unwrap();
    client.answer("200").len()
}

fn wait_until_ready(dir: &Path) {
    let connection = fill::open(dir);
    let count = |sql: &str| -> u64 { connection.query_row(sql, [], |row| row.get(0)).unwrap() };
    let deadline = Instant::now() + READY_TIMEOUT;
    while count("SELECT count(*) FROM ledger_blocks") < ROWS / 128
        || count("SELECT count(DISTINCT day) FROM ledger_days") < DAYS - 1
    {
        assert!(Instant::now() < deadline, "the server is not ready");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The measured queries.
fn targets(newest: i64) -> Vec<String> {
    let ago = |days: i64| Timestamp(newest - days * MS_PER_DAY).to_string();
    let deep = ROWS / 3;
    let mut pages: Vec<String> = [
        "",
        "flow_id=3",
        "flow_id=99",
        "model=gpt-5",
        "model=gpt-5-nano",
        "model=rare-model",
        "model=none",
        "provider=openai",
        "provider=rare-provider",
        "status=SUCCESS",
        "status=FAILED",
        "status=TIMEOUT",
        "status=PENDING",
        "run_id=0000a000-0000-7000-8000-00000000a000",
        "flow_id=3&model=rare-model",
        "provider=openai&status=UNKNOWN",
        "flow_id=5&model=gpt-5&provider=openai&status=FAILED",
        "model=rare-model&status=FAILED",
    ]
    .map(str::to_owned)
    .into();
    pages.extend([
        format!("from={}", ago(1)),
        format!("to={}", ago(80)),
        format!("from={}&to={}", ago(61), ago(60)),
        format!("from={}&to={}&before={deep}", ago(85), ago(84)),
        format!("to={}&model=rare-model", ago(30)),
        format!("from={}&to={}&status=FAILED", ago(61), ago(60)),
        format!("before={deep}"),
        format!("before={deep}&model=rare-model"),
        format!("before={deep}&status=TIMEOUT&flow_id=2"),
    ]);
    for sort in ["cost", "latency", "input_tokens", "output_tokens"] {
        pages.push(format!("sort={sort}"));
        pages.push(format!("sort={sort}&order=asc"));
        pages.push(format!("sort={sort}&before=1000:{deep}"));
        pages.push(format!("sort={sort}&status=FAILED"));
        pages.push(format!("sort={sort}&from={}", ago(30)));
        pages.push(format!("sort={sort}&from={}&to={}", ago(61), ago(60)));
    }
    pages.extend(
        [
            "order=asc",
            "order=asc&model=rare-model",
            "status=FAILED,TIMEOUT,CANCELLED,UNKNOWN",
            "key=team-0",
            "key=rare-key",
            "session=session-700",
            "end_user=user-7",
            "sort=cost&key=rare-key",
            "sort=cost&model=rare-model",
            "q=rare-model",
            "q=503",
            "node=node-7&min_cost=0.0009",
            "names=true",
        ]
        .map(str::to_owned),
    );
    let mut targets = Vec::new();
    for page in &pages {
        for limit in [50, 100] {
            let and = if page.is_empty() { "" } else { "&" };
            targets.push(format!("/api/ledger?limit={limit}{and}{page}"));
        }
    }
    let summary = |query: &str| format!("/api/ledger/summary?group_by={query}");
    for group in ["model", "provider", "flow", "role", "day", "status"] {
        targets.push(summary(&format!("{group}&from={}", ago(30))));
    }
    for query in [
        "model",
        "day",
        "day&model=gpt-5",
        "model&flow_id=3",
        "model&flow_id=3&status=FAILED",
        "role&run_id=0000a000-0000-7000-8000-00000000a000",
    ] {
        targets.push(summary(query));
    }
    targets.push(summary(&format!("model&from={}&to={}", ago(61), ago(31))));
    targets
}

/// Exports the whole ledger as CSV and measures the growth of the server's memory.
fn csv(server: &mut Server) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    let request = "GET /api/ledger.csv HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let before = server.rss_kb();
    let began = Instant::now();
    stream.write_all(request.as_bytes()).unwrap();
    let (mut lines, mut bytes, mut most) = (0, 0, before);
    let mut buffer = vec![0; 64 << 10];
    let mut next = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        // Chunk lines end with CRLF, CSV lines with LF.
        lines += count_lines(&buffer[..count]);
        bytes += count;
        if bytes >= next {
            most = most.max(server.rss_kb());
            next += 8 << 20;
        }
    }
    let elapsed = began.elapsed().as_secs_f64();
    assert!(lines >= ROWS, "{lines} lines");
    println!(
        "the whole CSV: {:.0} MB in {elapsed:.1} s, {:.0} rows/s; the server's memory: {before} kB before, {most} kB at most: {} (aim: {AIM_CSV_KB} kB more)",
        bytes as f64 / 1e6,
        ROWS as f64 / elapsed,
        aim(most - before <= AIM_CSV_KB)
    );
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// Measures the write cost of a call for each set of indexes.
fn writing() {
    println!(
        "A call, opened and settled, 16 to a commit; of {CALLS} in turns. CPU is that of the thread that writes:"
    );
    println!("{:<40} {:>9} {:>9} {:>10} {:>7}", "", "CPU us", "DB bytes", "disk bytes", "CPU");
    let sets = [
        ("blocks, without the indexes of orders", fill::FORMER, true),
        ("blocks, as it is", "", true),
        ("an index for each filter, no blocks", fill::ONE_FOR_EACH_FILTER, false),
    ];
    let mut all: Vec<Books> =
        sets.iter().map(|(_, indexes, blocks)| Books::new(indexes, *blocks)).collect();
    for _ in 0..TURNS {
        for books in &mut all {
            books.write(CALLS / TURNS);
        }
    }
    let us = |books: &Books| books.cost.cpu.as_secs_f64() * 1e6 / CALLS as f64;
    for ((name, indexes, _), books) in sets.iter().zip(&all) {
        let ratio = us(books) / us(&all[0]);
        let aim = if indexes.is_empty() {
            format!("  aim: <= {AIM_RATIO}: {}", aim(ratio <= AIM_RATIO))
        } else {
            String::new()
        };
        println!(
            "{name:<40} {:>9.1} {:>9.0} {:>10.0} {ratio:>7.2}{aim}",
            us(books),
            books.cost.db_bytes as f64 / CALLS as f64,
            books.cost.disk_bytes as f64 / CALLS as f64,
        );
    }
}
