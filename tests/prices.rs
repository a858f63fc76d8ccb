//! Prices: the price of a row, current estimates, and user prices.

use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::binary::{Home, Served};
use crate::harness::{TestServer, add_provider, agent, chain, eventually, two_nodes};
use crate::upstream::{Upstream, completion};

fn server(upstream: &Upstream) -> TestServer {
    TestServer::start_with(|config| add_provider(config, "openai", Kind::OpenAi, upstream.url()))
}

fn two_calls() -> Value {
    let mut flow = chain(
        "Two calls",
        &[
            agent("a", "openai", "gpt-4o-mini", "first"),
            agent("b", "openai", "gpt-4o-mini", "second"),
        ],
    );
    for node in flow["data"]["nodes"].as_array_mut().unwrap() {
        node["data"]["stream"] = json!(false);
    }
    flow
}

fn rows(server: &TestServer) -> Vec<Value> {
    let rows = server.get("/api/ledger").json();
    rows["items"].as_array().unwrap().clone()
}

#[test]
fn a_row_has_its_price_and_equal_prices_are_stored_once() {
    let upstream = Upstream::saying(completion("well", 1_000, 10));
    let mut server = server(&upstream);
    let flow = server.save(&two_calls());
    server.run(flow, &json!({}));
    server.start_again();
    server.run(flow, &json!({}));
    let ids: Vec<Value> = rows(&server).iter().map(|row| row["price_id"].clone()).collect();
    assert_eq!(ids, vec![ids[0].clone(); 4]);
    let response = server.get(&format!("/api/prices/{}", ids[0]));
    assert_eq!(response.status, 200, "{}", response.text());
    // Exactly, as text.
    assert!(response.text().contains("\"input\":0.15,"), "{}", response.text());
    let price = response.json();
    assert_eq!(price["id"], ids[0]);
    assert_eq!((&price["provider"], &price["model"]), (&json!("openai"), &json!("gpt-4o-mini")));
    assert!(price["source"].as_str().unwrap().starts_with("genai-prices "));
    for id in ["99", "x"] {
        assert_eq!(server.get(&format!("/api/prices/{id}")).status, 404);
    }
}

#[test]
fn free_calls_and_unknown_models_have_no_price() {
    let upstream =
        Upstream::saying(completion("well", 1_000, 10).replace("gpt-4o-mini", "no-such"));
    let server = server(&upstream);
    server.run(server.save(&two_nodes()), &json!({"topic": "ants"}));
    let free = rows(&server);
    assert_eq!(free.len(), 2);
    for row in free {
        assert_eq!((&row["total_cost_usd"], row.get("price_id")), (&json!(0), None));
    }
    let unknown = agent("a", "openai", "no-such-model", "x");
    server.run(server.save(&chain("Unknown", &[unknown])), &json!({}));
    let row = &rows(&server)[0];
    assert_eq!((&row["total_cost_usd"], row.get("price_id")), (&Value::Null, None));
}

#[test]
fn the_current_price_of_a_model_is_returned() {
    let upstream = Upstream::saying("");
    let server = server(&upstream);
    let price = |query: &str| server.get(&format!("/api/prices?{query}"));
    let response = price("provider=openai&model=gpt-4o-mini");
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.json()["usd_per_mtok"]["output"], json!(0.6));
    let free = price("provider=echo&model=echo-1").json();
    assert_eq!(free["usd_per_mtok"]["input"], 0);
    for (query, status) in [
        ("provider=openai&model=no-such-model", 404),
        ("provider=nobody&model=gpt-4o-mini", 404),
        ("provider=openai", 422),
        ("model=gpt-4o-mini", 422),
        ("provider=openai&model=gpt-4o-mini&x=1", 422),
    ] {
        assert_eq!(price(query).status, status, "{query}");
    }
    let response = server.request("POST", "/api/prices", &[], b"");
    assert_eq!(response.status, 405);
}

#[test]
fn current_prices_depend_on_the_address_and_the_spelling() {
    let server = TestServer::start_with(|config| {
        for (name, kind, address) in [
            ("eu", Kind::OpenAi, "https://eu.api.openai.com/v1"),
            ("router", Kind::OpenAi, "https://openrouter.ai/api/v1"),
            ("vertex", Kind::OpenAi, "https://aiplatform.googleapis.com/v1"),
            ("foundry", Kind::OpenAi, "https://me.services.ai.azure.com/models"),
            ("qwen", Kind::OpenAi, "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
        ] {
            add_provider(config, name, kind, address);
        }
    });
    let input = |provider: &str, model: &str| {
        let response = server.get(&format!("/api/prices?provider={provider}&model={model}"));
        response.json()["usd_per_mtok"]["input"].clone()
    };
    assert_eq!(input("eu", "gpt-5.4"), json!(2.75));
    assert_eq!(input("eu", "gpt-4o"), json!(2.5));
    assert_eq!(input("eu", "gpt-chat-latest"), Value::Null);
    for variant in ["", ":nitro", ":floor", ":exacto"] {
        assert_eq!(input("router", &format!("openai/gpt-4o{variant}")), json!(2.5), "{variant}");
    }
    assert_eq!(input("router", "openai/gpt-4o:free"), Value::Null);
    for prefix in ["", "google/", "models/", "publishers/google/models/"] {
        assert_eq!(input("vertex", &format!("{prefix}gemini-2.5-flash")), json!(0.3), "{prefix}");
    }
    assert_eq!(input("foundry", "DeepSeek-R1"), json!(1.35));
    assert_eq!(input("foundry", "deepseek-reasoner"), Value::Null);
    assert_eq!(input("qwen", "qwen-max"), json!(1.6));
    let price = server.get("/api/prices?provider=eu&model=gpt-5.4").json();
    assert_eq!(price["surcharges"], json!(["data residency eu x1.1"]));
    let price = server.get("/api/prices?provider=qwen&model=qwen-max").json();
    let source = price["source"].as_str().unwrap();
    assert!(source.starts_with("https://www.alibabacloud.com/"), "{source}");
}

#[test]
fn a_changed_format_of_the_second_source_is_an_error() {
    let home = Home::new();
    for (map, part) in [
        ("{", "cannot read"),
        ("[]", "not an object"),
        (r#"{"a": {"mode": "chat"}}"#, "lists 1 models; expected 2000"),
    ] {
        let map = home.write("map.json", map);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/extra_prices.py");
        let ended = std::process::Command::new("python3").arg(script).arg(map).output().unwrap();
        let message = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{message}");
        assert!(message.contains(part), "{message}");
        assert!(ended.stdout.is_empty());
    }
}

/// A server with two calls of a model without a price: 1,000 tokens of the prompt and 100 of the
/// answer each.
fn unpriced(upstream: &Upstream) -> TestServer {
    let server =
        TestServer::start_with(|config| add_provider(config, "mine", Kind::OpenAi, upstream.url()));
    let mut flow = chain(
        "New",
        &[agent("a", "mine", "new-model-1", "x"), agent("b", "mine", "new-model-1", "y")],
    );
    for node in flow["data"]["nodes"].as_array_mut().unwrap() {
        node["data"]["stream"] = json!(false);
    }
    let run = server.run(server.save(&flow), &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    server
}

fn new_model() -> Upstream {
    Upstream::saying(completion("well", 1_000, 100).replace("gpt-4o-mini", "new-model-1"))
}

#[test]
fn models_without_a_price_are_listed() {
    let upstream = new_model();
    let server = unpriced(&upstream);
    let unknown = chain("Other", &[agent("a", "mine", "new-model-2", "x")]);
    server.run(server.save(&two_nodes()), &json!({"topic": "ants"}));
    let missing = |query: &str| server.get(&format!("/api/prices/missing{query}"));
    let listed = missing("").json();
    let item = &listed["items"][0];
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!((&item["provider"], &item["model"]), (&json!("mine"), &json!("new-model-1")));
    assert_eq!((&item["calls"], &item["input_tokens"]), (&json!(2), &json!(2_000)));
    assert_eq!((&item["output_tokens"], &listed["next"]), (&json!(200), &Value::Null));
    assert!(item["last_seen"].as_str().unwrap().starts_with("20"), "{item}");
    // The upstream answers as `new-model-1`, so the calls of both requested models are one item.
    server.run(server.save(&unknown), &json!({}));
    assert_eq!(missing("").json()["items"][0]["calls"], 3);
    assert_eq!(missing("?limit=0").status, 422);
    assert_eq!(server.request("POST", "/api/prices/missing", &[], b"").status, 405);
}

#[test]
fn reprice_adds_costs_beside_unchanged_rows() {
    let upstream = new_model();
    let mut server = unpriced(&upstream);
    let budget =
        json!({"budgets": [{"name": "all", "per": "month", "limitUsd": "1", "hard": false}]});
    server.request("PUT", "/api/budget", &[], budget.to_string().as_bytes());
    let used = |server: &TestServer| {
        server.get("/api/budget").json()["budgets"][0]["state"]["used"].clone()
    };
    let used_before = used(&server);
    let home = Home::new();
    let config = format!(
        "[providers.mine]\nkind = 'openai'\nbase_url = '{}'\napi_key = 'k'\n",
        upstream.url()
    );
    let config = home.write("flowledger.toml", config);
    let prices = home.write(
        "mine.toml",
        "[[price]]\nprovider = 'mine'\nmodel = 'new-model-1'\ninput_per_mtok = '2'\noutput_per_mtok = '5'",
    );
    let data = server.data().to_owned();
    let reprice = |more: &[&str]| {
        let [data, config, prices] = [&data, &config, &prices].map(|path| path.to_str().unwrap());
        let args = ["reprice", "--data", data, "--config", config, "--prices", prices];
        home.run(&[&args, more].concat())
    };
    let since = ["--from", "2020-01-01"];
    let dry = reprice(&["--from", "2020-01-01", "--dry-run"]);
    assert_eq!(dry.code, Some(0), "{dry:?}");
    let shown = "2 calls, $0.005: would be corrected; nothing was written.";
    assert!(dry.stdout.contains(shown) && dry.stdout.contains("mine.toml"), "{dry:?}");
    let busy = reprice(&since);
    assert_eq!(busy.code, Some(2), "{busy:?}");
    assert!(busy.stderr.contains("is in use by another flowledger"), "{busy:?}");
    assert_eq!(server.get("/api/ledger/summary").json()["total"]["corrected_calls"], 0);

    server.stop();
    let later = reprice(&["--from", "2100-01-01"]);
    assert!(later.stdout.contains("No calls of unknown price"), "{later:?}");
    let done = reprice(&since);
    assert!(done.stdout.contains("2 calls, $0.005: corrected."), "{done:?}");
    let again = reprice(&since);
    assert!(again.stdout.contains("No calls of unknown price"), "{again:?}");
    let ledger = home.run(&["ledger", "--data", data.to_str().unwrap()]);
    assert!(ledger.stdout.contains("$0.0025 (corrected)"), "{ledger:?}");
    let verified = home.run(&["verify", "--data", data.to_str().unwrap()]);
    assert!(verified.stdout.contains("corrections: 2, ok"), "{verified:?}");
    for (column, value, fault) in [
        ("cost_nanousd", 5, "the cost is 0.000000005 USD, but 0.0025 USD according to its price"),
        ("price_id", 99, "the price is missing"),
    ] {
        let db = rusqlite::Connection::open(data.join("flowledger.db")).unwrap();
        let sql = format!("SELECT {column} FROM corrections WHERE ledger_id = 1");
        let before: i64 = db.query_row(&sql, [], |row| row.get(0)).unwrap();
        let set = format!("UPDATE corrections SET {column} = ?1 WHERE ledger_id = 1");
        db.execute(&set, [value]).unwrap();
        let verified = home.run(&["verify", "--data", data.to_str().unwrap()]);
        assert_eq!(verified.code, Some(1), "{verified:?}");
        assert!(verified.stdout.contains(fault), "{verified:?}");
        db.execute(&set, [before]).unwrap();
    }

    server.start_again();
    for row in rows(&server) {
        assert_eq!(row["total_cost_usd"], Value::Null);
        assert_eq!(row["corrected_cost_usd"], json!(0.0025));
    }
    for group in ["model", "day", "tag", "key"] {
        let summary = server.get(&format!("/api/ledger/summary?group_by={group}")).json();
        for sums in [&summary["total"], &summary["items"][0]] {
            assert_eq!(sums["corrected_cost_usd"], json!(0.005), "{group}");
            assert_eq!((&sums["corrected_calls"], &sums["calls"]), (&json!(2), &json!(2)));
            assert_eq!((&sums["unpriced_calls"], &sums["total_cost_usd"]), (&json!(2), &json!(0)));
        }
    }
    let other = server.get("/api/ledger/summary?provider=other").json();
    assert_eq!(other["total"]["corrected_calls"], 0);
    assert_eq!(used(&server), used_before);
}

const ENTRY: &str = "[[price]]\nprovider = 'ollama'\nmodel = 'llama3'\n";

#[test]
fn user_prices_reload_when_their_file_changes() {
    let home = Home::new();
    let config = home.write("flowledger.toml", "prices = 'mine.toml'");
    home.write("mine.toml", format!("{ENTRY}input_per_mtok = '0.5'"));
    let mut command = home.serve();
    command.args(["--config", config.to_str().unwrap()]);
    let mut server = Served::start(&mut command);
    let price = |server: &Served| server.get("/api/prices?provider=ollama&model=llama3");
    let first = price(&server);
    assert_eq!(first["source"], "mine.toml");
    assert_eq!(first["usd_per_mtok"]["input"], json!(0.5));
    home.write("mine.toml", format!("{ENTRY}input_per_mtok = '0.75'"));
    eventually("the new price counts", || price(&server)["usd_per_mtok"]["input"] == json!(0.75));
    home.write("mine.toml", format!("{ENTRY}input_per_mtok = 1.5"));
    // The file is checked when a price is needed, but at most every few seconds.
    eventually("the fault is logged", || {
        assert_eq!(price(&server)["usd_per_mtok"]["input"], json!(0.75));
        server.running.has_logged("mine.toml: line 4: ")
    });
}

#[test]
fn an_invalid_price_file_stops_the_start_and_names_its_line() {
    let home = Home::new();
    home.write("mine.toml", format!("{ENTRY}input_per_mtok = 'much'"));
    for (file, part) in [("mine.toml", "mine.toml: line 4: `much`"), ("none.toml", "none.toml")] {
        let mut command = home.serve();
        command.args(["--prices", file]);
        let ended = crate::binary::Running::start(&mut command).end();
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(part), "{ended:?}");
        assert!(!home.data().exists());
    }
}
