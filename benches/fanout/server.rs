//! The server's side: the real server, and the bare loop for comparison. Each runs in its own
//! process and reads commands on its standard input.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flowledger::config::{Config, Overrides};
use flowledger::hub::{Message, Publish};
use flowledger::server::Server;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use socket2::SockRef;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The real server.
    Ours,
    /// The real server with too few descriptors for all clients.
    OursShort,
    /// The bare loop.
    Bare,
}

/// Too few for the clients of `abuse`, enough for the well-behaved ones.
const DESCRIPTORS_SHORT: u64 = 1_100;

impl Kind {
    pub fn from_name(name: &str) -> Self {
        match name {
            "ours" => Self::Ours,
            "ours-short" => Self::OursShort,
            _ => Self::Bare,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursShort => "ours-short",
            Self::Bare => "bare",
        }
    }
}

/// An event of about `size` bytes on the wire, with the time in its payload.
pub fn event(size: usize) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let head = format!(r#"{{"type":"NODE_OUTPUT","payload":{{"flowId":1,"t":{now},"delta":""#);
    let fill = size.saturating_sub(head.len() + 3 + 4);
    format!("{head}{}\"}}}}", "x".repeat(fill))
}

/// Publishes `rate` events per second, evenly spaced, while `go_on` returns true. Catches up when
/// late.
fn pace(rate: u64, mut go_on: impl FnMut(u64) -> bool, mut publish: impl FnMut()) -> u64 {
    let began = Instant::now();
    let mut count = 0;
    while go_on(count) {
        publish();
        count += 1;
        let next = began + Duration::from_nanos(count * 1_000_000_000 / rate.max(1));
        if let Some(wait) = next.checked_duration_since(Instant::now()) {
            std::thread::sleep(wait);
        }
    }
    count
}

fn start_server(listen: &str) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::load(Overrides::default()).unwrap();
    config.listen = listen.parse().unwrap();
    config.data = dir.path().join("data");
    (Server::start(&config).unwrap(), dir)
}

fn publish(server: &Server, size: usize) {
    let message =
        Message { seq: None, flow_id: Some(1), type_name: "NODE_OUTPUT", text: event(size) };
    server.core().hub.publish(vec![message], None);
}

/// Serves external clients.
pub fn serve(args: &[&str]) {
    let value = |name: &str| {
        args.iter().position(|arg| *arg == name).and_then(|at| args.get(at + 1)).copied()
    };
    let number =
        |name: &str, default: u64| value(name).map_or(default, |text| text.parse().unwrap());
    let (server, _dir) = start_server(value("--listen").unwrap_or("127.0.0.1:0"));
    println!("listening on {}", server.address());
    std::io::stdout().flush().unwrap();
    let size = usize::try_from(number("--size", 256)).unwrap();
    pace(number("--rate", 100), |_| true, || publish(&server, size));
}

/// Resource usage of the process.
#[derive(Clone, Copy)]
pub struct Usage {
    pub rss_kb: i64,
    pub fds: i64,
}

/// The child process: reads commands line by line on its standard input.
pub fn child(kind: Kind) {
    let say = |text: String| {
        println!("{text}");
        std::io::stdout().flush().unwrap();
    };
    if kind == Kind::OursShort {
        let limit = Rlimit { current: Some(DESCRIPTORS_SHORT), maximum: Some(DESCRIPTORS_SHORT) };
        setrlimit(Resource::Nofile, limit).unwrap();
    }
    let target: Box<dyn Target> = match kind {
        Kind::Ours | Kind::OursShort => Box::new(Ours::start()),
        Kind::Bare => Box::new(Bare::start()),
    };
    say(format!("{}", target.address()));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["usage"] => {
                say(format!("{} {}", rss_kb(), std::fs::read_dir("/proc/self/fd").unwrap().count()))
            }
            ["cpu"] => say(cpu_time().as_nanos().to_string()),
            ["clients"] => say(target.clients().to_string()),
            ["publish", rate, size, ms] => {
                let (rate, size) = (rate.parse().unwrap(), size.parse().unwrap());
                let window = Duration::from_millis(ms.parse().unwrap());
                say("begun".into());
                let began = Instant::now();
                pace(rate, |_| began.elapsed() < window, || target.publish(size));
                say("published".into());
            }
            other => panic!("unknown command {other:?}"),
        }
    }
}

fn rss_kb() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

trait Target {
    fn address(&self) -> SocketAddr;
    fn clients(&self) -> usize;
    fn publish(&self, size: usize);
}

struct Ours {
    server: Server,
    _dir: tempfile::TempDir,
}

impl Ours {
    fn start() -> Self {
        let (server, dir) = start_server("127.0.0.1:0");
        Self { server, _dir: dir }
    }
}

impl Target for Ours {
    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    fn clients(&self) -> usize {
        self.server.core().hub.stats().clients.load(Ordering::SeqCst)
    }

    fn publish(&self, size: usize) {
        publish(&self.server, size);
    }
}

/// The baseline: one thread, one `send` per socket and event, nothing else.
struct Bare {
    address: SocketAddr,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Bare {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let streams = Arc::new(Mutex::new(Vec::new()));
        let accepted = Arc::clone(&streams);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stream.set_nodelay(true).unwrap();
                accepted.lock().unwrap().push(stream);
            }
        });
        Self { address, streams }
    }
}

impl Target for Bare {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn clients(&self) -> usize {
        self.streams.lock().unwrap().len()
    }

    fn publish(&self, size: usize) {
        let text = event(size);
        // The same frame as the server's.
        let mut frame = vec![0x81, 126];
        frame.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(text.as_bytes());
        for stream in self.streams.lock().unwrap().iter() {
            // Blocks on a slow client, so that all frames arrive.
            let _ = SockRef::from(stream).send(&frame);
        }
    }
}

/// The parent's handle of a child process.
pub struct Child {
    _process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub address: SocketAddr,
}

impl Child {
    pub fn start(kind: Kind) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child", kind.name()])
            .env("RUST_LOG", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap();
        Self { _process: Process(process), input, output, address }
    }

    fn tell(&mut self, text: &str) {
        writeln!(self.input, "{text}").unwrap();
    }

    fn ask(&mut self, text: &str) -> String {
        self.tell(text);
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the server process has ended");
        line.trim().to_owned()
    }

    pub fn usage(&mut self) -> Usage {
        let answer = self.ask("usage");
        let (rss, fds) = answer.split_once(' ').unwrap();
        Usage { rss_kb: rss.parse().unwrap(), fds: fds.parse().unwrap() }
    }

    pub fn wait_for_clients(&mut self, count: usize) {
        self.wait("not all clients were registered", |clients| clients >= count);
    }

    /// Waits until the server has only `count` clients.
    pub fn wait_until_clients(&mut self, count: usize) {
        self.wait("clients that are gone are still there", |clients| clients <= count);
    }

    fn wait(&mut self, otherwise: &str, is_so: impl Fn(usize) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_so(self.ask("clients").parse().unwrap()) {
            assert!(Instant::now() < deadline, "{otherwise}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts misbehaving clients, until the returned handle is dropped.
    pub fn abuse(&self) -> Process {
        let args = ["abuse".to_owned(), self.address.to_string()];
        let program = std::env::current_exe().unwrap();
        Process(Command::new(program).args(args).spawn().unwrap())
    }

    /// Starts publishing and returns the start time.
    pub fn publish(&mut self, rate: u64, size: usize, window: Duration) -> Instant {
        let begun = self.ask(&format!("publish {rate} {size} {}", window.as_millis()));
        assert_eq!(begun, "begun");
        Instant::now()
    }

    /// Waits for the end of publishing.
    pub fn published(&mut self) {
        assert_eq!(self.line(), "published");
    }

    /// CPU time of the child so far.
    pub fn cpu(&mut self) -> Duration {
        Duration::from_nanos(self.ask("cpu").parse().unwrap())
    }
}

/// A process that is killed on drop.
pub struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
