//! `flowledger ledger`: rows and sums of the ledger, also while a server is running.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use comfy_table::Table;

use super::output::{add_row, write_result};
use super::table;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::event::{CallStatus, LedgerEntry};
use crate::http::ledger_csv;
use crate::ids::FlowId;
use crate::money::Usd;
use crate::store::{EndUsers, LedgerFilter, Store, Sums};
use crate::time::Timestamp;

const ROWS: usize = 20;

#[derive(Args, Clone)]
pub struct Query {
    /// Show totals by model, provider, flow, role, day, status, key, tag, client, session,
    /// end_user or project [default: rows]
    #[arg(long, value_name = "GROUP")]
    by: Option<String>,
    /// Only rows at or after this time (2026-11-24T10:00:00Z) or day [default: no limit]
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Only rows before this time or day [default: no limit]
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
    /// Only rows of the flow with this ID [default: all]
    #[arg(long, value_name = "ID")]
    flow: Option<FlowId>,
    /// Only rows of this model, as named in the response [default: all]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Only rows of this provider [default: all]
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Only rows with this status, such as SUCCESS or FAILED [default: all]
    #[arg(long, value_name = "STATUS")]
    status: Option<CallStatus>,
    /// Only rows of this role [default: all]
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
    /// Only rows of the gateway key with this name [default: all]
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Only rows with this tag [default: all]
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Only rows of this client program, such as claude-cli [default: all]
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// Only rows of the session with this ID [default: all]
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only rows of this end user [default: all]
    #[arg(long, value_name = "NAME")]
    end_user: Option<String>,
    /// Only rows of this project [default: all]
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Show up to this number of newest rows [default: 20]
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["by", "csv"])]
    limit: Option<usize>,
    /// Print all matching rows as CSV, with all columns [default: a table]
    #[arg(long, conflicts_with = "by")]
    csv: bool,
}

pub fn run(config: &Config, query: Query) -> Result<ExitCode> {
    let store = Store::open_to_read(&config.data)?;
    let end_users = EndUsers::load(&store, config.gateway.hash_end_users)?;
    let filter = LedgerFilter {
        flow_id: query.flow,
        model: query.model,
        provider: query.provider,
        statuses: query.status.into_iter().collect(),
        role: query.role,
        key: query.key,
        tag: query.tag,
        client: query.client,
        session: query.session,
        end_user: query.end_user.map(|name| end_users.stored(name)),
        project: query.project,
        from: query.from,
        to: query.to,
        ..LedgerFilter::default()
    };
    let written = if query.csv {
        let mut csv = ledger_csv(Arc::new(store), filter)?;
        write_result(|out| io::copy(&mut csv, out).map(drop))
    } else {
        let table = match &query.by {
            Some(group) => sums(&store, &filter, group)?,
            None => rows(&store.ledger(&filter, None, query.limit.unwrap_or(ROWS))?),
        };
        write_result(|out| writeln!(out, "{table}"))
    };
    written.map_err(Error::io("cannot write the whole ledger to the output"))?;
    Ok(ExitCode::SUCCESS)
}

fn rows(rows: &[LedgerEntry]) -> Table {
    let head = ["Time", "Provider", "Model", "Role", "In", "Out", "Cost", "ms", "Status"];
    let mut table = table(&head, 4..8);
    for row in rows {
        let mark = if row.more.cached { " (cached)" } else { "" };
        add_row(
            &mut table,
            [
                row.timestamp.to_string(),
                row.provider.clone(),
                row.model_used.clone(),
                row.agent_role.clone().unwrap_or_default(),
                tokens(row, row.usage.input_tokens),
                tokens(row, row.usage.output_tokens),
                cost(row),
                row.latency_ms.map(|ms| ms.to_string()).unwrap_or_default(),
                format!("{}{mark}", row.status),
            ],
        );
    }
    table
}

fn sums(store: &Store, filter: &LedgerFilter, group: &str) -> Result<Table> {
    let (groups, total) = store.summary(filter, group)?;
    let head = [
        group,
        "Calls",
        "Failed",
        "In",
        "Out",
        "Cost",
        "No price",
        "Corrected",
        "No cost",
        "Estimated",
        "Cached",
        "Saved",
        "Subscription",
    ];
    let mut table = table(&head, 1..13);
    let row = |name: &str, sums: &Sums| {
        [
            name.to_owned(),
            sums.calls.to_string(),
            sums.failed.to_string(),
            sums.input_tokens.to_string(),
            sums.output_tokens.to_string(),
            dollars(sums.total_cost_usd),
            sums.unpriced_calls.to_string(),
            dollars(sums.corrected_cost_usd),
            sums.unknown_cost_calls.to_string(),
            sums.estimated_calls.to_string(),
            sums.cached_calls.to_string(),
            dollars(sums.saved_usd),
            dollars(sums.subscription_cost_usd),
        ]
    };
    for summary in &groups {
        add_row(&mut table, row(summary.key.as_deref().unwrap_or("–"), &summary.sums));
    }
    add_row(&mut table, row("all", &total));
    Ok(table)
}

fn tokens(row: &LedgerEntry, count: u64) -> String {
    row.usage.known(count).map_or_else(|| "?".to_owned(), |count| count.to_string())
}

fn cost(row: &LedgerEntry) -> String {
    match (row.total_cost_usd, row.more.corrected_cost_usd) {
        (Some(cost), _) if row.more.billing.is_some() => {
            format!("{} (subscription)", dollars(cost))
        }
        (Some(cost), _) => dollars(cost),
        (None, Some(cost)) => format!("{} (corrected)", dollars(cost)),
        (None, None) => "?".to_owned(),
    }
}

fn dollars(usd: Usd) -> String {
    format!("${usd}")
}
