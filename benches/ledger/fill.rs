//! A ledger of a million calls, as of a team after three months, and the cost of writing a call.

use std::path::Path;
use std::time::Duration;

use flowledger::budget::Reserve;
use flowledger::event::{Attribution, CallStatus, Charge, Usage, UsageSource};
use flowledger::money::Usd;
use flowledger::store::{Change, NewCall, Receipt, Settlement, Store};
use flowledger::time::Timestamp;
use rusqlite::{Connection, params};
use rustix::time::{ClockId, clock_gettime};

/// Rows per statement, which bounds its memory.
const STEP: u64 = 50_000;
/// Time span of the rows.
pub const DAYS: u64 = 90;
pub const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
/// Calls that are opened, and settled, in one transaction.
const BATCH: u64 = 16;

pub fn open(dir: &Path) -> Connection {
    Connection::open(dir.join("data/flowledger.db")).unwrap()
}

pub fn size(dir: &Path) -> u64 {
    let pages: u64 = open(dir).pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    pages * 4_096
}

/// Writes the rows: eight flows, four models of three providers, a model in one of 200 rows, a rare
/// model and a rare provider (one in 20,000). 97 % succeed; other statuses are one in 50,000,
/// except failures; gpt-5 has none. No server may have the database open.
pub fn fill(dir: &Path, count: u64, newest_ms: i64) {
    let mut connection = open(dir);
    // A failed database is discarded.
    connection.pragma_update(None, "synchronous", "OFF").unwrap();
    connection.pragma_update(None, "cache_size", -64 << 10).unwrap();
    for first in (0..count).step_by(STEP as usize) {
        let transaction = connection.transaction().unwrap();
        let each = DAYS as i64 * MS_PER_DAY / count as i64;
        let last = (first + STEP).min(count);
        transaction.execute(ROWS, params![first, last, newest_ms, each, count]).unwrap();
        transaction.commit().unwrap();
    }
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    connection.query_row(checkpoint, [], |_| Ok(())).unwrap();
}

/// `h` is a hash of `n`. Twelve consecutive calls belong to one run.
const ROWS: &str = "
WITH RECURSIVE numbers (n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?2 - 1),
mixed AS (SELECT n, (n * 2654435761 + (n >> 7) * 40503) % 1000003 AS h FROM numbers)
INSERT INTO ledger (timestamp_ms, flow_id, run_id, node_id, attempt, operation_id, provider,
    model_used, agent_role, prompt_hash, input_tokens, cached_input_tokens, cache_write_tokens,
    output_tokens, reasoning_tokens, usage_source, cost_nanousd, latency_ms, status, error_message,
    reserved_nanousd, reserved_tokens, key_name, session, end_user)
SELECT ?3 - (?5 - n) * ?4, (n / 12) % 8 + 1,
    printf('%08x-0000-7000-8000-%012x', n / 12, n / 12), 'node-' || (n % 12), 1,
    printf('%08x-0000-7000-8000-%012x:node-%d', n / 12, n / 12, n % 12),
    CASE WHEN h % 20000 = 7 THEN 'rare-provider' ELSE
        CASE h % 4 WHEN 0 THEN 'anthropic' WHEN 1 THEN 'gemini' ELSE 'openai' END END,
    CASE WHEN h % 20000 = 8 THEN 'rare-model' WHEN h % 200 = 150 THEN 'gpt-5-nano' ELSE
        CASE h % 4 WHEN 0 THEN 'claude-sonnet-4-5' WHEN 1 THEN 'gemini-2.5-flash'
            WHEN 2 THEN 'gpt-5-mini' ELSE 'gpt-5' END END,
    CASE h % 3 WHEN 0 THEN 'planner' WHEN 1 THEN 'writer' END, printf('%064x', h),
    200 + h % 3000, h % 100, 0, 50 + h % 900, h % 40, 'provider', 1000 + h % 900000, 300 + h % 4000,
    CASE WHEN h % 50000 = 9 THEN 'TIMEOUT' WHEN h % 50000 = 10 THEN 'UNKNOWN'
        WHEN h % 50000 = 11 THEN 'CANCELLED' WHEN h % 100 < 3 THEN 'FAILED' ELSE 'SUCCESS' END,
    CASE WHEN h % 100 < 3 THEN 'the provider answered with 503' END, 20000, 4000,
    CASE WHEN h % 20000 = 12 THEN 'rare-key' WHEN h % 3 = 0 THEN 'team-' || (h % 5) END,
    CASE WHEN h % 4 = 0 THEN 'session-' || (n / 50) END, CASE WHEN h % 4 = 0 THEN 'user-' || (h % 900) END
FROM mixed";

/// Changes to the indexes of the product, for comparison: as before the orders of the list.
pub const FORMER: &str = "DROP INDEX ledger_costs; DROP INDEX ledger_latencies;
    DROP INDEX ledger_inputs; DROP INDEX ledger_outputs; DROP INDEX ledger_by_key;";
/// An index for each filter in place of the blocks. Only settled calls have a final model and
/// status.
pub const ONE_FOR_EACH_FILTER: &str = "CREATE INDEX ledger_by_flow ON ledger (flow_id);
    CREATE INDEX ledger_by_provider ON ledger (provider);
    CREATE INDEX ledger_by_model ON ledger (model_used) WHERE status != 'PENDING';
    CREATE INDEX ledger_by_status ON ledger (status) WHERE status != 'PENDING';";

/// Cost of a call for the writer thread.
#[derive(Default)]
pub struct Cost {
    pub cpu: Duration,
    pub db_bytes: u64,
    pub disk_bytes: u64,
}

/// A database that the product's own writer fills, as the journal does.
pub struct Books {
    _store: Store,
    writer: flowledger::store::Writer,
    dir: tempfile::TempDir,
    written: u64,
    pub cost: Cost,
    notes_blocks: bool,
}

impl Books {
    /// Makes these changes to the indexes of the product.
    pub fn new(indexes: &str, notes_blocks: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(&dir.path().join("data")).unwrap();
        open(dir.path()).execute_batch(indexes).unwrap();
        Self { _store: store, writer, dir, written: 0, cost: Cost::default(), notes_blocks }
    }

    pub fn write(&mut self, count: u64) {
        let before = cpu_time();
        let (bytes, disk) = (size(self.dir.path()), disk_bytes());
        for _ in 0..count / BATCH {
            let opened: Vec<Change> = (0..BATCH).map(|at| self.call(self.written + at)).collect();
            let ids: Vec<i64> = self
                .writer
                .transaction(|batch| {
                    let receipts = opened.iter().map(|change| match batch.apply(change)?.receipt {
                        Receipt::Call(row) => Ok(row.id),
                        other => panic!("{other:?}"),
                    });
                    receipts.collect()
                })
                .unwrap();
            let settled: Vec<Change> = ids.iter().map(|&id| settled(id)).collect();
            self.writer
                .transaction(|batch| {
                    settled.iter().try_for_each(|change| batch.apply(change).map(drop))
                })
                .unwrap();
            self.written += BATCH;
        }
        while self.notes_blocks && self.writer.index_blocks(32).unwrap() == 32 {}
        self.cost.cpu += cpu_time() - before;
        self.cost.db_bytes += size(self.dir.path()) - bytes;
        self.cost.disk_bytes += disk_bytes() - disk;
    }

    fn call(&self, n: u64) -> Change {
        let run = n / 12;
        Change::OpenCall(NewCall {
            at: Timestamp(1_790_000_000_000 + n as i64),
            flow_id: Some((run % 8) as i64),
            run_id: Some(format!("{run:08x}-0000-7000-8000-{run:012x}")),
            node_id: Some(format!("node-{}", n % 12)),
            attempt: 1,
            operation_id: format!("{run:08x}-0000-7000-8000-{run:012x}:node-{}", n % 12),
            provider: ["openai", "anthropic", "gemini"][(n % 3) as usize].into(),
            model: ["gpt-5", "claude-sonnet-4-5", "gemini-2.5-flash"][(n % 3) as usize].into(),
            role: Some("writer".into()),
            prompt_hash: format!("{n:064x}"),
            key_name: None,
            tags: None,
            attribution: Attribution::default(),
            billing: None,
            looping: None,
            reserve: Reserve::default(),
            bounds: None,
        })
    }
}

/// Two of three calls were answered under the model's dated name.
fn settled(id: i64) -> Change {
    Change::SettleCall(Settlement {
        id,
        model: (id % 3 > 0).then(|| format!("model-{}-2026-11-01", id % 3)),
        usage: Usage {
            input_tokens: 700,
            output_tokens: 300,
            source: UsageSource::Provider,
            ..Usage::default()
        },
        charge: Charge { cost: Some(Usd::from_nanousd(40_000)), ..Charge::UNKNOWN },
        latency_ms: Some(900),
        first_token_ms: None,
        status: CallStatus::Success,
        error: None,
        at: Timestamp(1_790_000_000_000),
    })
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// Bytes that this process has caused to be written to disk.
fn disk_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find(|line| line.starts_with("write_bytes:"));
    line.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}
