//! `flowledger verify` finds every change made outside flowledger, and nothing else.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, bounded};
use flowledger::providers::Kind;
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use crate::binary::{Ended, Home};
use crate::harness::{DEADLINE, TestServer, add_provider, agent, chain, eventually, two_nodes};
use crate::upstream::{Upstream, completion, json_answer};

fn verify(data: &Path) -> Ended {
    Home::new().run(&["verify", "--data", data.to_str().unwrap()])
}

/// A database with a run of two calls (one with a retry), a failed run, a map, and free calls.
fn varied() -> (TestServer, Upstream) {
    let has_failed = AtomicBool::new(false);
    let upstream = Upstream::start(move |body, stream| {
        let answer = if body.contains("refused") {
            json_answer("402 Payment Required", r#"{"error":{"message":"no"}}"#)
        } else if body.contains("flaky") && !has_failed.swap(true, Ordering::SeqCst) {
            json_answer("429 Too Many Requests", r#"{"error":{"message":"no"}}"#)
        } else {
            completion("well", 1_001, 7)
        };
        drop(std::io::Write::write_all(stream, answer.as_bytes()));
    });
    let mut server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let paid = |id: &str, prompt: &str| {
        let mut node = agent(id, "openai", "gpt-4o-mini", prompt);
        node["data"]["stream"] = json!(false);
        node["data"]["retry"] = json!({"attempts": 2, "backoffMs": 1});
        node
    };
    let map = json!({"id": "m", "type": "map", "data": {"provider": "openai", "model": "gpt-4o-mini",
        "items": "range(3) | list", "prompt": "{{ item }}", "atOnce": 3, "stream": false}});
    for flow in [
        chain("Two", &[paid("a", "first"), paid("b", "flaky")]),
        chain("Fails", &[paid("a", "first"), paid("b", "refused")]),
        chain("Map", &[map]),
        two_nodes(),
    ] {
        server.run(server.save(&flow), &json!({"topic": "ants"}));
    }
    server.stop();
    // Leaves a single file without a WAL.
    let connection = Connection::open(server.data().join("flowledger.db")).unwrap();
    let mode: String = connection
        .pragma_update_and_check(None, "wal_checkpoint", "TRUNCATE", |row| {
            row.get(2).map(|n: i64| n.to_string())
        })
        .unwrap();
    assert_eq!(mode, "0");
    (server, upstream)
}

#[test]
fn an_untouched_database_has_no_discrepancy() {
    let (server, _upstream) = varied();
    let ended = verify(server.data());
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{ended:?}");
    for line in [
        "ledger rows: 10, ok",
        "recomputed costs: 6, ok",
        "runs: 4, ok",
        "nodes: 7, ok",
        "ledger rows in the event log: 10, ok",
        "No discrepancies",
    ] {
        assert!(ended.stdout.contains(line), "{line}: {}", ended.stdout);
    }
}

#[test]
fn every_external_change_is_reported_with_both_values() {
    let (server, _upstream) = varied();
    let last = "(SELECT max(id) FROM ledger)";
    let run = "(SELECT min(id) FROM runs)";
    let deleted_last = format!("DELETE FROM ledger WHERE id = {last}");
    let deleted_run = format!("DELETE FROM runs WHERE id = {run}");
    let unfinished = format!("UPDATE runs SET finished_ms = NULL WHERE id = {run}");
    let node_gone = format!("DELETE FROM run_nodes WHERE run_id = {run} AND node_id = 'b'");
    let node_runs =
        format!("UPDATE run_nodes SET status = 'RUNNING' WHERE run_id = {run} AND node_id = 'b'");
    let node_sum =
        format!("UPDATE run_nodes SET input_tokens = 9 WHERE run_id = {run} AND node_id = 'a'");
    let tampered: &[(&str, &[&str])] = &[
        (
            "UPDATE ledger SET cost_nanousd = cost_nanousd + 1 WHERE id = 1",
            &[
                "ledger row 1: the cost is 0.000154351 USD, but 0.00015435 USD according to price 1",
                ": stored 2002 tokens in, 14 out, 0.0003087 USD, but its 3 ledger rows sum to 2002 tokens in, 14 out, 0.000308701 USD",
                "node a: stored 1001 tokens in, 7 out, 0.00015435 USD, but its ledger rows sum to 1001 tokens in, 7 out, 0.000154351 USD",
                "has total_cost_usd: 0.00015435, but the row has total_cost_usd: 0.000154351",
            ],
        ),
        (
            "UPDATE ledger SET output_tokens = 8 WHERE id = 1",
            &["ledger row 1: the cost is"],
        ),
        (
            "UPDATE ledger SET input_tokens = -1 WHERE id = 1",
            &["ledger row 1: a token count is negative"],
        ),
        (
            "UPDATE ledger SET timestamp_ms = 9223372036854775807 WHERE id = 1",
            &[" has timestamp: \"2"],
        ),
        (
            "DELETE FROM ledger WHERE id = 2",
            &["ledger row 2 is missing", "but event"],
        ),
        (
            "DELETE FROM ledger WHERE id IN (2, 3)",
            &["ledger rows 2 to 3 are missing"],
        ),
        (
            &deleted_last,
            &["the newest ledger row is 9, but id 10 was assigned"],
        ),
        (
            "UPDATE ledger SET status = 'PENDING', cost_nanousd = NULL WHERE id = 1",
            &[
                "ledger row 1: invalid values of a pending call: status PENDING, tokens [1001, ",
                "1 rows are PENDING",
            ],
        ),
        (
            "UPDATE ledger SET status = 'DONE' WHERE id = 1",
            &["ledger row 1: unknown status `DONE`"],
        ),
        (
            "UPDATE ledger SET refused = 'budget' WHERE id = 1",
            &["ledger row 1: invalid values of a call refused by a budget: status SUCCESS"],
        ),
        (
            "UPDATE ledger SET price_id = NULL WHERE id = 1",
            &["ledger row 1: the cost is 0.00015435 USD, but the price is missing"],
        ),
        (
            "UPDATE ledger SET price_id = NULL, cost_nanousd = 0 WHERE id = 1",
            &["ledger row 1: the cost is 0 USD, but the price is missing"],
        ),
        (
            "UPDATE ledger SET price_id = NULL, cost_nanousd = 0, reserved_tokens = NULL
             WHERE id = (SELECT max(id) FROM ledger WHERE cost_nanousd > 0)",
            &["the cost is 0 USD, but the price is missing"],
        ),
        (
            "UPDATE ledger SET usage_source = 'foo' WHERE id = 1",
            &["ledger row 1: usage source: unknown value `foo`; expected one of provider, estimated, none"],
        ),
        (
            "UPDATE ledger SET usage_source = 'none' WHERE id = 1",
            &["ledger row 1: has tokens without a usage source: [1001, "],
        ),
        (
            "UPDATE ledger SET cached_input_tokens = 1000, cache_write_tokens = 2, cost_nanousd = NULL,
                price_id = NULL WHERE id = 1",
            &["ledger row 1: a token count exceeds the count that includes it: [1001, 1000, 2, 0, 7, 0]"],
        ),
        (
            "UPDATE ledger SET cache_write_1h_tokens = 1 WHERE id = 1",
            &["ledger row 1: a token count exceeds the count that includes it"],
        ),
        (
            "UPDATE ledger SET reasoning_tokens = 8 WHERE id = 1",
            &["ledger row 1: a token count exceeds the count that includes it"],
        ),
        (
            "UPDATE ledger SET saved_nanousd = 5 WHERE id = 1",
            &["ledger row 1: invalid values of an uncached call: ", "saved 0.000000005 USD"],
        ),
        (
            "UPDATE ledger SET cached = 1 WHERE id = 1",
            &["ledger row 1: invalid values of a cached response: status SUCCESS, tokens [1001, "],
        ),
        (
            "UPDATE ledger SET refused = 'me' WHERE id = 1",
            &["ledger row 1: refused by: unknown value `me`; expected one of budget"],
        ),
        (
            "INSERT INTO corrections VALUES (1, 0, 1, 5)",
            &["correction of ledger row 1: the row has a cost or unknown tokens"],
        ),
        (
            "INSERT INTO corrections VALUES (99, 0, 1, 5)",
            &["correction of ledger row 99: the row is missing"],
        ),
        (
            "UPDATE ledger SET price_id = 99 WHERE id = 1",
            &["ledger row 1: price 99 is missing"],
        ),
        (
            "UPDATE ledger SET cost_nanousd = NULL WHERE id = 1",
            &["ledger row 1: has price 1, but unknown cost"],
        ),
        (
            "UPDATE ledger SET latency_ms = 77777 WHERE id = 1",
            &["but the row has latency_ms: 77777"],
        ),
        (
            "UPDATE prices SET price = '{}'",
            &["cannot read price 1: missing field"],
        ),
        (
            "UPDATE prices SET price = replace(price, '\"input\":150000', '\"input\":150001')",
            &["ledger row 1: the cost is 0.00015435 USD, but 0.000154351 USD according to price 1"],
        ),
        (
            "UPDATE runs SET cost_nanousd = 5 WHERE status = 'FAILED'",
            &["stored 1001 tokens in, 7 out, 0.000000005 USD"],
        ),
        (
            "UPDATE runs SET status = 'OVER' WHERE status = 'FAILED'",
            &["unknown status `OVER`"],
        ),
        (&unfinished, &["is COMPLETED, but has no end time"]),
        (
            &deleted_run,
            &["is missing, but it has 2 nodes and 0 items"],
        ),
        ("DELETE FROM graphs", &["the graph is missing"]),
        (
            &node_gone,
            &[
                "but 1 of its 2 nodes have started",
                "node b: has ledger rows, but never started",
            ],
        ),
        (&node_runs, &["node b: is RUNNING, but its run is COMPLETED"]),
        (&node_sum, &["node a: stored 9 tokens in"]),
        (
            "UPDATE run_items SET status = 'RUNNING' WHERE item = 1",
            &["1 map items are RUNNING"],
        ),
        ("DELETE FROM events WHERE seq = 5", &["event 5 is missing"]),
        (
            "DELETE FROM events WHERE seq IN (5, 6)",
            &["events 5 to 6 are missing"],
        ),
        (
            "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)",
            &["the newest event is", "later events are missing"],
        ),
        (
            "UPDATE events SET type = 'OTHER' WHERE body LIKE '%\"entry\":{\"id\":1,%'",
            &["1 ledger rows have no event, although the log is complete"],
        ),
        (
            "INSERT INTO ledger_days SELECT 7, NULL, '', '', NULL, '', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0",
            &[
                "totals of 1970-01-08,  of /: stored [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], computed from the ledger rows none",
            ],
        ),
        (
            "INSERT INTO ledger_summed VALUES (1, 99999)",
            &[
                "SUCCESS of openai/gpt-4o-mini in flow ",
                " as tester: stored none, computed from the ledger rows [2, 0, 0, 2002, 0, 0, 14, 0, 308700, 0, 0, 0, 0, 0, 0, 0]",
            ],
        ),
        (
            "INSERT INTO ledger_blocks VALUES (0, 1, 2, x'')",
            &["the index entry of ledger rows 0 to 127 is wrong"],
        ),
        (
            "UPDATE events SET body = '{}' WHERE type = 'LEDGER_UPDATE'",
            &["has no valid ledger row: {}"],
        ),
    ];
    for (sql, parts) in tampered {
        let (copy, connection) = copy(server.data());
        assert!(connection.execute(sql, []).unwrap() > 0, "{sql}");
        drop(connection);
        let ended = verify(copy.path());
        assert_eq!(ended.code, Some(1), "{sql}: {ended:?}");
        for part in *parts {
            assert!(ended.stdout.contains(part), "{sql}: `{part}`: {}", ended.stdout);
        }
    }
}

/// Returns a copy of the database in `data`, and a connection to it.
fn copy(data: &Path) -> (TempDir, Connection) {
    let copy = tempfile::tempdir().unwrap();
    let database = copy.path().join("flowledger.db");
    std::fs::copy(data.join("flowledger.db"), &database).unwrap();
    let connection = Connection::open(&database).unwrap();
    (copy, connection)
}

#[test]
fn daily_sums_are_compared_by_name() {
    let (server, _upstream) = varied();
    let (summed, connection) = copy(server.data());
    let names = "timestamp_ms / 86400000, flow_id, provider, model_used, agent_role, status";
    connection
        .execute_batch(&format!(
            "INSERT INTO ledger_summed VALUES (1, 99999);
             INSERT INTO ledger_days SELECT {names}, count(*),
                sum(cost_nanousd IS NULL AND usage_source != 'none'),
                sum(usage_source = 'estimated'), sum(input_tokens), sum(cached_input_tokens),
                sum(cache_write_tokens), sum(output_tokens), sum(reasoning_tokens),
                sum(coalesce(cost_nanousd, 0)), sum(cached), sum(coalesce(saved_nanousd, 0)),
                sum(cost_nanousd IS NULL AND usage_source = 'none'), 0, 0, 0, 0
             FROM ledger GROUP BY {names};
             INSERT INTO budget_days (day, flow_id, provider, model, key_name, nanousd, tokens,
                    held_nanousd, held_tokens)
                SELECT timestamp_ms / 86400000, flow_id, provider,
                coalesce(model_asked, model_used), key_name,
                sum(coalesce(cost_nanousd, reserved_nanousd, 0)),
                sum(CASE WHEN usage_source != 'none' THEN input_tokens + output_tokens
                    WHEN cost_nanousd = 0 THEN 0 ELSE coalesce(reserved_tokens, 0) END),
                sum(CASE WHEN cost_nanousd IS NULL THEN coalesce(reserved_nanousd, 0) ELSE 0 END),
                sum(CASE WHEN usage_source != 'none' OR cost_nanousd = 0 THEN 0
                    ELSE coalesce(reserved_tokens, 0) END)
             FROM ledger GROUP BY 1, 2, 3, 4, 5;"
        ))
        .unwrap();
    drop(connection);
    let ended = verify(summed.path());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for change in [
        "tokens = tokens + 1",
        "nanousd = 7",
        "held_nanousd = 7",
        "held_tokens = held_tokens + 1",
        "provider = 'other'",
        "day = 7",
    ] {
        let (changed, connection) = copy(summed.path());
        let sql = format!("UPDATE budget_days SET {change} WHERE provider = 'echo'");
        assert!(connection.execute(&sql, []).unwrap() > 0);
        drop(connection);
        let ended = verify(changed.path());
        assert_eq!(ended.code, Some(1), "{sql}: {ended:?}");
        let message = "budget totals of ";
        assert!(ended.stdout.contains(message), "{sql}: {}", ended.stdout);
    }
    for change in [
        "day = 7",
        "flow_id = 99",
        "provider = 'other'",
        "model_used = 'other'",
        "agent_role = 'other'",
        "agent_role = NULL",
        "status = 'CANCELLED'",
    ] {
        let (changed, connection) = copy(summed.path());
        let sql = format!("UPDATE ledger_days SET {change} WHERE provider = 'echo'");
        assert!(connection.execute(&sql, []).unwrap() > 0);
        drop(connection);
        let ended = verify(changed.path());
        assert_eq!(ended.code, Some(1), "{sql}: {ended:?}");
        for part in [
            "of echo/echo-1 in flow ",
            "stored none, computed from the ledger rows [2, 0, 0, ",
            ", computed from the ledger rows none",
        ] {
            assert!(ended.stdout.contains(part), "{sql}: {part}: {}", ended.stdout);
        }
    }
}

#[test]
fn many_discrepancies_are_summarized_by_count() {
    let (mut server, _upstream) = varied();
    server.leave_unverified();
    let connection = Connection::open(server.data().join("flowledger.db")).unwrap();
    connection
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)
             INSERT INTO ledger (timestamp_ms, attempt, operation_id, provider, model_used,
                prompt_hash, status) SELECT i, 1, '', '', '', '', 'DONE' FROM n",
        )
        .unwrap();
    let ended = verify(server.data());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("error: and 1,150 more"), "{}", ended.stdout);
    assert!(ended.stdout.contains("ledger rows: 1,210, 1,200 errors"), "{}", ended.stdout);
    assert!(ended.stdout.lines().count() < 100);
}

/// A server with calls that its provider answers once the sender is dropped.
fn with_calls_in_flight(count: usize) -> (TestServer, Upstream, Sender<()>) {
    let (release, released) = bounded::<()>(0);
    let upstream = Upstream::start(move |_, _| {
        let _ = released.recv_timeout(DEADLINE);
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let flow = server.save(&chain("One", &[agent("a", "openai", "gpt-4o-mini", "x")]));
    for _ in 0..count {
        server.execute(flow, &json!({}));
    }
    eventually("the calls are made", || upstream.count() == count);
    (server, upstream, release)
}

#[test]
fn an_open_call_is_no_discrepancy_while_a_server_runs() {
    let (server, _upstream, release) = with_calls_in_flight(1);
    let ended = verify(server.data());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in ["in use by a running flowledger", "note: 1 calls in flight", "note: 1 open runs"] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    drop(release);
}

#[test]
fn pending_calls_of_a_copy_are_no_discrepancy() {
    let (server, _upstream, release) = with_calls_in_flight(2);
    let copy = tempfile::tempdir().unwrap();
    let database = copy.path().join("flowledger.db");
    // A consistent copy of a database in use, like `.backup`.
    let connection = Connection::open(server.data().join("flowledger.db")).unwrap();
    connection.execute("VACUUM INTO ?1", [database.to_str().unwrap()]).unwrap();
    let ended = verify(copy.path());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("note: 2 rows are PENDING"), "{}", ended.stdout);
    // A status that was changed outside is still found, by its event.
    let connection = Connection::open(&database).unwrap();
    let sql = "UPDATE ledger SET status = 'UNKNOWN' WHERE id = 1";
    assert_eq!(connection.execute(sql, []).unwrap(), 1);
    drop(connection);
    let ended = verify(copy.path());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    drop(release);
}

#[test]
fn databases_of_other_versions_are_refused() {
    let (server, _upstream) = varied();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flowledger.db");
    let refused = |part: &str| {
        let ended = verify(dir.path());
        assert_eq!((ended.code, &*ended.stdout), (Some(2), ""), "{ended:?}");
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    };
    refused("file not found");
    std::fs::write(&path, "no database at all, but long enough to be read as one".repeat(99))
        .unwrap();
    refused("not a database");
    std::fs::copy(server.data().join("flowledger.db"), &path).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    drop(connection);
    refused("has schema version 1");
}
