//! `/api/ledger`: rows, sums, CSV.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;

use serde::Serialize;

use super::Context;
use super::flow_names::{FlowNames, NamedRow};
use super::reply::{self, Answer, With};
use super::request::Query;
use crate::error::{Error, Result};
use crate::event::LedgerEntry;
use crate::listener::Presence;
use crate::store::{LedgerFilter, LedgerPage, LedgerQuery, Store, Summary, Sums};

const PAGE_ROWS: usize = 500;

fn filter(context: &Context, query: &mut Query) -> Result<LedgerFilter> {
    let end_user: Option<String> = query.take("end_user");
    let cost: Option<String> = query.take("cost");
    if cost.as_deref().is_some_and(|cost| cost != "unknown") {
        return Err(Error::invalid("cannot read the query", "cost", "must be `unknown`"));
    }
    Ok(LedgerFilter {
        flow_id: query.take("flow_id"),
        run_id: query.take("run_id"),
        node: query.take("node"),
        model: query.take("model"),
        provider: query.take("provider"),
        statuses: query.take_list("status"),
        role: query.take("role"),
        key: query.take("key"),
        tag: query.take("tag"),
        client: query.take("client"),
        session: query.take("session"),
        end_user: end_user.map(|name| context.end_users.stored(name)),
        project: query.take("project"),
        from: query.take("from"),
        to: query.take("to"),
        cost_min: query.take("min_cost"),
        cost_max: query.take("max_cost"),
        ms_min: query.take("min_ms"),
        ms_max: query.take("max_ms"),
        cached: query.take("cached"),
        is_cost_unknown: cost.is_some(),
        text: query.take("q"),
        ..LedgerFilter::default()
    })
}

pub(super) fn ledger_query(context: &Context, query: &mut Query) -> Result<LedgerQuery> {
    Ok(LedgerQuery {
        filter: filter(context, query)?,
        sort: query.take("sort").unwrap_or_default(),
        order: query.take("order").unwrap_or_default(),
        before: query.take("before"),
    })
}

pub fn list(context: &Context, mut query: Query, client: &Presence) -> Answer {
    let ledger_query = ledger_query(context, &mut query)?;
    let limit = query.take_limit();
    let has_names = query.take("names").unwrap_or(false);
    query.finish()?;
    let read = |store: &Store| store.ledger_page(&ledger_query, limit);
    let LedgerPage { rows, next } = context.heavy_reads.run(&context.store, client, read)?;
    if !has_names {
        return Ok(reply::list(&rows, next));
    }
    let mut names = FlowNames::default();
    names.read(&context.store, &rows)?;
    let rows: Vec<NamedRow<'_>> = rows.iter().map(|row| names.row(row)).collect();
    Ok(reply::list(&rows, next))
}

#[derive(Serialize)]
struct RowWithBody<R> {
    #[serde(flatten)]
    row: R,
    has_body: bool,
}

/// `GET /api/ledger/{id}`: one row with names, and whether its bodies are stored.
pub fn get(context: &Context, id: i64) -> Answer {
    let row = context.store.ledger_row(id)?;
    let row = row.ok_or_else(|| Error::NotFound(format!("ledger row {id}")))?;
    let mut names = FlowNames::default();
    names.read(&context.store, std::slice::from_ref(&row))?;
    let has_body = context.store.has_body(id)?;
    Ok(reply::json(200, &RowWithBody { row: names.row(&row), has_body }))
}

/// Not `json!`, which would turn exact amounts of money into floating point numbers.
#[derive(Serialize)]
struct Groups {
    group_by: String,
    items: Vec<Summary>,
    total: Sums,
    next: (),
}

pub fn summary(context: &Context, mut query: Query, client: &Presence) -> Answer {
    let filter = filter(context, &mut query)?;
    let group_by: String = query.take("group_by").unwrap_or_else(|| "model".into());
    query.finish()?;
    let read = |store: &Store| store.summary(&filter, &group_by);
    let (items, total) = context.heavy_reads.run(&context.store, client, read)?;
    let sums = Groups { group_by, items, total, next: () };
    Ok(reply::json(200, &sums))
}

/// `GET /api/ledger.csv`: the same rows as CSV, read and sent page by page.
pub fn csv(context: &Context, mut query: Query) -> Answer {
    let ledger_query = ledger_query(context, &mut query)?;
    query.finish()?;
    let rows = all_rows(Arc::clone(&context.store), vec![ledger_query], RowFormat::Csv)?;
    Ok(reply::stream("text/csv; charset=utf-8", rows)
        .with("content-disposition", "attachment; filename=\"ledger.csv\""))
}

/// Returns the rows as CSV, newest first, read page by page.
pub fn ledger_csv(store: Arc<Store>, filter: LedgerFilter) -> Result<impl Read + Send + use<>> {
    let query = LedgerQuery { filter, ..LedgerQuery::default() };
    all_rows(store, vec![query], RowFormat::Csv)
}

#[derive(Clone, Copy)]
pub(super) enum RowFormat {
    Csv,
    NdJson,
}

/// Returns the rows of each query in its order, read page by page.
pub(super) fn all_rows(
    store: Arc<Store>,
    queries: Vec<LedgerQuery>,
    format: RowFormat,
) -> Result<impl Read + Send + use<>> {
    let header = match format {
        RowFormat::Csv => {
            let names = COLUMNS.iter().map(|(name, _)| *name);
            encode([names.chain(NAME_COLUMNS)].into_iter())
        }
        RowFormat::NdJson => Ok(Vec::new()),
    };
    let header = header.map_err(Error::io("cannot encode the column names"))?;
    let names = FlowNames::default();
    Ok(Rows { store, queries: queries.into(), format, names, ready: io::Cursor::new(header) })
}

struct Rows {
    store: Arc<Store>,
    /// The present one and the following ones.
    queries: VecDeque<LedgerQuery>,
    format: RowFormat,
    names: FlowNames,
    ready: io::Cursor<Vec<u8>>,
}

impl Read for Rows {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.ready.read(buffer)?;
            let Some(query) = self.queries.front_mut().filter(|_| count == 0 && !buffer.is_empty())
            else {
                return Ok(count);
            };
            let page = self.store.ledger_page(query, PAGE_ROWS).map_err(io::Error::other)?;
            query.before = page.next;
            if page.next.is_none() {
                self.queries.pop_front();
            }
            self.ready = io::Cursor::new(self.encode(&page.rows)?);
        }
    }
}

impl Rows {
    fn encode(&mut self, rows: &[LedgerEntry]) -> io::Result<Vec<u8>> {
        match self.format {
            RowFormat::Csv => {
                self.names.read(&self.store, rows).map_err(io::Error::other)?;
                let names = &self.names;
                encode(rows.iter().map(|row| {
                    let named = names.row(row);
                    let own = COLUMNS.iter().map(move |(_, value)| value(row));
                    own.chain([text(named.flow_name), text(named.node_label)])
                }))
            }
            RowFormat::NdJson => {
                let mut lines = Vec::new();
                for row in rows {
                    serde_json::to_writer(&mut lines, row)?;
                    lines.push(b'\n');
                }
                Ok(lines)
            }
        }
    }
}

/// The last columns.
const NAME_COLUMNS: [&str; 2] = ["flow_name", "node_label"];

type Column = (&'static str, fn(&LedgerEntry) -> String);

#[rustfmt::skip] // One line for each.
static COLUMNS: &[Column] = &[
    ("id", |r| r.id.to_string()),
    ("timestamp", |r| r.timestamp.to_string()),
    ("flow_id", |r| optional(r.flow_id.as_ref())),
    ("run_id", |r| optional(r.run_id.as_ref())),
    ("node_id", |r| text(r.node_id.as_deref())),
    ("attempt", |r| r.attempt.to_string()),
    ("operation_id", |r| text(Some(&r.operation_id))),
    ("provider", |r| text(Some(&r.provider))),
    ("model_used", |r| text(Some(&r.model_used))),
    ("agent_role", |r| text(r.agent_role.as_deref())),
    ("prompt_hash", |r| r.prompt_hash.clone()),
    ("input_tokens", |r| tokens(r, r.usage.input_tokens)),
    ("cached_input_tokens", |r| tokens(r, r.usage.cached_input_tokens)),
    ("cache_write_tokens", |r| tokens(r, r.usage.cache_write_tokens)),
    ("output_tokens", |r| tokens(r, r.usage.output_tokens)),
    ("reasoning_tokens", |r| tokens(r, r.usage.reasoning_tokens)),
    ("usage_source", |r| r.usage.source.to_string()),
    ("total_cost_usd", |r| optional(r.total_cost_usd.as_ref())),
    ("latency_ms", |r| optional(r.latency_ms.as_ref())),
    ("status", |r| r.status.to_string()),
    ("error_message", |r| text(r.error_message.as_deref())),
    ("cache_write_1h_tokens", |r| tokens(r, r.usage.cache_write_1h_tokens)),
    ("first_token_ms", |r| optional(r.more.first_token_ms.as_ref())),
    ("price_id", |r| optional(r.more.price_id.as_ref())),
    ("cached", |r| r.more.cached.to_string()),
    ("saved_usd", |r| optional(r.more.saved_usd.as_ref())),
    ("key_name", |r| text(r.more.key_name.as_deref())),
    ("tags", |r| text(r.more.tags.as_deref())),
    ("refused", |r| optional(r.more.refused.as_ref())),
    ("cost_source", |r| optional(r.more.cost_source.as_ref())),
    ("cost_note", |r| text(r.more.cost_note.as_deref())),
    ("price_cost_usd", |r| optional(r.more.price_cost_usd.as_ref())),
    ("provider_cost_usd", |r| optional(r.more.provider_cost_usd.as_ref())),
    ("corrected_cost_usd", |r| optional(r.more.corrected_cost_usd.as_ref())),
    ("client", |r| text(r.more.attribution.client.as_deref())),
    ("session", |r| text(r.more.attribution.session.as_deref())),
    ("end_user", |r| text(r.more.attribution.end_user.as_deref())),
    ("project", |r| text(r.more.attribution.project.as_deref())),
    ("billing", |r| optional(r.more.billing.as_ref())),
];

fn encode(records: impl Iterator<Item: IntoIterator<Item: AsRef<[u8]>>>) -> io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for record in records {
        writer.write_record(record)?;
    }
    writer.into_inner().map_err(csv::IntoInnerError::into_error)
}

/// Returns a count; empty if the tokens of the row are unknown.
fn tokens(row: &LedgerEntry, count: u64) -> String {
    optional(row.usage.known(count).as_ref())
}

fn optional(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// Prefixes an apostrophe to texts that a spreadsheet would read as a formula (OWASP, "CSV
/// Injection"). Spreadsheets also accept full-width signs, and some drop invisible characters and
/// spaces before a sign.
fn text(value: Option<&str>) -> String {
    let value = value.unwrap_or_default();
    let begins_with_control = value.starts_with(['\t', '\r', '\n']);
    let first = value.chars().find(|c| !is_dropped(*c));
    if begins_with_control || first.is_some_and(|c| FORMULA_SIGNS.contains(&c)) {
        return format!("'{value}");
    }
    value.to_owned()
}

/// ASCII, full-width (U+FF1D …) and small (U+FE66 …) forms, and the minus sign.
const FORMULA_SIGNS: &[char] =
    &['=', '+', '-', '@', '＝', '＋', '－', '＠', '﹦', '﹢', '﹣', '﹫', '\u{2212}'];

/// Spaces, control characters, and characters of no width: the byte order mark, joiners, marks of
/// direction, the soft hyphen and variation selectors.
fn is_dropped(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_text_is_never_a_formula() {
        assert_eq!(text(Some("=cmd()")), "'=cmd()");
        for formula in ["=1", "+1", "-1", "@a", "＝1", "＋1", "－1", "＠a", "﹦1", "\u{2212}1"]
        {
            for before in
                ["", "\u{feff}", "\u{200b}\u{2060}", "\t", "\r", "\n", " ", "\u{202e}", "\0"]
            {
                let value = format!("{before}{formula}");
                assert_eq!(text(Some(&value)), format!("'{value}"));
            }
        }
        for control in ["\tx", "\rx", "\nx"] {
            assert_eq!(text(Some(control)), format!("'{control}"));
        }
        for usual in ["gpt-4o", "a=b", "\u{feff}gpt", " x", "東京", ""] {
            assert_eq!(text(Some(usual)), usual);
        }
        assert_eq!(text(Some("gpt-5")), "gpt-5");
        assert_eq!(text(None), "");
    }
}
