//! The clients: each has one connection and starts a run when the previous one has ended.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::AddAssign;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

pub struct Measured {
    pub runs: u64,
    pub elapsed: Duration,
    pub latency: Histogram<u64>,
    pub cpu: Duration,
    pub db_bytes: u64,
    pub disk_bytes: u64,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            runs: 0,
            elapsed: Duration::ZERO,
            latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap(),
            cpu: Duration::ZERO,
            db_bytes: 0,
            disk_bytes: 0,
        }
    }
}

impl AddAssign for Measured {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.elapsed += other.elapsed;
        self.latency += other.latency;
        self.cpu += other.cpu;
        self.db_bytes += other.db_bytes;
        self.disk_bytes += other.disk_bytes;
    }
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        self.runs as f64 / self.elapsed.as_secs_f64()
    }

    /// A quantile of the run time in milliseconds.
    pub fn ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }

    /// CPU time per run.
    pub fn cpu_ms(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3 / self.runs.max(1) as f64
    }

    pub fn per_run(&self, count: u64) -> f64 {
        count as f64 / self.runs.max(1) as f64
    }
}

/// Lets every client start runs for `window`, each to its end.
pub fn run(clients: &mut [Client], flow: i64, window: Duration) -> Measured {
    let began = Instant::now();
    let mut all = Measured::default();
    thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(move || {
                    let mut measured = Measured::default();
                    while began.elapsed() < window {
                        let asked = Instant::now();
                        client.execute(flow, true);
                        let nanos = u64::try_from(asked.elapsed().as_nanos()).unwrap();
                        measured.latency.saturating_record(nanos);
                        measured.runs += 1;
                    }
                    measured
                })
            })
            .collect();
        for thread in threads {
            all += thread.join().unwrap();
        }
    });
    all.elapsed = began.elapsed();
    all
}

pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: vec![0; 64 << 10] }
    }

    /// Saves a flow and returns its id.
    pub fn save(&mut self, flow: &Value) -> i64 {
        self.send("/api/flows", &flow.to_string());
        let answer: Value = serde_json::from_slice(self.answer("201")).unwrap();
        answer["id"].as_i64().expect("the flow's number")
    }

    /// Starts a run; with `wait`, returns after it has completed.
    pub fn execute(&mut self, flow: i64, wait: bool) {
        self.ask(flow, wait);
        if !wait {
            self.answer("202");
            return;
        }
        let answer = self.answer("200");
        // Only inputs and outputs follow it, and they do not contain this text here.
        let status = br#""status":"COMPLETED""#;
        let is_completed = answer.windows(status.len()).any(|part| part == status);
        assert!(is_completed, "{}", String::from_utf8_lossy(answer));
    }

    /// Requests a run without reading the answer.
    pub fn ask(&mut self, flow: i64, wait: bool) {
        self.send(
            &format!("/api/flows/{flow}/execute?wait={wait}"),
            r#"{"input":{"topic":"bees"}}"#,
        );
    }

    /// Sends `GET` without reading the answer.
    pub fn get(&mut self, target: &str) {
        self.request("GET", target, "");
    }

    /// Sends `PUT` without reading the answer.
    pub fn put(&mut self, target: &str, body: &str) {
        self.request("PUT", target, body);
    }

    /// Sends `POST` without reading the answer.
    pub fn send(&mut self, target: &str, body: &str) {
        self.request("POST", target, body);
    }

    fn request(&mut self, method: &str, target: &str, body: &str) {
        let text = format!(
            "{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// Reads an answer with a length and returns its body.
    pub fn answer(&mut self, status: &str) -> &[u8] {
        let mut count = 0;
        loop {
            if count == self.buffer.len() {
                self.buffer.resize(2 * count, 0);
            }
            let more = self.stream.read(&mut self.buffer[count..]).unwrap();
            assert!(more > 0, "the server has closed the connection");
            count += more;
            let Some((head, length)) = message_of(&self.buffer[..count]) else {
                continue;
            };
            if count >= head + length {
                let all = &self.buffer[..head + length];
                let is_expected = all[9..].starts_with(status.as_bytes());
                assert!(is_expected, "{}", String::from_utf8_lossy(all));
                return &all[head..];
            }
        }
    }
}

/// Returns the lengths of the head and the body of a message if the head is complete.
pub fn message_of(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).unwrap();
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    });
    Some((head, length.unwrap_or(0)))
}

fn agent(id: &str, prompt: &str) -> Value {
    json!({"id": id, "type": "agent", "data": {
        "label": id, "provider": "bench", "model": "gpt-4o-mini", "prompt": prompt, "stream": false,
    }})
}

/// Agents in a row; each has the previous output in its prompt.
pub fn row_of_agents(count: usize) -> Value {
    let nodes: Vec<Value> = (0..count)
        .map(|at| match at {
            0 => agent("node-0", "Plan an article about {{ input.topic }}."),
            _ => agent(
                &format!("node-{at}"),
                &format!("Go on with this: {{{{ nodes['node-{}'].output }}}}", at - 1),
            ),
        })
        .collect();
    let edges: Vec<Value> = (1..count)
        .map(|at| json!({"id": format!("edge-{at}"), "source": format!("node-{}", at - 1), "target": format!("node-{at}")}))
        .collect();
    json!({"name": "In a row", "data": {"nodes": nodes, "edges": edges}})
}

pub fn agents_without_edges(count: usize) -> Value {
    let nodes: Vec<Value> = (0..count)
        .map(|at| agent(&format!("node-{at}"), "Say something about {{ input.topic }}."))
        .collect();
    json!({"name": "Side by side", "data": {"nodes": nodes, "edges": []}})
}
