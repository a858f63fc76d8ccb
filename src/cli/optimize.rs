//! `flowledger optimize`: the suggestions of a server, and new ones, also while a server is running. Writes
//! nothing.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use super::table;
use crate::config::Config;
use crate::error::Result;
use crate::event::Timestamp;
use crate::event::suggestion::{Proposal, Realised, Status, Suggestion};
use crate::optimizer::{Pass, Wanted};
use crate::providers::{Cancel, Prices, Providers};
use crate::store::{Change, Store};

/// The newest applied suggestions …
const APPLIED_MAX: usize = 100;
/// … and open ones that are shown.
const OPEN_MAX: usize = 10_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    open: Vec<Open>,
    /// Why some providers of calls were left out.
    not_usable: Vec<String>,
    applied: Vec<Suggestion>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Open {
    /// None if no server has made the suggestion yet.
    id: Option<i64>,
    flow_id: i64,
    flow_name: String,
    #[serde(flatten)]
    proposal: Proposal,
}

/// Examines the calls of the last 30 days.
pub fn run(config: &Config, as_json: bool) -> Result<ExitCode> {
    let store = Arc::new(Store::open_to_read(&config.data)?);
    let found = find(config, &store)?;
    for why in &found.not_usable {
        eprintln!("not looked at for what is new, since it cannot be used from here: {why}");
    }
    // Ignores a reader that has gone.
    let mut out = io::stdout().lock();
    if as_json {
        let _ = serde_json::to_writer_pretty(&mut out, &found);
        let _ = writeln!(out);
    } else {
        let _ = write!(out, "{}", shown(&found));
    }
    Ok(ExitCode::SUCCESS)
}

fn find(config: &Config, store: &Arc<Store>) -> Result<Found> {
    let mut prices = Prices::built_in();
    if let Some(path) = &config.prices {
        prices = prices.with_own(path)?;
    }
    let providers = Providers::new(config.providers.clone(), config.timeouts).with_prices(prices);
    let mut pass = Pass::new(Arc::clone(store), Arc::new(providers), Cancel::new());
    // Suggestions of a server do not depend on the providers that are usable from here.
    let mut open = Vec::new();
    let mut known = BTreeSet::new();
    for stored in store.suggestions(Some(Status::Open), None, OPEN_MAX)? {
        known.insert((stored.flow_id, stored.proposal.key()));
        open.push(Open {
            id: Some(stored.id),
            flow_id: stored.flow_id,
            flow_name: stored.flow_name,
            proposal: stored.proposal,
        });
    }
    let now = Timestamp::now();
    let mut is_behind = true;
    while is_behind {
        pass.run(Wanted::default(), now, &mut |change| {
            if let Change::Propose {
                flow_id,
                flow_name,
                proposal,
                ..
            } = change
                && known.insert((flow_id, proposal.key()))
            {
                open.push(Open {
                    id: None,
                    flow_id,
                    flow_name,
                    proposal: *proposal,
                });
            }
            Ok(())
        })?;
        is_behind = pass.rest(now).is_zero();
    }
    let gain = |it: &Open| {
        let saving = it.proposal.saving_per_30_days;
        (saving.map(|it| it.expected_usd), it.proposal.saving_ms)
    };
    open.sort_by_key(|it| std::cmp::Reverse(gain(it)));
    Ok(Found {
        open,
        not_usable: pass.not_usable(),
        applied: store.suggestions(Some(Status::Applied), None, APPLIED_MAX)?,
    })
}

fn shown(found: &Found) -> String {
    let mut text = String::new();
    if found.open.is_empty() {
        text.push_str("Nothing to be saved was found in the calls of the last 30 days.\n");
    } else {
        let mut table = wrapped_table(&[
            "No",
            "Flow",
            "Node",
            "What to do",
            "In 30 days",
            "Calls",
            "Why",
        ]);
        for open in &found.open {
            let it = &open.proposal;
            table.add_row([
                open.id
                    .map_or_else(|| "new".to_owned(), |id| id.to_string()),
                open.flow_name.clone(),
                it.node_id.clone(),
                it.title.clone(),
                promised(it),
                it.calls.to_string(),
                it.reason.clone(),
            ]);
        }
        text.push_str(&format!("{table}\n"));
    }
    if !found.applied.is_empty() {
        let mut table = wrapped_table(&[
            "No",
            "Flow",
            "Node",
            "What was done",
            "Promised",
            "Saved so far",
        ]);
        for it in &found.applied {
            table.add_row([
                it.id.to_string(),
                it.flow_name.clone(),
                it.proposal.node_id.clone(),
                it.proposal.title.clone(),
                promised(&it.proposal),
                saved(it.realised.as_ref()),
            ]);
        }
        text.push_str(&format!("{table}\n"));
    }
    text
}

fn saved(realised: Option<&Realised>) -> String {
    match realised {
        None => "not measured yet".to_owned(),
        Some(realised) => match realised.saved_ms {
            Some(ms) => format!("{ms} ms in each run"),
            None => format!("${}", realised.saved_usd),
        },
    }
}

/// `$1.5 ($0.03 to $2.97)`, or the time.
fn promised(proposal: &Proposal) -> String {
    if let Some(saving) = proposal.saving_per_30_days {
        return format!(
            "${} (${} to ${})",
            saving.expected_usd, saving.low_usd, saving.high_usd
        );
    }
    match proposal.saving_ms {
        Some(ms) => format!("{ms} ms in each run"),
        None => "room in budgets".to_owned(),
    }
}

fn wrapped_table(head: &[&str]) -> Table {
    let mut table = table(head, 0..0);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table
}
