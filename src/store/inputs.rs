//! Reading what nodes were asked, and what they answered.

use rusqlite::{Connection, OptionalExtension, params};

use super::Store;
use super::change::Prompt;
use super::sql::parsed;
use crate::error::Result;
use crate::event::{FlowId, RunId, Timestamp, Usage, Usd};

/// How many of a flow's newest runs are looked at.
const RUNS_MAX: usize = 200;
/// How many of their ledger rows are: a run may have very many.
const ROWS_MAX: usize = 50_000;

/// The newest runs of a flow that went well, of so many that are looked at.
const RUNS: &str = "SELECT id FROM (SELECT id, status FROM runs WHERE flow_id = ?1
        ORDER BY id DESC LIMIT ?2)
     WHERE status = 'COMPLETED' ORDER BY id DESC";
/// The calls of a run, the newest first; the last column says whether a target has answered a node.
const ROWS: &str = "SELECT operation_id, timestamp_ms, model_used, input_tokens,
        cached_input_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens,
        reasoning_tokens, usage_source, cost_nanousd, latency_ms,
        status = 'SUCCESS' AND NOT cached AND node_id IS ?2 AND provider = ?3
            AND coalesce(model_asked, model_used) = ?4
     FROM ledger WHERE run_id = ?1 ORDER BY id DESC LIMIT ?5";

/// What a node, or an item of a map, was asked in a run, and what it answered.
#[derive(Clone, Debug)]
pub struct StoredInput {
    /// The run.
    pub run_id: RunId,
    /// Of a map: which of its items, from 0.
    pub item: Option<usize>,
    /// When the call was about to leave that was answered.
    pub at: Timestamp,
    /// What was asked, as it was sent.
    pub prompt: Prompt,
    /// The answer.
    pub output: String,
    /// The model that answered.
    pub model: String,
    /// What that call used.
    pub usage: Usage,
    /// What it cost, where known.
    pub cost: Option<Usd>,
    /// Milliseconds.
    pub latency_ms: Option<u64>,
}

impl Store {
    /// Up to `limit` inputs of a node that this target has answered in runs that went well, the newest
    /// first. Looks at a flow's newest runs, [`RUNS_MAX`] of them.
    pub fn newest_inputs(
        &self,
        flow_id: FlowId,
        node_id: &str,
        provider: &str,
        model: &str,
        limit: usize,
    ) -> Result<Vec<StoredInput>> {
        self.read(|connection| {
            let snapshot = connection.unchecked_transaction()?;
            let runs: Vec<RunId> = snapshot
                .prepare_cached(RUNS)?
                .query_map(params![flow_id, RUNS_MAX], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut inputs: Vec<StoredInput> = Vec::new();
            let mut rows_left = ROWS_MAX;
            for run_id in runs {
                let operation = format!("{run_id}:{node_id}");
                let mut statement = snapshot.prepare_cached(ROWS)?;
                let mut rows =
                    statement.query(params![run_id, node_id, provider, model, rows_left])?;
                while let Some(row) = rows.next()? {
                    if inputs.len() >= limit {
                        return Ok(inputs);
                    }
                    rows_left = rows_left.saturating_sub(1);
                    if !row.get::<_, bool>(12)? {
                        continue;
                    }
                    let operation_id: String = row.get(0)?;
                    let Some(item) = item_of(&operation_id, &operation) else {
                        continue;
                    };
                    // What counts of several answers is the last.
                    if inputs
                        .iter()
                        .any(|it| it.run_id == run_id && it.item == item)
                    {
                        continue;
                    }
                    let Some((prompt, output)) = texts(&snapshot, &run_id, node_id, item)? else {
                        continue;
                    };
                    inputs.push(StoredInput {
                        run_id: run_id.clone(),
                        item,
                        at: Timestamp(row.get(1)?),
                        prompt,
                        output,
                        model: row.get(2)?,
                        usage: Usage {
                            input_tokens: row.get(3)?,
                            cached_input_tokens: row.get(4)?,
                            cache_write_tokens: row.get(5)?,
                            cache_write_1h_tokens: row.get(6)?,
                            output_tokens: row.get(7)?,
                            reasoning_tokens: row.get(8)?,
                            source: parsed(row, 9)?,
                        },
                        cost: row.get::<_, Option<i64>>(10)?.map(Usd::from_nanousd),
                        latency_ms: row.get(11)?,
                    });
                }
            }
            Ok(inputs)
        })
    }
}

/// Which item of a map an operation of that node was about; the inner one is none where it was about
/// the node itself, the outer where it was about neither.
fn item_of(operation_id: &str, of_node: &str) -> Option<Option<usize>> {
    match operation_id.strip_prefix(of_node)? {
        "" => Some(None),
        rest => {
            let item = rest.strip_prefix('[')?.strip_suffix(']')?;
            item.parse().ok().map(Some)
        }
    }
}

/// What was asked and answered, where it is there and went well.
fn texts(
    connection: &Connection,
    run_id: &str,
    node_id: &str,
    item: Option<usize>,
) -> Result<Option<(Prompt, String)>> {
    let mut statement = connection.prepare_cached(match item {
        None => {
            "SELECT prompt, system, output FROM run_nodes
             WHERE run_id = ?1 AND node_id = ?2 AND ?3 IS NULL AND status = 'COMPLETED'
                AND prompt IS NOT NULL AND output IS NOT NULL"
        }
        Some(_) => {
            "SELECT prompt, system, output FROM run_items
             WHERE run_id = ?1 AND node_id = ?2 AND item = ?3 AND status = 'COMPLETED'
                AND prompt IS NOT NULL AND output IS NOT NULL"
        }
    })?;
    let found = statement.query_row(params![run_id, node_id, item], |row| {
        let prompt = Prompt {
            prompt: row.get(0)?,
            system: row.get(1)?,
        };
        Ok((prompt, row.get(2)?))
    });
    Ok(found.optional()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_found_by_indexes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(dir.path()).unwrap();
        for (sql, index) in [(RUNS, "runs_by_flow"), (ROWS, "ledger_by_run")] {
            let plan: Vec<String> = store
                .read(|connection| {
                    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                    let count = statement.parameter_count();
                    let none = rusqlite::params_from_iter(vec![None::<i64>; count]);
                    let rows = statement.query_map(none, |row| row.get("detail"))?;
                    Ok(rows.collect::<rusqlite::Result<_>>()?)
                })
                .unwrap();
            let plan = plan.join("\n");
            assert!(
                plan.contains(index) && !plan.contains("SCAN runs"),
                "{plan}"
            );
            assert!(!plan.contains("SCAN ledger"), "{plan}");
        }
    }

    #[test]
    fn an_operation_of_a_node_names_its_item_where_it_is_about_one() {
        assert_eq!(item_of("r:n", "r:n"), Some(None));
        assert_eq!(item_of("r:n[12]", "r:n"), Some(Some(12)));
        assert_eq!(item_of("r:n2", "r:n"), None);
        assert_eq!(item_of("r:other", "r:n"), None);
    }
}
