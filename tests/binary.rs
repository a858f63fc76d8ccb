//! Runs the program as a child process with its own environment and home directory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;
use tungstenite::client::IntoClientRequest;

use crate::harness::{Client, DEADLINE, Response};

/// Printed by the server when it is ready, before its address.
const READY: &str = "flowledger is at http://";

/// A home directory for the program, with its data in `data`. Isolates the program from the
/// settings and keys of the machine.
pub struct Home {
    dir: TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The program with these arguments.
    pub fn flowledger(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowledger"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("FLOWLEDGER_DATA", self.data());
        command
    }

    /// The server on a free port.
    pub fn serve(&self) -> Command {
        self.flowledger(&["serve", "--listen", "127.0.0.1:0"])
    }

    /// Runs a command that ends by itself.
    pub fn run(&self, args: &[&str]) -> Ended {
        Running::start(&mut self.flowledger(args)).end()
    }
}

/// Runs `verify` on the database in this directory and requires success.
pub fn verify(data: &Path) {
    let ended = Home::new().run(&["verify", "--data", data.to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

/// A started program. Killed on drop.
pub struct Running {
    child: Child,
    /// Output lines with their line ends; true for standard error.
    lines: Receiver<(bool, String)>,
    pub stdout: String,
    pub stderr: String,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Threads read both pipes to their end: a full pipe would block the program.
        let (send, lines) = unbounded();
        forward(false, child.stdout.take().unwrap(), send.clone());
        forward(true, child.stderr.take().unwrap(), send);
        Self { child, lines, stdout: String::new(), stderr: String::new() }
    }

    /// Waits for a line of standard output with this prefix and returns the rest of it.
    pub fn until_stdout(&mut self, beginning: &str) -> String {
        self.until(false, |line| line.strip_prefix(beginning).map(str::to_owned))
    }

    /// Waits for a line of standard error that contains `part`.
    pub fn until_stderr(&mut self, part: &str) {
        self.until(true, |line| line.contains(part).then(String::new));
    }

    /// Returns true if standard error has contained `part` so far.
    pub fn has_logged(&mut self, part: &str) -> bool {
        while !self.lines.is_empty() && self.next_line(Instant::now() + DEADLINE).is_some() {}
        self.stderr.contains(part)
    }

    fn until(&mut self, of_stderr: bool, fits: impl Fn(&str) -> Option<String>) -> String {
        let deadline = Instant::now() + DEADLINE;
        while let Some((is_stderr, line)) = self.next_line(deadline) {
            if let Some(found) = fits(line.trim_end()).filter(|_| is_stderr == of_stderr) {
                return found;
            }
        }
        panic!("it ended; its output:\n{}{}", self.stdout, self.stderr);
    }

    /// Returns the next line, or `None` when both pipes are closed, that is, when the program has
    /// ended.
    fn next_line(&mut self, deadline: Instant) -> Option<(bool, String)> {
        match self.lines.recv_deadline(deadline) {
            Ok((is_stderr, line)) => {
                let all = if is_stderr { &mut self.stderr } else { &mut self.stdout };
                all.push_str(&line);
                Some((is_stderr, line))
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("it hangs; its output:\n{}{}", self.stdout, self.stderr)
            }
        }
    }

    #[allow(dead_code)]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &command]).status().unwrap();
        assert!(status.success(), "{command}: {status}");
    }

    /// Limits the size of its files; larger writes fail as on a full disk.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let limit = Rlimit { current: bytes, maximum: None };
        let pid = Pid::from_child(&self.child);
        prlimit(Some(pid), Resource::Fsize, limit).unwrap();
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn end(self) -> Ended {
        self.end_within(DEADLINE)
    }

    /// Waits for its end within `time`.
    pub fn end_within(mut self, time: Duration) -> Ended {
        let deadline = Instant::now() + time;
        while self.next_line(deadline).is_some() {}
        Ended {
            code: self.child.wait().unwrap().code(),
            stdout: std::mem::take(&mut self.stdout),
            stderr: std::mem::take(&mut self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends every line of `pipe`, and keeps reading after the receiver is gone.
fn forward(is_stderr: bool, pipe: impl Read + Send + 'static, lines: Sender<(bool, String)>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
            let _ = lines.send((is_stderr, String::from_utf8_lossy(&line).into_owned()));
            line.clear();
        }
    });
}

/// The program as a server that answers.
pub struct Served {
    pub running: Running,
    pub address: SocketAddr,
}

impl Served {
    pub fn start(command: &mut Command) -> Self {
        let mut running = Running::start(command);
        let address = running.until_stdout(READY);
        let address = address.trim_end_matches('/').parse().unwrap();
        Self { running, address }
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()));
        let mut stream = self.connect();
        let _ = stream.write_all(&[head.as_bytes(), body].concat());
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        Response::parse(&answer).unwrap_or_else(|| panic!("no answer: {read:?}"))
    }

    pub fn get(&self, path: &str) -> Value {
        let response = self.request("GET", path, &[], b"");
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        response.json()
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path, &[], body.to_string().as_bytes())
    }

    /// Saves a flow and returns its id.
    pub fn save(&self, flow: &Value) -> i64 {
        let response = self.post("/api/flows", flow);
        assert_eq!(response.status, 201, "{}", response.text());
        response.json()["id"].as_i64().unwrap()
    }

    /// Starts a run and returns its id.
    pub fn execute(&self, flow: i64) -> String {
        let response = self.request("POST", &format!("/api/flows/{flow}/execute"), &[], b"");
        assert_eq!(response.status, 202, "{}", response.text());
        response.json()["runId"].as_str().unwrap().to_owned()
    }

    /// Returns a WebSocket client that has read its `HELLO`.
    pub fn client(&self) -> Client {
        let request = format!("ws://{}/ws", self.address).into_client_request().unwrap();
        let (socket, _) = tungstenite::client(request, self.connect()).unwrap();
        let mut client = Client { socket, hello: Value::Null };
        client.hello = client.next();
        client
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

/// Returns the contents of all files below a directory.
pub fn everything_below(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(everything_below(&entry.path()));
        } else if kind.is_file() {
            files.push((entry.path(), std::fs::read(entry.path()).unwrap()));
        }
    }
    files
}
