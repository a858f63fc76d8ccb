//! Pools of keys and of models: no client sees a failure that another member could have served.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flowledger::config::Config;
use flowledger::gateway::{ClientPolicy, Hours, Target, TargetRule};
use flowledger::providers::{HealthRules, Kind, Pause, PoolKey};
use flowledger::secret::Secret;
use flowledger::server::Server;
use serde_json::{Value, json};

use crate::clients::{chat, rows, server_with};
use crate::harness::{Response, TestServer, add_provider, agent, chain, eventually};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

const CHAT: &str = "/v1/chat/completions";

fn key(name: &str, weight: u32) -> PoolKey {
    let key = Some(Secret::new(format!("sk-{}-secret", name.to_lowercase())));
    PoolKey { name: name.into(), key, weight }
}

fn add_pool(config: &mut Config, provider: &str, keys: Vec<PoolKey>) {
    config.providers.get_mut(provider).unwrap().api_key = keys[0].key.clone();
    config.pools.insert(provider.into(), keys);
}

fn pause(first_ms: u64, max_ms: u64) -> Pause {
    Pause { first: Duration::from_millis(first_ms), max: Duration::from_millis(max_ms) }
}

fn error(status: &str, message: &str) -> String {
    json_answer(status, &json!({"error": {"message": message}}).to_string())
}

fn target(provider: &str, model: &str) -> Target {
    Target { provider: provider.into(), model: model.into() }
}

/// Returns the entry of a provider in `GET /api/providers`.
fn state_of(server: &TestServer, name: &str) -> Value {
    let list = server.get("/api/providers").json();
    let items = list["items"].as_array().unwrap();
    items.iter().find(|item| item["name"] == name).unwrap().clone()
}

fn key_state(server: &TestServer, provider: &str, key: &str) -> Value {
    let state = state_of(server, provider);
    let keys = state["keys"].as_array().unwrap();
    keys.iter().find(|item| item["name"] == key).unwrap().clone()
}

fn text_of(response: &Response) -> String {
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// An upstream that answers `well`, except to requests with this key.
fn refusing(key: &'static str, answer: String) -> Upstream {
    Upstream::of_heads(move |head, _, stream| {
        let is_refused = head.contains(&format!("sk-{key}-secret"));
        let answer = if is_refused { answer.clone() } else { completion("well", 10, 5) };
        let _ = stream.write_all(answer.as_bytes());
    })
}

#[test]
fn clients_do_not_notice_a_revoked_key() {
    let answer = error("401 Unauthorized", "bad key sk-a-secret, not sk-b-secret");
    let upstream = refusing("a", answer);
    let server = server_with(&upstream, |config| {
        add_pool(config, "openai", vec![key("A", 1_000_000), key("B", 1)]);
    });
    for _ in 0..4 {
        assert_eq!(text_of(&server.post(CHAT, &chat("gpt-4o-mini", false))), "well");
    }
    // The first request tried both keys, the others only the one that works.
    let rows = rows(&server, 5);
    let statuses: Vec<&Value> = rows.iter().map(|row| &row["status"]).collect();
    assert_eq!(statuses, ["FAILED", "SUCCESS", "SUCCESS", "SUCCESS", "SUCCESS"]);
    assert_eq!((&rows[0]["attempt"], &rows[1]["attempt"]), (&json!(1), &json!(2)));
    assert_eq!(rows[0]["operation_id"], rows[1]["operation_id"]);
    let benched = key_state(&server, "openai", "A");
    assert_eq!(benched["state"], "benched");
    assert!(benched["until"].is_string() && benched["failures"] == 1, "{benched}");
    assert!(benched["lastError"].as_str().unwrap().contains("bad key ***, not ***"), "{benched}");
    assert_eq!(key_state(&server, "openai", "B")["state"], "ok");
    let provider = state_of(&server, "openai");
    assert_eq!((&provider["state"], &provider["kind"]), (&json!("ok"), &json!("openai")));
    assert!(provider["lastSuccessAt"].is_string());
    let all = format!("{}{rows:?}", server.get("/api/providers").text());
    assert!(!all.contains("-secret"), "{all}");
    let metrics = server.get("/metrics").text();
    let line = "flowledger_provider_key_state{provider=\"openai\",key=\"A\",state=\"benched\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn a_streamed_call_moves_to_another_key() {
    let upstream = Upstream::of_heads(|head, _, stream| {
        let answer = match head.contains("sk-a-secret") {
            true => error("403 Forbidden", "no"),
            false => format!("{STREAM_HEAD}{}data: [DONE]\n\n", delta("well")),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        add_pool(config, "openai", vec![key("A", 1_000_000), key("B", 1)]);
    });
    let text = server.post(CHAT, &chat("gpt-4o-mini", true)).text();
    assert!(text.contains("well") && !text.contains("error"), "{text}");
    rows(&server, 2);
}

#[test]
fn a_key_at_its_rate_limit_cools_for_the_stated_time() {
    let answer = error("429 Too Many Requests", "slow down")
        .replace("connection: close", "retry-after: 30\r\nconnection: close");
    let upstream = refusing("a", answer);
    let server = server_with(&upstream, |config| {
        add_pool(config, "openai", vec![key("A", 1_000_000), key("B", 1)]);
    });
    for _ in 0..3 {
        assert_eq!(text_of(&server.post(CHAT, &chat("gpt-4o-mini", false))), "well");
    }
    assert_eq!(upstream.count(), 4);
    assert_eq!(key_state(&server, "openai", "A")["state"], "cooling");
    rows(&server, 4);
}

#[test]
fn a_benched_key_returns_after_a_probe() {
    let is_revoked = Arc::new(AtomicBool::new(true));
    let revoked = Arc::clone(&is_revoked);
    let upstream = Upstream::of_heads(move |head, _, stream| {
        let is_refused = head.contains("sk-a-secret") && revoked.load(Ordering::SeqCst);
        let answer = match is_refused {
            true => error("401 Unauthorized", "no"),
            false => completion("well", 10, 5),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        add_pool(config, "openai", vec![key("A", 1_000_000), key("B", 1)]);
        config.health.bench = pause(20, 40);
    });
    text_of(&server.post(CHAT, &chat("gpt-4o-mini", false)));
    assert_ne!(key_state(&server, "openai", "A")["state"], "ok");
    is_revoked.store(false, Ordering::SeqCst);
    eventually("the key works again", || {
        text_of(&server.post(CHAT, &chat("gpt-4o-mini", false)));
        key_state(&server, "openai", "A")["state"] == "ok"
    });
}

#[test]
fn a_single_key_is_used_in_spite_of_its_pauses() {
    let answers = [
        error("401 Unauthorized", "no"),
        error("429 Too Many Requests", "slow down")
            .replace("connection: close", "retry-after: 30\r\nconnection: close"),
        error("503 Service Unavailable", "down"),
    ];
    for answer in answers {
        let count = AtomicUsize::new(0);
        let upstream = Upstream::start(move |_, stream| {
            let is_failing = count.fetch_add(1, Ordering::SeqCst) < 4;
            let answer = if is_failing { answer.clone() } else { completion("well", 10, 5) };
            let _ = stream.write_all(answer.as_bytes());
        });
        let server = server_with(&upstream, |_| {});
        for _ in 0..4 {
            assert_ne!(server.post(CHAT, &chat("gpt-4o-mini", false)).status, 200);
        }
        assert_eq!(text_of(&server.post(CHAT, &chat("gpt-4o-mini", false))), "well");
        assert_eq!(upstream.count(), 5);
        let state = state_of(&server, "openai");
        assert_eq!((&state["state"], &state["keys"][0]["state"]), (&json!("ok"), &json!("ok")));
        rows(&server, 5);
    }
}

/// A provider that fails for the model `bad` only.
fn failing_for_bad() -> Upstream {
    Upstream::start(|body, stream| {
        let answer = match body.contains("\"bad\"") {
            true => error("503 Service Unavailable", "down"),
            false => completion("well", 10, 5),
        };
        let _ = stream.write_all(answer.as_bytes());
    })
}

#[test]
fn all_models_are_tried_if_all_pause() {
    let upstream = failing_for_bad();
    let server = server_with(&upstream, |config| {
        let targets = vec![target("openai", "bad"), target("openai", "gpt-4o-mini")];
        config.gateway.aliases.insert("fast".into(), targets);
        config.health.failures = 1;
    });
    // The first failure opens the provider of both models.
    for count in 1..=2 {
        assert_eq!(text_of(&server.post(CHAT, &chat("fast", false))), "well", "{count}");
    }
    rows(&server, 4);
}

#[test]
fn a_key_of_the_client_changes_no_state_of_keys() {
    let upstream = Upstream::saying(error("401 Unauthorized", "no"));
    let server = server_with(&upstream, |config| {
        add_pool(config, "openai", vec![key("A", 1), key("B", 1)]);
        let policy = ClientPolicy { pass_through_key: true, ..ClientPolicy::default() };
        config.gateway.policies.insert("openai".into(), policy);
    });
    let headers = [("authorization", "Bearer sk-own")];
    let body = chat("gpt-4o-mini", false).to_string();
    let response = server.request("POST", CHAT, &headers, body.as_bytes());
    assert_eq!((response.status, upstream.count()), (401, 1));
    for name in ["A", "B"] {
        let state = key_state(&server, "openai", name);
        assert_eq!((&state["state"], &state["failures"]), (&json!("ok"), &json!(0)));
    }
    rows(&server, 1);
}

#[test]
fn requests_that_the_provider_refuses_change_no_state() {
    let upstream = Upstream::saying(error("400 Bad Request", "too long"));
    let server = server_with(&upstream, |config| {
        add_pool(config, "openai", vec![key("A", 1), key("B", 1)]);
    });
    for _ in 0..5 {
        assert_eq!(server.post(CHAT, &chat("gpt-4o-mini", false)).status, 400);
    }
    let state = state_of(&server, "openai");
    assert_eq!((&state["state"], &state["failures"]), (&json!("ok"), &json!(0)));
    rows(&server, 5);
}

/// The ways in which an upstream fails before the first byte.
fn failures() -> Vec<(&'static str, String)> {
    vec![
        ("401", error("401 Unauthorized", "no")),
        ("403", error("403 Forbidden", "no")),
        ("404", error("404 Not Found", "no such model")),
        ("408", error("408 Request Timeout", "late")),
        ("429", error("429 Too Many Requests", "slow down")),
        ("500", error("500 Internal Server Error", "oops")),
        ("529", error("529 Overloaded", "overloaded")),
        ("closed", String::new()),
        ("half a head", "HTTP/1.1 200 OK\r\ncontent-ty".to_owned()),
        ("no event", STREAM_HEAD.to_owned()),
        ("half an event", format!("{STREAM_HEAD}data: {{\"choi")),
        ("error event", format!("{STREAM_HEAD}data: {{\"error\":{{\"message\":\"oops\"}}}}\n\n")),
    ]
}

#[test]
fn no_failure_before_the_first_byte_reaches_a_client() {
    for (name, answer) in failures() {
        let bad = Upstream::saying(answer);
        let good = format!("{STREAM_HEAD}{}data: [DONE]\n\n", delta("well"));
        let good = Upstream::saying(good);
        let server = server_with(&bad, |config| {
            add_provider(config, "good", Kind::OpenAi, good.url());
            let targets = vec![target("openai", "gpt-4o-mini"), target("good", "gpt-4o-mini")];
            config.gateway.aliases.insert("fast".into(), targets);
            config.health.failures = 2;
        });
        for _ in 0..3 {
            let response = server.post(CHAT, &chat("fast", true));
            let text = response.text();
            assert_eq!(response.status, 200, "{name}: {text}");
            assert_eq!(text, format!("{}data: [DONE]\n\n", delta("well")), "{name}");
        }
        let failed = bad.count();
        let rows = rows(&server, 3 + failed);
        assert_eq!(rows.iter().filter(|row| row["status"] == "SUCCESS").count(), 3, "{name}");
    }
}

#[test]
fn a_failure_after_the_first_byte_is_not_repeated() {
    let upstream = Upstream::saying(format!("{STREAM_HEAD}{}", delta("begun")));
    let server = server_with(&upstream, |config| {
        add_pool(config, "openai", vec![key("A", 1), key("B", 1)]);
        let targets = vec![target("openai", "gpt-4o-mini"), target("openai", "gpt-4o")];
        config.gateway.aliases.insert("fast".into(), targets);
    });
    let text = server.post(CHAT, &chat("fast", true)).text();
    assert!(text.contains("begun") && text.contains("error"), "{text}");
    assert_eq!(upstream.count(), 1);
    rows(&server, 1);
}

#[test]
fn clients_do_not_notice_a_provider_that_is_down_under_load() {
    let is_down = Arc::new(AtomicBool::new(false));
    let down = Arc::clone(&is_down);
    let local = Upstream::start(move |_, stream| {
        // A connection that is closed without a response.
        if !down.load(Ordering::SeqCst) {
            let _ = stream.write_all(completion("local", 10, 5).as_bytes());
        }
    });
    let paid = Upstream::saying(completion("paid", 10, 5));
    let server = server_with(&paid, |config| {
        add_provider(config, "local", Kind::OpenAi, local.url());
        let targets = vec![target("local", "gpt-4o-mini"), target("openai", "gpt-4o-mini")];
        config.gateway.aliases.insert("fast".into(), targets);
        config.health = HealthRules { open: pause(50, 200), ..HealthRules::default() };
    });
    let is_over = AtomicBool::new(false);
    let (asked, mut answers) = (AtomicUsize::new(0), BTreeMap::<String, usize>::new());
    thread::scope(|scope| {
        let client = || {
            let mut texts = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                texts.push(text_of(&server.post(CHAT, &chat("fast", false))));
                asked.fetch_add(1, Ordering::SeqCst);
            }
            texts
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        let state = || state_of(&server, "local")["state"].as_str().unwrap().to_owned();
        let later = |count| asked.load(Ordering::SeqCst) + count;
        let first = later(10);
        eventually("clients are served", || asked.load(Ordering::SeqCst) >= first);
        assert_eq!(state(), "ok");
        is_down.store(true, Ordering::SeqCst);
        eventually("the provider opens", || state() == "open");
        // Several probes fail, and lengthen the pause.
        let until = Instant::now() + Duration::from_millis(700);
        eventually("the provider is half-open", || {
            state() == "half_open" || Instant::now() > until
        });
        let (tried, all) = (local.count(), asked.load(Ordering::SeqCst));
        eventually("time passes while it is down", || Instant::now() > until);
        let (tried, all) = (local.count() - tried, asked.load(Ordering::SeqCst) - all);
        // Only probes leave: at most one in 50 ms.
        assert!(tried <= 20 && (all < 40 || tried < all), "{tried} of {all}");
        is_down.store(false, Ordering::SeqCst);
        eventually("the provider closes", || state() == "ok");
        let last = later(10);
        eventually("clients are served", || asked.load(Ordering::SeqCst) >= last);
        is_over.store(true, Ordering::SeqCst);
        for client in clients {
            for text in client.join().unwrap() {
                *answers.entry(text).or_default() += 1;
            }
        }
    });
    assert!(answers["local"] >= 10 && answers["paid"] >= 1, "{answers:?}");
    // Each request has a row for each attempt, and the last one succeeded.
    let rows = rows_of_all(&server, local.count() + paid.count());
    let mut operations = BTreeMap::<&str, Vec<&Value>>::new();
    for row in &rows {
        operations.entry(row["operation_id"].as_str().unwrap()).or_default().push(row);
    }
    assert_eq!(operations.len(), asked.load(Ordering::SeqCst));
    for attempts in operations.values() {
        let statuses: Vec<&Value> = attempts.iter().map(|row| &row["status"]).collect();
        assert!(
            [vec!["SUCCESS"], vec!["FAILED", "SUCCESS"]]
                .contains(&statuses.iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>()),
            "{statuses:?}"
        );
    }
}

/// Returns all rows, oldest first, from several pages.
fn rows_of_all(server: &TestServer, count: usize) -> Vec<Value> {
    let mut all = Vec::new();
    eventually("the ledger has its rows", || {
        all.clear();
        let mut path = "/api/ledger?limit=500".to_owned();
        loop {
            let page = server.get(&path).json();
            all.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next"].as_i64() {
                Some(next) => path = format!("/api/ledger?limit=500&before={next}"),
                None => break,
            }
        }
        all.len() == count && all.iter().all(|row| row["status"] != "PENDING")
    });
    all.reverse();
    all
}

#[test]
fn weighted_models_share_requests_and_stand_in_for_each_other() {
    let upstream = failing_for_bad();
    let server = server_with(&upstream, |config| {
        let targets = vec![target("openai", "bad"), target("openai", "gpt-4o-mini")];
        config.gateway.aliases.insert("split".into(), targets);
        let rule = |weight| TargetRule { weight: Some(weight), hours: None };
        config.gateway.alias_rules.insert("split".into(), vec![rule(1_000_000), rule(1)]);
    });
    assert_eq!(text_of(&server.post(CHAT, &chat("split", false))), "well");
    let models: Vec<Value> = rows(&server, 2).iter().map(|row| row["model_used"].clone()).collect();
    assert_eq!(models, ["bad", "gpt-4o-mini"]);
}

#[test]
fn an_alias_outside_its_hours_states_when_it_returns() {
    let upstream = Upstream::saying(completion("well", 10, 5));
    let server = server_with(&upstream, |config| {
        let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
        let at = |hours: i64| {
            let time = now.checked_add(jiff::Span::new().hours(hours)).unwrap();
            time.strftime("%H:%M").to_string()
        };
        for (alias, start, end) in [("now", -1, 2), ("later", 2, 4)] {
            let hours = Hours::parse(&format!("{}-{}", at(start), at(end)), None).unwrap();
            config.gateway.aliases.insert(alias.into(), vec![target("openai", "gpt-4o-mini")]);
            let rule = TargetRule { weight: None, hours: Some(hours) };
            config.gateway.alias_rules.insert(alias.into(), vec![rule]);
        }
    });
    assert_eq!(text_of(&server.post(CHAT, &chat("now", false))), "well");
    let response = server.post(CHAT, &chat("later", false));
    assert_eq!((response.status, response.error_code().as_str()), (503, "outside_hours"));
    let wait: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((3_600..=7_201).contains(&wait), "{wait}");
    rows(&server, 1);
}

#[test]
fn a_server_with_a_pool_that_can_never_serve_does_not_start() {
    let server = TestServer::start();
    let dir = tempfile::tempdir().unwrap();
    let refusal = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::load(flowledger::config::Overrides::default()).unwrap();
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.data = dir.path().join("data");
        config.providers.clear();
        add_provider(&mut config, "mine", Kind::OpenAi, "http://127.0.0.1:9/v1");
        change(&mut config);
        Server::start(&config).map(|_| ()).unwrap_err().to_string()
    };
    let missing = |name: &str| PoolKey { name: name.into(), key: None, weight: 1 };
    let error = refusal(&|config| add_pool(config, "mine", vec![missing("A"), missing("B")]));
    assert!(error.contains("providers.mine.api_keys: no key was found; set A or B"), "{error}");
    let error = refusal(&|config| {
        let mine = config.providers.get_mut("mine").unwrap();
        (mine.api_key, mine.missing_key_hint) = (None, Some("set MINE".into()));
        config.gateway.aliases.insert("fast".into(), vec![target("mine", "m")]);
    });
    assert!(error.contains("aliases.fast") && error.contains("set MINE"), "{error}");
    assert!(!dir.path().join("data").exists());
    drop(server);
}

#[test]
fn a_node_with_a_revoked_key_uses_another_one_at_once() {
    let upstream = refusing("a", error("401 Unauthorized", "no"));
    let server = server_with(&upstream, |config| {
        add_pool(config, "openai", vec![key("A", 1_000_000), key("B", 1)]);
    });
    let mut node = agent("only", "openai", "gpt-4o-mini", "x");
    node["data"]["stream"] = json!(false);
    let flow = server.save(&chain("One", &[node]));
    let mut client = server.client();
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    assert_eq!(
        (&run["nodes"][0]["attempt"], &run["nodes"][0]["output"]),
        (&json!(1), &json!("well"))
    );
    let rows = rows(&server, 2);
    let statuses: Vec<&Value> = rows.iter().map(|row| &row["status"]).collect();
    assert_eq!(statuses, ["FAILED", "SUCCESS"]);
    assert!(rows.iter().all(|row| row["node_id"] == "only" && row["attempt"] == 1), "{rows:?}");
    assert_eq!(rows[0]["operation_id"], rows[1]["operation_id"]);
    let seen = client.until(|message| message["payload"]["status"] == "FINISHED");
    assert!(seen.iter().all(|message| message["type"] != "NODE_FAILED"));
    // If all keys are refused, the node fails like with one key.
    let all = Upstream::saying(error("401 Unauthorized", "no"));
    let server = server_with(&all, |config| {
        add_pool(config, "openai", vec![key("A", 1), key("B", 1)]);
    });
    let run = server.run(server.save(&chain("One", &[agent("n", "openai", "m", "x")])), &json!({}));
    assert_eq!((&run["status"], all.count()), (&json!("FAILED"), 2));
}

#[test]
fn the_test_of_a_provider_lists_its_models() {
    let upstream = Upstream::of_heads(|_, _, stream| {
        let _ = stream.write_all(completion("well", 10, 5).as_bytes());
    });
    let server = server_with(&upstream, |config| {
        add_provider(config, "gone", Kind::OpenAi, "http://user:pw@127.0.0.1:9/v1");
    });
    let test = |name: &str| server.post(&format!("/api/providers/{name}/test"), &json!({}));
    let result = test("openai").json();
    assert_eq!((&result["ok"], &result["models"]), (&json!(true), &json!(1)), "{result}");
    let result = test("gone").json();
    assert_eq!(result["ok"], false);
    assert!(result["error"].as_str().unwrap().contains("cannot connect"), "{result}");
    assert_eq!(test("echo").json()["ok"], true);
    assert_eq!(test("nobody").status, 404);
    let gone = state_of(&server, "gone");
    assert_eq!(gone["baseUrl"], "http://127.0.0.1:9/v1");
    assert_eq!(gone["keys"][0]["name"], "#1");
}
