//! Calls to providers through flows of the running server: against an independent implementation of
//! their APIs, and against scripted answers that no real provider sends on demand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use flowledger::config::Config;
use flowledger::providers::{Kind, Network, ProviderConfig};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::aimock::Aimock;
use crate::harness::{DEADLINE, TestServer, add_provider, agent, chain, two_nodes};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

const KEY: &str = "test-key";

/// Returns the cost of a call in nano-dollars, computed from the price table only: prices are
/// pico-dollars per token, and the sum is rounded once, half to even.
fn nanodollars(provider: &str, model: &str, input: u64, output: u64) -> u64 {
    let table: Value = serde_json::from_str(include_str!("../assets/prices.json")).unwrap();
    let find = |list: &Value, id: &str| {
        let list = list.as_array().unwrap();
        list.iter().find(|item| item["id"] == id).unwrap().clone()
    };
    let models = find(&table["providers"], provider)["models"].clone();
    let price = &find(&models, model)["prices"][0];
    let of = |key: &str| price[key].as_u64().unwrap();
    let picodollars = input * of("input") + output * of("output");
    let (whole, rest) = (picodollars / 1_000, picodollars % 1_000);
    whole + u64::from(rest > 500 || (rest == 500 && whole % 2 == 1))
}

/// Formats an amount: dollars as an exact decimal number.
fn dollars(nanodollars: u64) -> String {
    let text = format!("{}.{:09}", nanodollars / 1_000_000_000, nanodollars % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn with_aimock(aimock: &Aimock, patience: fn(&mut Config)) -> TestServer {
    TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, &aimock.openai_url());
        add_provider(config, "anthropic", Kind::Anthropic, &aimock.anthropic_url());
        add_provider(config, "keyless", Kind::OpenAi, &aimock.openai_url());
        config.providers.get_mut("keyless").unwrap().api_key = None;
        patience(config);
    })
}

/// The default timeouts, which are long: for calls that end, on a busy machine.
fn default_timeouts(_: &mut Config) {}

/// For calls whose answer never begins.
fn soon_begun(config: &mut Config) {
    config.timeouts.first_byte = Duration::from_millis(500);
}

/// For calls whose answer never ends.
fn soon_over(config: &mut Config) {
    config.timeouts.total = Duration::from_millis(1_500);
}

/// A flow of one call.
fn one(provider: &str, model: &str, prompt: &str, is_streamed: bool) -> Value {
    let mut node = agent("only", provider, model, prompt);
    node["data"]["stream"] = json!(is_streamed);
    chain("One call", &[node])
}

/// Runs a flow of one call and returns the run and its ledger row, as text and as JSON.
fn call(server: &TestServer, flow: &Value) -> (Value, String, Value) {
    let run = server.run(server.save(flow), &json!({}));
    let path = format!("/api/ledger?run_id={}", run["runId"].as_str().unwrap());
    let ledger = server.get(&path);
    let rows = ledger.json()["items"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 1, "{run}");
    (run, ledger.text(), rows[0].clone())
}

#[test]
fn responses_of_another_implementation_are_kept_exactly() {
    let aimock = Aimock::start();
    let server = with_aimock(&aimock, default_timeouts);
    let paris = "Paris is the capital of France. It lies on the Seine.";
    let grüße = "Grüße aus Tōkyō – 東京 “zitiert”\n\tund <b>kein</b> HTML \\ & Ende";
    let dated = "gpt-4o-mini-2024-07-18";
    for (provider, model, prompt, text, model_used, input, output) in [
        ("openai", "gpt-4o-mini", "say [answer]", paris, "gpt-4o-mini", 1234, 56),
        ("openai", "gpt-4o-mini", "say [unicode]", grüße, "gpt-4o-mini", 17, 23),
        ("openai", "gpt-4o-mini", "say [dated]", "Dated.", dated, 1_000_000, 1_000_000),
        ("openai", "gpt-4o-mini", "say [length]", "This answer was cut", "gpt-4o-mini", 8, 4),
        ("anthropic", "claude-haiku-4-5", "say [answer]", paris, "claude-haiku-4-5", 1234, 56),
        ("anthropic", "claude-haiku-4-5", "say [unicode]", grüße, "claude-haiku-4-5", 17, 23),
        (
            "anthropic",
            "claude-haiku-4-5",
            "say [length]",
            "This answer was cut",
            "claude-haiku-4-5",
            8,
            4,
        ),
    ] {
        let cost = nanodollars(provider, model, input, output);
        assert!(cost > 0);
        for is_streamed in [true, false] {
            let mut client = server.client();
            let (run, ledger, row) = call(&server, &one(provider, model, prompt, is_streamed));
            assert_eq!(run["status"], "COMPLETED", "{prompt}: {}", run["error"]);
            assert_eq!(run["nodes"][0]["output"], text);
            assert_eq!(row["status"], "SUCCESS");
            assert_eq!(row["model_used"], model_used);
            assert_eq!(
                (&row["input_tokens"], &row["output_tokens"]),
                (&json!(input), &json!(output))
            );
            assert_eq!(row["usage_source"], "provider");
            assert_eq!(row["error_message"], Value::Null);
            let exact = format!("\"total_cost_usd\":{},", dollars(cost));
            assert!(ledger.contains(&exact), "{exact} is not in {ledger}");
            let events = client.until_type("NODE_COMPLETED");
            let pieces: Vec<&str> =
                events.iter().filter_map(|message| message["payload"]["delta"].as_str()).collect();
            if is_streamed {
                assert_eq!(pieces.concat(), text);
            } else {
                assert!(pieces.is_empty(), "{pieces:?}");
            }
        }
    }
    assert_eq!(aimock.count("status=200"), 14);
    assert_eq!(aimock.count("path=/v1/messages"), 6);
}

/// Stands for the cost of a call that failed after its first text.
const ESTIMATED: &str = "estimated";

/// Expected result of a failing call: row status, cost, and parts of the error.
type Left<'a> = (&'a str, Value, &'a [&'a str]);

/// Runs a failing call and checks its run, row and events.
fn fails(server: &TestServer, flow: &Value, (status, cost, parts): &Left) {
    let mut client = server.client();
    let (run, ledger, row) = call(server, flow);
    assert_eq!((&run["status"], &run["errorNodeId"]), (&json!("FAILED"), &json!("only")), "{run}");
    let events = client.until_type("FLOW_FAILED");
    let of_type = |name: &str| {
        events.iter().find(|message| message["type"] == name).unwrap()["payload"].clone()
    };
    let errors = [
        of_type("NODE_FAILED")["error"].clone(),
        of_type("FLOW_FAILED")["error"].clone(),
        row["error_message"].clone(),
        run["error"].clone(),
        run["nodes"][0]["error"].clone(),
    ];
    let error = errors[0].as_str().unwrap();
    for other in &errors {
        assert_eq!(other, error);
    }
    let node = &flow["data"]["nodes"][0]["data"];
    let place =
        format!("{}/{}: ", node["provider"].as_str().unwrap(), node["model"].as_str().unwrap());
    assert!(error.starts_with(&place), "{error}");
    for part in *parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    assert!(error.chars().count() <= 1_001 && !error.contains('\n'), "{error}");
    assert_eq!(row["status"], *status, "{error}");
    if *cost == ESTIMATED {
        assert_eq!(row["usage_source"], ESTIMATED, "{row}");
        assert!(row["total_cost_usd"].as_f64() > Some(0.0), "{row}");
    } else {
        assert_eq!(row["total_cost_usd"], *cost, "{error}");
    }
    assert_eq!(of_type("NODE_FAILED")["willRetry"], false);
    assert_eq!(of_type("FLOW_FAILED")["nodeId"], "only");
    assert!(row["latency_ms"].is_u64(), "{row}");
    assert_eq!(events.iter().filter(|message| message["type"] == "LEDGER_UPDATE").count(), 2);
    let everything = format!("{run}{ledger}{}", json!(events));
    assert!(!everything.contains(KEY), "{everything}");
}

/// Checks that the server still runs a flow.
fn assert_still_serves(server: &TestServer) {
    let run = server.run(server.save(&two_nodes()), &json!({"topic": "x"}));
    assert_eq!(run["status"], "COMPLETED");
}

#[test]
fn refusals_and_broken_streams_of_aimock_are_recorded() {
    let aimock = Aimock::start();
    let server = with_aimock(&aimock, default_timeouts);
    let null = || Value::Null;
    let free = || json!(0);
    for (provider, model) in [("openai", "gpt-4o-mini"), ("anthropic", "claude-haiku-4-5")] {
        let refused = ["status 401", "Incorrect API key provided.", "check the API key"];
        for (prompt, is_streamed, left) in [
            ("[401]", true, ("FAILED", free(), &refused[..])),
            ("[401]", false, ("FAILED", free(), &refused)),
            ("[400]", true, ("FAILED", free(), &["status 400", "maximum context length"])),
            (
                "[404]",
                true,
                ("FAILED", free(), &["status 404", "does not exist", "check the model"]),
            ),
            ("[429]", true, ("FAILED", free(), &["status 429", "Rate limit reached."])),
            ("[429]", false, ("FAILED", free(), &["status 429", "Rate limit reached."])),
            ("[500]", true, ("FAILED", null(), &["status 500", "The server had an error."])),
            ("[529]", false, ("FAILED", null(), &["status 529", "Overloaded"])),
            ("[garbage]", false, ("FAILED", null(), &["not JSON"])),
            ("[drop]", true, ("FAILED", null(), &["connection lost"])),
            ("[drop]", false, ("FAILED", null(), &["connection lost"])),
        ] {
            let prompt = format!("say {prompt}");
            fails(&server, &one(provider, model, &prompt, is_streamed), &left);
        }
    }
    let wrong = one("keyless", "gpt-4o-mini", "say [answer]", false);
    fails(&server, &wrong, &("FAILED", free(), &["status 401"]));
    assert_still_serves(&server);
}

#[test]
fn a_broken_or_stalled_stream_fails() {
    let aimock = Aimock::start();
    let server = with_aimock(&aimock, default_timeouts);
    let openai = |prompt: &str, is_streamed| one("openai", "gpt-4o-mini", prompt, is_streamed);
    let anthropic =
        |prompt: &str, is_streamed| one("anthropic", "claude-haiku-4-5", prompt, is_streamed);
    let cut = ("FAILED", json!(ESTIMATED), &["connection lost"][..]);
    fails(&server, &openai("say [cut]", true), &cut);
    // Anthropic reports the prompt tokens first, so a part of the cost may be known.
    let (run, _, row) = call(&server, &anthropic("say [cut]", true));
    let failed = json!("FAILED");
    assert_eq!((&run["status"], &row["status"]), (&failed, &failed));

    let server = with_aimock(&aimock, soon_over);
    let stalled = ("TIMEOUT", Value::Null, &["total timeout", "1.5s"][..]);
    let begun = ("TIMEOUT", json!(ESTIMATED), stalled.2);
    fails(&server, &openai("say [stall]", true), &begun);
    for late in [openai("say [late]", false), anthropic("say [late]", false)] {
        fails(&server, &late, &stalled);
    }
    let (run, _, row) = call(&server, &anthropic("say [stall]", true));
    assert_eq!((&run["status"], &row["status"]), (&failed, &json!("TIMEOUT")));
    assert_still_serves(&server);

    let server = with_aimock(&aimock, soon_begun);
    let silent = ("TIMEOUT", Value::Null, &["first byte timeout", "500ms"][..]);
    for late in [openai("say [late]", true), anthropic("say [late]", true)] {
        fails(&server, &late, &silent);
    }
    assert_still_serves(&server);
}

fn with_upstream(upstream: &Upstream, patience: fn(&mut Config)) -> TestServer {
    TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
        add_provider(config, "anthropic", Kind::Anthropic, upstream.url());
        patience(config);
    })
}

/// A provider that answers by words in the prompt.
fn scripted(answers: Vec<(&'static str, String)>) -> Upstream {
    Upstream::start(move |body, stream| {
        let request: Value = serde_json::from_str(body).unwrap();
        let prompt = request["messages"][0]["content"].as_str().unwrap();
        let (_, answer) = answers.iter().find(|(word, _)| *word == prompt).unwrap();
        let _ = stream.write_all(answer.as_bytes());
    })
}

fn plain(status: &str, content_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn refusals_are_reported_with_provider_and_status() {
    let error = |message: &str| format!(r#"{{"error":{{"message":"{message}","type":"test"}}}}"#);
    let page = "<!DOCTYPE html>\n<html><head><title>Bad\nGateway</title></head></html>";
    let upstream = scripted(vec![
        ("401", json_answer("401 Unauthorized", &error("no such key: test-key"))),
        ("403", json_answer("403 Forbidden", &error("not for you"))),
        ("429", json_answer("429 Too Many Requests\r\nretry-after: 7", &error("slow down"))),
        ("500", json_answer("500 Internal Server Error", &error("broken"))),
        ("502", plain("502 Bad Gateway", "text/html", page)),
        ("503", plain("503 Service Unavailable", "text/plain", "")),
        (
            "307",
            "HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
                .into(),
        ),
        ("long", json_answer("400 Bad Request", &error(&"ü ".repeat(5_000)))),
        ("page", plain("200 OK", "text/html", page)),
        ("empty", plain("200 OK", "application/json", "")),
        ("nothing", STREAM_HEAD.to_owned()),
        ("half", plain("200 OK", "application/json", r#"{"choices":[{"mess"#)),
        ("list", json_answer("200 OK", "[]")),
        ("null", json_answer("200 OK", "null")),
        ("none", json_answer("200 OK", r#"{"choices":[],"content":null}"#)),
        ("reported", json_answer("200 OK", &error("out of credit"))),
        ("short", plain("200 OK", "application/json", "{}").replace("length: 2", "length: 9")),
        ("no http", "SSH-2.0-OpenSSH_9.2\r\n".to_owned()),
        ("closed", String::new()),
    ]);
    let server = with_upstream(&upstream, default_timeouts);
    let null = || Value::Null;
    for provider in ["openai", "anthropic"] {
        for (prompt, left) in [
            (
                "401",
                (
                    "FAILED",
                    json!(0),
                    &["status 401", "no such key: ***", "check the API key of provider"][..],
                ),
            ),
            ("403", ("FAILED", json!(0), &["status 403", "not for you"])),
            ("429", ("FAILED", json!(0), &["status 429", "slow down"])),
            ("500", ("FAILED", null(), &["status 500", "broken"])),
            ("502", ("FAILED", null(), &["status 502", "HTML page “Bad Gateway”"])),
            ("503", ("FAILED", null(), &["status 503", "empty body"])),
            (
                "307",
                (
                    "FAILED",
                    json!(0),
                    &["status 307", "http://127.0.0.1:1/", "correct the base_url"],
                ),
            ),
            ("long", ("FAILED", json!(0), &["status 400", "ü ü", "…"])),
            ("page", ("FAILED", null(), &["HTML page “Bad Gateway”"])),
            ("empty", ("FAILED", null(), &["empty body"])),
            ("nothing", ("FAILED", null(), &["empty body"])),
            ("half", ("FAILED", null(), &["not JSON"])),
            ("list", ("FAILED", null(), &["the response has no"])),
            ("null", ("FAILED", null(), &["the response has no"])),
            ("none", ("FAILED", null(), &["the response has no"])),
            ("reported", ("FAILED", null(), &["out of credit"])),
            ("short", ("FAILED", null(), &["connection lost"])),
            ("no http", ("FAILED", null(), &["connection lost"])),
            ("closed", ("FAILED", null(), &["connection lost"])),
        ] {
            for is_streamed in [true, false] {
                fails(&server, &one(provider, "some-model", prompt, is_streamed), &left);
            }
        }
    }
    // No call is retried, and no redirect is followed.
    assert_eq!(upstream.count(), 2 * 19 * 2);
    assert_still_serves(&server);
}

#[test]
fn a_hanging_provider_times_out_and_is_recorded() {
    // Sends the answer for the prompt, then stays silent until the client disconnects.
    let upstream = Upstream::start(|body, stream: &mut TcpStream| {
        if body.contains("half a head") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-");
        } else if body.contains("only a head") {
            let _ = stream.write_all(STREAM_HEAD.as_bytes());
        } else if body.contains("a beginning") {
            let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("Once upon")).as_bytes());
        }
        let _ = stream.read(&mut [0; 1]);
    });
    let hangs = |patience, parts: &[&str], prompts: &[(&str, bool)]| {
        let server = with_upstream(&upstream, patience);
        for (prompt, is_streamed) in prompts {
            let began = Instant::now();
            let flow = one("openai", "gpt-4o-mini", prompt, *is_streamed);
            let cost = match *prompt {
                "a beginning" => json!(ESTIMATED),
                _ => Value::Null,
            };
            fails(&server, &flow, &("TIMEOUT", cost, parts));
            let took = began.elapsed();
            assert!(took < DEADLINE, "{took:?}");
        }
        assert_still_serves(&server);
    };
    let begin = ["first byte timeout", "500ms"];
    let unbegun = [("nothing", true), ("half a head", true), ("only a head", true)];
    hangs(soon_begun, &begin, &unbegun);
    let end = ["total timeout", "1.5s"];
    hangs(soon_over, &end, &[("nothing", false), ("a beginning", true)]);
}

#[test]
fn an_unreachable_provider_is_reported_and_costs_nothing() {
    // A bound port without a listener.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let server = TestServer::start_with(|config| {
        add_provider(config, "refused", Kind::OpenAi, &format!("http://{address}/v1"));
        add_provider(config, "nowhere", Kind::Anthropic, "http://nowhere.invalid/v1");
        config.timeouts.connect = Duration::from_secs(5);
    });
    let port = format!("127.0.0.1:{}", address.port());
    let parts = ["cannot connect", &port, "check the base_url of provider refused"];
    for is_streamed in [true, false] {
        fails(&server, &one("refused", "m", "x", is_streamed), &("FAILED", json!(0), &parts));
    }
    let (run, _, row) = call(&server, &one("nowhere", "m", "x", true));
    assert_eq!(run["status"], "FAILED");
    assert_eq!(row["total_cost_usd"], 0, "{row}");
    assert!(run["error"].as_str().unwrap().contains("nowhere"), "{run}");
    assert_still_serves(&server);
}

#[test]
fn a_missing_key_prevents_the_call_and_names_the_setting() {
    let upstream = Upstream::saying(completion("hi", 1, 1));
    let server = TestServer::start_with(|config| {
        for (name, key) in [("unset", None), ("empty", Some(flowledger::secret::Secret::new("")))] {
            let provider = ProviderConfig {
                kind: Kind::OpenAi,
                base_url: upstream.url().to_owned(),
                api_key: key,
                missing_key_hint: Some("set OPENAI_API_KEY".into()),
                stream_usage: true,
                trust_stated_cost: None,
                apis: Vec::new(),
                network: Network::default(),
            };
            config.providers.insert(name.into(), provider);
        }
    });
    for provider in ["unset", "empty"] {
        let flow = server.save(&one(provider, "gpt-4o-mini", "x", true));
        let mut client = server.client();
        let run = server.run(flow, &json!({}));
        assert_eq!(run["status"], "FAILED");
        let events = client.until_type("FLOW_FAILED");
        for error in [&run["error"], &events.last().unwrap()["payload"]["error"]] {
            let error = error.as_str().unwrap();
            assert!(error.contains(provider) && error.contains("set OPENAI_API_KEY"), "{error}");
        }
        assert!(events.iter().any(|message| message["type"] == "NODE_FAILED"));
    }
    assert_eq!(server.get("/api/ledger").json()["items"], json!([]));
    assert_eq!(upstream.count(), 0);
    assert_still_serves(&server);
}

#[test]
fn a_broken_stream_keeps_its_reported_usage() {
    let start = r#"event: message_start
data: {"type":"message_start","message":{"model":"claude-haiku-4-5","usage":{"input_tokens":1000,"output_tokens":1}}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Once"}}

"#;
    let upstream = scripted(vec![
        ("text", format!("{STREAM_HEAD}{}{}", delta("Once"), delta(" upon"))),
        ("half an event", format!("{STREAM_HEAD}{}data: {{\"choi", delta("Once"))),
        ("garbage", format!("{STREAM_HEAD}{}data: {{oops\n\n", delta("Once"))),
        (
            "error",
            format!(
                "{STREAM_HEAD}{}data: {{\"error\":{{\"message\":\"overloaded\"}}}}\n\n",
                delta("Once")
            ),
        ),
        ("counted", format!("{STREAM_HEAD}{start}")),
    ]);
    let server = with_upstream(&upstream, default_timeouts);
    for (prompt, part) in [
        ("text", "before the response was complete"),
        ("half an event", "before the response was complete"),
        ("garbage", "not JSON"),
        ("error", "reported an error: overloaded"),
    ] {
        let flow = one("openai", "gpt-4o-mini", prompt, true);
        fails(&server, &flow, &("FAILED", json!(ESTIMATED), &[part]));
    }
    let flow = one("anthropic", "claude-haiku-4-5", "counted", true);
    let known = nanodollars("anthropic", "claude-haiku-4-5", 1_000, 1);
    let cost: Value = serde_json::from_str(&dollars(known)).unwrap();
    fails(&server, &flow, &("FAILED", cost, &["before the response was complete"]));
    assert_still_serves(&server);
}

#[test]
fn invalid_usage_is_replaced_by_a_marked_estimate() {
    let openai = |usage: &str| {
        let body = format!(
            r#"{{"model":"gpt-4o-mini","choices":[{{"message":{{"content":"hi"}},"finish_reason":"stop"}}],"usage":{usage}}}"#
        );
        json_answer("200 OK", &body)
    };
    let anthropic = |usage: &str| {
        let body = format!(
            r#"{{"model":"claude-haiku-4-5","content":[{{"type":"text","text":"hi"}}],"usage":{usage}}}"#
        );
        json_answer("200 OK", &body)
    };
    for (kind, one_count, others) in [
        ("openai", "prompt_tokens", "completion_tokens"),
        ("anthropic", "input_tokens", "output_tokens"),
    ] {
        for usage in [
            "null".to_owned(),
            "{}".to_owned(),
            "[]".to_owned(),
            "\"many\"".to_owned(),
            "7".to_owned(),
            format!(r#"{{"{one_count}":null,"{others}":null}}"#),
            format!(r#"{{"{one_count}":-5,"{others}":3}}"#),
            format!(r#"{{"{one_count}":1e18,"{others}":3}}"#),
            format!(r#"{{"{one_count}":18446744073709551615,"{others}":18446744073709551615}}"#),
            format!(r#"{{"{one_count}":1.5,"{others}":3}}"#),
            format!(r#"{{"{one_count}":"7","{others}":3}}"#),
            format!(r#"{{"{one_count}":{{}},"{others}":[]}}"#),
        ] {
            let upstream =
                Upstream::saying(if kind == "openai" { openai(&usage) } else { anthropic(&usage) });
            let server = with_upstream(&upstream, default_timeouts);
            let model = if kind == "openai" { "gpt-4o-mini" } else { "claude-haiku-4-5" };
            for is_streamed in [true, false] {
                let (run, ledger, row) = call(&server, &one(kind, model, "x", is_streamed));
                assert_eq!(run["status"], "COMPLETED", "{usage}: {}", run["error"]);
                assert_eq!(run["nodes"][0]["output"], "hi");
                assert_eq!(
                    (&row["status"], &row["usage_source"]),
                    (&json!("SUCCESS"), &json!(ESTIMATED)),
                    "{usage}"
                );
                // "x" and "hi", and the frame of a prompt.
                assert_eq!(
                    (&row["input_tokens"], &row["output_tokens"]),
                    (&json!(7), &json!(1)),
                    "{usage}"
                );
                let cost = dollars(nanodollars(kind, model, 7, 1));
                let exact = format!("\"total_cost_usd\":{cost},");
                assert!(ledger.contains(&exact), "{usage}: {ledger}");
            }
            let sums = server.get("/api/ledger/summary").json()["total"].clone();
            assert_eq!(sums["unpriced_calls"], 0);
        }
    }
    // The largest accepted counts still have an exact cost.
    let upstream =
        Upstream::saying(openai(r#"{"prompt_tokens":1000000000,"completion_tokens":1000000000}"#));
    let server = with_upstream(&upstream, default_timeouts);
    let (_, ledger, _) = call(&server, &one("openai", "gpt-4o-mini", "x", false));
    let cost = dollars(nanodollars("openai", "gpt-4o-mini", 1_000_000_000, 1_000_000_000));
    assert!(ledger.contains(&format!("\"total_cost_usd\":{cost},")), "{cost}: {ledger}");
}
