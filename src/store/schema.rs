//! The schema as a list of migration steps. Steps are only appended.

use rusqlite::Connection;

use crate::error::{Error, Result};

/// Step N migrates a database from version N to version N + 1 (`PRAGMA user_version`).
const STEPS: &[&str] = &[
    "
CREATE TABLE flows (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT NOT NULL,
    document    TEXT NOT NULL,          -- JSON, unchanged
    origin      TEXT UNIQUE,            -- the file that `flowledger run` saved it from
    created_ms  INTEGER NOT NULL,
    updated_ms  INTEGER NOT NULL
) STRICT;

-- The graph of a run at its start; equal graphs are stored once.
CREATE TABLE graphs (
    hash        TEXT PRIMARY KEY,       -- SHA-256 of data
    data        TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    id          TEXT PRIMARY KEY,       -- UUID v7: sorts by time
    flow_id     INTEGER NOT NULL,
    flow_name   TEXT NOT NULL,
    graph_hash  TEXT NOT NULL,
    trigger     TEXT NOT NULL,
    input       TEXT NOT NULL,          -- JSON
    status      TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    started_ms  INTEGER,
    finished_ms INTEGER,
    error       TEXT,
    error_node  TEXT,
    input_tokens  INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cost_nanousd  INTEGER DEFAULT 0     -- null: the cost of a call is unknown
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_by_flow ON runs (flow_id, id);
CREATE INDEX runs_open ON runs (id) WHERE status IN ('QUEUED', 'RUNNING');

CREATE TABLE run_nodes (
    run_id      TEXT NOT NULL,
    node_id     TEXT NOT NULL,
    status      TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    started_ms  INTEGER NOT NULL,
    finished_ms INTEGER,
    output      TEXT,
    error       TEXT,
    input_tokens  INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cost_nanousd  INTEGER,
    latency_ms  INTEGER,
    PRIMARY KEY (run_id, node_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    timestamp_ms  INTEGER NOT NULL,
    flow_id       INTEGER,
    run_id        TEXT,
    node_id       TEXT,
    attempt       INTEGER NOT NULL,
    operation_id  TEXT NOT NULL,
    provider      TEXT NOT NULL,
    model_used    TEXT NOT NULL,
    agent_role    TEXT,
    prompt_hash   TEXT NOT NULL,
    input_tokens        INTEGER NOT NULL DEFAULT 0,
    cached_input_tokens INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens  INTEGER NOT NULL DEFAULT 0,
    output_tokens       INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens    INTEGER NOT NULL DEFAULT 0,
    usage_source  TEXT NOT NULL DEFAULT 'none',
    cost_nanousd  INTEGER,
    latency_ms    INTEGER,
    status        TEXT NOT NULL,
    error_message TEXT
) STRICT;
CREATE INDEX ledger_by_flow ON ledger (flow_id, id);
CREATE INDEX ledger_by_run ON ledger (run_id, id);
CREATE INDEX ledger_by_time ON ledger (timestamp_ms);
CREATE INDEX ledger_pending ON ledger (id) WHERE status = 'PENDING';

CREATE TABLE events (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    timestamp_ms INTEGER NOT NULL,
    flow_id      INTEGER,
    type         TEXT NOT NULL,
    body         TEXT NOT NULL          -- the message without its seq
) STRICT;
",
    "
-- The rendered prompt, for agents only.
ALTER TABLE run_nodes ADD COLUMN prompt TEXT;
ALTER TABLE run_nodes ADD COLUMN system TEXT;
CREATE INDEX runs_by_graph ON runs (graph_hash);
",
    "
CREATE TABLE hooks (
    flow_id     INTEGER PRIMARY KEY,
    slug        TEXT NOT NULL UNIQUE,   -- part of the URL
    secret_hash TEXT NOT NULL,          -- SHA-256 of the secret
    created_ms  INTEGER NOT NULL,
    secret_ms   INTEGER NOT NULL        -- creation of the secret
) STRICT;

-- Idempotency keys of deliveries: a repeated delivery starts no second run.
CREATE TABLE hook_keys (
    slug        TEXT NOT NULL,
    key         TEXT NOT NULL,
    run_id      TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    PRIMARY KEY (slug, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX hook_keys_by_time ON hook_keys (created_ms);

CREATE TABLE schedules (
    flow_id     INTEGER PRIMARY KEY,
    cron        TEXT NOT NULL,
    timezone    TEXT NOT NULL,
    missed      TEXT NOT NULL,
    input       TEXT NOT NULL,          -- JSON
    enabled     INTEGER NOT NULL,
    updated_ms  INTEGER NOT NULL,
    last_ms     INTEGER NOT NULL        -- later times are due
) STRICT;
",
    "
-- A started item of a map node. Its calls are in the ledger, by operation_id.
CREATE TABLE run_items (
    run_id      TEXT NOT NULL,
    node_id     TEXT NOT NULL,
    item        INTEGER NOT NULL,       -- index in the list, from 0
    status      TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    started_ms  INTEGER NOT NULL,
    finished_ms INTEGER,
    prompt      TEXT,
    system      TEXT,
    output      TEXT,
    error       TEXT,
    latency_ms  INTEGER,
    PRIMARY KEY (run_id, node_id, item)
) STRICT, WITHOUT ROWID;
",
    "
ALTER TABLE ledger ADD COLUMN cache_write_1h_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN first_token_ms INTEGER;
ALTER TABLE ledger ADD COLUMN price_id INTEGER;         -- id in prices
ALTER TABLE ledger ADD COLUMN cached INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN saved_nanousd INTEGER;    -- cost that the response cache saved
ALTER TABLE ledger ADD COLUMN key_name TEXT;
ALTER TABLE ledger ADD COLUMN tags TEXT;

-- Prices of calls, as they were then; equal ones are stored once.
CREATE TABLE prices (
    id          INTEGER PRIMARY KEY,
    price       TEXT NOT NULL UNIQUE    -- JSON
) STRICT;
",
    "
ALTER TABLE ledger ADD COLUMN model_asked TEXT;         -- null if it is model_used
-- The maximum of the call, reserved before it. Budgets count it if the cost is unknown.
ALTER TABLE ledger ADD COLUMN reserved_nanousd INTEGER;
ALTER TABLE ledger ADD COLUMN reserved_tokens INTEGER;

CREATE TABLE budgets (
    position    INTEGER PRIMARY KEY,
    budget      TEXT NOT NULL           -- JSON
) STRICT;
",
    "
-- The response cache.
CREATE TABLE answers (
    key         TEXT PRIMARY KEY,       -- SHA-256 of everything that the response depends on
    created_ms  INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,       -- length of output
    model       TEXT NOT NULL,
    output      TEXT NOT NULL,
    cost_nanousd INTEGER
) STRICT;
CREATE INDEX answers_by_time ON answers (created_ms, bytes);
",
    "
-- Daily sums of the ledger (UTC), for days before ledger_summed.until_day.
CREATE TABLE ledger_days (
    day           INTEGER NOT NULL,     -- days since 1970-01-01
    flow_id       INTEGER,
    provider      TEXT NOT NULL,
    model_used    TEXT NOT NULL,
    agent_role    TEXT,
    status        TEXT NOT NULL,
    calls         INTEGER NOT NULL,
    unpriced      INTEGER NOT NULL,
    estimated     INTEGER NOT NULL,
    input_tokens        INTEGER NOT NULL,
    cached_input_tokens INTEGER NOT NULL,
    cache_write_tokens  INTEGER NOT NULL,
    output_tokens       INTEGER NOT NULL,
    reasoning_tokens    INTEGER NOT NULL,
    cost          INTEGER NOT NULL,     -- nano-dollars
    cached        INTEGER NOT NULL,
    saved         INTEGER NOT NULL      -- nano-dollars
) STRICT;
CREATE INDEX ledger_days_by_day ON ledger_days (day);
CREATE TABLE ledger_summed (
    one         INTEGER PRIMARY KEY,    -- a single row
    until_day   INTEGER NOT NULL
) STRICT;
",
    "
-- Virtual keys of the gateway. Budgets refer to the name.
CREATE TABLE keys (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT NOT NULL UNIQUE,
    hash        TEXT NOT NULL UNIQUE,   -- SHA-256 of the key
    created_ms  INTEGER NOT NULL,
    last_used_ms INTEGER,
    expires_ms  INTEGER
) STRICT;
",
    "
-- The time of a cancel request; the run may still wait for its calls.
ALTER TABLE runs ADD COLUMN cancel_ms INTEGER;
",
    "
-- Suggestions of the optimizer and their results.
CREATE TABLE suggestions (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    key         TEXT NOT NULL,          -- kind and nodes; at most one is open per flow
    status      TEXT NOT NULL,
    flow_id     INTEGER NOT NULL,
    flow_name   TEXT NOT NULL,
    proposal    TEXT NOT NULL,          -- JSON
    created_ms  INTEGER NOT NULL,
    changed_ms  INTEGER NOT NULL,
    applied_ms  INTEGER,
    document_before TEXT,               -- the flow's document when the suggestion was applied
    document_after  TEXT,
    last_call   INTEGER,                -- the newest ledger row when it was applied
    realised    TEXT,                   -- JSON
    trial       TEXT,                   -- JSON
    -- Number and total duration of successful runs since it was applied.
    runs        INTEGER NOT NULL DEFAULT 0,
    runs_ms     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX suggestions_by_flow ON suggestions (flow_id, key);
CREATE UNIQUE INDEX suggestions_open ON suggestions (flow_id, key)
    WHERE status IN ('OPEN', 'DISMISSED');
",
    "
-- What refused the call; null for other calls and for rows of earlier versions.
ALTER TABLE ledger ADD COLUMN refused TEXT;
",
    "
-- For responses to gateway clients, which are stored byte for byte.
ALTER TABLE answers ADD COLUMN content_type TEXT;
",
    "
-- Combinations of names in ledger rows.
CREATE TABLE ledger_names (
    id          INTEGER PRIMARY KEY,
    flow_id     INTEGER,
    provider    TEXT NOT NULL,
    model_used  TEXT NOT NULL,
    status      TEXT NOT NULL
) STRICT;
CREATE INDEX ledger_names_by_model ON ledger_names (model_used, provider, status, flow_id);
-- An index over blocks of 128 ledger rows. Ordinary indexes would cost time in every call.
CREATE TABLE ledger_blocks (
    block       INTEGER PRIMARY KEY,    -- id / 128
    first_ms    INTEGER,                -- the lowest timestamp_ms
    last_ms     INTEGER,
    names       BLOB                    -- ids in ledger_names, 8 bytes each; null: calls were pending
) STRICT;
CREATE INDEX ledger_blocks_open ON ledger_blocks (block) WHERE names IS NULL;
DROP INDEX ledger_by_flow;
",
    "
-- The last change of a node: earlier calls say nothing about what was changed.
CREATE TABLE node_changes (
    flow_id     INTEGER NOT NULL,
    node_id     TEXT NOT NULL,
    concern     TEXT NOT NULL,
    last_call   INTEGER NOT NULL,
    at_ms       INTEGER NOT NULL,
    PRIMARY KEY (flow_id, node_id, concern)
) STRICT, WITHOUT ROWID;
CREATE INDEX node_changes_by_call ON node_changes (last_call);
",
    "
-- The last warning of each budget.
CREATE TABLE budget_told (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    budget      TEXT NOT NULL,          -- name of the budget
    whose       TEXT NOT NULL,          -- start of the period, or the run
    percent     INTEGER NOT NULL,
    UNIQUE (budget, whose)
) STRICT;
",
    "
-- Daily use of budgets, by the names that budgets filter by; for the days of ledger_days.
CREATE TABLE budget_days (
    day         INTEGER NOT NULL,
    flow_id     INTEGER,
    provider    TEXT NOT NULL,
    model       TEXT NOT NULL,          -- the requested model
    key_name    TEXT,
    nanousd     INTEGER NOT NULL,
    tokens      INTEGER NOT NULL
) STRICT;
CREATE INDEX budget_days_by_day ON budget_days (day);
INSERT INTO budget_days
    SELECT timestamp_ms / 86400000, flow_id, provider, coalesce(model_asked, model_used), key_name,
        sum(coalesce(cost_nanousd, reserved_nanousd, 0)),
        sum(CASE WHEN usage_source != 'none' THEN input_tokens + output_tokens
            WHEN cost_nanousd = 0 THEN 0 ELSE coalesce(reserved_tokens, 0) END)
    FROM ledger WHERE timestamp_ms < (SELECT until_day * 86400000 FROM ledger_summed)
    GROUP BY 1, 2, 3, 4, 5;
",
    "
ALTER TABLE ledger ADD COLUMN cost_source TEXT;             -- null in rows of earlier versions
ALTER TABLE ledger ADD COLUMN cost_note TEXT;
ALTER TABLE ledger ADD COLUMN price_cost_nanousd INTEGER;   -- by our own price
ALTER TABLE ledger ADD COLUMN provider_cost_nanousd INTEGER; -- as stated by the response

-- Daily sums now distinguish unknown costs from unknown prices, so they are computed again.
DELETE FROM ledger_days;
DELETE FROM budget_days;
DELETE FROM ledger_summed;
ALTER TABLE ledger_days ADD COLUMN unknown_cost INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger_days ADD COLUMN compared INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger_days ADD COLUMN compared_provider INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger_days ADD COLUMN compared_price INTEGER NOT NULL DEFAULT 0;
",
    "
-- Costs of rows without one, by prices that were added later. The rows stay as they are.
CREATE TABLE corrections (
    ledger_id   INTEGER PRIMARY KEY,
    at_ms       INTEGER NOT NULL,
    price_id    INTEGER NOT NULL,       -- of prices
    cost_nanousd INTEGER NOT NULL
) STRICT;
",
    "
-- The flows that a key may name in its calls, as a JSON array; null for none.
ALTER TABLE keys ADD COLUMN flows TEXT;
",
    "
-- The starts on this database, see store/epochs.rs.
CREATE TABLE epochs (
    id          INTEGER PRIMARY KEY,
    epoch       TEXT NOT NULL,          -- random
    first_seq   INTEGER NOT NULL        -- its first event
) STRICT;
",
    "
-- Runs that continued after the server had ended unexpectedly; empty after a regular stop.
CREATE TABLE run_restarts (
    run_id      TEXT PRIMARY KEY,
    restarts    INTEGER NOT NULL,       -- weighted, since a node or an item was completed
    completed   INTEGER NOT NULL        -- nodes and items, at the last restart
) STRICT, WITHOUT ROWID;
",
    "
ALTER TABLE keys ADD COLUMN models TEXT;                -- patterns, as a JSON array; null for all
ALTER TABLE keys ADD COLUMN requests_per_minute INTEGER;
ALTER TABLE keys ADD COLUMN tokens_per_minute INTEGER;
ALTER TABLE keys ADD COLUMN revision INTEGER NOT NULL DEFAULT 0; -- of edits and rotations

-- The hashes that rotated keys had before.
CREATE TABLE former_keys (
    hash        TEXT PRIMARY KEY,
    key_id      INTEGER NOT NULL,
    valid_until_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX former_keys_by_key ON former_keys (key_id);
",
    "
-- The origin of a call of the gateway.
ALTER TABLE ledger ADD COLUMN client TEXT;
ALTER TABLE ledger ADD COLUMN session TEXT;
ALTER TABLE ledger ADD COLUMN end_user TEXT;
ALTER TABLE ledger ADD COLUMN project TEXT;
ALTER TABLE ledger ADD COLUMN billing TEXT;                 -- `subscription`; null for others
CREATE INDEX ledger_by_session ON ledger (session, id) WHERE session IS NOT NULL;
CREATE INDEX ledger_by_end_user ON ledger (end_user, id) WHERE end_user IS NOT NULL;

-- Budgets filter by more names, so daily sums are computed again.
DELETE FROM ledger_days;
DELETE FROM budget_days;
DELETE FROM ledger_summed;
ALTER TABLE ledger_days ADD COLUMN subscription_cost INTEGER NOT NULL DEFAULT 0; -- nano-dollars
ALTER TABLE budget_days ADD COLUMN tags TEXT;
ALTER TABLE budget_days ADD COLUMN client TEXT;
ALTER TABLE budget_days ADD COLUMN end_user TEXT;
ALTER TABLE budget_days ADD COLUMN project TEXT;
ALTER TABLE budget_days ADD COLUMN billing TEXT;

-- Random values of this database: the key of hashed end users.
CREATE TABLE secrets (
    name        TEXT PRIMARY KEY,
    value       TEXT NOT NULL
) STRICT, WITHOUT ROWID;
",
    "
-- Objects that providers store for clients, see store/stored_objects.rs.
CREATE TABLE stored_objects (
    kind        TEXT NOT NULL,
    id          TEXT NOT NULL,          -- the provider's
    owner       INTEGER NOT NULL,       -- id in keys; 0 for clients without a virtual key
    provider    TEXT NOT NULL,
    model       TEXT,                   -- the requested model
    created_ms  INTEGER NOT NULL,
    ledger_id   INTEGER,
    is_open     INTEGER NOT NULL,       -- its cost is booked later
    details     TEXT,                   -- JSON
    PRIMARY KEY (kind, id, owner)
) STRICT, WITHOUT ROWID;
CREATE INDEX stored_objects_by_time ON stored_objects (created_ms);
CREATE INDEX stored_objects_open ON stored_objects (created_ms) WHERE is_open;
",
    "
-- The part of a day's use that is only reserved, because the cost of its calls is unknown. Daily
-- sums are computed again.
DELETE FROM ledger_days;
DELETE FROM budget_days;
DELETE FROM ledger_summed;
ALTER TABLE budget_days ADD COLUMN held_nanousd INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget_days ADD COLUMN held_tokens INTEGER NOT NULL DEFAULT 0;
",
    "
-- The most tokens that a prompt of a model had for its bytes, see calls/prompt_size.rs.
CREATE TABLE prompt_densities (
    provider    TEXT NOT NULL,
    model       TEXT NOT NULL,          -- as requested
    per_million INTEGER NOT NULL,       -- tokens per million bytes
    PRIMARY KEY (provider, model)
) STRICT, WITHOUT ROWID;
",
    "
-- Orders of the list of runs; the second is their duration.
CREATE INDEX runs_by_cost ON runs (cost_nanousd, id) WHERE cost_nanousd IS NOT NULL;
CREATE INDEX runs_by_duration ON runs (finished_ms - coalesce(started_ms, created_ms), id)
    WHERE finished_ms - coalesce(started_ms, created_ms) IS NOT NULL;
",
    "
-- Requests and responses of clients' calls, if that is switched on; see store/bodies.rs.
CREATE TABLE bodies (
    ledger_id   INTEGER PRIMARY KEY,
    created_ms  INTEGER NOT NULL,
    end_user    TEXT,                   -- as in the row
    bytes       INTEGER NOT NULL,       -- stored
    request     BLOB,                   -- deflated text; null for other content
    request_bytes INTEGER NOT NULL,     -- as sent
    is_request_cut INTEGER NOT NULL,
    request_type TEXT,
    response    BLOB,
    response_bytes INTEGER NOT NULL,
    is_response_cut INTEGER NOT NULL,
    response_type TEXT
) STRICT;
CREATE INDEX bodies_by_time ON bodies (created_ms);
CREATE INDEX bodies_by_end_user ON bodies (end_user) WHERE end_user IS NOT NULL;
-- The sum of their bytes.
CREATE TABLE body_bytes (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    bytes       INTEGER NOT NULL
) STRICT;
INSERT INTO body_bytes (one, bytes) VALUES (1, 0);
CREATE TRIGGER body_added AFTER INSERT ON bodies BEGIN
    UPDATE body_bytes SET bytes = bytes + new.bytes;
END;
CREATE TRIGGER body_removed AFTER DELETE ON bodies BEGIN
    UPDATE body_bytes SET bytes = bytes - old.bytes;
END;
",
    "
CREATE INDEX ledger_by_key ON ledger (key_name) WHERE key_name IS NOT NULL;
-- Orders of the list of calls, in segments of 1,024 ids, see store/ledger_page.rs. Only settled calls
-- have values, so each call is written once.
CREATE INDEX ledger_costs ON ledger (id >> 10, cost_nanousd)
    WHERE cost_nanousd IS NOT NULL;
CREATE INDEX ledger_latencies ON ledger (id >> 10, latency_ms)
    WHERE latency_ms IS NOT NULL;
CREATE INDEX ledger_inputs ON ledger (id >> 10, input_tokens)
    WHERE usage_source != 'none';
CREATE INDEX ledger_outputs ON ledger (id >> 10, output_tokens)
    WHERE usage_source != 'none';
",
];

/// SQLite's mark of the program that owns a file: `flwl`. Databases of earlier versions have none.
const APPLICATION_ID: i32 = 0x666c_776c;

/// Returns whether the database is empty or ours. Only reads.
pub fn is_ours(db: &Connection) -> rusqlite::Result<bool> {
    let pragma = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = pragma("user_version")?;
    if pragma("application_id")? != 0 {
        return Ok(pragma("application_id")? == i64::from(APPLICATION_ID));
    }
    let sql = "SELECT count(*), count(*) FILTER (WHERE type = 'table' AND name IN
        ('flows', 'graphs', 'runs', 'run_nodes', 'ledger', 'events')) FROM sqlite_schema";
    let (all, ours): (i64, i64) = db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(if version == 0 { all == 0 } else { ours == 6 })
}

/// Returns the version of a migrated database.
pub fn version() -> usize {
    STEPS.len()
}

/// Migrates the database and returns its former version; 0 is a new one.
pub fn migrate(db: &mut Connection) -> Result<usize> {
    let version: usize = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > STEPS.len() {
        return Err(Error::Config(format!(
            "cannot open the database: it has schema version {version}, and this flowledger \
             supports {}; use a newer flowledger",
            STEPS.len()
        )));
    }
    if (1..STEPS.len()).contains(&version) {
        log::info!(
            "migrating the database from schema version {version} to {}; a million calls take a \
             few seconds",
            STEPS.len()
        );
    }
    for (at, step) in STEPS.iter().enumerate().skip(version) {
        let transaction = db.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", at + 1)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.commit()?;
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_migrated_once_and_a_newer_one_is_refused() {
        let mut db = Connection::open_in_memory().unwrap();
        assert_eq!(migrate(&mut db).unwrap(), 0);
        assert_eq!(migrate(&mut db).unwrap(), STEPS.len());
        assert!(is_ours(&db).unwrap());
        db.pragma_update(None, "application_id", 0).unwrap();
        assert!(is_ours(&db).unwrap(), "a database of an earlier version");
        db.pragma_update(None, "application_id", 7).unwrap();
        assert!(!is_ours(&db).unwrap());
        db.pragma_update(None, "user_version", 999).unwrap();
        assert!(migrate(&mut db).unwrap_err().to_string().contains("newer"));
    }
}
