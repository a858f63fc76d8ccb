//! `/api/runs`, and the routes of `/api/flows/{id}` about runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Context;
use super::reply::{self, Answer, encode};
use super::request::{Query, read_json};
use crate::error::{Error, Fault, Result};
use crate::event::{LedgerEntry, RunStatus, preview};
use crate::flow::without_mark;
use crate::ids::{FlowId, Seq};
use crate::listener::{ApiError, Presence};
use crate::money::Usd;
use crate::store::{
    Change, ItemRecord, LedgerFilter, NodeRecord, NodeStatus, Run, RunFilter, Store,
};
use crate::time::Timestamp;

/// Limits the calls in a run's response; the ledger contains all of them.
const CALLS_MAX: usize = 10_000;
/// Interval of checks for a disconnected client.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

pub fn execute(
    context: &Context,
    id: FlowId,
    mut query: Query,
    body: &[u8],
    client: &Presence,
) -> Answer {
    let wait: bool = query.take("wait").unwrap_or(false);
    query.finish()?;
    let flow = context.store.flow(id)?;
    let input = read_input(body)?;
    let accepted = context.engine.execute(&flow, input, "api")?;
    if wait {
        while !accepted.wait_for(CHECK_INTERVAL)? {
            if client.is_disconnected() {
                return Err(reply::client_disconnected());
            }
        }
        return get(context, &accepted.run_id);
    }
    Ok(reply::run(202, &accepted.run_id))
}

/// `POST /api/flows/{id}/estimate`: estimates the cost of a run with this input.
pub fn estimate(context: &Context, id: FlowId, body: &[u8]) -> Answer {
    let flow = context.store.flow(id)?;
    let estimate = context.engine.estimate(&flow, read_input(body)?)?;
    Ok(reply::json(200, &estimate))
}

/// Returns the input in a body; an empty body has an empty input.
fn read_input(body: &[u8]) -> Result<Value, ApiError> {
    if without_mark(body).trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    Ok(input_of(read_json(body)?)?)
}

/// Returns the value of `{"input": …}`; other keys are errors.
fn input_of(body: Value) -> Result<Value> {
    let message = "cannot read the request body";
    let Value::Object(mut body) = body else {
        return Err(Error::invalid(message, "", "must be an object with `input`"));
    };
    let input = body.remove("input").unwrap_or_default();
    let unknown = "unknown field; expected `input`";
    let faults: Vec<Fault> = body.keys().map(|key| Fault::new(key, unknown)).collect();
    match faults.is_empty() {
        true => Ok(input),
        false => Err(Error::Invalid { message: message.to_owned(), faults }),
    }
}

/// `GET /api/flows/{id}/status`: returns the newest run, and the `seq` from which a client can
/// resume.
pub fn status(context: &Context, id: FlowId) -> Answer {
    // Read before the run, so that the run may be newer than `seq`, but never older.
    let seq = context.store.newest_seq()?;
    if let Some(run_id) = context.store.newest_run(id)? {
        let (run, nodes) = context.store.run(&run_id)?;
        let epoch = Some(context.hub.epoch());
        let view = RunView { seq: Some(seq), epoch, ..view(&run, &nodes, false) };
        return Ok(reply::json(200, &view));
    }
    let flow = context.store.flow(id)?;
    let document: Value = serde_json::from_str(&flow.document).unwrap_or_default();
    let nodes = node_views(&document["data"], &[], false);
    let never_run = json!({
        "flowId": id, "flowName": flow.name, "runId": null, "status": null, "nodes": nodes, "seq": seq,
        "epoch": context.hub.epoch(),
    });
    Ok(reply::json(200, &never_run))
}

pub fn list(context: &Context, mut query: Query, client: &Presence) -> Answer {
    let limit = query.take_limit();
    let filter = RunFilter {
        flow_id: query.take("flow_id"),
        statuses: query.take_list("status"),
        triggers: query.take_list("trigger"),
        from: query.take("from"),
        to: query.take("to"),
        cost_min: query.take("min_cost"),
        cost_max: query.take("max_cost"),
        ms_min: query.take("min_ms"),
        ms_max: query.take("max_ms"),
        text: query.take("q"),
        sort: query.take("sort").unwrap_or_default(),
        before: query.take("before"),
    };
    query.finish()?;
    let read = |store: &Store| store.runs(&filter, limit);
    let (runs, next) = context.heavy_reads.run(&context.store, client, read)?;
    let items: Vec<RunView<'_>> = runs.iter().map(summary).collect();
    Ok(reply::list(&items, next.map(|next| next.to_string())))
}

/// `GET /api/runs/{id}/graph`: returns the graph that the run started with.
pub fn graph(context: &Context, id: &str) -> Answer {
    let run = context.store.run_alone(id)?;
    let graph = RawValue::from_string(run.graph)
        .map_err(|error| Error::internal(format!("cannot read the graph of run {id}: {error}")))?;
    Ok(reply::json(200, &graph))
}

pub fn get(context: &Context, id: &str) -> Answer {
    if context.store.run_bytes(id)? > reply::BYTES_AT_ONCE_MAX {
        return stream(&context.store, id);
    }
    Ok(with_run(&context.store, id, |view| reply::json(200, view))?)
}

/// Sends a large run node by node, so that clients that read slowly do not hold it in memory.
fn stream(store: &Arc<Store>, id: &str) -> Answer {
    let run = store.run_alone(id)?;
    let graph: Value = serde_json::from_str(&run.graph).unwrap_or_default();
    let nodes = graph["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_output = |node: &&Value| node["type"] == "output";
    let ids = nodes.iter().filter(is_output).map(id_of);
    let outputs = ids.map(|id| store.run_node(&run.id, &id)).collect::<Result<Vec<_>>>()?;
    let outputs: Vec<NodeRecord> = outputs.into_iter().flatten().collect();
    let head = RunView { output: Some(output(&graph, &outputs)), ..summary(&run) };
    let mut head = encode(&head)?;
    // The rest of the object follows.
    head.pop();
    head.extend_from_slice(b",\"nodes\":[");
    let nodes = nodes.iter().map(|node| json!({"nodes": [without_data(node)]})).enumerate();
    let (pieces, run_id) = (nodes.collect::<Vec<_>>().into_iter(), run.id.clone());
    let (of_nodes, of_calls) = (Arc::clone(store), Arc::clone(store));
    let pieces = pieces.map(move |(at, graph)| {
        let record = of_nodes.run_node(&run_id, &id_of(&graph["nodes"][0]))?;
        let views = node_views(&graph, record.as_slice(), true);
        let mut piece = encode(&views)?;
        // Without the brackets of the list.
        piece.pop();
        piece[0] = if at == 0 { b' ' } else { b',' };
        Ok(piece)
    });
    let calls = std::iter::once_with(move || {
        let calls = encode(&calls(&of_calls, &run.id)?)?;
        Ok([b"],\"calls\":", calls.as_slice(), b"}"].concat())
    });
    let pieces = std::iter::once(Ok(head)).chain(pieces).chain(calls);
    Ok(reply::json_pieces(pieces))
}

/// Returns the parts of a graph's node that [`node_views`] uses.
fn without_data(node: &Value) -> Value {
    json!({"id": node["id"], "data": {"label": node["data"]["label"]}})
}

/// Returns a run as `GET /api/runs/{id}` does, indented.
pub fn run_json(store: &Store, id: &str) -> Result<String> {
    with_run(store, id, |view| serde_json::to_string_pretty(view))?
        .map_err(|error| Error::internal(format!("cannot encode the run {id}: {error}")))
}

fn with_run<T>(store: &Store, id: &str, show: impl FnOnce(&RunView<'_>) -> T) -> Result<T> {
    let (run, nodes) = store.run(id)?;
    let calls = Some(calls(store, &run.id)?);
    Ok(show(&RunView { calls, ..view(&run, &nodes, true) }))
}

fn calls(store: &Store, run_id: &str) -> Result<Vec<LedgerEntry>> {
    let filter = LedgerFilter { run_id: Some(run_id.to_owned()), ..LedgerFilter::default() };
    let mut calls = store.ledger(&filter, None, CALLS_MAX)?;
    calls.reverse();
    Ok(calls)
}

pub fn delete(context: &Context, id: &str) -> Answer {
    // Checks that the run exists before it is deleted, so that an unknown run is a 404.
    context.store.run(id)?;
    context.journal.commit_one(Change::DeleteRun(id.to_owned()))?;
    Ok(reply::empty())
}

pub fn resume(context: &Context, id: &str) -> Answer {
    context.engine.resume(id)?;
    Ok(reply::json(202, &json!({"runId": id})))
}

pub fn cancel(context: &Context, id: &str) -> Answer {
    // Checks that the run exists before it is cancelled, so that an unknown run is a 404.
    context.store.run(id)?;
    context.engine.cancel(id)?;
    Ok(reply::json(202, &json!({"runId": id})))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunView<'a> {
    run_id: &'a str,
    flow_id: FlowId,
    flow_name: &'a str,
    status: RunStatus,
    trigger: &'a str,
    input: Value,
    created_at: Timestamp,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    execution_time_ms: Option<i64>,
    error: Option<&'a str>,
    error_node_id: Option<&'a str>,
    input_tokens: u64,
    output_tokens: u64,
    cost: Option<Usd>,
    /// The result, if the run has one; with several output nodes, their outputs by id. Omitted in
    /// lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Vec<NodeView<'a>>>,
    /// The run's ledger rows in order, one for each attempt. Omitted in lists and in a status.
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<Vec<LedgerEntry>>,
    /// A position in the event log; the status is at least as new.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<Seq>,
    /// The epoch of `seq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeView<'a> {
    node_id: String,
    label: String,
    status: NodeStatus,
    /// None for a node that has not started.
    #[serde(flatten)]
    started: Option<StartedView<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StartedView<'a> {
    attempt: u32,
    started_at: Timestamp,
    finished_at: Option<Timestamp>,
    latency_ms: Option<u64>,
    input_tokens: u64,
    output_tokens: u64,
    cost: Option<Usd>,
    result_preview: Option<&'a str>,
    error: Option<&'a str>,
    /// The prompt or request as sent. Omitted in a status and for nodes without requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    /// Omitted in a status, and if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a str>,
    /// The started items of a map. Omitted for other nodes and in a status.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    items: Vec<ItemView<'a>>,
}

/// An item of a map. The `operation_id` of its calls ends in `NODE[ITEM]`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemView<'a> {
    item: usize,
    status: NodeStatus,
    attempt: u32,
    started_at: Timestamp,
    finished_at: Option<Timestamp>,
    latency_ms: Option<u64>,
    prompt: Option<&'a str>,
    system: Option<&'a str>,
    output: Option<&'a str>,
    error: Option<&'a str>,
}

impl<'a> ItemView<'a> {
    fn of(record: &'a ItemRecord) -> Self {
        Self {
            item: record.item,
            status: record.status,
            attempt: record.attempt,
            started_at: record.started_at,
            finished_at: record.finished_at,
            latency_ms: record.latency_ms,
            prompt: record.prompt.as_deref(),
            system: record.system.as_deref(),
            output: record.output.as_deref(),
            error: record.error.as_deref(),
        }
    }
}

pub(super) fn summary(run: &Run) -> RunView<'_> {
    let began_at = run.started_at.unwrap_or(run.created_at);
    RunView {
        run_id: &run.id,
        flow_id: run.flow_id,
        flow_name: &run.flow_name,
        status: run.status,
        trigger: &run.trigger,
        input: serde_json::from_str(&run.input).unwrap_or_default(),
        created_at: run.created_at,
        started_at: run.started_at,
        finished_at: run.finished_at,
        execution_time_ms: run.finished_at.map(|end| end.0 - began_at.0),
        error: run.error.as_deref(),
        error_node_id: run.error_node.as_deref(),
        input_tokens: run.input_tokens,
        output_tokens: run.output_tokens,
        cost: run.cost,
        output: None,
        nodes: None,
        calls: None,
        seq: None,
        epoch: None,
    }
}

/// Returns a run with its nodes; `with_outputs` adds their outputs.
fn view<'a>(run: &'a Run, records: &'a [NodeRecord], with_outputs: bool) -> RunView<'a> {
    let graph: Value = serde_json::from_str(&run.graph).unwrap_or_default();
    RunView {
        output: Some(output(&graph, records)),
        nodes: Some(node_views(&graph, records, with_outputs)),
        ..summary(run)
    }
}

/// Returns the outputs of the output nodes; null if there are none yet.
fn output(graph: &Value, records: &[NodeRecord]) -> Value {
    let nodes = graph["nodes"].as_array().map(Vec::as_slice);
    let outputs: Map<String, Value> = nodes
        .unwrap_or_default()
        .iter()
        .filter(|node| node["type"] == "output")
        .filter_map(|node| {
            let id = id_of(node);
            let record = records.iter().find(|record| record.node_id == id)?;
            Some((record.node_id.clone(), json!(record.output.as_ref()?)))
        })
        .collect();
    match outputs.len() {
        0 => Value::Null,
        1 => outputs.into_values().next().unwrap_or_default(),
        _ => Value::Object(outputs),
    }
}

/// Returns all nodes of a graph in its order, with their records.
fn node_views<'a>(
    graph: &Value,
    records: &'a [NodeRecord],
    with_outputs: bool,
) -> Vec<NodeView<'a>> {
    let nodes = graph["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let by_id: HashMap<&str, &NodeRecord> =
        records.iter().map(|record| (record.node_id.as_str(), record)).collect();
    nodes
        .iter()
        .map(|node| {
            let node_id = id_of(node);
            let record = by_id.get(node_id.as_str()).copied();
            NodeView {
                label: node["data"]["label"].as_str().unwrap_or(&node_id).to_owned(),
                status: record.map_or(NodeStatus::Waiting, |record| record.status),
                started: record.map(|record| started(record, with_outputs)),
                node_id,
            }
        })
        .collect()
}

/// Returns an id as text; some editors write numbers.
fn id_of(node: &Value) -> String {
    match &node["id"] {
        Value::String(id) => id.clone(),
        other => other.to_string(),
    }
}

fn started(record: &NodeRecord, with_outputs: bool) -> StartedView<'_> {
    let output = record.output.as_deref();
    StartedView {
        attempt: record.attempt,
        started_at: record.started_at,
        finished_at: record.finished_at,
        latency_ms: record.latency_ms,
        input_tokens: record.input_tokens,
        output_tokens: record.output_tokens,
        cost: record.cost,
        result_preview: output.map(preview),
        error: record.error.as_deref(),
        prompt: record.prompt.as_deref().filter(|_| with_outputs),
        system: record.system.as_deref().filter(|_| with_outputs),
        output: output.filter(|_| with_outputs),
        items: if with_outputs {
            record.items.iter().map(ItemView::of).collect()
        } else {
            Vec::new()
        },
    }
}
