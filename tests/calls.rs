//! One way to make a call: the same behaviour for a node of a flow, a client at `/v1` and a trial.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Sender, bounded};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, agent, chain, eventually};
use crate::optimizer_fixture::{flow_of, openai, run_times, server, suggestion};
use crate::upstream::{Upstream, completion_of, json_answer};

/// The model of the flow.
const PRESENT: &str = "gpt-4o";
/// The model that the trial tries.
const CHEAPER: &str = "gpt-4o-mini";

const ANSWER: usize = 0;
const REFUSE: usize = 1;
const HOLD: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Caller {
    Node,
    Client,
    Trial,
}

const CALLERS: [Caller; 3] = [Caller::Node, Caller::Client, Caller::Trial];

/// A server with a flow, its suggestion of a cheaper model, and a provider that answers, refuses or
/// holds calls.
struct Rig {
    server: TestServer,
    upstream: Upstream,
    mode: Arc<AtomicUsize>,
    release: Sender<()>,
    flow: i64,
    suggestion: Value,
}

impl Rig {
    fn new() -> Self {
        let mode = Arc::new(AtomicUsize::new(ANSWER));
        let (release, held) = bounded::<()>(0);
        let upstream = {
            let mode = Arc::clone(&mode);
            openai(move |body, stream| {
                let model = serde_json::from_str::<Value>(body).unwrap()["model"].clone();
                let model = model.as_str().unwrap();
                let answer = match mode.load(Ordering::SeqCst) {
                    REFUSE => {
                        json_answer("400 Bad Request", r#"{"error":{"message":"not today"}}"#)
                    }
                    HOLD => {
                        let _ = held.recv_timeout(DEADLINE);
                        return;
                    }
                    _ => completion_of(model, "well", 1_000, 50),
                };
                let _ = stream.write_all(answer.as_bytes());
            })
        };
        let server = server(&upstream);
        run_times(&server, flow_of(&server, CHEAPER), 10, |at| at.to_string());
        let mut node = agent("n", "openai", PRESENT, "Say {{ input.words }}");
        node["data"]["stream"] = json!(false);
        let flow = server.save(&chain("Present", &[node]));
        for at in 0..10 {
            server.run(flow, &json!({"words": at.to_string()}));
        }
        let suggestion = suggestion(&server, "model_switch");
        Self { server, upstream, mode, release, flow, suggestion }
    }

    fn set_mode(&self, mode: usize) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    /// Makes one call and returns the text of its answer or error.
    fn call(&self, caller: Caller) -> String {
        match caller {
            Caller::Node => self.server.run(self.flow, &json!({"words": "x"})).to_string(),
            Caller::Client => {
                let messages = json!([{"role": "user", "content": "x"}]);
                let body = json!({"model": format!("openai/{CHEAPER}"), "messages": messages});
                self.server.post("/v1/chat/completions", &body).text()
            }
            Caller::Trial => {
                let path = format!("/api/ledger/optimizations/{}/trial", self.suggestion["id"]);
                let body = json!({"count": 1, "confirm": true});
                self.server.post(&path, &body).text()
            }
        }
    }

    /// The newest ledger row.
    fn row(&self) -> Value {
        self.server.get("/api/ledger?limit=1").json()["items"][0].clone()
    }

    fn set_token_limit(&self, tokens: u64) {
        let budgets = json!({"budgets": [{"name": "b", "per": "day", "limitTokens": tokens}]});
        let body = budgets.to_string();
        let set = self.server.request("PUT", "/api/budget", &[], body.as_bytes());
        assert_eq!(set.status, 200, "{}", set.text());
    }

    fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.server.data().join("flowledger.db")).unwrap()
    }
}

#[test]
fn a_success_is_one_settled_row_for_every_caller() {
    let rig = Rig::new();
    for caller in CALLERS {
        let before = rig.row()["id"].as_i64().unwrap();
        let text = rig.call(caller);
        assert!(text.contains("well"), "{caller:?}: {text}");
        eventually("the row is settled", || rig.row()["status"] == "SUCCESS");
        let row = rig.row();
        assert_eq!(row["id"], before + 1, "{caller:?}: {row}");
        assert_eq!(
            (&row["input_tokens"], &row["output_tokens"]),
            (&json!(1_000), &json!(50)),
            "{caller:?}: {row}"
        );
        assert!(row["total_cost_usd"].as_f64() > Some(0.0), "{caller:?}");
    }
}

#[test]
fn a_provider_error_is_a_failed_row_for_every_caller() {
    let rig = Rig::new();
    rig.set_mode(REFUSE);
    for caller in CALLERS {
        let text = rig.call(caller);
        assert!(text.contains("not today"), "{caller:?}: {text}");
        eventually("the row is settled", || rig.row()["status"] == "FAILED");
        let row = rig.row();
        assert_eq!(row["total_cost_usd"], 0, "{caller:?}: {row}");
        assert!(row["error_message"].as_str().unwrap().contains("not today"));
    }
}

#[test]
fn a_budget_refusal_is_a_row_for_every_caller() {
    let rig = Rig::new();
    rig.set_token_limit(1);
    let asked = rig.upstream.count();
    for caller in CALLERS {
        let text = rig.call(caller);
        assert!(text.contains("budget"), "{caller:?}: {text}");
        let row = rig.row();
        assert_eq!(row["refused"], "budget", "{caller:?}: {row}");
        assert_eq!(row["total_cost_usd"], 0, "{caller:?}: {row}");
    }
    assert_eq!(rig.upstream.count(), asked);
}

#[test]
fn a_refusal_on_a_full_disk_is_written_later() {
    let rig = Rig::new();
    rig.set_token_limit(1);
    for caller in CALLERS {
        let before = rig.row()["id"].as_i64().unwrap();
        let database = rig.database();
        database
            .execute_batch(
                "CREATE TRIGGER full BEFORE INSERT ON ledger
                 BEGIN SELECT RAISE(FAIL, 'no room'); END",
            )
            .unwrap();
        std::thread::scope(|scope| {
            let call = scope.spawn(|| rig.call(caller));
            if caller == Caller::Client {
                // The budget refuses it at once; the other two wait for their row.
                let text = call.join().unwrap();
                assert!(text.contains("budget"), "{text}");
                database.execute_batch("DROP TRIGGER full").unwrap();
            } else {
                eventually("the row is refused", || crate::harness::was_logged(&["no room"]));
                database.execute_batch("DROP TRIGGER full").unwrap();
                let text = call.join().unwrap();
                assert!(text.contains("budget"), "{caller:?}: {text}");
            }
        });
        eventually("the row is written", || {
            let row = rig.row();
            row["id"].as_i64().unwrap() > before && row["refused"] == "budget"
        });
    }
}

#[test]
fn a_call_cancelled_by_shutdown_is_unknown_for_every_caller() {
    for caller in CALLERS {
        let mut rig = Rig::new();
        rig.set_mode(HOLD);
        let asked = rig.upstream.count();
        let address = rig.server.address();
        let request = match caller {
            Caller::Node => {
                (format!("/api/flows/{}/execute", rig.flow), json!({"input": {"words": "x"}}))
            }
            Caller::Client => (
                "/v1/chat/completions".to_owned(),
                json!({"model": format!("openai/{CHEAPER}"),
                    "messages": [{"role": "user", "content": "x"}]}),
            ),
            Caller::Trial => (
                format!("/api/ledger/optimizations/{}/trial", rig.suggestion["id"]),
                json!({"count": 1, "confirm": true}),
            ),
        };
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let body = request.1.to_string();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{body}",
            request.0,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        eventually("the call is made", || rig.upstream.count() > asked);
        let id = rig.row()["id"].clone();
        assert_eq!(rig.row()["status"], "PENDING", "{caller:?}");
        rig.server.stop();
        rig.set_mode(ANSWER);
        drop(std::mem::replace(&mut rig.release, bounded(0).0));
        rig.server.start_again();
        let row = rig.server.get("/api/ledger?limit=5").json();
        let rows = row["items"].as_array().unwrap();
        let row = rows.iter().find(|row| row["id"] == id).unwrap();
        assert_eq!(row["status"], "UNKNOWN", "{caller:?}: {row}");
    }
}
