//! `aimock`, an implementation of the providers' APIs that is not ours, as a child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Node takes a quarter of a second to start it; a busy machine takes longer.
const START: Duration = Duration::from_secs(20);

/// The only key that it takes (`tests/fixtures/aimock.json`).
const KEY: &str = "test-key";

/// What `aimock` says when it is ready, before the address.
const READY: &str = "aimock server listening on http://";

/// A running `aimock` with the scenarios of `tests/fixtures/aimock`, for one test alone: what it
/// counts (requests, the first failure of `[flaky]`) is then that test's. Killed on drop.
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
            // The configuration names the fixtures by a path that is read from here.
            .current_dir(root)
            // Would take the place of the keys in the configuration.
            .env_remove("AIMOCK_API_KEYS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("aimock is not installed: run tests/setup.sh");

        // Both pipes are read to their end, by threads: a full pipe would stop the child, and a
        // read that waits for ever would stop the test.
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
                Err(e) => panic!("aimock did not start ({e}); it said:\n{said}"),
            }
        }
    }

    /// For a provider of kind `openai`. Chat completions are below it.
    pub fn openai_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// For a provider of kind `anthropic`. `/v1/messages` is below it.
    pub fn anthropic_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests it has answered or started to answer: `filter` is a query such as
    /// `path=/v1/messages&status=200`. Requests with a wrong key, and those whose client left
    /// before the first byte, are not in it.
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
        // Its pipes are closed now, so the readers end.
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
    }
}

/// Sends every line of `pipe`, and goes on reading when nobody listens any more.
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
