//! Overhead of the gateway per call, with the durable ledger: the same calls to the same upstream,
//! directly and through flowledger, in alternating turns; and the CPU time of a translated call and
//! stream beside a passed-on one.
//!
//! `make bench-gateway` prints the tables. The server and the upstream are separate processes, so
//! that the server's CPU time is counted alone; this process runs the clients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use flowledger::config::{Config, Overrides};
use flowledger::providers::{Kind, Network, ProviderConfig};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

/// Targets, printed beside the results.
const AIM_P50_US: f64 = 300.0;
const AIM_P99_US: f64 = 1_000.0;
const AIM_CPU_MS: f64 = 0.25;
const AIM_CALLS_PER_S: f64 = 4_000.0;

/// The maximum CPU time of a translated call, as a multiple of a passed-on one.
const AIM_TRANSLATED: f64 = 2.0;

/// Numbers of concurrent clients.
const AT_A_TIME: [usize; 3] = [1, 16, 64];
/// Call rate of the open-loop row; the others send each call when the previous one is answered.
const RATE_PER_S: u32 = 1_000;
/// Number of clients at that rate.
const RATE_CLIENTS: usize = 16;
/// Total measuring time of each side.
const WINDOW: Duration = Duration::from_secs(8);
/// The window is split into this many alternating turns, because the load of the machine changes.
const TURNS: u32 = 4;
/// Not measured: opens connections, starts threads, prepares statements.
const WARM_UP: Duration = Duration::from_millis(500);
/// Small, because an upstream thread does little.
const STACK_BYTES: usize = 64 << 10;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["server", data, url] => serve(data.as_ref(), url),
        ["upstream"] => upstream(),
        ["busy", seconds] => busy(seconds, None),
        ["busy", seconds, rate] => busy(seconds, Some(rate.parse().unwrap())),
        [] => bench(),
        other => {
            panic!("unknown arguments {other:?}; there are `busy SECONDS [CALLS_PER_S]` and none")
        }
    }
}

fn bench() {
    let mut rig = Rig::start();
    let syncs = syncs(rig.dir.path());
    let sync_us = |quantile| syncs.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "To sync what an intent writes takes {:.0} us here, of a hundred the slowest {:.0} us; it is waited for before each call.",
        sync_us(0.5),
        sync_us(0.99)
    );
    println!("Times are of a call as the client sees it; CPU is the server's own.");
    println!(
        "{:<14} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9}  aims",
        "clients",
        "direct/s",
        "gateway/s",
        "p50 us",
        "p50 us",
        "p99 us",
        "p99 us",
        "added p50",
        "CPU ms"
    );
    for count in AT_A_TIME {
        let (direct, providers) = rig.compare(count, None);
        let mut aims = Vec::new();
        if count == 64 {
            let is_fast = providers.per_second() >= AIM_CALLS_PER_S;
            aims.push(aim("4000 calls/s", is_fast));
            aims.push(aim("CPU <= 0.25 ms", providers.cpu_ms() <= AIM_CPU_MS));
        }
        print(&format!("{count} at a time"), &direct, &providers, &aims);
    }
    let (direct, providers) = rig.compare(RATE_CLIENTS, Some(RATE_PER_S));
    let added = |quantile| providers.us(quantile) - direct.us(quantile);
    let aims = [
        aim("added p50 < 300 us", added(0.5) < AIM_P50_US),
        aim("added p99 < 1 ms", added(0.99) < AIM_P99_US),
    ];
    print(&format!("{RATE_PER_S} per second"), &direct, &providers, &aims);
    println!(
        "\nServer CPU per call, {RATE_CLIENTS} at a time: passed on, and translated from Anthropic's API"
    );
    println!("{:<10} {:>12} {:>14} {:>7}  aims", "", "passed on ms", "translated ms", "ratio");
    for is_streamed in [false, true] {
        let [passed, translated] =
            rig.compare_requests([request(is_streamed), translated_request(is_streamed)]);
        let ratio = translated.cpu_ms() / passed.cpu_ms();
        println!(
            "{:<10} {:>12.3} {:>14.3} {:>7.2}  {}",
            if is_streamed { "stream" } else { "one piece" },
            passed.cpu_ms(),
            translated.cpu_ms(),
            ratio,
            aim("ratio <= 2", ratio <= AIM_TRANSLATED)
        );
    }
}

fn print(what: &str, direct: &Measured, providers: &Measured, aims: &[String]) {
    println!(
        "{what:<14} {:>9.0} {:>10.0} {:>10.0} {:>10.0} {:>10.0} {:>10.0} {:>10.0} {:>9.3}  {}",
        direct.per_second(),
        providers.per_second(),
        direct.us(0.5),
        providers.us(0.5),
        direct.us(0.99),
        providers.us(0.99),
        providers.us(0.5) - direct.us(0.5),
        providers.cpu_ms(),
        aims.join(", ")
    );
}

fn aim(text: &str, is_met: bool) -> String {
    format!("{text}: {}", if is_met { "met" } else { "missed" })
}

/// Keeps the server busy for a profiler.
fn busy(seconds: &str, rate: Option<u32>) {
    let mut rig = Rig::start();
    println!("the server is process {}", rig.server.child.id());
    let began = rig.cpu();
    let clients = if rate.is_some() { RATE_CLIENTS } else { 64 };
    let window = Duration::from_secs(seconds.parse().unwrap());
    let mut measured = run(rig.providers, clients, window, rate);
    measured.cpu = rig.cpu() - began;
    println!(
        "{:.0} calls/s, {:.3} ms CPU, p50 {:.0} us, p99 {:.0} us",
        measured.per_second(),
        measured.cpu_ms(),
        measured.us(0.5),
        measured.us(0.99),
    );
}

/// Lower bound of a commit in nanoseconds: syncs as much data as an intent writes to SQLite's log,
/// a thousand times per second.
fn syncs(dir: &Path) -> Histogram<u64> {
    const TIMES: u64 = 1_000;
    const BYTES: usize = 7 * 4_096;
    let file = std::fs::File::create(dir.join("sync")).unwrap();
    let page = vec![1; BYTES];
    let mut times = Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
    // The first round grows the file to its final size, which SQLite's log has as well.
    for at in 0..2 * TIMES {
        let offset = at % TIMES * BYTES as u64;
        file.write_all_at(&page, offset).unwrap();
        let began = Instant::now();
        file.sync_all().unwrap();
        if at >= TIMES {
            let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap();
            times.saturating_record(nanos);
            thread::sleep(Duration::from_secs(1) / RATE_PER_S);
        }
    }
    times
}

/// An upstream and a server in front of it.
struct Rig {
    server: Process,
    _upstream: Process,
    direct: SocketAddr,
    providers: SocketAddr,
    dir: tempfile::TempDir,
}

impl Rig {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut upstream = Process::start(&["upstream"]);
        let direct: SocketAddr = upstream.line().parse().unwrap();
        let url = format!("http://{direct}/v1");
        let mut server = Process::start(&["server", dir.path().to_str().unwrap(), &url]);
        let providers = server.line().parse().unwrap();
        Self { server, _upstream: upstream, direct, providers, dir }
    }

    fn cpu(&mut self) -> Duration {
        writeln!(self.server.input, "cpu").unwrap();
        Duration::from_nanos(self.server.line().parse().unwrap())
    }

    /// Measures the same calls directly and through the gateway.
    fn compare(&mut self, clients: usize, rate: Option<u32>) -> (Measured, Measured) {
        let (mut direct, mut providers) = (Measured::default(), Measured::default());
        for _ in 0..TURNS {
            run(self.direct, clients, WARM_UP, rate);
            direct.add(&run(self.direct, clients, WINDOW / TURNS, rate));
            run(self.providers, clients, WARM_UP, rate);
            let cpu = self.cpu();
            providers.add(&run(self.providers, clients, WINDOW / TURNS, rate));
            providers.cpu += self.cpu() - cpu;
        }
        (direct, providers)
    }

    /// Measures two kinds of calls through the gateway.
    fn compare_requests(&mut self, requests: [Vec<u8>; 2]) -> [Measured; 2] {
        let mut all = [Measured::default(), Measured::default()];
        for _ in 0..TURNS {
            for (measured, request) in all.iter_mut().zip(&requests) {
                run_request(self.providers, RATE_CLIENTS, WARM_UP, None, request);
                let cpu = self.cpu();
                let window = WINDOW / TURNS;
                measured.add(&run_request(self.providers, RATE_CLIENTS, window, None, request));
                measured.cpu += self.cpu() - cpu;
            }
        }
        all
    }
}

struct Measured {
    calls: u64,
    elapsed: Duration,
    latency: Histogram<u64>,
    cpu: Duration,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            calls: 0,
            elapsed: Duration::ZERO,
            latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap(),
            cpu: Duration::ZERO,
        }
    }
}

impl Measured {
    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.elapsed += other.elapsed;
        self.latency.add(&other.latency).unwrap();
    }

    fn per_second(&self) -> f64 {
        self.calls as f64 / self.elapsed.as_secs_f64()
    }

    fn us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    fn cpu_ms(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3 / self.calls.max(1) as f64
    }
}

/// Runs clients for `window`. Without a rate each sends a call when the previous one is answered.
/// With a rate they share it, and the time of a call counts from when it was due.
fn run(address: SocketAddr, clients: usize, window: Duration, rate: Option<u32>) -> Measured {
    run_request(address, clients, window, rate, &request(false))
}

fn run_request(
    address: SocketAddr,
    clients: usize,
    window: Duration,
    rate: Option<u32>,
    request: &[u8],
) -> Measured {
    let interval = rate.map(|rate| Duration::from_secs(1) * u32::try_from(clients).unwrap() / rate);
    let mut streams: Vec<TcpStream> = (0..clients).map(|_| connect(address)).collect();
    let began = Instant::now();
    let mut all = Measured::default();
    thread::scope(|scope| {
        let threads: Vec<_> = streams
            .iter_mut()
            .enumerate()
            .map(|(at, stream)| {
                scope.spawn(move || {
                    let mut measured = Measured::default();
                    let mut buffer = vec![0; 64 << 10];
                    let mut due = began;
                    if let Some(interval) = interval {
                        due +=
                            interval * u32::try_from(at).unwrap() / u32::try_from(clients).unwrap();
                    }
                    while began.elapsed() < window {
                        match interval {
                            Some(interval) => {
                                thread::sleep(due.saturating_duration_since(Instant::now()));
                                call(stream, request, &mut buffer);
                                measured.record(due.elapsed());
                                due += interval;
                            }
                            None => {
                                let asked = Instant::now();
                                call(stream, request, &mut buffer);
                                measured.record(asked.elapsed());
                            }
                        }
                    }
                    measured
                })
            })
            .collect();
        for thread in threads {
            all.add(&thread.join().unwrap());
        }
    });
    all.elapsed = began.elapsed();
    all
}

impl Measured {
    fn record(&mut self, time: Duration) {
        self.calls += 1;
        let nanos = u64::try_from(time.as_nanos()).unwrap();
        self.latency.saturating_record(nanos);
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn request(is_streamed: bool) -> Vec<u8> {
    let mut body = serde_json::json!({
        "model": "bench/gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "You answer briefly."},
            {"role": "user", "content": "Why do bees dance? ".repeat(10)},
        ],
    });
    if is_streamed {
        body["stream"] = true.into();
    }
    post("chat/completions", &body.to_string())
}

/// Returns the same request in Anthropic's API.
fn translated_request(is_streamed: bool) -> Vec<u8> {
    let mut body = serde_json::json!({
        "model": "bench/gpt-4o-mini",
        "max_tokens": 1_024,
        "system": "You answer briefly.",
        "messages": [{"role": "user", "content": "Why do bees dance? ".repeat(10)}],
    });
    if is_streamed {
        body["stream"] = true.into();
    }
    post("messages", &body.to_string())
}

fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /v1/{path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn call(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) {
    stream.write_all(request).unwrap();
    let mut count = 0;
    loop {
        let more = stream.read(&mut buffer[count..]).unwrap();
        assert!(more > 0, "the connection was closed");
        count += more;
        if whole(&buffer[..count]).is_some_and(|whole| count >= whole) {
            assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(buffer));
            return;
        }
    }
}

/// Returns the length of the message in `bytes` if its head is complete; more than that of `bytes` if a
/// chunked message has not ended.
fn whole(bytes: &[u8]) -> Option<usize> {
    const LENGTH: &str = "content-length: ";
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).unwrap().to_ascii_lowercase();
    if text.contains("transfer-encoding: chunked") {
        return Some(if bytes.ends_with(b"\r\n0\r\n\r\n") { bytes.len() } else { usize::MAX });
    }
    let length = text.lines().find_map(|line| line.strip_prefix(LENGTH)).unwrap();
    Some(head + length.parse::<usize>().unwrap())
}

fn say(text: &str) {
    println!("{text}");
    std::io::stdout().flush().unwrap();
}

/// The server process: reads commands line by line on its standard input.
fn serve(data: &Path, url: &str) {
    let mut config = Config::load(Overrides::default()).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.data = data.join("data");
    let provider = ProviderConfig {
        kind: Kind::OpenAi,
        base_url: url.to_owned(),
        api_key: None,
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    config.providers.insert("bench".into(), provider);
    let server = flowledger::server::Server::start(&config).unwrap();
    say(&server.address().to_string());
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        assert_eq!(line, "cpu");
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let nanos = u32::try_from(time.tv_nsec).unwrap();
        let used = Duration::new(time.tv_sec.unsigned_abs(), nanos);
        say(&used.as_nanos().to_string());
    }
    server.shutdown();
}

/// The number of pieces of a streamed answer.
const PIECES: usize = 40;

/// Returns the answer as a stream of server-sent events.
fn stream_answer() -> String {
    let chunk = |delta: serde_json::Value, finish: Option<&str>| {
        let chunk = serde_json::json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        });
        format!("data: {chunk}\n\n")
    };
    let mut body = chunk(serde_json::json!({"role": "assistant", "content": ""}), None);
    for _ in 0..PIECES {
        body.push_str(&chunk(serde_json::json!({"content": "Bees"}), None));
    }
    body.push_str(&chunk(serde_json::json!({}), Some("stop")));
    let usage = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000,
        "model": "gpt-4o-mini-2024-07-18", "choices": [],
        "usage": {"prompt_tokens": 20, "completion_tokens": 48, "total_tokens": 68},
    });
    body.push_str(&format!("data: {usage}\n\ndata: [DONE]\n\n"));
    response("text/event-stream", &body)
}

fn response(content_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The upstream process: every chat completion is the same, with usage.
fn upstream() {
    let body = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{
            "index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Bees dance to tell one another where flowers are. ".repeat(4)},
        }],
        "usage": {"prompt_tokens": 20, "completion_tokens": 48, "total_tokens": 68},
    })
    .to_string();
    let answer: &'static str = response("application/json", &body).leak();
    let streamed: &'static str = stream_answer().leak();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    say(&listener.local_addr().unwrap().to_string());
    for stream in listener.incoming().map_while(Result::ok) {
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || answer_all(stream, answer, streamed))
            .unwrap();
    }
}

fn answer_all(mut stream: TcpStream, answer: &str, streamed: &str) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 16 << 10];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer[count..]) {
            Ok(more) if more > 0 => count += more,
            _ => return,
        }
        if whole(&buffer[..count]).is_some_and(|whole| count >= whole) {
            // A connection carries one request at a time.
            let is_streamed = contains(&buffer[..count], b"\"stream\":true");
            count = 0;
            let answer = if is_streamed { streamed } else { answer };
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The parent's handle of a child process; killed on drop.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
            .env("RUST_LOG", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "a process has ended");
        line.trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
