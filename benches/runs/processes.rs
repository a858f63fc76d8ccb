//! The server and the provider, each in its own process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use flowledger::config::{Config, Overrides};
use flowledger::providers::{Kind, Network, ProviderConfig};
use rustix::time::{ClockId, clock_gettime};

use crate::client::message_of;

/// Small, because a provider thread does little.
const STACK_BYTES: usize = 64 << 10;

fn say(text: &str) {
    println!("{text}");
    std::io::stdout().flush().unwrap();
}

/// The server process: reads commands line by line on its standard input.
pub fn serve(data: &Path, url: &str) {
    let mut config = Config::load(Overrides::default()).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.data = data.join("data");
    config.prices = Some(data.join("prices.toml")).filter(|prices| prices.exists());
    config.providers.insert(
        "bench".into(),
        ProviderConfig {
            kind: Kind::OpenAi,
            base_url: url.to_owned(),
            api_key: None,
            missing_key_hint: None,
            stream_usage: true,
            trust_stated_cost: None,
            apis: Vec::new(),
            network: Network::default(),
        },
    );
    let server = flowledger::server::Server::start(&config).unwrap();
    say(&server.address().to_string());
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            "cpu" => say(&cpu_time().as_nanos().to_string()),
            "rss" => say(&field("/proc/self/status", "VmRSS:").to_string()),
            "written" => say(&field("/proc/self/io", "write_bytes:").to_string()),
            other => panic!("unknown command {other:?}"),
        }
    }
    server.shutdown();
}

fn field(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// The provider process: every chat completion is the same, in one piece and with usage.
pub fn answer(delay: Duration) {
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
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer: &'static str = answer.leak();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    say(&format!("http://{}/v1", listener.local_addr().unwrap()));
    for stream in listener.incoming().map_while(Result::ok) {
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || answer_all(stream, answer, delay))
            .unwrap();
    }
}

fn answer_all(mut stream: TcpStream, answer: &str, delay: Duration) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 16 << 10];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer[count..]) {
            Ok(more) if more > 0 => count += more,
            _ => return,
        }
        let whole = message_of(&buffer[..count]).map(|(head, length)| head + length);
        if whole.is_some_and(|whole| count >= whole) {
            // A connection carries one request at a time.
            count = 0;
            thread::sleep(delay);
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// The parent's handle of a child process; killed on drop.
struct Process {
    child: Child,
    input: Option<ChildStdin>,
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
        let input = child.stdin.take();
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

pub struct Upstream {
    _process: Process,
    pub url: String,
}

impl Upstream {
    /// Starts a provider that takes `delay` for each answer.
    pub fn start(delay: Duration) -> Self {
        let mut process = Process::start(&["upstream", &delay.as_millis().to_string()]);
        let url = process.line();
        Self { _process: process, url }
    }
}

pub struct Server {
    process: Process,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(dir: &Path, url: &str) -> Self {
        let mut process = Process::start(&["server", dir.to_str().unwrap(), url]);
        let address = process.line().parse().unwrap();
        Self { process, address }
    }

    pub fn id(&self) -> u32 {
        self.process.child.id()
    }

    /// Stops the server cleanly.
    pub fn stop(&mut self) {
        drop(self.process.input.take());
        let status = self.process.child.wait().unwrap();
        assert!(status.success(), "the server has failed: {status}");
    }

    /// CPU time of the server so far.
    pub fn cpu(&mut self) -> Duration {
        Duration::from_nanos(self.ask("cpu"))
    }

    pub fn rss_kb(&mut self) -> i64 {
        i64::try_from(self.ask("rss")).unwrap()
    }

    /// Bytes that the server has caused to be written to disk so far.
    pub fn written_bytes(&mut self) -> u64 {
        self.ask("written")
    }

    fn ask(&mut self, text: &str) -> u64 {
        let input = self.process.input.as_mut().expect("a server that runs");
        writeln!(input, "{text}").unwrap();
        self.process.line().parse().unwrap()
    }
}
