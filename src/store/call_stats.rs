//! Reads ledger rows and runs for the optimizer. Rows are passed one by one and not kept, so that a
//! pass over a million of them stays cheap.

use rusqlite::{Row, ToSql, params};

use super::Store;
use super::sql::{FromRow, single};
use crate::error::Result;
use crate::event::{CallStatus, Usage};
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::time::Timestamp;

/// The columns of a ledger row that the optimizer needs.
#[derive(Debug)]
pub struct CallRow<'a> {
    pub id: i64,
    pub at: Timestamp,
    /// The node that made the call; none for trials and gateway clients.
    pub node: Option<(FlowId, &'a str)>,
    pub provider: &'a str,
    /// The requested model.
    pub model: &'a str,
    pub status: CallStatus,
    pub usage: Usage,
    /// None if unknown.
    pub cost: Option<Usd>,
    /// Time from the start of the call to the first token, or to its end if it was not streamed.
    pub begun_ms: Option<u64>,
    pub prompt_hash: &'a str,
    /// True if the response cache answered it, without a call.
    pub cached: bool,
    /// The cost that the response cache saved.
    pub saved: Option<Usd>,
    /// True if it was refused before it was sent.
    pub refused: bool,
}

const COLUMNS: &str = "id, timestamp_ms, flow_id, node_id, provider,
    coalesce(model_asked, model_used), status, cost_nanousd, coalesce(first_token_ms, latency_ms),
    prompt_hash, cached, saved_nanousd, refused IS NOT NULL, input_tokens, cached_input_tokens,
    cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, usage_source";
/// Selects the newest runs of a flow.
const NEWEST: &str =
    "WITH newest AS (SELECT id FROM runs WHERE flow_id = ?1 ORDER BY id DESC LIMIT ?3)";

fn call_row<'a>(row: &'a Row<'_>) -> rusqlite::Result<CallRow<'a>> {
    let text = |column: usize| -> rusqlite::Result<&'a str> {
        Ok(row.get_ref(column)?.as_str().unwrap_or_default())
    };
    let flow_id: Option<FlowId> = row.get(2)?;
    let node_id = row.get_ref(3)?.as_str_or_null().unwrap_or_default();
    Ok(CallRow {
        id: row.get(0)?,
        at: row.get(1)?,
        node: flow_id.zip(node_id),
        provider: text(4)?,
        model: text(5)?,
        status: row.get(6)?,
        cost: row.get(7)?,
        begun_ms: row.get(8)?,
        prompt_hash: text(9)?,
        cached: row.get(10)?,
        saved: row.get(11)?,
        refused: row.get(12)?,
        usage: Usage::read(row, &mut 13)?,
    })
}

/// Returns a text that sorts before the ids of all runs since `at`, and after those of earlier
/// runs. The first 48 bits of a UUID v7 are its milliseconds.
fn run_ids_from(at: Timestamp) -> RunId {
    let ms = u64::try_from(at.0).unwrap_or(0);
    format!("{:08x}-{:04x}", ms >> 16 & 0xffff_ffff, ms & 0xffff)
}

impl Store {
    /// Passes up to `limit` rows with ids above `after` and up to `last` to `show`, in order.
    /// Returns the last id passed.
    pub fn calls_after(
        &self,
        after: i64,
        last: i64,
        limit: usize,
        show: impl FnMut(&CallRow<'_>),
    ) -> Result<Option<i64>> {
        let condition = "id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3";
        self.show_calls(condition, params![after, last, limit], show)
    }

    /// Passes one row to `show` if it exists.
    pub fn call(&self, id: i64, show: impl FnMut(&CallRow<'_>)) -> Result<Option<i64>> {
        self.show_calls("id = ?1", params![id], show)
    }

    fn show_calls(
        &self,
        condition: &str,
        params: &[&dyn ToSql],
        mut show: impl FnMut(&CallRow<'_>),
    ) -> Result<Option<i64>> {
        self.read(|db| {
            let sql = format!("SELECT {COLUMNS} FROM ledger WHERE {condition}");
            let mut statement = db.prepare_cached(&sql)?;
            let mut rows = statement.query(params)?;
            let mut last = None;
            while let Some(row) = rows.next()? {
                let call = call_row(row)?;
                last = Some(call.id);
                show(&call);
            }
            Ok(last)
        })
    }

    /// Returns the newest ledger row's id, or 0.
    pub fn last_call(&self) -> Result<i64> {
        let sql = "SELECT coalesce(max(id), 0) FROM ledger";
        self.read(|db| single(db, sql, []))
    }

    /// Returns the id that precedes all rows since `at`, even if the clock was set back since.
    /// Without such rows, returns the newest row's id, or 0.
    pub fn last_call_before(&self, at: Timestamp) -> Result<i64> {
        let sql = "SELECT min(id) - 1 FROM ledger WHERE timestamp_ms >= ?1";
        let id: Option<Option<i64>> = self.one(sql, [at.0])?;
        id.flatten().map_or_else(|| self.last_call(), Ok)
    }

    /// Returns the number and the total duration, in milliseconds, of the completed runs of a flow
    /// that started after `began` and before `until` and ended since `since`.
    pub fn run_totals(
        &self,
        flow_id: FlowId,
        began: Timestamp,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<(u64, u64)> {
        let sql = "SELECT count(*), coalesce(sum(max(coalesce(finished_ms - started_ms, 0), 0)), 0) FROM runs
            WHERE flow_id = ?1 AND id > ?2 AND id < ?3 AND status = 'COMPLETED'
                AND finished_ms >= ?4";
        let (began, until) = (run_ids_from(began), run_ids_from(until));
        self.read(|db| single(db, sql, params![flow_id, began, until, since]))
    }

    /// Returns the average length of a node's prompts (for a map, of its items' prompts) in the
    /// newest `runs` of its flow, if there are any. In bytes, with the system text.
    pub fn prompt_bytes(&self, flow_id: FlowId, node_id: &str, runs: usize) -> Result<Option<u64>> {
        let sql = format!(
            "{NEWEST}
             SELECT avg(length(CAST(prompt AS BLOB)) + length(CAST(coalesce(system, '') AS BLOB)))
             FROM (SELECT prompt, system FROM newest JOIN run_nodes ON run_id = newest.id
                       AND node_id = ?2
                   UNION ALL
                   SELECT prompt, system FROM newest JOIN run_items ON run_id = newest.id
                       AND node_id = ?2)
             WHERE prompt IS NOT NULL"
        );
        let average = self.one(&sql, params![flow_id, node_id, runs])?;
        Ok(average.flatten().map(|bytes: f64| bytes as u64))
    }

    /// Returns how many of the newest `runs` completed the node, and its average duration there in
    /// milliseconds, if there are any.
    pub fn node_ms(
        &self,
        flow_id: FlowId,
        node_id: &str,
        runs: usize,
    ) -> Result<Option<(u64, u64)>> {
        let sql = format!(
            "{NEWEST}
             SELECT count(*), avg(max(finished_ms - started_ms, 0))
             FROM newest JOIN run_nodes ON run_id = newest.id AND node_id = ?2
             WHERE status = 'COMPLETED' AND finished_ms IS NOT NULL"
        );
        let read: (u64, Option<f64>) =
            self.read(|db| single(db, &sql, params![flow_id, node_id, runs]))?;
        Ok(read.1.map(|ms| (read.0, ms.round() as u64)))
    }

    /// Returns whether the node was started in one of the newest `runs` that its flow had before a
    /// given time.
    pub fn was_started_before(
        &self,
        flow_id: FlowId,
        node_id: &str,
        before: Timestamp,
        runs: usize,
    ) -> Result<bool> {
        let sql = "WITH older AS (SELECT id FROM runs WHERE flow_id = ?1 AND id < ?3
                 ORDER BY id DESC LIMIT ?4)
             SELECT 1 FROM older JOIN run_nodes ON run_id = older.id AND node_id = ?2 LIMIT 1";
        let params = params![flow_id, node_id, run_ids_from(before), runs];
        Ok(self.one::<bool>(sql, params)?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_id_bounds_enclose_ids_of_their_time() {
        let now = u64::try_from(Timestamp::now().0).unwrap();
        let timestamp = uuid::Timestamp::from_unix(
            uuid::NoContext,
            now / 1_000,
            u32::try_from(now % 1_000).unwrap() * 1_000_000,
        );
        let id = uuid::Uuid::new_v7(timestamp).to_string();
        let at = i64::try_from(now).unwrap();
        assert!(run_ids_from(Timestamp(at)) < id);
        assert!(run_ids_from(Timestamp(at - 1)) < id);
        assert!(run_ids_from(Timestamp(at + 1)) > id);
        assert!(run_ids_from(Timestamp(-1)) < id);
    }
}
