//! Checks that no log line of the HTTP client contains a key or the password of a proxy, even at the
//! finest level. A separate test program, because a process has one logger.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Mutex;
use std::thread;

use flowledger::providers::{
    AnswerHead, ApiFormat, CacheMarks, Call, Cancel, ClientKey, Forward, Kind, Network,
    ProviderConfig, Providers, Proxy, ProxyRule, ResponseSink, Timeouts,
};
use flowledger::secret::Secret;

const PROXY_PASSWORD: &str = "proxy-password";
const KEY: &str = "sk-secret-0123456789";

struct Lines(Mutex<String>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let line = format!("{} {}\n", record.target(), record.args());
        self.0.lock().unwrap().push_str(&line);
    }

    fn flush(&self) {}
}

static LINES: Lines = Lines(Mutex::new(String::new()));

/// Discards all output.
struct DiscardSink;

impl ResponseSink for DiscardSink {
    fn whole(&mut self, _: &AnswerHead, _: &[u8]) -> bool {
        false
    }

    fn begin(&mut self, _: &AnswerHead) -> bool {
        false
    }

    fn piece(&mut self, _: &[u8]) -> bool {
        false
    }

    fn end(&mut self, _: bool) {}
}

fn call_of(provider: &str) -> Call {
    Call {
        provider: provider.into(),
        model: "m".into(),
        system: None,
        prompt: "Hi".into(),
        max_tokens: None,
        temperature: None,
        stream: true,
        first_byte_timeout: None,
        total_timeout: None,
        cache_marks: CacheMarks::default(),
        key: None,
    }
}

/// Makes a flow's call with the configured key.
fn called(providers: &Providers) -> String {
    let call = providers.call(&call_of("p"), &Cancel::new(), &mut |_| {});
    call.unwrap_err().message
}

/// Makes a client's call with the configured key or the client's own.
fn forwarded(providers: &Providers, api_format: ApiFormat, key: Option<&ClientKey>) -> String {
    let forward = Forward {
        query: "",
        texts: &String::new,
        call: &call_of("p"),
        api_format,
        method: flowledger::providers::Method::Post,
        path: None,
        body: b"{}",
        headers: &[],
        key,
        hides_usage: false,
        has_sound: false,
        drain_max: None,
        translation: None,
    };
    let failed = providers.forward(&forward, &Cancel::new(), &mut DiscardSink);
    let failed = failed.unwrap_err();
    let (_, body) = failed.refused.unwrap();
    failed.failure.message + &String::from_utf8(body).unwrap()
}

/// Calls a provider that refuses the key and repeats it.
fn ask(kind: Kind, configured: Option<&str>, ask: impl Fn(&Providers) -> String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let provider = ProviderConfig {
        kind,
        base_url: format!("http://{}", listener.local_addr().unwrap()),
        api_key: configured.map(Secret::new),
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        while !request.ends_with(b"}") {
            let length = stream.read(&mut buffer).unwrap();
            assert!(length > 0, "the request ended early");
            request.extend_from_slice(&buffer[..length]);
        }
        let body = format!(r#"{{"error":{{"message":"bad key {KEY}"}}}}"#);
        let length = body.len();
        write!(stream, "HTTP/1.1 401 No\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        String::from_utf8(request).unwrap()
    });
    let providers = Providers::new([("p".to_owned(), provider)].into(), Timeouts::default());
    let answer = ask(&providers);
    assert!(!answer.contains(KEY), "{answer}");
    assert!(server.join().unwrap().contains(KEY), "the key was not sent at all");
}

/// Calls a provider through a proxy that refuses the password.
fn refused_by_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://user:{PROXY_PASSWORD}@{}", listener.local_addr().unwrap());
    let proxy = ProxyRule::Through(Proxy::parse(&url, &[]).unwrap());
    let provider = ProviderConfig {
        kind: Kind::OpenAi,
        base_url: "http://far.example.test/v1".into(),
        api_key: Some(Secret::new(KEY)),
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network { proxy, ..Network::default() },
    };
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        stream.write_all(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n").unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    });
    let providers = Providers::new([("p".to_owned(), provider)].into(), Timeouts::default());
    let answer = called(&providers);
    assert!(answer.contains("407") && !answer.contains(PROXY_PASSWORD), "{answer}");
    assert!(server.join().unwrap().contains("Proxy-Authorization: Basic "));
}

#[test]
fn no_log_line_holds_a_key() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    for (kind, api_format) in [
        (Kind::OpenAi, ApiFormat::ChatCompletions),
        (Kind::Anthropic, ApiFormat::Messages),
        (Kind::Gemini, ApiFormat::ChatCompletions),
        (Kind::Ollama, ApiFormat::Messages),
    ] {
        ask(kind, Some(KEY), called);
        ask(kind, Some(KEY), |providers| forwarded(providers, api_format, None));
        for is_bearer in [false, true] {
            let own = ClientKey { key: Secret::new(KEY), is_bearer };
            ask(kind, None, |providers| forwarded(providers, api_format, Some(&own)));
        }
    }
    refused_by_proxy();
    let lines = LINES.0.lock().unwrap();
    assert!(lines.contains("ureq"), "the client logged nothing: {lines}");
    assert!(!lines.contains(KEY), "{lines}");
    assert!(!lines.contains(PROXY_PASSWORD), "{lines}");
}
