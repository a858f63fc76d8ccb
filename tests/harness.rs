//! The base of every test: a real server on port 0 in a temporary directory, and HTTP and WebSocket
//! clients with a deadline for every wait.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flowledger::config::{Config, Overrides};
use flowledger::providers::{Kind, Network, ProviderConfig};
use flowledger::secret::Secret;
use flowledger::server::Server;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

/// Limit for anything that should happen at once. Generous, because machines are slow while all
/// tests run: only a failing test waits this long.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Keeps log lines, so that tests can wait for them. All tests of the process share them, so search
/// for a value unique to the test (an address, a run's id).
struct LogKeeper;

static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for LogKeeper {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("flowledger")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            LOG.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Returns true if a logged line contains all these parts.
pub fn was_logged(parts: &[&str]) -> bool {
    let log = LOG.lock().unwrap();
    log.iter().any(|line| parts.iter().all(|part| line.contains(part)))
}

/// A running server.
pub struct TestServer {
    server: Option<Server>,
    config: Config,
    is_verified: bool,
    /// Removed together with the server.
    _dir: TempDir,
}

/// Set by test programs that write data that no server would write.
static NONE_IS_VERIFIED: AtomicBool = AtomicBool::new(false);

impl TestServer {
    /// Turns verification off for all databases of this process, because a test commits events that
    /// no server would.
    #[allow(dead_code)]
    pub fn leave_all_unverified() {
        NONE_IS_VERIFIED.store(true, Ordering::SeqCst);
    }

    /// Starts a server with the default settings.
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts a server with changed settings.
    pub fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        // Fails from the second call on.
        if log::set_logger(&LogKeeper).is_ok() {
            log::set_max_level(log::LevelFilter::Info);
        }
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load(Overrides::default()).unwrap();
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.data = dir.path().join("data");
        // Ignores API keys in the environment: no test calls a real provider.
        config.providers = BTreeMap::new();
        add_provider(&mut config, "echo", Kind::Echo, "");
        change(&mut config);
        let mut server = Self {
            server: None,
            config,
            is_verified: !NONE_IS_VERIFIED.load(Ordering::SeqCst),
            _dir: dir,
        };
        server.start_again();
        server
    }

    /// Turns verification off for a test that writes into the database itself.
    pub fn leave_unverified(&mut self) {
        self.is_verified = false;
    }

    /// Stops the server as SIGTERM does.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
    }

    /// Starts the server on the same data and, if it has run before, on the same port.
    pub fn start_again(&mut self) {
        self.stop();
        let server = Server::start(&self.config).unwrap();
        self.config.listen = server.address();
        self.server = Some(server);
    }

    /// Changes the settings for the next start.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
    }

    pub fn address(&self) -> SocketAddr {
        self.config.listen
    }

    pub fn data(&self) -> &std::path::Path {
        &self.config.data
    }

    /// The running server, for state that has no route.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("the server runs")
    }

    /// Sends `GET`.
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], b"")
    }

    /// Sends `POST` with a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path, &[], body.to_string().as_bytes())
    }

    /// Sends a request on a new connection.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()));
        self.raw(&[head.as_bytes(), body].concat())
    }

    /// Sends raw bytes and reads the answer until the connection closes.
    pub fn raw(&self, bytes: &[u8]) -> Response {
        let mut stream = self.connect();
        // A server that refuses early may not read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        Response::parse(&answer)
            .unwrap_or_else(|| panic!("no answer ({read:?}): {}", String::from_utf8_lossy(&answer)))
    }

    /// Opens a new connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Returns a WebSocket client that has read its `HELLO`.
    pub fn client(&self) -> Client {
        self.client_at("/ws")
    }

    /// Returns a WebSocket client that resumes after `since`.
    pub fn client_since(&self, since: u64) -> Client {
        self.client_at(&format!("/ws?since={since}"))
    }

    /// Returns a WebSocket client that resumes after `since` in the history of `epoch`.
    pub fn client_of_epoch(&self, since: u64, epoch: &str) -> Client {
        self.client_at(&format!("/ws?since={since}&epoch={epoch}"))
    }

    fn client_at(&self, path: &str) -> Client {
        let request = format!("ws://{}{path}", self.address()).into_client_request().unwrap();
        let (socket, _) = tungstenite::client(request, self.connect()).unwrap();
        let mut client = Client { socket, hello: Value::Null };
        client.hello = client.next();
        assert_eq!(client.hello["type"], "HELLO");
        client
    }

    /// Saves a flow and returns its id.
    pub fn save(&self, flow: &Value) -> i64 {
        let response = self.post("/api/flows", flow);
        assert_eq!(response.status, 201, "{}", response.text());
        response.json()["id"].as_i64().unwrap()
    }

    /// Starts a run and returns its id.
    pub fn execute(&self, flow_id: i64, input: &Value) -> String {
        let response =
            self.post(&format!("/api/flows/{flow_id}/execute"), &json!({"input": input}));
        assert_eq!(response.status, 202, "{}", response.text());
        response.json()["runId"].as_str().unwrap().to_owned()
    }

    /// Runs a flow to its end and returns the run.
    pub fn run(&self, flow_id: i64, input: &Value) -> Value {
        let path = format!("/api/flows/{flow_id}/execute?wait=true");
        let response = self.post(&path, &json!({"input": input}));
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
        // Verifies the database after every test that passed.
        if !std::thread::panicking() && self.is_verified {
            crate::binary::verify(self.data());
        }
    }
}

/// Adds a provider with the key `test-key` to the settings.
pub fn add_provider(config: &mut Config, name: &str, kind: Kind, base_url: &str) {
    let provider = ProviderConfig {
        kind,
        base_url: base_url.to_owned(),
        api_key: Some(Secret::new("test-key")),
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    config.providers.insert(name.to_owned(), provider);
}

/// A node that sends `prompt` to a provider.
pub fn agent(id: &str, provider: &str, model: &str, prompt: &str) -> Value {
    json!({"id": id, "type": "agent", "data": {
        "label": id.to_uppercase(), "role": "tester",
        "provider": provider, "model": model, "prompt": prompt}})
}

/// A flow of these nodes in a row.
pub fn chain(name: &str, nodes: &[Value]) -> Value {
    let edges: Vec<Value> = nodes
        .windows(2)
        .map(|pair| json!({"source": pair[0]["id"], "target": pair[1]["id"]}))
        .collect();
    json!({"name": name, "data": {"nodes": nodes, "edges": edges}})
}

/// Two nodes on `echo`; the second uses the output of the first.
pub fn two_nodes() -> Value {
    chain(
        "Two nodes",
        &[
            agent("plan", "echo", "echo-1", "Plan {{ input.topic }}"),
            agent("draft", "echo", "echo-1", "Write {{ nodes.plan.output }}"),
        ],
    )
}

/// An HTTP response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// Parses the first response in `bytes` and decodes chunks.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = Self { status, headers, body: bytes[end + 4..].to_vec() };
        if response.header("transfer-encoding") == Some("chunked") {
            response.body = unchunk(&response.body)?;
        }
        Some(response)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{} is not JSON: {error}: {}", self.status, self.text()))
    }

    /// Returns the code of an error response.
    pub fn error_code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
        let chunk = rest.get(line + 2..line + 2 + size)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(chunk);
        rest = rest.get(line + 4 + size..)?;
    }
}

/// A WebSocket client.
pub struct Client {
    pub socket: WebSocket<TcpStream>,
    pub hello: Value,
}

impl Client {
    pub fn id(&self) -> u64 {
        self.hello["payload"]["clientId"].as_u64().unwrap()
    }

    /// Returns the next message; fails the test if none comes in time.
    pub fn next(&mut self) -> Value {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    return serde_json::from_str(&text).expect("one JSON object in a message");
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("no message came: {other:?}"),
            }
        }
    }

    /// Returns all messages up to the first that matches.
    pub fn until(&mut self, fits: impl Fn(&Value) -> bool) -> Vec<Value> {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = Vec::new();
        loop {
            let message = self.next();
            let done = fits(&message);
            seen.push(message);
            if done {
                return seen;
            }
            assert!(Instant::now() < deadline, "it did not come: {seen:#?}");
        }
    }

    /// Returns all messages up to the first of this type.
    pub fn until_type(&mut self, type_name: &str) -> Vec<Value> {
        self.until(|message| message["type"] == type_name)
    }

    pub fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Returns all messages until the server closes, and the close code.
    pub fn until_closed(&mut self) -> (Vec<Value>, Option<u16>) {
        let (seen, code, _) = self.until_goodbye();
        (seen, code)
    }

    /// Returns the close code and the reason of the server.
    pub fn until_closed_with_reason(&mut self) -> (Option<u16>, String) {
        let (_, code, reason) = self.until_goodbye();
        (code, reason)
    }

    fn until_goodbye(&mut self) -> (Vec<Value>, Option<u16>, String) {
        let mut seen = Vec::new();
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => seen.push(serde_json::from_str(&text).unwrap()),
                Ok(Message::Close(frame)) => {
                    // Answers the close and waits for the end of the stream.
                    while self.socket.read().is_ok() {}
                    let code = frame.as_ref().map(|frame| frame.code.into());
                    let reason = frame.map(|frame| frame.reason.to_string());
                    return (seen, code, reason.unwrap_or_default());
                }
                Ok(_) => {}
                Err(error) => panic!("the connection was not closed but lost: {error}"),
            }
        }
    }
}

/// Returns the types of messages, in order.
pub fn types(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["type"].as_str().unwrap()).collect()
}

/// Polls until a condition holds that no event announces.
pub fn eventually(what: &str, mut has_happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !has_happened() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::yield_now();
    }
}
