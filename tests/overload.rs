//! More clients than the server has connections, threads or descriptors for: each is answered or
//! refused, and no resource leaks after they have left.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::json;

use crate::binary::{Home, Served};
use crate::harness::{DEADLINE, Response, agent, chain, eventually, two_nodes};
use crate::upstream::Upstream;

const PROGRAM: &str = env!("CARGO_BIN_EXE_flowledger");
/// Time limit for an immediate answer on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);
/// The server reserves half of the descriptors, which leaves 64 connections.
const FEW_DESCRIPTORS: usize = 128;
const PLACES: usize = 64;

/// The server with this limit on descriptors.
fn serve_with(descriptors: usize, home: &Home) -> Command {
    let line = format!("ulimit -n {descriptors}; exec \"$0\" serve --listen 127.0.0.1:0");
    let mut command = Command::new("sh");
    command
        .args(["-c", &line, PROGRAM])
        .env_clear()
        .env("HOME", home.path("."))
        .env("FLOWLEDGER_DATA", home.data());
    command
}

/// Returns the number of threads or descriptors of the server.
fn count(server: &Served, kind: &str) -> usize {
    let dir = format!("/proc/{}/{kind}", server.running.pid());
    fs::read_dir(dir).unwrap().count()
}

fn threads_and_descriptors(server: &Served) -> (usize, usize) {
    (count(server, "task"), count(server, "fd"))
}

/// Opens a connection and sends a request. The server may refuse it before it has read everything.
fn send(server: &Served, line: &str, fields: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n");
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
    stream
}

/// Returns the status of a response, or `None` if the connection ends without one.
fn status(mut stream: &TcpStream) -> Option<u16> {
    let mut answer = Vec::new();
    let mut piece = [0; 1 << 10];
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(count) if count > 0 => answer.extend_from_slice(&piece[..count]),
            _ => return None,
        }
    }
    Response::parse(&answer).map(|answer| answer.status)
}

/// Returns after the server has closed the connection, because it counts until then.
fn get(server: &Served, path: &str) -> Option<u16> {
    let mut stream = send(server, &format!("GET {path}"), "connection: close\r\n", b"");
    let status = status(&stream);
    let _ = stream.read_to_end(&mut Vec::new());
    status
}

#[test]
fn stalled_uploads_leak_nothing_and_delay_no_other() {
    const TOKEN: &str = "correct-horse-battery-staple";
    let home = Home::new();
    let server = Served::start(home.serve().env("FLOWLEDGER_TOKEN", TOKEN));
    assert_eq!(get(&server, "/api/health"), Some(200));
    let before = threads_and_descriptors(&server);
    let upload = |line: &str, fields: &str| {
        let fields = format!("{fields}content-length: 4000000\r\n");
        send(&server, line, &fields, &[b' '; 64 << 10])
    };
    // The server reads no body for a route without one, or for a client without the token.
    let refused: Vec<_> = (0..200)
        .map(|_| upload("POST /assets/x", ""))
        .chain((0..200).map(|_| upload("POST /api/flows", "")))
        .collect();
    let bearer = format!("authorization: Bearer {TOKEN}\r\n");
    let stalled: Vec<_> = (0..30).map(|_| upload("POST /api/flows", &bearer)).collect();
    for _ in 0..5 {
        let began = Instant::now();
        assert_eq!(get(&server, "/api/health"), Some(200));
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }
    for (at, stream) in refused.iter().enumerate() {
        let expected = if at < 200 { 405 } else { 401 };
        assert_eq!(status(stream), Some(expected), "{at}");
    }
    drop((refused, stalled));
    eventually("threads and descriptors are as before", || {
        let now = threads_and_descriptors(&server);
        now.0 <= before.0 && now.1 <= before.1
    });
}

/// Writes rows with two tags each. The daily rollup has no tags, so queries by tag read all rows.
fn fill(home: &Home, rows: u32) {
    let connection = Connection::open(home.data().join("flowledger.db")).unwrap();
    let sql =
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
        INSERT INTO ledger (timestamp_ms, flow_id, attempt, operation_id, provider, model_used,
            prompt_hash, status, tags)
        SELECT 1790000000000 + n, 1, 1, 'operation-' || n, 'echo', 'echo-1', printf('%064x', n),
            'SUCCESS', 'team-' || (n % 50) || ',x' || (n % 7) FROM numbers";
    connection.execute(sql, [rows]).unwrap();
}

#[test]
fn concurrent_heavy_reads_are_limited() {
    const CLIENTS: usize = 100;
    let home = Home::new();
    let server = Served::start(&mut home.serve());
    let flow = server.save(&two_nodes());
    server.running.signal("TERM");
    assert_eq!(server.running.end().code, Some(0));
    fill(&home, 20_000);
    let server = Served::start(&mut serve_with(256, &home));
    let (is_over, readers_max) = (AtomicBool::new(false), AtomicUsize::new(0));
    let answers: Vec<Option<u16>> = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                readers_max.fetch_max(count(&server, "fd"), Ordering::SeqCst);
                thread::park_timeout(Duration::from_millis(5));
            }
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let line = "GET /api/ledger/summary?group_by=tag";
                let stream = send(&server, line, "connection: close\r\n", b"");
                stream.set_read_timeout(Some(3 * DEADLINE)).unwrap();
                stream
            })
            .collect();
        // Other requests do not wait for them.
        let run = server.post(&format!("/api/flows/{flow}/execute?wait=true"), &json!({}));
        let answers = clients.iter().map(status).collect();
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(run.status, 200, "{}", run.text());
        answers
    });
    // On a very busy machine the last of them may wait too long.
    let served = |status: &Option<u16>| matches!(status, Some(200 | 429));
    assert!(answers.iter().all(served), "{answers:?}");
    assert!(answers.contains(&Some(200)), "{answers:?}");
    // The clients, two descriptors per reader, and the server's other descriptors.
    let readers_max = readers_max.into_inner();
    assert!(readers_max < CLIENTS + 2 * 16 + 30, "{readers_max} descriptors");
    assert_eq!(get(&server, "/api/health"), Some(200));
    server.running.signal("TERM");
    assert_eq!(server.running.end().code, Some(0));
}

#[test]
fn a_sum_stops_once_its_client_has_disconnected() {
    let home = Home::new();
    let server = Served::start(&mut home.serve());
    server.running.signal("TERM");
    assert_eq!(server.running.end().code, Some(0));
    fill(&home, 100);
    // 10,000 tags for each row, so that a sum by tag takes a second.
    let connection = Connection::open(home.data().join("flowledger.db")).unwrap();
    let sql = "UPDATE ledger SET tags = 'x' || replace(hex(zeroblob(10000)), '00', ',x')";
    connection.execute(sql, []).unwrap();
    drop(connection);
    let server = Served::start(&mut home.serve());
    let path = "/api/ledger/summary?group_by=tag";
    let began = Instant::now();
    assert_eq!(get(&server, path), Some(200));
    let of_one_sum = began.elapsed();
    // As many as run at the same time; the next read waits for them.
    for _ in 0..4 {
        drop(send(&server, &format!("GET {path}"), "", b""));
    }
    let began = Instant::now();
    assert_eq!(get(&server, "/api/ledger?limit=1"), Some(200));
    let waited = began.elapsed();
    assert!(waited < of_one_sum / 2, "{waited:?}, and {of_one_sum:?} for one sum");
}

/// The server as an unprivileged user, who may start some 200 threads: root has no such limit. A
/// test that does not run as root keeps its user.
fn serve_with_few_threads(home: &Home) -> Command {
    let dir = home.path(".");
    let own = fs::metadata(&dir).unwrap().uid();
    // A user for this test only, because the limit counts the threads of all its processes.
    let user = match own {
        0 => 20_000 + std::process::id() % 30_000,
        own => own,
    };
    let program = home.path("flowledger");
    fs::copy(PROGRAM, &program).unwrap();
    let limit = threads_of(user) + 200;
    // The name of the limit differs between shells.
    let line = format!(
        "ulimit -u {limit} 2>/dev/null || ulimit -p {limit} || exit 1
         exec ./flowledger serve --listen 127.0.0.1:0"
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", &line])
        .current_dir(&dir)
        .env_clear()
        .env("HOME", &dir)
        .env("FLOWLEDGER_DATA", home.data());
    if own == 0 {
        chown(&dir, Some(user), Some(user)).unwrap();
        command.uid(user).gid(user);
    }
    command
}

fn threads_of(user: u32) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let names = processes.map(|it| it.file_name().to_string_lossy().into_owned());
    let paths = names
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .map(|pid| format!("/proc/{pid}"));
    paths
        .filter(|path| fs::metadata(path).is_ok_and(|it| it.uid() == user))
        .filter_map(|path| Some(fs::read_dir(format!("{path}/task")).ok()?.count()))
        .sum()
}

#[test]
fn clients_get_503_while_no_thread_can_start() {
    let home = Home::new();
    let server = Served::start(&mut serve_with_few_threads(&home));
    assert_eq!(get(&server, "/api/health"), Some(200));
    let stalled: Vec<_> = (0..300)
        .map(|_| {
            let fields = "content-length: 4000000\r\n";
            send(&server, "POST /api/flows", fields, b"{")
        })
        .collect();
    let refused: Vec<Option<u16>> = (0..20).map(|_| get(&server, "/")).collect();
    assert!(refused.contains(&Some(503)), "{refused:?}");
    drop(stalled);
    for path in ["/", "/api/flows", "/v1/models", "/api/health"] {
        eventually("it is answered again", || get(&server, path) == Some(200));
    }
    let run = server.post("/api/flows/1/execute?wait=true", &json!({}));
    assert_eq!(run.status, 200, "{}", run.text());
    server.running.signal("TERM");
    let ended = server.running.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("cannot start the thread"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panic"), "{}", ended.stderr);
}

#[test]
fn clients_that_leave_the_queue_free_their_slots() {
    let upstream = Upstream::start(|_, stream| {
        // Until the server closes.
        let _ = stream.read(&mut [0]);
    });
    let home = Home::new();
    let config = home.write("flowledger.toml", "[limits]\nactive_runs = 1\n");
    let server = Served::start(
        serve_with(FEW_DESCRIPTORS, &home)
            .env("FLOWLEDGER_CONFIG", config)
            .env("OPENAI_API_KEY", "key")
            .env("OPENAI_BASE_URL", upstream.url()),
    );
    let flow = server.save(&chain("Hangs", &[agent("a", "openai", "gpt-4o-mini", "x")]));
    let line = format!("POST /api/flows/{flow}/execute?wait=true");
    let mut waiting = Vec::new();
    eventually("all places are taken", || {
        waiting.push(send(&server, &line, "content-length: 0\r\n", b""));
        get(&server, "/api/flows") == Some(503)
    });
    assert!(waiting.len() >= PLACES - 2, "only {}", waiting.len());
    // Health checks have reserved connections.
    for _ in 0..20 {
        assert_eq!(get(&server, "/api/health"), Some(200));
    }
    assert_eq!(get(&server, "/api/flows"), Some(503));
    let left = Instant::now();
    drop(waiting);
    eventually("there are places again", || get(&server, "/api/flows") == Some(200));
    eventually("all threads have ended", || count(&server, "task") < PLACES);
    assert!(left.elapsed() < AT_ONCE, "{:?}", left.elapsed());
    // Their runs continue.
    let runs = server.get("/api/runs?limit=1000");
    let runs = runs["items"].as_array().unwrap();
    assert!(runs.len() >= PLACES - 2, "{}", runs.len());
    assert!(runs.iter().all(|run| run["finishedAt"].is_null()));
}

#[test]
fn the_longest_idle_connection_yields_to_a_new_client() {
    let home = Home::new();
    let server = Served::start(&mut serve_with(FEW_DESCRIPTORS, &home));
    let health = |stream: &mut TcpStream| {
        let _ = stream.write_all(b"GET /api/health HTTP/1.1\r\nhost: localhost\r\n\r\n");
        status(stream)
    };
    let mut idle: Vec<TcpStream> = (0..PLACES)
        .map(|_| {
            let stream = send(&server, "GET /api/health", "", b"");
            assert_eq!(status(&stream), Some(200));
            stream
        })
        .collect();
    // A connection becomes idle a moment after its answer, so the first gets a lead.
    for stream in &mut idle[1..] {
        assert_eq!(health(stream), Some(200));
    }
    for _ in 0..10 {
        let began = Instant::now();
        assert_eq!(get(&server, "/api/flows"), Some(200));
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }
    assert_eq!(idle[0].read(&mut [0]).unwrap(), 0, "the first was not closed");
    assert_eq!(health(idle.last_mut().unwrap()), Some(200));
}
