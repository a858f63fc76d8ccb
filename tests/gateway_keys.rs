//! Whatever the HTTP client logs, at the finest level, a provider's key is not in it. A test
//! program of its own, because a process has one logger.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Mutex;
use std::thread;

use flowledger::gateway::{Call, Cancel, Gateway, Kind, ProviderConfig, Timeouts};
use flowledger::secret::Secret;

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

#[test]
fn no_log_line_holds_a_key() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    for kind in [Kind::OpenAi, Kind::Anthropic] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let provider = ProviderConfig {
            kind,
            base_url: format!("http://{}", listener.local_addr().unwrap()),
            api_key: Some(Secret::new(KEY)),
            missing_key_hint: None,
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
            write!(
                stream,
                "HTTP/1.1 401 No\r\ncontent-length: {length}\r\n\r\n{body}"
            )
            .unwrap();
            String::from_utf8(request).unwrap()
        });
        let gateway = Gateway::new([("p".to_owned(), provider)].into(), Timeouts::default());
        let call = Call {
            provider: "p".into(),
            model: "m".into(),
            system: None,
            prompt: "Hi".into(),
            max_tokens: None,
            temperature: None,
            stream: true,
            first_byte_timeout: None,
            total_timeout: None,
        };
        let failure = gateway
            .call(&call, &Cancel::new(), &mut |_| {})
            .unwrap_err();
        assert!(!failure.message.contains(KEY), "{failure}");
        assert!(
            server.join().unwrap().contains(KEY),
            "the key was not sent at all"
        );
    }
    let lines = LINES.0.lock().unwrap();
    assert!(lines.contains("ureq"), "the client logged nothing: {lines}");
    assert!(!lines.contains(KEY), "{lines}");
}
