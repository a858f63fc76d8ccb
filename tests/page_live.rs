//! The module of the live connection, as pages of other sites use it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::harness::{DEADLINE, TestServer, two_nodes};

#[test]
fn live_js_works_on_allowed_origins() {
    let (site, stranger) = (Site::start(), Site::start());
    let server = TestServer::start_with(|config| config.allow_origins = vec![site.origin()]);
    let flow = server.save(&two_nodes());
    let browser = Browser::launch();

    browser.open(&format!("{}/?http://{}", site.origin(), server.address()));
    browser.wait_for("live.isConnected && live.lastMessage.type === 'HELLO'");
    assert_eq!(browser.eval("live.sendMessage({ type: 'PING' })"), true);
    browser.wait_for("live.lastMessage.type === 'PONG'");
    let subscribe = json!({"type": "SUBSCRIBE", "payload": {"types": ["FLOW_STATUS"]}});
    assert_eq!(browser.eval(&format!("live.sendMessage({subscribe})")), true);
    // The reply to a later message shows that the server has accepted the earlier one.
    browser.eval("void (messages.length = 0, live.sendMessage({ type: 'PING' }))");
    browser.wait_for("messages.some(({ type }) => type === 'PONG')");
    let run = format!(
        "fetch(server + '/api/flows/{flow}/execute?wait=true', {{
            method: 'POST',
            headers: {{ 'Content-Type': 'application/json' }},
            body: JSON.stringify({{ input: {{ topic: 'bees' }} }}),
        }}).then((response) => response.json()).then((run) => run.status)"
    );
    assert_eq!(browser.eval(&run), "COMPLETED");
    browser.wait_for("live.lastMessage.payload.status === 'FINISHED'");
    assert_eq!(
        browser.eval("messages.slice(1).map(({ type, payload }) => `${type} ${payload.status}`)"),
        json!([
            "FLOW_STATUS STARTED",
            "FLOW_STATUS NODE_COMPLETE",
            "FLOW_STATUS NODE_COMPLETE",
            "FLOW_STATUS FINISHED"
        ])
    );
    browser.eval("live.close()");
    assert_eq!(
        browser.eval("[live.isConnected, live.sendMessage({ type: 'PING' })]"),
        json!([false, false])
    );
    assert_eq!(browser.console(), Vec::<String>::new());

    browser.open(&format!("{}/?http://{}", stranger.origin(), server.address()));
    browser.wait_for("live.status.state === 'disconnected'");
    assert_eq!(browser.eval("live.lastMessage"), Value::Null);
    let asks = "fetch(server + '/api/flows').then(() => 'allowed', () => 'refused')";
    assert_eq!(browser.eval(asks), "refused");
    assert_eq!(browser.eval(&format!("{run}.catch(() => 'refused')")), "refused");
    // Browsers send this without a preflight, like a form.
    browser.eval(&format!(
        "fetch(server + '/api/flows/{flow}/execute?wait=true', {{ method: 'POST', mode: 'no-cors' }}).then(() => null)"
    ));
    assert_eq!(
        server.get("/api/ledger/summary").json()["total"]["calls"],
        2,
        "the stranger started no run"
    );
}

/// Another web site on its own port: one page that connects to the server whose address follows
/// `?`.
struct Site {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const SITE_PAGE: &str =
    "<!doctype html><html lang=en><meta charset=utf-8><title>Another site</title>
<link rel=icon href='data:,'>
<script type=module>
    window.server = location.search.slice(1);
    window.messages = [];
    const { connect } = await import(`${server}/assets/live.js`);
    window.live = connect({ onMessage: (message) => messages.push(message) });
</script></html>";

impl Site {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let is_stopping = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_stopping.load(Ordering::SeqCst) {
                    return;
                }
                // Browsers open spare connections and send nothing on them. Without a thread for
                // each, the first silent one would block all others.
                std::thread::spawn(move || drop(answer(&stream)));
            }
        });
        Self { address, stopping, thread: Some(thread) }
    }

    fn origin(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads a request and answers with the page, for any path.
fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{SITE_PAGE}",
        SITE_PAGE.len()
    )
}
