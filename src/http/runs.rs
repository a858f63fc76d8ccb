//! `/api/runs`, and what of `/api/flows/{id}` is about runs.

use serde_json::{Value, json};
use uuid::Uuid;

use super::Context;
use super::reply::{Failure, Query, Reply, read_json};
use crate::error::{Error, Fault, Result};
use crate::event::{FlowId, RunId, preview};
use crate::store::{NodeRecord, NodeStatus, Run, RunFilter};

type Answer = std::result::Result<Reply, Failure>;

/// `POST /api/flows/{id}/execute?wait`.
pub fn execute(context: &Context, id: FlowId, mut query: Query, body: &[u8]) -> Answer {
    let wait: bool = query.take("wait").unwrap_or(false);
    query.finish()?;
    let flow = context.store.flow(id)?;
    let input = if body.trim_ascii().is_empty() {
        Value::Null
    } else {
        input_of(read_json(body)?)?
    };
    let accepted = context.engine.execute(&flow, input, "api")?;
    if wait {
        accepted.wait()?;
        return get(context, &accepted.run_id);
    }
    let location = format!("/api/runs/{}", accepted.run_id);
    Ok(Reply::json(202, &json!({"runId": accepted.run_id})).with("location", location))
}

/// What `{"input": …}` holds; nothing else may be in it.
fn input_of(body: Value) -> Result<Value> {
    let message = "the body cannot be read";
    let Value::Object(mut body) = body else {
        return Err(Error::invalid(
            message,
            "",
            "must be an object with `input`",
        ));
    };
    let input = body.remove("input").unwrap_or_default();
    let unknown = "is not known here; there is `input`";
    let faults: Vec<Fault> = body.keys().map(|key| Fault::new(key, unknown)).collect();
    if faults.is_empty() {
        return Ok(input);
    }
    let message = message.to_owned();
    Err(Error::Invalid { message, faults })
}

/// `GET /api/flows/{id}/status`: the newest run, and the place in the log that it is at least as
/// new as, so that a client can go on from there.
pub fn status(context: &Context, id: FlowId) -> Answer {
    // Read before the run: what is in the run may be newer, never older.
    let seq = context.store.newest_seq()?;
    let mut status = match context.store.newest_run(id)? {
        Some(run_id) => {
            let (run, nodes) = context.store.run(&run_id)?;
            view(&run, &nodes, false)
        }
        None => {
            let flow = context.store.flow(id)?;
            let document: Value = serde_json::from_str(&flow.document).unwrap_or_default();
            json!({
                "flowId": id,
                "flowName": flow.name,
                "runId": null,
                "status": null,
                "nodes": node_views(&document["data"], &[], false),
            })
        }
    };
    status["seq"] = json!(seq);
    Ok(Reply::json(200, &status))
}

/// `GET /api/runs?flow_id&limit&before`.
pub fn list(context: &Context, mut query: Query) -> Answer {
    let limit = query.take_limit();
    let filter = RunFilter {
        flow_id: query.take("flow_id"),
        before: query.take::<Uuid>("before").map(|id| id.to_string()),
    };
    query.finish()?;
    let mut runs = context.store.runs(&filter, limit + 1)?;
    let more = runs.len() > limit;
    runs.truncate(limit);
    let next: Option<RunId> = runs.last().filter(|_| more).map(|run| run.id.clone());
    let items: Vec<Value> = runs.iter().map(summary).collect();
    Ok(Reply::list(&items, next))
}

/// `GET /api/runs/{id}`.
pub fn get(context: &Context, id: &str) -> Answer {
    let (run, nodes) = context.store.run(id)?;
    Ok(Reply::json(200, &view(&run, &nodes, true)))
}

/// `POST /api/runs/{id}/cancel`.
pub fn cancel(context: &Context, id: &str) -> Answer {
    // Named before it is looked for among those under way, so that an unknown one is a 404.
    context.store.run(id)?;
    context.engine.cancel(id)?;
    Ok(Reply::json(202, &json!({"runId": id})))
}

/// A run without its nodes.
fn summary(run: &Run) -> Value {
    let execution_time_ms = run
        .finished_at
        .map(|end| end.0 - run.started_at.unwrap_or(run.created_at).0);
    json!({
        "runId": run.id,
        "flowId": run.flow_id,
        "flowName": run.flow_name,
        "status": run.status,
        "trigger": run.trigger,
        "input": serde_json::from_str::<Value>(&run.input).unwrap_or_default(),
        "createdAt": run.created_at,
        "startedAt": run.started_at,
        "finishedAt": run.finished_at,
        "executionTimeMs": execution_time_ms,
        "error": run.error,
        "errorNodeId": run.error_node,
        "inputTokens": run.input_tokens,
        "outputTokens": run.output_tokens,
        "cost": run.cost,
    })
}

/// A run with its nodes; `whole` adds their outputs.
fn view(run: &Run, records: &[NodeRecord], whole: bool) -> Value {
    let mut view = summary(run);
    let graph: Value = serde_json::from_str(&run.graph).unwrap_or_default();
    view["nodes"] = node_views(&graph, records, whole);
    view
}

/// All nodes of a graph, in its order, with what is recorded of them.
fn node_views(graph: &Value, records: &[NodeRecord], whole: bool) -> Value {
    let nodes = graph["nodes"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    nodes
        .iter()
        .map(|node| {
            let id = match &node["id"] {
                Value::String(id) => id.clone(),
                other => other.to_string(),
            };
            let label = node["data"]["label"].as_str().unwrap_or(&id);
            let record = records.iter().find(|record| record.node_id == id);
            node_view(&id, label, record, whole)
        })
        .collect()
}

fn node_view(id: &str, label: &str, record: Option<&NodeRecord>, whole: bool) -> Value {
    let Some(record) = record else {
        return json!({"nodeId": id, "label": label, "status": NodeStatus::Waiting});
    };
    let mut view = json!({
        "nodeId": id,
        "label": label,
        "status": record.status,
        "attempt": record.attempt,
        "startedAt": record.started_at,
        "finishedAt": record.finished_at,
        "latencyMs": record.latency_ms,
        "inputTokens": record.input_tokens,
        "outputTokens": record.output_tokens,
        "cost": record.cost,
        "resultPreview": record.output.as_deref().map(preview),
        "error": record.error,
    });
    if whole {
        view["output"] = json!(record.output);
    }
    view
}
