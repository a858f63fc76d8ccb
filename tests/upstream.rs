//! A provider with scripted answers: a real listener that sends the bytes of a test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use serde_json::json;

use crate::harness::DEADLINE;

/// Handles a connection whose request was read: its head in lower case and its body.
pub type Script = Arc<dyn Fn(&str, &str, &mut TcpStream) + Send + Sync>;
/// Handles a connection that asks for the model list.
type List = Arc<dyn Fn(&mut TcpStream) + Send + Sync>;

/// A scripted provider. Each connection gets one answer.
pub struct Upstream {
    url: String,
    stopping: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    lists: Arc<AtomicUsize>,
    requests: Receiver<String>,
    heads: Receiver<String>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Starts a provider that streams `Bees are small insects.` in three parts. It waits before the
    /// second and the third part until something is sent to the returned channel.
    pub fn stepwise() -> (Self, Sender<()>) {
        let (proceed, wait) = bounded::<()>(0);
        let upstream = Self::start(move |_, stream| {
            let end = format!("{}{}", delta("insects."), end_of_stream(1_000_000, 100_000));
            let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("Bees are ")).as_bytes());
            for part in [delta("small "), end] {
                let _ = wait.recv_timeout(DEADLINE);
                let _ = stream.write_all(part.as_bytes());
            }
        });
        (upstream, proceed)
    }

    /// Starts a provider that answers each call after something was sent to the returned channel.
    pub fn held(answer: String) -> (Self, Sender<()>) {
        let (release, released) = unbounded::<()>();
        let upstream = Self::start(move |_, stream| {
            let _ = released.recv_timeout(DEADLINE);
            let _ = stream.write_all(answer.as_bytes());
        });
        (upstream, release)
    }

    /// Answers each request with the output of `script`, which gets the request's body. Has no
    /// model list.
    pub fn start(script: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let none = json_answer("404 Not Found", r#"{"error":{"message":"no such page"}}"#);
        Self::listing(move |stream| drop(stream.write_all(none.as_bytes())), script)
    }

    /// The same, with the output of `list` as its model list.
    pub fn listing(
        list: impl Fn(&mut TcpStream) + Send + Sync + 'static,
        script: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static,
    ) -> Self {
        Self::reading(list, move |_, body, stream| script(body, stream))
    }

    /// Answers by the head of the request, which has the key, and its body.
    pub fn of_heads(script: impl Fn(&str, &str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let list = json_answer("200 OK", r#"{"data":[{"id":"gpt-4o-mini"}]}"#);
        Self::reading(move |stream| drop(stream.write_all(list.as_bytes())), script)
    }

    fn reading(
        list: impl Fn(&mut TcpStream) + Send + Sync + 'static,
        script: impl Fn(&str, &str, &mut TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let stopping = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let lists = Arc::new(AtomicUsize::new(0));
        let list = Arc::new(list) as List;
        let (seen, requests) = unbounded();
        let (heads_seen, heads) = unbounded();
        let thread = {
            let lists = lists.clone();
            let (stopping, count, script) =
                (stopping.clone(), count.clone(), Arc::new(script) as Script);
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    let (count, script) = (count.clone(), script.clone());
                    let (lists, list) = (lists.clone(), list.clone());
                    let seen = (seen.clone(), heads_seen.clone());
                    std::thread::spawn(move || {
                        serve(stream, (&count, &script), (&lists, &list), &seen);
                    });
                }
            })
        };
        Self { url, stopping, count, lists, requests, heads, thread: Some(thread) }
    }

    /// Always sends the same bytes.
    pub fn saying(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self::start(move |_, stream| drop(stream.write_all(answer.as_bytes())))
    }

    /// Returns its `base_url`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the number of requests for the model list; `count` excludes them.
    pub fn lists(&self) -> usize {
        self.lists.load(Ordering::SeqCst)
    }

    /// Returns the number of requests.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Request bodies, in order of arrival.
    pub fn requests(&self) -> &Receiver<String> {
        &self.requests
    }

    /// Request heads in lower case, in order of arrival.
    pub fn heads(&self) -> &Receiver<String> {
        &self.heads
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let address = self.url.trim_start_matches("http://").trim_end_matches("/v1");
        let _ = TcpStream::connect(address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    (count, script): (&AtomicUsize, &Script),
    (lists, list): (&AtomicUsize, &List),
    (seen, heads): &(Sender<String>, Sender<String>),
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end().to_ascii_lowercase();
        head.push_str(&line);
        head.push('\n');
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let request_line = head.lines().next().unwrap_or_default();
    if request_line.starts_with("get ") && request_line.contains("/models") {
        lists.fetch_add(1, Ordering::SeqCst);
        return list(&mut stream);
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    count.fetch_add(1, Ordering::SeqCst);
    let _ = heads.send(head.clone());
    let _ = seen.send(body.clone());
    script(&head, &body, &mut stream);
}

/// A complete answer with a JSON body.
pub fn json_answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The end of a streamed answer.
fn end_of_stream(input_tokens: u64, output_tokens: u64) -> String {
    let finish = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let usage = json!({"prompt_tokens": input_tokens, "completion_tokens": output_tokens});
    let usage = json!({"choices": [], "usage": usage});
    format!("data: {finish}\n\ndata: {usage}\n\ndata: [DONE]\n\n")
}

/// A complete chat completion of gpt-4o-mini with usage.
pub fn completion(text: &str, input_tokens: u64, output_tokens: u64) -> String {
    completion_of("gpt-4o-mini", text, input_tokens, output_tokens)
}

/// A complete chat completion with usage.
pub fn completion_of(model: &str, text: &str, input_tokens: u64, output_tokens: u64) -> String {
    let body = serde_json::json!({
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": input_tokens, "completion_tokens": output_tokens},
    });
    json_answer("200 OK", &body.to_string())
}

/// The head of a streamed answer that ends with the connection.
pub const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// A chunk of a streamed chat completion.
pub fn delta(text: &str) -> String {
    let chunk = serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}}]});
    format!("data: {chunk}\n\n")
}
