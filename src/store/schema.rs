//! The schema as a list of migration steps. Steps are only appended.

use rusqlite::Connection;

use crate::error::{Error, Result};

/// Step N migrates a database from version N to version N + 1 (`PRAGMA user_version`).
const STEPS: &[&str] = &[
    "
CREATE TABLE flows (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT NOT NULL,
    document    TEXT NOT NULL,          -- JSON as it was posted
    origin      TEXT UNIQUE,            -- the file that `flowledger run` read it from
    created_ms  INTEGER NOT NULL,
    updated_ms  INTEGER NOT NULL
) STRICT;

-- A run keeps the graph as it was at its start; equal graphs are stored once.
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
    cost_nanousd  INTEGER DEFAULT 0     -- null: the price of a call is not known
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
-- What was asked, as it was sent; only agents have it.
ALTER TABLE run_nodes ADD COLUMN prompt TEXT;
ALTER TABLE run_nodes ADD COLUMN system TEXT;
CREATE INDEX runs_by_graph ON runs (graph_hash);
",
    "
CREATE TABLE hooks (
    flow_id     INTEGER PRIMARY KEY,
    slug        TEXT NOT NULL UNIQUE,   -- its name in the URL
    secret_hash TEXT NOT NULL,          -- SHA-256 of the secret
    created_ms  INTEGER NOT NULL,
    secret_ms   INTEGER NOT NULL        -- when the secret was made
) STRICT;

-- A delivery that came with a key, so that it is not run again when it is repeated.
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
    last_ms     INTEGER NOT NULL        -- nothing up to this moment is due any more
) STRICT;
",
    "
-- An item of a map node that has begun. What it cost is in the ledger, by its operation_id.
CREATE TABLE run_items (
    run_id      TEXT NOT NULL,
    node_id     TEXT NOT NULL,
    item        INTEGER NOT NULL,       -- its place in the list, from 0
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
ALTER TABLE ledger ADD COLUMN price_id INTEGER;         -- of prices
ALTER TABLE ledger ADD COLUMN cached INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN saved_nanousd INTEGER;    -- of a cached one: what it would have cost
ALTER TABLE ledger ADD COLUMN key_name TEXT;
ALTER TABLE ledger ADD COLUMN tags TEXT;

-- A price that calls were given, as it was then; equal ones are stored once.
CREATE TABLE prices (
    id          INTEGER PRIMARY KEY,
    price       TEXT NOT NULL UNIQUE    -- JSON
) STRICT;
",
    "
ALTER TABLE ledger ADD COLUMN model_asked TEXT;         -- where another one answered
-- What the call was expected to need at most; of one whose cost is not known, budgets count this.
ALTER TABLE ledger ADD COLUMN reserved_nanousd INTEGER;
ALTER TABLE ledger ADD COLUMN reserved_tokens INTEGER;

CREATE TABLE budgets (
    position    INTEGER PRIMARY KEY,
    budget      TEXT NOT NULL           -- JSON
) STRICT;
",
    "
-- Answers for nodes that want none bought twice.
CREATE TABLE answers (
    key         TEXT PRIMARY KEY,       -- SHA-256 of all that the answer depends on
    created_ms  INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,       -- of output
    model       TEXT NOT NULL,
    output      TEXT NOT NULL,
    cost_nanousd INTEGER
) STRICT;
CREATE INDEX answers_by_time ON answers (created_ms, bytes);
",
    "
-- Sums of the ledger by days of UTC and names; of days before ledger_summed.until_day.
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
    one         INTEGER PRIMARY KEY,    -- there is one row
    until_day   INTEGER NOT NULL
) STRICT;
",
    "
-- Keys of the gateway's clients. Budgets name a key by its name.
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
-- When somebody wanted it stopped; it may still have to wait for its calls.
ALTER TABLE runs ADD COLUMN cancel_ms INTEGER;
",
    "
-- Suggestions of the optimizer, and what became of them.
CREATE TABLE suggestions (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    key         TEXT NOT NULL,          -- kind and nodes: one of each is open in a flow at a time
    status      TEXT NOT NULL,
    flow_id     INTEGER NOT NULL,
    flow_name   TEXT NOT NULL,
    proposal    TEXT NOT NULL,          -- JSON
    created_ms  INTEGER NOT NULL,
    changed_ms  INTEGER NOT NULL,
    applied_ms  INTEGER,
    document_before TEXT,               -- of the flow, when it was applied
    document_after  TEXT,
    last_call   INTEGER,                -- the newest ledger row at that time
    realised    TEXT,                   -- JSON
    trial       TEXT,                   -- JSON
    -- How many runs that began since it was applied went well, and how long they took together.
    runs        INTEGER NOT NULL DEFAULT 0,
    runs_ms     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX suggestions_by_flow ON suggestions (flow_id, key);
CREATE UNIQUE INDEX suggestions_open ON suggestions (flow_id, key)
    WHERE status IN ('OPEN', 'DISMISSED');
",
    "
-- What did not let the call leave; null of all others, and of those before this column.
ALTER TABLE ledger ADD COLUMN refused TEXT;
",
    "
-- Of an answer to a client of the gateway, which is stored as it was sent.
ALTER TABLE answers ADD COLUMN content_type TEXT;
",
    "
-- Combinations of names that stand in ledger rows.
CREATE TABLE ledger_names (
    id          INTEGER PRIMARY KEY,
    flow_id     INTEGER,
    provider    TEXT NOT NULL,
    model_used  TEXT NOT NULL,
    status      TEXT NOT NULL
) STRICT;
CREATE INDEX ledger_names_by_model ON ledger_names (model_used, provider, status, flow_id);
-- What stands in each 128 ledger rows. It takes the place of indexes, which every call would pay for.
CREATE TABLE ledger_blocks (
    block       INTEGER PRIMARY KEY,    -- id / 128 of its rows
    first_ms    INTEGER,                -- the least timestamp_ms
    last_ms     INTEGER,
    names       BLOB                    -- of ledger_names, 8 bytes each; null: calls were under way
) STRICT;
CREATE INDEX ledger_blocks_open ON ledger_blocks (block) WHERE names IS NULL;
DROP INDEX ledger_by_flow;
",
    "
-- When a node was changed last: calls up to that ledger row tell nothing any more about what it concerned.
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
-- Which share of a budget viewers were told of last; the newest only.
CREATE TABLE budget_told (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    budget      TEXT NOT NULL,          -- its name
    whose       TEXT NOT NULL,          -- the moment at which the period began, or the run
    percent     INTEGER NOT NULL,
    UNIQUE (budget, whose)
) STRICT;
",
    "
-- What budgets count of a day's rows that they cannot tell apart; of the days of ledger_days.
CREATE TABLE budget_days (
    day         INTEGER NOT NULL,
    flow_id     INTEGER,
    provider    TEXT NOT NULL,
    model       TEXT NOT NULL,          -- the one that was asked
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
ALTER TABLE ledger ADD COLUMN cost_source TEXT;             -- null in earlier rows
ALTER TABLE ledger ADD COLUMN cost_note TEXT;
ALTER TABLE ledger ADD COLUMN price_cost_nanousd INTEGER;   -- by our own price
ALTER TABLE ledger ADD COLUMN provider_cost_nanousd INTEGER; -- as the response stated it

-- The sums of days distinguish unknown costs from unknown prices; they are computed again.
DELETE FROM ledger_days;
DELETE FROM budget_days;
DELETE FROM ledger_summed;
ALTER TABLE ledger_days ADD COLUMN unknown_cost INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger_days ADD COLUMN compared INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger_days ADD COLUMN compared_provider INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger_days ADD COLUMN compared_price INTEGER NOT NULL DEFAULT 0;
",
];

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
    for (at, step) in STEPS.iter().enumerate().skip(version) {
        let transaction = db.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", at + 1)?;
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
        db.pragma_update(None, "user_version", 999).unwrap();
        assert!(migrate(&mut db).unwrap_err().to_string().contains("newer"));
    }
}
