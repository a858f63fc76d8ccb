//! Reading what the optimizer needs of ledger rows, in the order of their numbers, without keeping
//! them: a pass over a million rows is to be cheap.

use rusqlite::{Row, params};

use super::Store;
use super::ledger::parsed;
use crate::error::Result;
use crate::event::{CallStatus, FlowId, Timestamp, Usage, Usd};

/// What the optimizer looks at of a ledger row.
#[derive(Debug)]
pub struct CallFact<'a> {
    /// The row's number.
    pub id: i64,
    /// When the call was about to leave.
    pub at: Timestamp,
    /// The flow and its node that made the call; none for calls of other programs.
    pub node: Option<(FlowId, &'a str)>,
    /// The provider.
    pub provider: &'a str,
    /// The model that was asked for.
    pub model: &'a str,
    /// What became of it.
    pub status: CallStatus,
    /// Tokens.
    pub usage: Usage,
    /// What it cost; none where that is not known.
    pub cost: Option<Usd>,
    /// Milliseconds.
    pub latency_ms: Option<u64>,
    /// SHA-256 of the prompt in hexadecimal.
    pub prompt_hash: &'a str,
    /// Whether the answer was bought before, so that no call was made.
    pub cached: bool,
    /// Of a cached one: what that saved.
    pub saved: Option<Usd>,
    /// Whether it was refused before it left, so that no call was made.
    pub refused: bool,
}

const COLUMNS: &str = "id, timestamp_ms, flow_id, node_id, provider,
    coalesce(model_asked, model_used), status, input_tokens, cached_input_tokens,
    cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, usage_source,
    cost_nanousd, latency_ms, prompt_hash, cached, saved_nanousd, refused IS NOT NULL";

fn fact<'a>(row: &'a Row<'_>) -> rusqlite::Result<CallFact<'a>> {
    let text = |column: usize| -> rusqlite::Result<&'a str> {
        Ok(row.get_ref(column)?.as_str().unwrap_or_default())
    };
    let flow_id: Option<FlowId> = row.get(2)?;
    let node_id = row.get_ref(3)?.as_str_or_null().unwrap_or_default();
    Ok(CallFact {
        id: row.get(0)?,
        at: Timestamp(row.get(1)?),
        node: flow_id.zip(node_id),
        provider: text(4)?,
        model: text(5)?,
        status: parsed(row, 6)?,
        usage: Usage {
            input_tokens: row.get(7)?,
            cached_input_tokens: row.get(8)?,
            cache_write_tokens: row.get(9)?,
            cache_write_1h_tokens: row.get(10)?,
            output_tokens: row.get(11)?,
            reasoning_tokens: row.get(12)?,
            source: parsed(row, 13)?,
        },
        cost: row.get::<_, Option<i64>>(14)?.map(Usd::from_nanousd),
        latency_ms: row.get(15)?,
        prompt_hash: text(16)?,
        cached: row.get(17)?,
        saved: row.get::<_, Option<i64>>(18)?.map(Usd::from_nanousd),
        refused: row.get(19)?,
    })
}

impl Store {
    /// Shows up to `limit` rows of numbers above `after`, in order. Gives the last number shown; none
    /// where there is no row.
    pub fn facts_after(
        &self,
        after: i64,
        limit: usize,
        mut show: impl FnMut(&CallFact<'_>),
    ) -> Result<Option<i64>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM ledger WHERE id > ?1 ORDER BY id LIMIT ?2"
            ))?;
            let mut rows = statement.query(params![after, limit])?;
            let mut last = None;
            while let Some(row) = rows.next()? {
                let fact = fact(row)?;
                last = Some(fact.id);
                show(&fact);
            }
            Ok(last)
        })
    }

    /// Shows one row, if it is there.
    pub fn fact(&self, id: i64, mut show: impl FnMut(&CallFact<'_>)) -> Result<()> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM ledger WHERE id = ?1"))?;
            let mut rows = statement.query([id])?;
            if let Some(row) = rows.next()? {
                show(&fact(row)?);
            }
            Ok(())
        })
    }

    /// The number after which all rows of that moment and later are, also where the clock was put back
    /// since; that of the newest row, or 0, where there are none.
    pub fn last_call_before(&self, at: Timestamp) -> Result<i64> {
        self.read(|connection| {
            Ok(connection
                .prepare_cached(
                    "SELECT coalesce((SELECT min(id) FROM ledger WHERE timestamp_ms >= ?1) - 1,
                        (SELECT max(id) FROM ledger), 0)",
                )?
                .query_row([at.0], |row| row.get(0))?)
        })
    }

    /// How many bytes a node has asked on average, system text included, in the newest `runs` of its
    /// flow; of a map, its items. None where it has asked nothing.
    pub fn asked_bytes(&self, flow_id: FlowId, node_id: &str, runs: usize) -> Result<Option<u64>> {
        self.read(|connection| {
            let average: Option<f64> = connection
                .prepare_cached(
                    "WITH newest AS (SELECT id FROM runs WHERE flow_id = ?1 ORDER BY id DESC LIMIT ?3)
                     SELECT avg(length(CAST(prompt AS BLOB)) + length(CAST(coalesce(system, '') AS BLOB)))
                     FROM (SELECT prompt, system FROM newest JOIN run_nodes ON run_id = newest.id
                               AND node_id = ?2
                           UNION ALL
                           SELECT prompt, system FROM newest JOIN run_items ON run_id = newest.id
                               AND node_id = ?2)
                     WHERE prompt IS NOT NULL",
                )?
                .query_row(params![flow_id, node_id, runs], |row| row.get(0))?;
            Ok(average.map(|bytes| bytes as u64))
        })
    }
}
