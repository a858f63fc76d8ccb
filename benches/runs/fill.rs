//! A database that already has many runs.

use std::path::Path;

use rusqlite::{Connection, params};

/// The server's own limit.
const EVENTS_MAX: u64 = 1_000_000;
/// Rows per statement, which bounds its memory.
const STEP: u64 = 10_000;

/// The run number `n` counts backwards in time: run 1 started a second ago.
const NUMBERS: &str = "WITH RECURSIVE numbers (n) AS
    (SELECT ?2 UNION ALL SELECT n - 1 FROM numbers WHERE n > ?1 + 1)";

fn open(dir: &Path) -> Connection {
    Connection::open(dir.join("data/flowledger.db")).unwrap()
}

/// Size of the database with its log.
pub fn size(dir: &Path) -> u64 {
    let pages: u64 = open(dir).pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    pages * 4_096
}

/// Copies the only run `count` times, each a second older than the next, with sortable ids as of
/// real runs, and with its nodes, ledger rows and events. Keeps no more events than the server
/// does. No server may have the database open.
pub fn fill(dir: &Path, count: u64) {
    let mut connection = open(dir);
    // A failed database is discarded.
    connection.pragma_update(None, "synchronous", "OFF").unwrap();
    connection.pragma_update(None, "cache_size", -64 << 10).unwrap();
    connection.pragma_update(None, "wal_autocheckpoint", 16_384).unwrap();
    let now_ms: i64 =
        connection.query_row("SELECT created_ms FROM runs", [], |row| row.get(0)).unwrap();
    // The events of the run; flows have events too.
    connection.execute("DELETE FROM events WHERE type = 'FLOW_CHANGED'", []).unwrap();
    let events_each: u64 =
        connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap();
    let made = "CREATE TEMP TABLE a_run AS SELECT * FROM runs;
        CREATE TEMP TABLE a_node AS SELECT * FROM run_nodes;
        CREATE TEMP TABLE a_call AS SELECT * FROM ledger ORDER BY id;
        CREATE TEMP TABLE an_event AS SELECT * FROM events ORDER BY seq;
        DELETE FROM runs; DELETE FROM run_nodes; DELETE FROM ledger; DELETE FROM events;";
    connection.execute_batch(made).unwrap();
    let mut last = count;
    while last > 0 {
        let first = last.saturating_sub(STEP);
        let transaction = connection.transaction().unwrap();
        let with_events = last * events_each <= EVENTS_MAX;
        for (sql, is_wanted) in [(RUNS, true), (NODES, true), (CALLS, true), (EVENTS, with_events)]
        {
            if is_wanted {
                let sql = format!("{NUMBERS} {}", sql.replace("RUN_ID", RUN_ID));
                transaction.execute(&sql, params![first, last, now_ms]).unwrap();
            }
        }
        transaction.commit().unwrap();
        last = first;
    }
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    connection.query_row(checkpoint, [], |_| Ok(())).unwrap();
}

/// A UUID of version 7 at that time.
const RUN_ID: &str = "substr(printf('%012x', ?3 - n * 1000), 1, 8) || '-' || substr(printf('%012x', ?3 - n * 1000), 9) || '-7000-8000-' || printf('%012x', n)";

const RUNS: &str = "INSERT INTO runs (id, flow_id, flow_name, graph_hash, trigger, input, status,
        created_ms, started_ms, finished_ms, error, error_node, input_tokens, output_tokens,
        cost_nanousd)
    SELECT RUN_ID, flow_id, flow_name, graph_hash, trigger, input, status, created_ms - n * 1000,
        started_ms - n * 1000, finished_ms - n * 1000, error, error_node, input_tokens,
        output_tokens, cost_nanousd
    FROM numbers, a_run";

const NODES: &str = "INSERT INTO run_nodes (run_id, node_id, status, attempt, started_ms,
        finished_ms, output, error, input_tokens, output_tokens, cost_nanousd, latency_ms, prompt,
        system)
    SELECT RUN_ID, node_id, status, attempt, started_ms - n * 1000, finished_ms - n * 1000, output,
        error, input_tokens, output_tokens, cost_nanousd, latency_ms, prompt, system
    FROM numbers, a_node";

const CALLS: &str = "INSERT INTO ledger (timestamp_ms, flow_id, run_id, node_id, attempt,
        operation_id, provider, model_used, agent_role, prompt_hash, input_tokens,
        cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, usage_source,
        cost_nanousd, latency_ms, status, error_message)
    SELECT timestamp_ms - n * 1000, flow_id, RUN_ID, node_id, attempt, RUN_ID || ':' || node_id,
        provider, model_used, agent_role, prompt_hash, input_tokens, cached_input_tokens,
        cache_write_tokens, output_tokens, reasoning_tokens, usage_source, cost_nanousd,
        latency_ms, status, error_message
    FROM numbers, a_call";

const EVENTS: &str = "INSERT INTO events (timestamp_ms, flow_id, type, body)
    SELECT ?3 - n * 1000, flow_id, type, body FROM numbers, an_event";
