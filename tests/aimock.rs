//! Runs `aimock`, an independent implementation of the providers' APIs, as a child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Node.js starts it in a quarter of a second; a busy machine takes longer.
const START: Duration = Duration::from_secs(20);

/// The only key that it accepts (`tests/fixtures/aimock.json`).
const KEY: &str = "test-key";

/// Printed by `aimock` when it is ready, before the address.
const READY: &str = "aimock server listening on http://";

/// A running `aimock` with the scenarios of `tests/fixtures/aimock`, for one test only, so that its
/// counters (requests, the first failure of `[flaky]`) belong to that test. Killed on drop.
pub struct Aimock {
    child: Child,
    address: SocketAddr,
    readers: Vec<JoinHandle<()>>,
}

impl Aimock {
    pub fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let installed = root.join("target/aimock");
        let mut child = Command::new(installed.join("node"))
            .arg(installed.join("node_modules/.bin/aimock"))
            .args(["-c", "tests/fixtures/aimock.json", "-p", "0"])
            // The configuration names the fixtures by a path relative to this directory.
            .current_dir(root)
            // Would override the keys in the configuration.
            .env_remove("AIMOCK_API_KEYS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("aimock is not installed: run tests/setup.sh");

        // Threads read both pipes to their end: a full pipe would block the child, and an endless
        // read would block the test.
        let (send, lines) = mpsc::channel();
        let readers = vec![
            forward(child.stdout.take().expect("piped"), send.clone()),
            forward(child.stderr.take().expect("piped"), send),
        ];
        // From here on, a panic kills the child too.
        let mut aimock = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), readers };
        let mut said = String::new();
        loop {
            match lines.recv_timeout(START) {
                Ok(line) => {
                    if let Some(address) = line.strip_prefix(READY) {
                        aimock.address = address.trim().parse().expect("an address");
                        return aimock;
                    }
                    said.push_str(&line);
                    said.push('\n');
                }
                Err(e) => panic!("aimock did not start ({e}); its output:\n{said}"),
            }
        }
    }

    /// Base URL for a provider of kind `openai`.
    pub fn openai_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Base URL for a provider of kind `anthropic`.
    pub fn anthropic_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Number of requests that it has answered or started to answer; `filter` is a query such as
    /// `path=/v1/messages&status=200`. Excludes requests with a wrong key and those whose client
    /// left before the first byte.
    pub fn count(&self, filter: &str) -> u64 {
        let answer = self.call("GET", &format!("/__aimock/journal?limit=0&{filter}"), "");
        header(&answer, "x-total-count").and_then(|n| n.parse().ok()).expect("a number")
    }

    fn call(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address).expect("aimock listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .expect("aimock reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Aimock {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        // The pipes are closed now, so the readers end.
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
    }
}

/// Sends every line of `pipe`, and keeps reading after the receiver is gone.
fn forward(pipe: impl Read + Send + 'static, lines: mpsc::Sender<String>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            lines.send(line).ok();
        }
    })
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    head.lines()
        .filter_map(|l| l.split_once(": "))
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, v)| v)
}
