//! Reads prompts and answers of nodes.

use rusqlite::{Connection, params};

use super::Store;
use super::change::Prompt;
use super::sql::{FromRow, all, one};
use crate::error::Result;
use crate::event::Usage;
use crate::flow::Target;
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::time::Timestamp;

/// Limits how many of a flow's newest runs are searched.
const RUNS_MAX: usize = 200;
/// Limits the ledger rows that are read, because a run may have very many.
const ROWS_MAX: usize = 50_000;

/// Selects the completed runs among a flow's newest.
const RUNS: &str = "SELECT id FROM (SELECT id, status FROM runs WHERE flow_id = ?1
        ORDER BY id DESC LIMIT ?2)
     WHERE status = 'COMPLETED' ORDER BY id DESC";
/// Selects the calls of a run, newest first; the first column is true if the target answered
/// the node.
const ROWS: &str = "SELECT status = 'SUCCESS' AND NOT cached AND node_id IS ?2 AND provider = ?3
        AND coalesce(model_asked, model_used) = ?4, operation_id, timestamp_ms, model_used,
        cost_nanousd, latency_ms, input_tokens, cached_input_tokens, cache_write_tokens,
        cache_write_1h_tokens, output_tokens, reasoning_tokens, usage_source
     FROM ledger WHERE run_id = ?1 ORDER BY id DESC LIMIT ?5";

from_row!(Prompt; prompt, system);

/// The prompt and the answer of a node, or of an item of a map, in a run.
#[derive(Clone, Debug)]
pub struct StoredInput {
    pub run_id: RunId,
    /// The index of a map's item.
    pub item: Option<usize>,
    /// The start of the answered call.
    pub at: Timestamp,
    pub prompt: Prompt,
    pub output: String,
    pub model: String,
    pub usage: Usage,
    /// None if unknown.
    pub cost: Option<Usd>,
    pub latency_ms: Option<u64>,
}

impl Store {
    /// Returns up to `limit` inputs of a node that this target answered in completed runs, newest
    /// first. Searches the newest [`RUNS_MAX`] runs.
    pub fn newest_inputs(
        &self,
        flow_id: FlowId,
        node_id: &str,
        target: &Target,
        limit: usize,
    ) -> Result<Vec<StoredInput>> {
        self.read(|db| {
            let snapshot = db.unchecked_transaction()?;
            let runs: Vec<RunId> = all(&snapshot, RUNS, params![flow_id, RUNS_MAX])?;
            let mut inputs: Vec<StoredInput> = Vec::new();
            let mut rows_left = ROWS_MAX;
            let mut statement = snapshot.prepare_cached(ROWS)?;
            for run_id in runs {
                let operation = format!("{run_id}:{node_id}");
                let Target { provider, model } = target;
                let mut rows =
                    statement.query(params![run_id, node_id, provider, model, rows_left])?;
                while let Some(row) = rows.next()? {
                    if inputs.len() >= limit {
                        return Ok(inputs);
                    }
                    rows_left = rows_left.saturating_sub(1);
                    let operation_id: String = row.get(1)?;
                    let Some(item) = item_of(&operation_id, &operation) else {
                        continue;
                    };
                    // If there are several answers, the last one counts.
                    let mut newer = inputs.iter();
                    let is_outdated = newer.any(|it| it.run_id == run_id && it.item == item);
                    if is_outdated || !row.get::<_, bool>(0)? {
                        continue;
                    }
                    let Some((prompt, output)) = texts(&snapshot, &run_id, node_id, item)? else {
                        continue;
                    };
                    inputs.push(StoredInput {
                        run_id: run_id.clone(),
                        item,
                        at: row.get(2)?,
                        prompt,
                        output,
                        model: row.get(3)?,
                        usage: Usage::read(row, &mut 6)?,
                        cost: row.get(4)?,
                        latency_ms: row.get(5)?,
                    });
                }
            }
            Ok(inputs)
        })
    }
}

/// Returns the item that an operation refers to: the inner option is none for the node itself, the
/// outer one for another node.
fn item_of(operation_id: &str, of_node: &str) -> Option<Option<usize>> {
    match operation_id.strip_prefix(of_node)? {
        "" => Some(None),
        rest => {
            let item = rest.strip_prefix('[')?.strip_suffix(']')?;
            item.parse().ok().map(Some)
        }
    }
}

/// Returns the prompt and the output of a completed node or item.
fn texts(
    db: &Connection,
    run_id: &str,
    node_id: &str,
    item: Option<usize>,
) -> Result<Option<(Prompt, String)>> {
    const COLUMNS: &str = "SELECT prompt, system, output";
    const CONDITION: &str = "run_id = ?1 AND node_id = ?2 AND status = 'COMPLETED'
        AND prompt IS NOT NULL AND output IS NOT NULL";
    let sql = match item {
        None => format!("{COLUMNS} FROM run_nodes WHERE {CONDITION} AND ?3 IS NULL"),
        Some(_) => format!("{COLUMNS} FROM run_items WHERE {CONDITION} AND item = ?3"),
    };
    one(db, &sql, params![run_id, node_id, item])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_queries_use_only_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(dir.path()).unwrap();
        for (sql, index) in [(RUNS, "runs_by_flow"), (ROWS, "ledger_by_run")] {
            let plan: Vec<String> = store
                .read(|db| {
                    let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                    let count = statement.parameter_count();
                    let none = rusqlite::params_from_iter(vec![None::<i64>; count]);
                    let rows = statement.query_map(none, |row| row.get("detail"))?;
                    Ok(rows.collect::<rusqlite::Result<_>>()?)
                })
                .unwrap();
            let plan = plan.join("\n");
            assert!(plan.contains(index) && !plan.contains("SCAN runs"), "{plan}");
            assert!(!plan.contains("SCAN ledger"), "{plan}");
        }
    }

    #[test]
    fn an_operation_id_is_parsed_into_its_item() {
        assert_eq!(item_of("r:n", "r:n"), Some(None));
        assert_eq!(item_of("r:n[12]", "r:n"), Some(Some(12)));
        assert_eq!(item_of("r:n2", "r:n"), None);
        assert_eq!(item_of("r:other", "r:n"), None);
    }
}
