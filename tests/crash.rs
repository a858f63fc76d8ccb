//! Kills the server with SIGKILL while runs start.
//!
//! The kills come at random moments, also during the start of the server itself. Each time the
//! server restarts on the same data and port. A real upstream logs every request and every answer;
//! a client reconnects each time with `since` set to the last event that it saw. At the end the
//! records of the upstream, the client and the server must agree:
//!
//! - every accepted run is COMPLETED, and each output is what the upstream answered to a prompt
//!   with the right outputs of the previous nodes;
//! - no node is called after its completion was published, and none is billed twice unless a kill
//!   came between the intent and the settlement of a call;
//! - every call has a ledger row, committed before it; every row has a call or a kill;
//! - the client has seen every event of the log once, in order, and as the log has it now;
//! - the sums of each run equal the sums of its rows.
//!
//! `CRASH_SEED=number` sets the random seed, `CRASH_KILLS=number` the number of kills. The seed
//! goes to standard error. A seed fixes the decisions but not the timing, so it reproduces most
//! failures and not all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
mod binary;
#[allow(dead_code)]
mod harness;
#[allow(dead_code)]
mod random;
#[allow(dead_code)]
mod upstream;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use binary::{Home, Running, Served};
use flowledger::event::{CallStatus, LedgerEntry, UsageSource, preview};
use flowledger::ids::hex;
use flowledger::money::Usd;
use flowledger::time::Timestamp;
use harness::{DEADLINE, Response};
use random::{Random, from_environment};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use socket2::{Domain, Socket, Type};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};
use upstream::{STREAM_HEAD, Upstream, completion, delta};

/// Number of kills.
const KILLS: u64 = 200;
/// Longest life of the server after it is ready.
const LIFE_MAX: Duration = Duration::from_millis(250);
/// One life in this number lasts until a run ends, even on a slow machine.
const PATIENT_ONE_IN: u64 = 10;
/// One life in this number ends within `START_MAX`, usually before the server is ready.
const STILLBORN_ONE_IN: u64 = 5;
const START_MAX: Duration = Duration::from_millis(60);
/// Number of different flows.
const FLOWS: usize = 24;
/// Number of threads that start runs, and of runs in flight.
const STARTERS: u64 = 4;
const OPEN_RUNS_MAX: usize = 12;
/// Longest time that the upstream takes for an answer.
const ANSWER_MS_MAX: u64 = 20;
const ANSWER_TIME_MAX: Duration = Duration::from_millis(ANSWER_MS_MAX);
/// Prices of gpt-4o-mini, in nano-dollars per token.
const INPUT_NANOUSD: i64 = 150;
const OUTPUT_NANOUSD: i64 = 600;

// ---------------------------------------------------------------------------------------------
// Tools

fn seed() -> u64 {
    from_environment("CRASH_SEED", 20_251_204)
}

/// Returns an independent random stream.
fn seeded(stream: u64) -> Random {
    Random::new(seed(), stream)
}

/// Writes to standard error directly: the test harness captures `eprintln!`, and the progress of a
/// test that takes minutes should be visible.
fn log_line(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn now_ms() -> i64 {
    Timestamp::now().0
}

/// Connects a WebSocket client that resumes at `since`; also returns its `HELLO`.
fn connect(address: SocketAddr, since: usize) -> Result<(WebSocket<TcpStream>, Value), String> {
    let request = format!("ws://{address}/ws?since={since}").into_client_request().unwrap();
    let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut socket, _) =
        tungstenite::client(request, stream).map_err(|error| error.to_string())?;
    let hello = read_text(&mut socket)?;
    Ok((socket, serde_json::from_str(&hello).unwrap()))
}

/// Reads the next message. Returns an error when the connection ends, cleanly or not.
fn read_text(socket: &mut WebSocket<TcpStream>) -> Result<String, String> {
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => return Ok(text.to_string()),
            Ok(Message::Close(frame)) => return Err(format!("closed with {frame:?}")),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Flows

/// Dependencies and prompt of a node. Nodes are named by their index; `n0` has no dependencies.
struct NodeShape {
    needs: Vec<usize>,
    /// Nodes whose outputs are in the prompt: all dependencies, and some of their dependencies.
    uses: Vec<usize>,
    is_streamed: bool,
}

struct Shape {
    nodes: Vec<NodeShape>,
}

fn id(node: usize) -> String {
    format!("n{node}")
}

impl Shape {
    /// Returns three to eight nodes, each with up to three dependencies among the previous ones.
    fn random(random: &mut Random) -> Self {
        let count = 3 + random.below(6) as usize;
        let mut nodes: Vec<NodeShape> = Vec::new();
        let mut before: Vec<BTreeSet<usize>> = Vec::new();
        for node in 0..count {
            let mut needs = BTreeSet::new();
            if node > 0 && !random.one_in(5) {
                for _ in 0..=random.below(3) {
                    needs.insert(random.below(node as u64) as usize);
                }
            }
            let mut all = needs.clone();
            for &needed in &needs {
                all.extend(&before[needed]);
            }
            let further = all.difference(&needs);
            let uses = needs.iter().chain(further.filter(|_| random.one_in(4)));
            nodes.push(NodeShape {
                uses: uses.copied().collect(),
                needs: needs.into_iter().collect(),
                is_streamed: random.one_in(2),
            });
            before.push(all);
        }
        Self { nodes }
    }

    fn flow(&self, name: &str, random: &mut Random) -> Value {
        let mut nodes: Vec<Value> = self
            .nodes
            .iter()
            .enumerate()
            .map(|(node, shape)| {
                let prompt: String = shape
                    .uses
                    .iter()
                    .map(|&used| format!("\n{{{{ nodes.{}.output }}}}", id(used)))
                    .collect();
                let prompt = format!("{{{{ input.token }}}} {}{prompt}", id(node));
                json!({"id": id(node), "type": "agent", "data": {"provider": "openai",
                    "model": "gpt-4o-mini", "prompt": prompt, "stream": shape.is_streamed}})
            })
            .collect();
        // The list order does not decide which node runs first.
        for last in (1..nodes.len()).rev() {
            nodes.swap(last, random.below(last as u64 + 1) as usize);
        }
        let edges: Vec<Value> = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(node, shape)| {
                let edge = move |&needed| json!({"source": id(needed), "target": id(node)});
                shape.needs.iter().map(edge)
            })
            .collect();
        json!({"name": name, "data": {"nodes": nodes, "edges": edges}})
    }

    /// The expected prompt of a node, given the outputs of all nodes.
    fn prompt(&self, token: &str, node: usize, outputs: &[String]) -> String {
        let mut prompt = format!("{token} {}", id(node));
        for &used in &self.nodes[node].uses {
            prompt.push('\n');
            prompt.push_str(&outputs[used]);
        }
        prompt
    }
}

// ---------------------------------------------------------------------------------------------
// Known state

/// A call that the upstream received. Its serial number is in its answer and is its index.
#[derive(Clone)]
struct Call {
    token: String,
    node: String,
    prompt: String,
    answer: String,
    input_tokens: u64,
    output_tokens: u64,
    at_ms: i64,
}

/// A run that a starter requested.
struct Start {
    flow: usize,
    /// True after a 202 response.
    is_accepted: bool,
    /// The run's id, if the response arrived.
    run_id: Option<String>,
}

/// Earliest and latest time of a kill, in milliseconds.
struct Kill {
    began: i64,
    ended: i64,
}

#[derive(Default)]
struct Known {
    /// The number of the server's life, from 1.
    life: u64,
    is_up: bool,
    /// The newest life that a kill has begun to end. Connections of later lives must not break.
    killed: u64,
    kills: Vec<Kill>,
    /// True after the last runs were started.
    is_closing_time: bool,
    calls: Vec<Call>,
    /// Starts by token; the token is in the input and in every prompt of the run.
    starts: BTreeMap<String, Start>,
    /// Accepted runs whose end the client has not seen.
    open: HashSet<String>,
    /// Runs whose end the client has seen.
    ended: HashSet<String>,
    /// Tokens and nodes whose completion the client has seen.
    completed: HashSet<(String, String)>,
    /// Logged events that the client has seen; `seq` is the index, from 1.
    log: Vec<String>,
    /// Failures found so far.
    faults: Vec<String>,
}

/// State shared by the threads of the test.
#[derive(Default)]
struct World {
    known: Mutex<Known>,
    news: Condvar,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// Changes the known state and wakes all waiting threads.
    fn note<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let done = change(&mut self.lock());
        self.news.notify_all();
        done
    }

    fn fault(&self, fault: impl Display) {
        self.note(|known| known.faults.push(fault.to_string()));
    }

    /// Waits until the condition holds or a fault was found.
    fn wait(&self, what: &str, is_so: impl Fn(&Known) -> bool) -> MutexGuard<'_, Known> {
        let not_yet = |known: &mut Known| known.faults.is_empty() && !is_so(known);
        let waited = self.news.wait_timeout_while(self.lock(), DEADLINE, not_yet);
        let (mut known, result) = waited.unwrap();
        if result.timed_out() {
            known.faults.push(format!("timed out waiting: {what}"));
            self.news.notify_all();
        }
        known
    }

    /// Waits until one more run has ended, if one is open.
    fn pass_until_a_run_ends(&self) {
        let known = self.lock();
        let before = known.ended.len();
        let not_yet = |known: &mut Known| {
            known.faults.is_empty() && !known.open.is_empty() && known.ended.len() == before
        };
        drop(self.news.wait_timeout_while(known, DEADLINE, not_yet));
    }

    /// Waits for `time`, or until a fault was found.
    fn pass(&self, time: Duration) {
        let fine = |known: &mut Known| known.faults.is_empty();
        drop(self.news.wait_timeout_while(self.lock(), time, fine));
    }

    /// Fails the test if a fault was found.
    fn check(&self) {
        fail(&self.lock().faults);
    }

    /// Records a broken connection. It is a fault unless the server was killed.
    fn broke(&self, life: u64, what: &str) {
        self.note(|known| {
            if known.killed < life {
                known.faults.push(format!("in life {life}, {what}"));
            }
        });
    }

    fn is_fine(&self) -> bool {
        self.lock().faults.is_empty()
    }
}

fn fail(faults: &[String]) {
    let shown = faults.len().min(20);
    assert!(
        faults.is_empty(),
        "CRASH_SEED={}: {} faults, such as:\n{}",
        seed(),
        faults.len(),
        faults[..shown].join("\n")
    );
}

// ---------------------------------------------------------------------------------------------
// The upstream

/// Answers a call and logs it.
fn answer(world: &World, body: &str, stream: &mut TcpStream) {
    let request: Value = serde_json::from_str(body).unwrap();
    let prompt = request["messages"][0]["content"].as_str().unwrap_or("");
    let first = prompt.lines().next().unwrap_or_default();
    let Some((token, node)) = first.split_once(' ') else {
        return world.fault(format!("an unexpected call: {body}"));
    };
    let place = (token.to_owned(), node.to_owned());
    let mut known = world.lock();
    let mut random = seeded(1 << 32 | known.calls.len() as u64);
    let call = Call {
        token: token.to_owned(),
        node: node.to_owned(),
        prompt: prompt.to_owned(),
        answer: text(known.calls.len(), token, node, &mut random),
        input_tokens: 1 + random.below(5_000),
        output_tokens: 1 + random.below(5_000),
        at_ms: now_ms(),
    };
    known.calls.push(call.clone());
    let was_completed = known.completed.contains(&place);
    drop(known);
    // A request that a killed server sent may be read late. A client that still waits for the
    // answer is alive, so a completion that is already known belongs to another call.
    if was_completed && is_alive(stream) {
        world.fault(format!("{first} was called after it was published as done"));
    }
    let mut pause = |parts: u64| {
        // The only random delay.
        thread::sleep(Duration::from_millis(random.below(ANSWER_MS_MAX + 1)) / parts as u32);
    };
    // The client may be gone.
    if request["stream"] == true {
        let _ = write_stream(&call, stream, || pause(4));
    } else {
        pause(1);
        let text = completion(&call.answer, call.input_tokens, call.output_tokens);
        let _ = stream.write_all(text.as_bytes());
    }
}

/// The answer to a call: short or long, with characters that need escaping.
fn text(serial: usize, token: &str, node: &str, random: &mut Random) -> String {
    const WORDS: [&str; 8] = ["honey", "\n", "{{ input.x }}", "蜜蜂", "\"", "\\", "é", "{%"];
    let mut text = format!("{token} {node} {serial}");
    for _ in 0..random.below(60) {
        text.push(' ');
        text.push_str(WORDS[random.below(8) as usize]);
    }
    text
}

/// Returns the token, the node and the serial number in an answer.
fn read_answer(text: &str) -> Option<(&str, &str, usize)> {
    let mut words = text.split(' ');
    let (token, node) = (words.next()?, words.next()?);
    Some((token, node, words.next()?.parse().ok()?))
}

/// Writes four chunks, with a pause before each.
fn write_stream(call: &Call, stream: &mut TcpStream, mut pause: impl FnMut()) -> io::Result<()> {
    stream.write_all(STREAM_HEAD.as_bytes())?;
    let chars: Vec<char> = call.answer.chars().collect();
    for piece in chars.chunks(chars.len().div_ceil(4)) {
        pause();
        stream.write_all(delta(&piece.iter().collect::<String>()).as_bytes())?;
    }
    let stop = json!({"model": "gpt-4o-mini", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": call.input_tokens, "completion_tokens": call.output_tokens}});
    stream.write_all(format!("data: {stop}\n\ndata: {usage}\n\ndata: [DONE]\n\n").as_bytes())
}

/// Returns true if the peer is still connected.
fn is_alive(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let is_alive =
        matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    is_alive
}

// ---------------------------------------------------------------------------------------------
// Starters and watcher

/// Starts runs until `is_closing_time`.
fn start_runs(world: &World, address: SocketAddr, flows: &[i64], starter: u64) {
    let mut random = seeded(1_000 + starter);
    let mut broken_life = 0;
    for count in 0.. {
        let known = world.wait("for a server that takes runs", |known| {
            let has_room = known.open.len() < OPEN_RUNS_MAX;
            known.is_closing_time || known.is_up && known.life > broken_life && has_room
        });
        if known.is_closing_time || !known.faults.is_empty() {
            return;
        }
        let life = known.life;
        drop(known);
        let flow = random.below(flows.len() as u64) as usize;
        let token = format!("t{starter}-{count}");
        let start = Start { flow, is_accepted: false, run_id: None };
        world.note(|known| known.starts.insert(token.clone(), start));
        match execute(address, flows[flow], &token) {
            Ok(response) if response.status == 202 => {
                // A kill may come between head and body.
                let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
                let run_id = body["runId"].as_str().map(str::to_owned);
                if run_id.is_none() {
                    world.broke(life, "202 came without a run id");
                }
                world.note(|known| {
                    if let Some(run_id) = run_id.clone()
                        && !known.ended.contains(&run_id)
                    {
                        known.open.insert(run_id);
                    }
                    let start = known.starts.get_mut(&token).unwrap();
                    start.is_accepted = true;
                    start.run_id = run_id;
                });
            }
            Ok(response) => {
                world.fault(format!("a run was refused: {} {}", response.status, response.text()))
            }
            Err(error) => {
                world.broke(life, &format!("a run could not be started: {error}"));
                broken_life = life;
            }
        }
    }
}

fn execute(address: SocketAddr, flow: i64, token: &str) -> io::Result<Response> {
    let body = json!({"input": {"token": token}}).to_string();
    let request = format!(
        "POST /api/flows/{flow}/execute HTTP/1.1\r\nhost: {address}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // A killed server may send a complete answer and then a reset.
    let read = stream.read_to_end(&mut answer);
    match Response::parse(&answer) {
        Some(response) => Ok(response),
        None => Err(read.err().unwrap_or(ErrorKind::UnexpectedEof.into())),
    }
}

/// Follows all events over all lives of the server, until the server closes cleanly.
fn watch(world: &World, address: SocketAddr) {
    let mut broken_life = 0;
    while world.is_fine() {
        let known = world
            .wait("for a server to connect to", |known| known.is_up && known.life > broken_life);
        let (life, seen) = (known.life, known.log.len());
        drop(known);
        let ended = match connect(address, seen) {
            Ok((mut socket, hello)) => {
                let hello = &hello["payload"];
                if hello["recovered"] != true
                    || hello["seq"].as_u64() < Some(seen as u64)
                    || (hello["oldestSeq"] != 1)
                {
                    world.fault(format!("after event {seen} the server says {hello}"));
                }
                loop {
                    match read_text(&mut socket) {
                        Ok(text) => world.note(|known| take(known, text)),
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => error,
        };
        if world.lock().is_closing_time && ended.contains("shutting down") {
            return;
        }
        world.broke(life, &format!("the client was cut: {ended}"));
        broken_life = life;
    }
}

/// Records a message.
fn take(known: &mut Known, text: String) {
    let message: Value = serde_json::from_str(&text).unwrap();
    let payload = &message["payload"];
    let kind = message["type"].as_str().unwrap();
    match message["seq"].as_u64() {
        None if kind == "NODE_OUTPUT" => return,
        Some(seq) if seq == known.log.len() as u64 + 1 => {}
        seq => {
            let newest = known.log.len();
            let fault = format!("after event {newest} came {seq:?}: {text}");
            return known.faults.push(fault);
        }
    }
    match kind {
        "NODE_COMPLETED" => {
            let place = read_answer(payload["resultPreview"].as_str().unwrap());
            match place {
                Some((token, node, _)) if payload["nodeId"] == node => {
                    let place = (token.to_owned(), node.to_owned());
                    if !known.completed.insert(place) {
                        known.faults.push(format!("completed twice: {text}"));
                    }
                }
                _ => known.faults.push(format!("no such answer was given: {text}")),
            }
        }
        "FLOW_COMPLETED" => {
            let run_id = payload["runId"].as_str().unwrap().to_owned();
            known.open.remove(&run_id);
            known.ended.insert(run_id);
        }
        "FLOW_STARTED" | "FLOW_STATUS" | "NODE_STARTED" | "LEDGER_UPDATE" => {}
        // The number of calls triggers savings suggestions, which concern flows and not a run, as the
        // creation of a flow does.
        "OPTIMIZATION_AVAILABLE" | "OPTIMIZATION_CHANGED" | "FLOW_CHANGED"
            if payload["runId"].is_null() => {}
        _ => known.faults.push(format!("nothing fails here: {text}")),
    }
    known.log.push(text);
}

// ---------------------------------------------------------------------------------------------
// Records

/// The server's own records at the end.
struct Books {
    runs: Vec<Value>,
    rows: Vec<LedgerEntry>,
    /// The log, as a client receives it with `since=0`.
    log: Vec<String>,
    sums: Value,
}

/// Returns all items of a paginated list.
fn all(server: &Served, path: &str) -> Vec<Value> {
    let mut items = Vec::new();
    let mut query = "limit=100".to_owned();
    loop {
        let mut page = server.get(&format!("{path}?{query}"));
        items.append(page["items"].as_array_mut().unwrap());
        query = match &page["next"] {
            Value::Null => return items,
            Value::String(before) => format!("limit=100&before={before}"),
            before => format!("limit=100&before={before}"),
        };
    }
}

impl Books {
    fn read(server: &Served, ids: &[String]) -> Self {
        let (mut socket, hello) = connect(server.address, 0).unwrap();
        let newest = hello["payload"]["seq"].as_u64().unwrap();
        Self {
            runs: ids.iter().map(|id| server.get(&format!("/api/runs/{id}"))).collect(),
            rows: all(server, "/api/ledger")
                .into_iter()
                .rev()
                .map(|row| serde_json::from_value(row).unwrap())
                .collect(),
            log: (0..newest).map(|_| read_text(&mut socket).unwrap()).collect(),
            sums: server.get("/api/ledger/summary")["total"].clone(),
        }
    }
}

/// The fields of a logged event that this test checks.
struct RunEvent<'a> {
    kind: &'a str,
    payload: &'a Value,
}

impl RunEvent<'_> {
    fn briefly(&self) -> String {
        let of = |key: &str| self.payload[key].as_str().unwrap_or_default();
        let entry = &self.payload["entry"];
        let what = [of("nodeId"), of("status"), entry["status"].as_str().unwrap_or_default()];
        let attempt = entry["attempt"].as_u64().or(self.payload["attempt"].as_u64());
        let attempt = attempt.map(|attempt| format!("#{attempt}")).unwrap_or_default();
        format!("{} {}{attempt}", self.kind, what.concat())
    }
}

struct Audit<'a> {
    shapes: &'a [Shape],
    flows: &'a [i64],
    known: &'a Known,
    books: &'a Books,
    /// Calls by token and node, in order of arrival.
    calls: HashMap<(&'a str, String), Vec<&'a Call>>,
    /// Rows by run and node, in order.
    rows: HashMap<(&'a str, String), Vec<&'a LedgerEntry>>,
    /// Events by run.
    run_events: HashMap<&'a str, Vec<RunEvent<'a>>>,
    faults: Vec<String>,
}

fn cost_of(call: &Call) -> Usd {
    let (input, output) = (call.input_tokens as i64, call.output_tokens as i64);
    Usd::from_nanousd(input * INPUT_NANOUSD + output * OUTPUT_NANOUSD)
}

fn money(value: &Value) -> Option<Usd> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Prompt tokens, answer tokens and cost.
type Sums = (Option<u64>, Option<u64>, Option<Usd>);

/// Returns the reported sums of a run or a node.
fn sums(of: &Value) -> Sums {
    (of["inputTokens"].as_u64(), of["outputTokens"].as_u64(), money(&of["cost"]))
}

/// Returns the expected sums over all attempts. One call with an unknown cost makes the total
/// unknown.
fn sums_of(rows: &[&LedgerEntry]) -> Sums {
    let cost = rows.iter().try_fold(Usd::ZERO, |sum, row| Some(sum.plus(row.total_cost_usd?)));
    (
        Some(rows.iter().map(|row| row.usage.input_tokens).sum()),
        Some(rows.iter().map(|row| row.usage.output_tokens).sum()),
        cost,
    )
}

impl<'a> Audit<'a> {
    fn expect(&mut self, is_so: bool, what: impl FnOnce() -> String) {
        if !is_so {
            self.faults.push(what());
        }
    }

    fn all(&mut self) {
        // Savings are suggested a moment after the last call, possibly after the log was read.
        let (seen, now) = (&self.known.log, &self.books.log);
        let later = seen.get(now.len()..).unwrap_or_default();
        let are_proposals = later.iter().all(|text| text.contains("\"OPTIMIZATION_"));
        self.expect(seen.starts_with(now) && are_proposals, || {
            let both = seen.iter().zip(now).position(|(seen, now)| seen != now);
            let (seen, now) = (seen.len(), now.len());
            format!("the client saw {seen} events, the log has {now}; the first other: {both:?}")
        });
        let mut tokens = HashSet::new();
        for run in &self.books.runs {
            let token = run["input"]["token"].as_str().unwrap();
            self.expect(tokens.insert(token), || format!("{token} was run twice"));
            match self.known.starts.get(token) {
                Some(start) => self.run(token, start, run),
                None => self.expect(false, || format!("unexpected run {token}: {run}")),
            }
        }
        for (token, start) in &self.known.starts {
            let is_lost = start.is_accepted && !tokens.contains(token.as_str());
            self.expect(!is_lost, || format!("{token} was accepted and is lost"));
        }
        // Calls that were already checked with their run are removed from `self.calls`.
        for ((token, node), calls) in std::mem::take(&mut self.calls) {
            let count = calls.len();
            let fault = || format!("{count} calls of {token} {node}, of which no run knows");
            self.expect(false, fault);
        }
        for (_, rows) in std::mem::take(&mut self.rows) {
            self.expect(false, || format!("rows without a run: {rows:?}"));
        }
        self.sums();
    }

    fn run(&mut self, token: &'a str, start: &Start, run: &'a Value) {
        let run_id = run["runId"].as_str().unwrap();
        let shape = &self.shapes[start.flow];
        let is_right = run["status"] == "COMPLETED"
            && run["error"].is_null()
            && run["flowId"] == self.flows[start.flow]
            && start.run_id.as_ref().is_none_or(|id| id == run_id)
            && run["nodes"].as_array().map(Vec::len) == Some(shape.nodes.len());
        self.expect(is_right, || format!("{token} did not end as it should: {run}"));
        let of_node: HashMap<&str, &Value> = run["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|node| (node["nodeId"].as_str().unwrap(), node))
            .collect();
        let outputs: Vec<String> = (0..shape.nodes.len())
            .map(|node| {
                let node = of_node.get(id(node).as_str()).copied();
                let output = node.and_then(|node| node["output"].as_str());
                output.unwrap_or("(none)").to_owned()
            })
            .collect();
        let mut rows_of_run = Vec::new();
        for (node, output) in outputs.iter().enumerate() {
            let id = id(node);
            let prompt = shape.prompt(token, node, &outputs);
            let rows = self.rows.remove(&(run_id, id.clone())).unwrap_or_default();
            let calls = self.calls.remove(&(token, id.clone())).unwrap_or_default();
            let view = of_node.get(id.as_str()).copied().unwrap_or(&Value::Null);
            self.node(&format!("{token} {id}"), view, output, &prompt, &calls, &rows);
            for row in &rows {
                let operation_id = format!("{run_id}:{id}");
                let has_right_ids = row.flow_id == Some(self.flows[start.flow])
                    && row.operation_id == operation_id
                    && row.provider == "openai"
                    && row.model_used.starts_with("gpt-4o-mini");
                self.expect(has_right_ids, || format!("the row has wrong ids: {row:?}"));
            }
            rows_of_run.extend(rows);
        }
        let right = sums_of(&rows_of_run);
        self.expect(sums(run) == right, || {
            format!("the sums of {token} are {:?}, the sums of its rows {right:?}", sums(run))
        });
        let run_events = self.run_events.remove(run_id).unwrap_or_default();
        let last = run_events.iter().rev().find(|event| event.kind == "FLOW_COMPLETED");
        self.expect(last.is_some_and(|event| sums(event.payload) == right), || {
            format!("the events of {token} lack the sums {right:?}")
        });
        if let Err(fault) = check_order(shape, &run_events) {
            let run_events: Vec<String> = run_events.iter().map(RunEvent::briefly).collect();
            let run_events = run_events.join(", ");
            self.faults.push(format!("{token}: {fault}; its events: {run_events}"));
        }
    }

    /// Compares a node with its calls and rows.
    fn node(
        &mut self,
        name: &str,
        view: &Value,
        output: &str,
        prompt: &str,
        calls: &[&Call],
        rows: &[&LedgerEntry],
    ) {
        let origin =
            read_answer(output).and_then(|(_, _, serial)| self.known.calls.get(serial)).filter(
                |call| call.answer == output && format!("{} {}", call.token, call.node) == name,
            );
        let Some(origin) = origin else {
            return self.expect(false, || format!("{name}: no call returned {output:?}"));
        };
        for call in calls {
            self.expect(call.prompt == prompt, || {
                format!("{name} got the prompt {:?} instead of {prompt:?}", call.prompt)
            });
        }
        // The k-th call cannot have been sent before k rows existed.
        for (at, call) in calls.iter().enumerate() {
            let has_row = rows.get(at).is_some_and(|row| row.timestamp.0 <= call.at_ms);
            self.expect(has_row, || {
                let (at, count) = (at + 1, rows.len());
                format!("call {at} of {name} has no row; there are {count}: {rows:?}")
            });
        }
        let is_right = view["status"] == "COMPLETED"
            && view["attempt"] == rows.len()
            && sums(view) == sums_of(rows)
            && view["resultPreview"] == preview(output)
            && view["error"].is_null();
        self.expect(is_right, || format!("{name} is shown wrongly: {view}"));
        let hash = hex(&Sha256::digest(prompt));
        for (at, row) in rows.iter().enumerate() {
            let is_last = at + 1 == rows.len();
            let usage = &row.usage;
            let tokens = (usage.input_tokens, usage.output_tokens);
            let is_right = if is_last {
                row.status == CallStatus::Success
                    && tokens == (origin.input_tokens, origin.output_tokens)
                    && row.total_cost_usd == Some(cost_of(origin))
                    && row.error_message.is_none()
                    && row.latency_ms.is_some()
            } else {
                row.status == CallStatus::Unknown
                    && tokens == (0, 0)
                    && row.usage.source == UsageSource::None
                    && row.total_cost_usd.is_none()
                    && row.latency_ms.is_none()
                    && row
                        .error_message
                        .as_deref()
                        .is_some_and(|why| why.contains("the server stopped"))
            };
            let has_right_order = row.attempt as usize == at + 1 && row.prompt_hash == hash;
            self.expect(is_right && has_right_order, || {
                let count = rows.len();
                format!("row {at} of {count} of {name} is not explained: {row:?}")
            });
        }
    }

    /// Compares rows with their events and the kills, and all sums with all calls.
    fn sums(&mut self) {
        let mut reported: HashMap<i64, Vec<(Timestamp, LedgerEntry)>> = HashMap::new();
        for text in &self.known.log {
            let message: Value = serde_json::from_str(text).unwrap();
            if message["type"] == "LEDGER_UPDATE" {
                let payload = &message["payload"];
                let at: Timestamp = serde_json::from_value(payload["timestamp"].clone()).unwrap();
                let entry: LedgerEntry = serde_json::from_value(payload["entry"].clone()).unwrap();
                reported.entry(entry.id).or_default().push((at, entry));
            }
        }
        let mut of_earlier: HashMap<&str, Timestamp> = HashMap::new();
        let books = self.books;
        for row in &books.rows {
            let reported = reported.remove(&row.id).unwrap_or_default();
            let [(_, pending), (settled_at, settled)] = reported.as_slice() else {
                self.expect(false, || format!("{row:?} has the events {reported:?}"));
                continue;
            };
            let was_told = pending.status == CallStatus::Pending
                && pending.attempt == row.attempt
                && pending.timestamp == row.timestamp
                && settled == row;
            self.expect(was_told, || format!("{row:?} has the events {reported:?}"));
            let (from, to) = (row.timestamp.0, settled_at.0);
            let mut kills = self.known.kills.iter();
            let is_explained = if row.status == CallStatus::Unknown {
                kills.any(|kill| from <= kill.ended && kill.began <= to)
            } else {
                !kills.any(|kill| from < kill.began && kill.ended < to)
            };
            self.expect(is_explained, || {
                format!("{row:?}, settled at {settled_at}: no kill explains it")
            });
            let earlier = of_earlier.insert(&row.operation_id, *settled_at);
            self.expect(earlier.is_none_or(|earlier| earlier <= row.timestamp), || {
                format!("{row:?} began before the one before was settled")
            });
        }
        self.expect(reported.is_empty(), || format!("events without a row: {reported:?}"));
        let of_status = |status| books.rows.iter().filter(|row| row.status == status).count();
        let sums = &books.sums;
        let tokens = |of: fn(&LedgerEntry) -> u64| books.rows.iter().map(of).sum::<u64>();
        let is_right = sums["calls"] == books.rows.len()
            && sums["pending"] == 0
            && sums["succeeded"] == of_status(CallStatus::Success)
            && sums["failed"] == of_status(CallStatus::Unknown)
            && sums["unknown_cost_calls"] == of_status(CallStatus::Unknown)
            && sums["input_tokens"] == tokens(|row| row.usage.input_tokens)
            && sums["output_tokens"] == tokens(|row| row.usage.output_tokens);
        self.expect(is_right, || format!("the ledger's sums are wrong: {sums}"));
    }
}

/// Checks that the events of a run are complete and in order.
fn check_order(shape: &Shape, run_events: &[RunEvent]) -> Result<(), String> {
    let mut attempts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut settled: HashMap<&str, bool> = HashMap::new();
    let mut completed: BTreeSet<&str> = BTreeSet::new();
    let kinds: Vec<&str> = run_events.iter().map(|event| event.kind).collect();
    if kinds.len() < 4
        || kinds[..2] != ["FLOW_STARTED", "FLOW_STATUS"]
        || kinds[kinds.len() - 2..] != ["FLOW_COMPLETED", "FLOW_STATUS"]
    {
        return Err("it has no beginning or no end".into());
    }
    for (at, RunEvent { kind, payload }) in run_events.iter().enumerate().skip(2) {
        let node = payload["nodeId"].as_str().unwrap_or_default();
        let is_right = match *kind {
            "NODE_STARTED" => {
                let attempt = attempts.entry(node).or_default();
                *attempt += 1;
                let shape = node[1..].parse().ok().and_then(|at: usize| shape.nodes.get(at));
                payload["attempt"] == *attempt
                    && !completed.contains(node)
                    && settled.insert(node, true) != Some(false)
                    && shape.is_some_and(|shape| {
                        shape.needs.iter().all(|&need| completed.contains(id(need).as_str()))
                    })
            }
            "LEDGER_UPDATE" => {
                let entry = &payload["entry"];
                let is_pending = entry["status"] == "PENDING";
                entry["attempt"].as_u64() == attempts.get(node).copied()
                    && settled.insert(node, !is_pending) == Some(is_pending)
            }
            "NODE_COMPLETED" => {
                settled.get(node) == Some(&true)
                    && run_events[at - 1].kind == "LEDGER_UPDATE"
                    && run_events[at - 1].payload["entry"]["status"] == "SUCCESS"
                    && run_events[at - 1].payload["nodeId"] == node
                    && completed.insert(node)
            }
            "FLOW_STATUS" => {
                let after = run_events[at - 1].kind;
                match payload["status"].as_str() {
                    Some("NODE_COMPLETE") => after == "NODE_COMPLETED",
                    Some("FINISHED") => after == "FLOW_COMPLETED",
                    _ => false,
                }
            }
            "FLOW_COMPLETED" => completed.len() == shape.nodes.len() && at + 2 == run_events.len(),
            _ => false,
        };
        if !is_right {
            return Err(format!("message {at} ({kind} {node}) does not fit"));
        }
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------
// The test

/// Binds a port without listening. No other process gets the port while the server is down, and the
/// server can still bind it because both sockets share the address.
fn reserve_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn serve(home: &Home, upstream: &Upstream, address: SocketAddr) -> Command {
    let mut command = home.flowledger(&["serve", "--listen", &address.to_string()]);
    command.env("OPENAI_API_KEY", "test-key").env("OPENAI_BASE_URL", upstream.url());
    command
}

/// Ends a life of the server as a power cut would.
fn kill(world: &World, life: u64, mut running: Running) {
    let began = now_ms();
    world.note(|known| {
        known.killed = life;
        known.is_up = false;
    });
    running.kill();
    let ended = now_ms();
    world.note(|known| known.kills.push(Kill { began, ended }));
    let end = running.end();
    let has_failed =
        end.code.is_some() || end.stderr.contains("panic") || end.stderr.contains("ERROR");
    if has_failed {
        world.fault(format!("life {life} ended with {:?}: {}", end.code, end.stderr));
    }
}

#[test]
fn kills_lose_nothing_and_repeat_no_settled_call() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let kills = from_environment("CRASH_KILLS", KILLS);
    log_line(&format!("\nCRASH_SEED={} CRASH_KILLS={kills}", seed()));
    let began = Instant::now();
    let mut random = seeded(1);
    let world = Arc::new(World::default());
    let upstream = {
        let world = Arc::clone(&world);
        Upstream::start(move |body, stream| answer(&world, body, stream))
    };
    let home = Home::new();
    let (_reserved, address) = reserve_port();

    // The flows are saved in the first life.
    let mut server = Some(Served::start(&mut serve(&home, &upstream, address)));
    let shapes: Vec<Shape> = (0..FLOWS).map(|_| Shape::random(&mut random)).collect();
    let flows: Vec<i64> = shapes
        .iter()
        .enumerate()
        .map(|(at, shape)| {
            let flow = shape.flow(&format!("Flow {at}"), &mut random);
            server.as_ref().unwrap().save(&flow)
        })
        .collect();
    let starters: Vec<_> = (0..STARTERS)
        .map(|starter| {
            let (world, flows) = (Arc::clone(&world), flows.clone());
            thread::spawn(move || start_runs(&world, address, &flows, starter))
        })
        .collect();
    let watcher = {
        let world = Arc::clone(&world);
        thread::spawn(move || watch(&world, address))
    };

    let come_up = |life: u64, server: &Served| {
        assert_eq!(server.address, address);
        world.note(|known| (known.life, known.is_up) = (life, true));
    };
    for life in 1..=kills {
        let is_stillborn = server.is_none() && random.one_in(STILLBORN_ONE_IN);
        let running = if is_stillborn {
            let running = Running::start(&mut serve(&home, &upstream, address));
            world.pass(random.time_below(START_MAX));
            running
        } else {
            let server = server
                .take()
                .unwrap_or_else(|| Served::start(&mut serve(&home, &upstream, address)));
            come_up(life, &server);
            world.pass(random.time_below(LIFE_MAX));
            if life % PATIENT_ONE_IN == 0 {
                world.pass_until_a_run_ends();
            }
            server.running
        };
        kill(&world, life, running);
        world.check();
    }

    // The last life may finish the runs that the earlier ones began.
    let server = Served::start(&mut serve(&home, &upstream, address));
    come_up(kills + 1, &server);
    world.note(|known| known.is_closing_time = true);
    for starter in starters {
        starter.join().unwrap();
    }
    let ids: Vec<String> = all(&server, "/api/runs")
        .iter()
        .map(|run| run["runId"].as_str().unwrap().to_owned())
        .collect();
    drop(
        world.wait("for the ends of all runs", |known| {
            ids.iter().all(|id| known.ended.contains(id))
        }),
    );
    world.check();
    let books = Books::read(&server, &ids);
    drop(world.wait("for the newest event", |known| known.log.len() >= books.log.len()));
    server.running.signal("TERM");
    let ended = server.running.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    watcher.join().unwrap();
    world.check();

    let known = world.lock();
    let messages: Vec<Value> =
        known.log.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let mut audit = Audit {
        shapes: &shapes,
        flows: &flows,
        known: &known,
        books: &books,
        calls: HashMap::new(),
        rows: HashMap::new(),
        run_events: HashMap::new(),
        faults: Vec::new(),
    };
    for call in &known.calls {
        let place = (call.token.as_str(), call.node.clone());
        audit.calls.entry(place).or_default().push(call);
    }
    for row in &books.rows {
        let run_id = row.run_id.as_deref().unwrap_or_default();
        let place = (run_id, row.node_id.clone().unwrap_or_default());
        audit.rows.entry(place).or_default().push(row);
    }
    for message in &messages {
        let event =
            RunEvent { kind: message["type"].as_str().unwrap(), payload: &message["payload"] };
        // Suggestions concern flows and are no part of a run.
        if let Some(run_id) = event.payload["runId"].as_str() {
            audit.run_events.entry(run_id).or_default().push(event);
        }
    }
    audit.all();
    let unknown = books.rows.len() - known.completed.len();
    log_line(&format!(
        "{kills} kills in {:.1?}: {} runs, {} calls, {} rows of which {unknown} UNKNOWN, {} events",
        began.elapsed(),
        books.runs.len(),
        known.calls.len(),
        books.rows.len(),
        books.log.len()
    ));
    fail(&audit.faults);
    binary::verify(&home.data());
    // Otherwise the test has exercised nothing.
    assert!(books.runs.len() as u64 >= kills / 4 && unknown as u64 >= kills / 4);
}

/// Number of items in the map.
const ITEMS: usize = 400;
/// Most calls that a life of the server waits for.
const ITEMS_OF_A_LIFE_MAX: u64 = 50;

/// Runs these tests one at a time: each needs a server that makes progress in a short life.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_repeatedly_killed_map_repeats_no_finished_item() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = seeded(2);
    // Number of requests per item.
    let asked = Arc::new(Mutex::new(vec![0_usize; ITEMS]));
    let upstream = {
        let asked = Arc::clone(&asked);
        Upstream::start(move |body, stream| {
            let request: Value = serde_json::from_str(body).unwrap();
            let prompt = request["messages"][0]["content"].as_str().unwrap();
            let item: usize = prompt.parse().unwrap();
            asked.lock().unwrap()[item] += 1;
            thread::sleep(seeded(item as u64).time_below(ANSWER_TIME_MAX));
            let _ = stream.write_all(completion(&format!("[{item}]"), 7, 3).as_bytes());
        })
    };
    let home = Home::new();
    let (_reserved, address) = reserve_port();
    let mut server = Served::start(&mut serve(&home, &upstream, address));
    let map = json!({"id": "each", "type": "map", "data": {"provider": "openai", "model": "gpt-4o-mini",
        "items": "range(input.count) | list", "prompt": "{{ item }}", "atOnce": 4, "stream": false}});
    let flow = server.save(&json!({"name": "Map", "data": {"nodes": [map]}}));
    let body = json!({"input": {"count": ITEMS}});
    let path = format!("/api/flows/{flow}/execute");
    let accepted = server.post(&path, &body).json();
    let run_id = accepted["runId"].as_str().unwrap();
    let path = format!("/api/runs/{run_id}");
    let mut kills = 0;
    while server.get(&path)["status"] != "COMPLETED" {
        // Each life of the server makes progress, even on a slow machine.
        let calls = || asked.lock().unwrap().iter().sum::<usize>();
        let enough = calls() + random.below(ITEMS_OF_A_LIFE_MAX) as usize;
        let deadline = Instant::now() + DEADLINE;
        while calls() < enough && server.get(&path)["status"] == "RUNNING" {
            assert!(Instant::now() < deadline, "nothing is asked any more");
            thread::sleep(random.time_below(LIFE_MAX / 10));
        }
        server.running.kill();
        drop(server.running.end());
        kills += 1;
        server = Served::start(&mut serve(&home, &upstream, address));
    }
    let run = server.get(&path);
    let answers: Vec<String> = (0..ITEMS).map(|item| format!("[{item}]")).collect();
    assert_eq!(run["nodes"][0]["output"], json!(answers).to_string());
    assert_eq!(run["nodes"][0]["cost"], run["cost"]);
    let asked = asked.lock().unwrap();
    let mut rows: HashMap<String, Vec<Value>> = HashMap::new();
    for row in run["calls"].as_array().unwrap() {
        let operation_id = row["operation_id"].as_str().unwrap().to_owned();
        rows.entry(operation_id).or_default().push(row.clone());
    }
    assert_eq!(rows.len(), ITEMS);
    let mut unknown = 0;
    for (item, &asked) in asked.iter().enumerate() {
        let rows = &rows[&format!("{run_id}:each[{item}]")];
        let (last, before) = rows.split_last().unwrap();
        assert_eq!(last["status"], "SUCCESS", "{rows:#?}");
        // Only interrupted items were requested again, and the ledger has a row for each attempt.
        assert!(before.iter().all(|row| row["status"] == "UNKNOWN"), "{rows:#?}");
        assert!(asked <= rows.len(), "item {item} was asked {asked} times: {rows:#?}");
        assert_eq!(run["nodes"][0]["items"][item]["attempt"], rows.len());
        unknown += before.len();
    }
    log_line(&format!("{kills} kills of a map of {ITEMS} items: {unknown} of its calls UNKNOWN"));
    // Verifies while the server runs, and after its end.
    binary::verify(&home.data());
    server.running.signal("TERM");
    assert_eq!(server.running.end().code, Some(0));
    binary::verify(&home.data());
    // Otherwise the test has exercised nothing.
    assert!(kills >= 4 && unknown >= 4);
}
