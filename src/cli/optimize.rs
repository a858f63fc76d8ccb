//! `flowledger optimize`: prints the suggestions of a server, and new ones since its last pass.
//! Works while the server runs, and writes nothing.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use comfy_table::ContentArrangement;
use serde::Serialize;

use super::output::{add_row, print_result, say};
use super::table;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::event::suggestion::{Proposal, Realised, Status, Suggestion};
use crate::optimizer::{Pass, Wanted};
use crate::prices::Prices;
use crate::providers::{Cancel, Providers};
use crate::store::{Change, Store};
use crate::time::Timestamp;

/// Limits the applied suggestions shown, newest first.
const APPLIED_MAX: usize = 100;
const OPEN_MAX: usize = 10_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    open: Vec<OpenSuggestion>,
    /// Reasons why providers of recent calls cannot be used.
    not_usable: Vec<String>,
    applied: Vec<Suggestion>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OpenSuggestion {
    /// None if no server has stored the suggestion yet.
    id: Option<i64>,
    flow_id: i64,
    flow_name: String,
    #[serde(flatten)]
    proposal: Proposal,
}

pub fn run(config: &Config, as_json: bool) -> Result<ExitCode> {
    let store = Arc::new(Store::open_to_read(&config.data)?);
    let report = find(config, &store)?;
    for reason in &report.not_usable {
        say(format_args!("Provider skipped when looking for new suggestions: {reason}"));
    }
    let text = match as_json {
        false => text(&report),
        true => serde_json::to_string_pretty(&report)
            .map(|json| json + "\n")
            .map_err(|error| Error::internal(format!("cannot encode the suggestions: {error}")))?,
    };
    Ok(print_result(|out| out.write_all(text.as_bytes())))
}

fn find(config: &Config, store: &Arc<Store>) -> Result<Report> {
    let mut prices = Prices::built_in();
    if let Some(path) = &config.prices {
        prices = prices.with_own(path)?;
    }
    let providers = Providers::new(config.providers.clone(), config.timeouts).with_prices(prices);
    let mut pass = Pass::new(Arc::clone(store), Arc::new(providers), Cancel::new());
    // Stored suggestions are shown even if their providers are not configured here.
    let mut open = Vec::new();
    let mut known = BTreeSet::new();
    for stored in store.suggestions(Some(Status::Open), None, OPEN_MAX)? {
        known.insert((stored.flow_id, stored.proposal.key()));
        open.push(OpenSuggestion {
            id: Some(stored.id),
            flow_id: stored.flow_id,
            flow_name: stored.flow_name,
            proposal: stored.proposal,
        });
    }
    let now = Timestamp::now();
    pass.run(Wanted::default(), now, &mut |change| {
        if let Change::Propose { flow_id, flow_name, proposal, .. } = change
            && known.insert((flow_id, proposal.key()))
        {
            open.push(OpenSuggestion { id: None, flow_id, flow_name, proposal: *proposal });
        }
        Ok(())
    })?;
    let gain = |it: &OpenSuggestion| {
        let saving = it.proposal.saving_per_30_days;
        (saving.map(|it| it.expected_usd), it.proposal.saving_ms)
    };
    open.sort_by_key(|it| std::cmp::Reverse(gain(it)));
    Ok(Report {
        open,
        not_usable: pass.not_usable(),
        applied: store.suggestions(Some(Status::Applied), None, APPLIED_MAX)?,
    })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    if report.open.is_empty() {
        text.push_str("No savings found in the calls of the last 30 days.\n");
    } else {
        let rows = report.open.iter().map(|OpenSuggestion { id, flow_name, proposal, .. }| {
            let id = id.map_or_else(|| "new".to_owned(), |id| id.to_string());
            [
                id,
                flow_name.clone(),
                proposal.node_id.clone(),
                proposal.title.clone(),
                expected_saving(proposal),
                proposal.calls.to_string(),
                proposal.reason.clone(),
            ]
        });
        let head = ["ID", "Flow", "Node", "Suggestion", "Saving in 30 days", "Calls", "Reason"];
        text.push_str(&wrapped_table(head, rows));
    }
    if !report.applied.is_empty() {
        let rows = report.applied.iter().map(|it| {
            [
                it.id.to_string(),
                it.flow_name.clone(),
                it.proposal.node_id.clone(),
                it.proposal.title.clone(),
                expected_saving(&it.proposal),
                saved(it.realised.as_ref()),
            ]
        });
        let head = ["ID", "Flow", "Node", "Applied change", "Expected saving", "Saved so far"];
        text.push_str(&wrapped_table(head, rows));
    }
    text
}

fn saved(realised: Option<&Realised>) -> String {
    match realised {
        None => "not measured yet".to_owned(),
        Some(realised) => match realised.saved_ms {
            Some(ms) => format!("{ms} ms per run"),
            None => format!("${}", realised.saved_usd),
        },
    }
}

/// Formats the saving as `$1.5 ($0.03 to $2.97)`, or as a time.
fn expected_saving(proposal: &Proposal) -> String {
    if let Some(saving) = proposal.saving_per_30_days {
        return format!("${} (${} to ${})", saving.expected_usd, saving.low_usd, saving.high_usd);
    }
    match proposal.saving_ms {
        Some(ms) => format!("{ms} ms per run"),
        None => "frees reserved budget".to_owned(),
    }
}

fn wrapped_table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = table(&head, 0..0);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    rows.for_each(|row| add_row(&mut table, row));
    format!("{table}\n")
}
