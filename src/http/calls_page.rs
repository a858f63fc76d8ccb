//! `/calls` as a table of HTML for readers without JavaScript. The page's module replaces it.

use std::fmt::Write;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{ToSpan, Zoned};

use super::flow_names::{FlowNames, NamedRow};
use super::ledger::ledger_query;
use super::reply::Answer;
use super::request::{Query, Request};
use super::{Context, assets};
use crate::event::{CallStatus, UsageSource};
use crate::listener::{ApiError, Presence};
use crate::store::{LedgerPage, Store};

const ROWS: usize = 100;
/// Parameters of the address that only the module of the page reads.
const PAGE_PARAMETERS: [&str; 3] = ["call", "focus", "columns"];
const COLUMNS: [&str; 10] = [
    "Time (UTC)",
    "Flow",
    "Node",
    "Model",
    "Key",
    "Tokens in",
    "Tokens out",
    "Cost (USD)",
    "Latency",
    "Status",
];

/// Returns the shell with the newest calls that match the address's filters. The address itself is
/// public, so the rows are left out if a token is required and missing.
pub fn get(context: &Context, request: &Request<'_, '_>) -> Answer {
    if request.head.header("sec-fetch-site") == Some("cross-site") {
        // A page of another site must not cause searches of the ledger. This browser has JavaScript.
        return assets::shell(request.head);
    }
    let may_read = context.token.as_ref().is_none_or(|token| request.head.carries(token));
    if !may_read {
        let text = "The calls need the server's token, which only the page with JavaScript can ask \
                    for. Without JavaScript, send it as <code>Authorization: Bearer TOKEN</code>.";
        return assets::shell_with(&format!("<main><h1>Calls</h1><p>{text}</p></main>"));
    }
    let content = match table(context, request.query(), &request.client) {
        Ok(table) => table,
        Err(error) => faults(&error),
    };
    assets::shell_with(&format!("<main><h1>Calls</h1>{content}</main>"))
}

/// Returns an error with its details.
fn faults(error: &ApiError) -> String {
    let details = error
        .faults
        .iter()
        .map(|fault| format!("<li>{}: {}</li>", escaped(&fault.field), escaped(&fault.message)));
    format!("<p>{}</p><ul>{}</ul>", escaped(&error.message), details.collect::<String>())
}

fn table(context: &Context, mut query: Query, client: &Presence) -> Result<String, ApiError> {
    for name in PAGE_PARAMETERS {
        query.take::<String>(name);
    }
    apply_period(&mut query);
    let filters = query.to_text(&["before"]);
    let ledger_query = ledger_query(context, &mut query)?;
    query.finish()?;
    let read = |store: &Store| store.ledger_page(&ledger_query, ROWS);
    let LedgerPage { rows, next } = context.heavy_reads.run(&context.store, client, read)?;
    let mut names = FlowNames::default();
    names.read(&context.store, &rows)?;
    let mut html = String::new();
    let csv = format!("/api/ledger.csv?{filters}");
    let _ = write!(html, "<p><a href=\"{}\">Download CSV</a></p>", escaped(&csv));
    if rows.is_empty() {
        html.push_str("<p>No calls match.</p>");
        return Ok(html);
    }
    html.push_str("<table class=\"table\"><thead><tr>");
    for column in COLUMNS {
        let _ = write!(html, "<th scope=\"col\">{column}</th>");
    }
    html.push_str("</tr></thead><tbody>");
    for row in &rows {
        write_row(&mut html, &names.row(row));
    }
    html.push_str("</tbody></table>");
    if let Some(next) = next {
        let older =
            format!("/calls?{filters}{}before={next}", if filters.is_empty() { "" } else { "&" });
        let _ = write!(html, "<p><a href=\"{}\">Older calls</a></p>", escaped(&older));
    }
    Ok(html)
}

fn write_row(html: &mut String, named: &NamedRow<'_>) {
    let row = named.row;
    let is_counted = row.usage.source != UsageSource::None;
    let count = |tokens: u64| if is_counted { tokens.to_string() } else { "–".into() };
    let cost = match (row.total_cost_usd, row.status) {
        (Some(cost), _) => cost.to_string(),
        (None, CallStatus::Pending) => "–".into(),
        (None, _) => "unknown".into(),
    };
    let status = match &row.error_message {
        Some(error) => format!("{}: {error}", row.status),
        None => row.status.to_string(),
    };
    let cells = [
        row.timestamp.to_string(),
        named.flow_name.unwrap_or("–").to_owned(),
        named.node_label.unwrap_or("–").to_owned(),
        row.model_used.clone(),
        row.more.key_name.clone().unwrap_or_else(|| "–".into()),
        count(row.usage.input_tokens),
        count(row.usage.output_tokens),
        cost,
        row.latency_ms.map_or_else(|| "–".into(), |ms| format!("{ms} ms")),
        status,
    ];
    html.push_str("<tr>");
    for cell in cells {
        let _ = write!(html, "<td><bdi>{}</bdi></td>", escaped(&cell));
    }
    html.push_str("</tr>");
}

/// Replaces the page's `period`, and its `from` and `to` of whole days, by times in UTC.
fn apply_period(query: &mut Query) {
    let today = Zoned::now().with_time_zone(TimeZone::UTC).date();
    let first = today.first_of_month();
    let period = query.take::<String>("period");
    let range = match period.as_deref() {
        Some("today") => Some((today, None)),
        Some("7d") => Some((today.saturating_sub(6.days()), None)),
        Some("30d") => Some((today.saturating_sub(29.days()), None)),
        Some("month") => Some((first, None)),
        Some("last-month") => Some((first.saturating_sub(1.month()), Some(first))),
        _ => None,
    };
    if let Some((from, to)) = range {
        query.set("from", &from.to_string());
        to.iter().for_each(|to| query.set("to", &to.to_string()));
    } else if let Some(last) = query.peek("to").and_then(|to| to.parse::<Date>().ok()) {
        // The page includes the last day.
        query.set("to", &last.saturating_add(1.day()).to_string());
    }
}

/// Escapes text for HTML, also within quotes.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}
