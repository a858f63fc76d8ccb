//! `/api/ledger`: rows, sums, CSV.

use std::io::{self, Read};
use std::sync::Arc;

use serde::Serialize;

use super::Context;
use super::reply::{self, Answer, Query, With};
use crate::error::Result;
use crate::event::LedgerEntry;
use crate::listener::Presence;
use crate::store::{LedgerFilter, Store, Summary, Sums};

/// How many rows are read at a time for a CSV.
const CSV_PAGE: usize = 500;

fn filter(query: &mut Query) -> LedgerFilter {
    LedgerFilter {
        flow_id: query.take("flow_id"),
        run_id: query.take("run_id"),
        model: query.take("model"),
        provider: query.take("provider"),
        status: query.take("status"),
        role: query.take("role"),
        key: query.take("key"),
        tag: query.take("tag"),
        from: query.take("from"),
        to: query.take("to"),
    }
}

/// `GET /api/ledger`: rows, newest first.
pub fn list(context: &Context, mut query: Query, client: &Presence) -> Answer {
    let filter = filter(&mut query);
    let limit = query.take_limit();
    let before = query.take("before");
    query.finish()?;
    let turn = context.heavy_reads.turn(client)?;
    let mut rows = context.store.ledger(&filter, before, limit + 1)?;
    drop(turn);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|row| row.id);
    Ok(reply::list(&rows, next))
}

/// Not `json!`, which would turn exact amounts of money into floating point numbers.
#[derive(Serialize)]
struct Groups {
    group_by: String,
    items: Vec<Summary>,
    total: Sums,
    next: (),
}

/// `GET /api/ledger/summary?group_by`.
pub fn summary(context: &Context, mut query: Query, client: &Presence) -> Answer {
    let filter = filter(&mut query);
    let group_by: String = query.take("group_by").unwrap_or_else(|| "model".into());
    query.finish()?;
    let turn = context.heavy_reads.turn(client)?;
    let (items, total) = context.store.summary(&filter, &group_by)?;
    drop(turn);
    let sums = Groups {
        group_by,
        items,
        total,
        next: (),
    };
    Ok(reply::json(200, &sums))
}

/// `GET /api/ledger.csv`: the same rows, read and sent page by page.
pub fn csv(context: &Context, mut query: Query) -> Answer {
    let filter = filter(&mut query);
    query.finish()?;
    let rows = ledger_csv(Arc::clone(&context.store), filter)?;
    Ok(reply::stream("text/csv; charset=utf-8", rows)
        .with("content-disposition", "attachment; filename=\"ledger.csv\""))
}

/// The rows as CSV, newest first, read as the text is.
///
/// # Errors
/// When the names of the columns cannot be encoded, which does not happen.
pub fn ledger_csv(store: Arc<Store>, filter: LedgerFilter) -> Result<impl Read + Send + use<>> {
    Ok(CsvRows {
        store,
        filter,
        before: None,
        ended: false,
        ready: io::Cursor::new(header()?),
    })
}

/// Makes the text of a CSV as it is read.
struct CsvRows {
    store: Arc<Store>,
    filter: LedgerFilter,
    before: Option<i64>,
    ended: bool,
    ready: io::Cursor<Vec<u8>>,
}

impl Read for CsvRows {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.ready.read(buffer)?;
            if count > 0 || self.ended || buffer.is_empty() {
                return Ok(count);
            }
            let rows = self
                .store
                .ledger(&self.filter, self.before, CSV_PAGE)
                .map_err(io::Error::other)?;
            self.ended = rows.len() < CSV_PAGE;
            self.before = rows.last().map(|row| row.id);
            self.ready = io::Cursor::new(encode(&rows).map_err(io::Error::other)?);
        }
    }
}

const COLUMNS: &[&str] = &[
    "id",
    "timestamp",
    "flow_id",
    "run_id",
    "node_id",
    "attempt",
    "operation_id",
    "provider",
    "model_used",
    "agent_role",
    "prompt_hash",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "usage_source",
    "total_cost_usd",
    "latency_ms",
    "status",
    "error_message",
    "cache_write_1h_tokens",
    "first_token_ms",
    "price_id",
    "cached",
    "saved_usd",
    "key_name",
    "tags",
    "refused",
];

fn header() -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer
        .write_record(COLUMNS)
        .and_then(|()| {
            writer
                .into_inner()
                .map_err(|error| error.into_error().into())
        })
        .map_err(|error| crate::error::Error::internal(error.to_string()))
}

fn encode(rows: &[LedgerEntry]) -> io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        let usage = &row.usage;
        writer.write_record([
            row.id.to_string(),
            row.timestamp.to_string(),
            optional(row.flow_id.as_ref()),
            optional(row.run_id.as_ref()),
            text(row.node_id.as_deref()),
            row.attempt.to_string(),
            text(Some(&row.operation_id)),
            text(Some(&row.provider)),
            text(Some(&row.model_used)),
            text(row.agent_role.as_deref()),
            row.prompt_hash.clone(),
            usage.input_tokens.to_string(),
            usage.cached_input_tokens.to_string(),
            usage.cache_write_tokens.to_string(),
            usage.output_tokens.to_string(),
            usage.reasoning_tokens.to_string(),
            usage.source.to_string(),
            optional(row.total_cost_usd.as_ref()),
            optional(row.latency_ms.as_ref()),
            row.status.to_string(),
            text(row.error_message.as_deref()),
            usage.cache_write_1h_tokens.to_string(),
            optional(row.more.first_token_ms.as_ref()),
            optional(row.more.price_id.as_ref()),
            row.more.cached.to_string(),
            optional(row.more.saved_usd.as_ref()),
            text(row.more.key_name.as_deref()),
            text(row.more.tags.as_deref()),
            optional(row.more.refused.as_ref()),
        ])?;
    }
    writer.into_inner().map_err(csv::IntoInnerError::into_error)
}

fn optional(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// A text from outside. One that a spreadsheet would take for a formula gets an apostrophe, as
/// OWASP's "CSV Injection" page advises.
fn text(value: Option<&str>) -> String {
    let value = value.unwrap_or_default();
    if value.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        return format!("'{value}");
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_never_a_formula() {
        assert_eq!(text(Some("=cmd()")), "'=cmd()");
        assert_eq!(text(Some("gpt-5")), "gpt-5");
        assert_eq!(text(None), "");
    }
}
