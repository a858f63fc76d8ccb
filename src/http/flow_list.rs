//! `GET /api/flows?summary=true`: flows without their documents, with triggers and newest runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::Value;

use super::Context;
use super::reply::{self, Answer};
use super::request::Query;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::event::RunStatus;
use crate::ids::FlowId;
use crate::listener::Presence;
use crate::money::Usd;
use crate::schedule::Schedule;
use crate::store::{FlowEntry, FlowSchedule, LedgerFilter, RecentRun, Store, Sums};
use crate::time::Timestamp;

/// Runs of each flow in the list, for a small plot.
const RECENT_RUNS: usize = 20;
/// The days of the sums.
const SUM_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// What a list shows of a flow's document.
struct DocumentFacts {
    description: Option<String>,
    node_count: usize,
    inputs: Vec<String>,
}

/// Keeps the facts of documents, so that a list parses only documents that have changed since the
/// one before. Holds at most the flows of the last list.
#[derive(Default)]
pub struct FlowFacts(Mutex<HashMap<FlowId, (Timestamp, Arc<DocumentFacts>)>>);

impl FlowFacts {
    /// Returns the facts of these flows; flows that were deleted since are missing.
    fn of(
        &self,
        store: &Store,
        engine: &Engine,
        flows: &[FlowEntry],
    ) -> Result<HashMap<FlowId, Arc<DocumentFacts>>> {
        // Not locked while documents are read and parsed.
        let mut known = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut facts = HashMap::new();
        for flow in flows {
            let (at, of_flow) = match known.remove(&flow.id) {
                Some(found) if found.0 == flow.updated_at => found,
                _ => match store.flow(flow.id) {
                    Ok(record) => (record.updated_at, Arc::new(read(engine, &record.document))),
                    Err(Error::NotFound(_)) => continue,
                    Err(error) => return Err(error),
                },
            };
            facts.insert(flow.id, (at, of_flow));
        }
        let found = facts.iter().map(|(id, (_, facts))| (*id, Arc::clone(facts))).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = facts;
        Ok(found)
    }
}

fn read(engine: &Engine, document: &str) -> DocumentFacts {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let graph = engine.parse(&document["data"]).ok();
    DocumentFacts {
        description: document["description"].as_str().map(str::to_owned),
        node_count: document["data"]["nodes"].as_array().map_or(0, Vec::len),
        inputs: graph.iter().flat_map(|graph| graph.inputs()).map(str::to_owned).collect(),
    }
}

#[derive(Serialize)]
struct FlowView<'a> {
    id: FlowId,
    name: &'a str,
    description: Option<&'a str>,
    node_count: usize,
    inputs: &'a [String],
    created_at: Timestamp,
    updated_at: Timestamp,
    latest_run: Option<LatestRun<'a>>,
    recent_runs: Vec<RecentRunView<'a>>,
    runs_30d: u64,
    calls_30d: u64,
    /// None if there were calls and no cost is known.
    cost_30d: Option<Usd>,
    hook: bool,
    schedule: Option<ScheduleView<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LatestRun<'a> {
    #[serde(flatten)]
    run: RecentRunView<'a>,
    trigger: &'a str,
    created_at: Timestamp,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    error: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecentRunView<'a> {
    run_id: &'a str,
    status: RunStatus,
    execution_time_ms: Option<i64>,
    cost: Option<Usd>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScheduleView<'a> {
    cron: &'a str,
    timezone: &'a str,
    enabled: bool,
    next_at: Option<Timestamp>,
}

pub fn list(context: &Context, mut query: Query, client: &Presence) -> Answer {
    let limit = query.take_limit();
    let before: Option<FlowId> = query.take("before");
    let text: Option<String> = query.take("q");
    query.finish()?;
    let since = Timestamp(Timestamp::now().0 - SUM_MS);
    let filter = LedgerFilter { from: Some(since), ..LedgerFilter::default() };
    let read_sums = |store: &Store| Ok(store.summary(&filter, "flow")?.0);
    let sums = context.heavy_reads.run(&context.store, client, read_sums)?;
    let sums: HashMap<&str, &Sums> =
        sums.iter().filter_map(|sum| Some((sum.key.as_deref()?, &sum.sums))).collect();
    let mut flows = context.store.flow_entries()?;
    let facts = context.flow_facts.of(&context.store, &context.engine, &flows)?;
    let text = text.map(|text| text.to_lowercase());
    flows.retain(|flow| {
        facts.get(&flow.id).is_some_and(|facts| {
            before.is_none_or(|before| flow.id < before) && contains(flow, facts, text.as_deref())
        })
    });
    flows.truncate(limit.saturating_add(1));
    let next = reply::cut(&mut flows, limit, |flow| flow.id);
    let ids: Vec<FlowId> = flows.iter().map(|flow| flow.id).collect();
    let runs = context.store.recent_runs(&ids, RECENT_RUNS)?;
    let counts = context.store.run_counts(since)?;
    let views: Vec<FlowView<'_>> = flows
        .iter()
        .filter_map(|flow| {
            let of_flow = runs.get(&flow.id).map(Vec::as_slice).unwrap_or_default();
            let sums = sums.get(flow.id.to_string().as_str()).copied();
            let count = counts.get(&flow.id).copied().unwrap_or_default();
            Some(view(flow, facts.get(&flow.id)?, of_flow, count, sums))
        })
        .collect();
    Ok(reply::list(&views, next))
}

/// Returns whether the name or the description contains a text in lower case.
fn contains(flow: &FlowEntry, facts: &DocumentFacts, text: Option<&str>) -> bool {
    let Some(text) = text else {
        return true;
    };
    let description = facts.description.as_deref().unwrap_or_default();
    [flow.name.as_str(), description].iter().any(|part| part.to_lowercase().contains(text))
}

fn view<'a>(
    flow: &'a FlowEntry,
    facts: &'a DocumentFacts,
    runs: &'a [RecentRun],
    runs_30d: u64,
    sums: Option<&Sums>,
) -> FlowView<'a> {
    FlowView {
        id: flow.id,
        name: &flow.name,
        description: facts.description.as_deref(),
        node_count: facts.node_count,
        inputs: &facts.inputs,
        created_at: flow.created_at,
        updated_at: flow.updated_at,
        latest_run: runs.first().map(|run| LatestRun {
            run: run_view(run),
            trigger: &run.trigger,
            created_at: run.created_at,
            started_at: run.started_at,
            finished_at: run.finished_at,
            error: run.error.as_deref(),
        }),
        recent_runs: runs.iter().map(run_view).collect(),
        runs_30d,
        calls_30d: sums.map_or(0, |sums| sums.calls),
        cost_30d: cost(sums),
        hook: flow.has_hook,
        schedule: flow.schedule.as_ref().map(schedule_view),
    }
}

/// Returns the known cost of calls; none if there were calls and no cost is known.
fn cost(sums: Option<&Sums>) -> Option<Usd> {
    let Some(sums) = sums else {
        return Some(Usd::ZERO);
    };
    let unknown = sums.unpriced_calls + sums.unknown_cost_calls;
    (unknown == 0 || unknown < sums.calls).then_some(sums.total_cost_usd)
}

fn run_view(run: &RecentRun) -> RecentRunView<'_> {
    let began_at = run.started_at.unwrap_or(run.created_at);
    RecentRunView {
        run_id: &run.id,
        status: run.status,
        execution_time_ms: run.finished_at.map(|end| end.0 - began_at.0),
        cost: run.cost,
    }
}

fn schedule_view(schedule: &FlowSchedule) -> ScheduleView<'_> {
    let parsed = Schedule::parse(&schedule.cron, &schedule.timezone).ok();
    // A time that is due and about to run is no longer upcoming.
    let after = schedule.last.max(Timestamp::now());
    ScheduleView {
        cron: &schedule.cron,
        timezone: &schedule.timezone,
        enabled: schedule.enabled,
        next_at: parsed.filter(|_| schedule.enabled).and_then(|parsed| parsed.next(after)),
    }
}
