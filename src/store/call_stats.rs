//! Reading what the optimizer needs of ledger rows, in the order of their numbers, without keeping
//! them: a pass over a million rows is to be cheap.

use rusqlite::{Row, params};

use super::Store;
use super::sql::parsed;
use crate::error::Result;
use crate::event::{CallStatus, FlowId, RunId, RunStatus, Timestamp, Usage, Usd};

/// What the optimizer looks at of a ledger row.
#[derive(Debug)]
pub struct CallRow<'a> {
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
    /// From its start until its answer began, milliseconds; until its end, where it was not streamed.
    pub begun_ms: Option<u64>,
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

/// What the optimizer looks at of a run.
#[derive(Debug)]
pub struct RunRow<'a> {
    /// Its id.
    pub id: &'a str,
    /// Where it is.
    pub status: RunStatus,
    /// From its start to its end, milliseconds; none where it has not both.
    pub took_ms: Option<u64>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

const RUN_COLUMNS: &str = "id, status, finished_ms - started_ms, finished_ms";

fn run_fact<'a>(row: &'a Row<'_>) -> rusqlite::Result<RunRow<'a>> {
    let took_ms: Option<i64> = row.get(2)?;
    Ok(RunRow {
        id: row.get_ref(0)?.as_str().unwrap_or_default(),
        status: parsed(row, 1)?,
        // A clock that was put back makes no run shorter than nothing.
        took_ms: took_ms.map(|ms| u64::try_from(ms).unwrap_or(0)),
        finished_at: row.get::<_, Option<i64>>(3)?.map(Timestamp),
    })
}

/// What comes before the ids of all runs of that moment and later, and after those of all before it.
pub fn run_ids_from(at: Timestamp) -> RunId {
    // The first 48 bits of a UUID v7 are its milliseconds.
    let ms = u64::try_from(at.0).unwrap_or(0);
    format!("{:08x}-{:04x}", ms >> 16 & 0xffff_ffff, ms & 0xffff)
}

const COLUMNS: &str = "id, timestamp_ms, flow_id, node_id, provider,
    coalesce(model_asked, model_used), status, input_tokens, cached_input_tokens,
    cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, usage_source,
    cost_nanousd, latency_ms, prompt_hash, cached, saved_nanousd, refused IS NOT NULL,
    coalesce(first_token_ms, latency_ms)";

fn fact<'a>(row: &'a Row<'_>) -> rusqlite::Result<CallRow<'a>> {
    let text = |column: usize| -> rusqlite::Result<&'a str> {
        Ok(row.get_ref(column)?.as_str().unwrap_or_default())
    };
    let flow_id: Option<FlowId> = row.get(2)?;
    let node_id = row.get_ref(3)?.as_str_or_null().unwrap_or_default();
    Ok(CallRow {
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
        begun_ms: row.get(20)?,
    })
}

impl Store {
    /// Shows up to `limit` rows of numbers above `after`, in order. Gives the last number shown; none
    /// where there is no row.
    pub fn facts_after(
        &self,
        after: i64,
        limit: usize,
        mut show: impl FnMut(&CallRow<'_>),
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
    pub fn fact(&self, id: i64, mut show: impl FnMut(&CallRow<'_>)) -> Result<()> {
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

    /// Shows runs of a flow that come after the run of that id, up to `limit`, in order. Gives the last
    /// id shown; none where there is no run.
    pub fn run_facts_after(
        &self,
        flow_id: FlowId,
        after: &str,
        limit: usize,
        mut show: impl FnMut(&RunRow<'_>),
    ) -> Result<Option<RunId>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {RUN_COLUMNS} FROM runs WHERE flow_id = ?1 AND id > ?2 ORDER BY id LIMIT ?3"
            ))?;
            let mut rows = statement.query(params![flow_id, after, limit])?;
            let mut last = None;
            while let Some(row) = rows.next()? {
                let fact = run_fact(row)?;
                last = Some(fact.id.to_owned());
                show(&fact);
            }
            Ok(last)
        })
    }

    /// The number of the newest row; 0 where there is none.
    pub fn last_call(&self) -> Result<i64> {
        self.read(|connection| {
            Ok(connection
                .prepare_cached("SELECT coalesce(max(id), 0) FROM ledger")?
                .query_row([], |row| row.get(0))?)
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

    /// In how many of the newest `runs` of its flow a node was completed, and how long it took there on
    /// average, milliseconds; none where that is none.
    pub fn node_ms(
        &self,
        flow_id: FlowId,
        node_id: &str,
        runs: usize,
    ) -> Result<Option<(u64, u64)>> {
        self.read(|connection| {
            let (count, average): (u64, Option<f64>) = connection
                .prepare_cached(
                    "WITH newest AS (SELECT id FROM runs WHERE flow_id = ?1 ORDER BY id DESC LIMIT ?3)
                     SELECT count(*), avg(max(finished_ms - started_ms, 0))
                     FROM newest JOIN run_nodes ON run_id = newest.id AND node_id = ?2
                     WHERE status = 'COMPLETED' AND finished_ms IS NOT NULL",
                )?
                .query_row(params![flow_id, node_id, runs], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
            Ok(average.map(|ms| (count, ms.round() as u64)))
        })
    }

    /// Whether a node was begun in one of the newest `runs` of its flow from before that moment.
    pub fn was_begun_before(
        &self,
        flow_id: FlowId,
        node_id: &str,
        before: Timestamp,
        runs: usize,
    ) -> Result<bool> {
        self.read(|connection| {
            Ok(connection
                .prepare_cached(
                    "WITH older AS (SELECT id FROM runs WHERE flow_id = ?1 AND id < ?3
                         ORDER BY id DESC LIMIT ?4)
                     SELECT EXISTS (SELECT 1 FROM older JOIN run_nodes
                         ON run_id = older.id AND node_id = ?2)",
                )?
                .query_row(
                    params![flow_id, node_id, run_ids_from(before), runs],
                    |row| row.get(0),
                )?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_runs_lie_between_those_of_the_moments_before_and_after() {
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
