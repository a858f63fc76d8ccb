//! What viewers are told about a change. Since every event follows from a change in this one
//! place, events and database can never say different things.

use crate::event::suggestion::Suggestion;
use crate::event::{
    Event, EventContext, FlowId, FlowProgress, LedgerEntry, RunId, RunStatus, Timestamp, preview,
};
use crate::store::{Change, NodeRef, Receipt};

/// The events that follow from a change, in order.
pub fn events(change: &Change, receipt: &Receipt) -> Vec<Event> {
    if let Change::StartNode { node, .. }
    | Change::RetryNode { node, .. }
    | Change::FailNode { node, .. } = change
        && node.item.is_some()
    {
        // For viewers a map is one node; its items are seen in the updates of the ledger.
        return Vec::new();
    }
    match (change, receipt) {
        (
            Change::StartRun {
                flow_id,
                run_id,
                name,
                node_count,
                trigger,
                at,
            }
            | Change::ResumeRun {
                flow_id,
                run_id,
                name,
                node_count,
                trigger,
                at,
            },
            _,
        ) => {
            let context = run_place(*flow_id, run_id, None, *at);
            let status = status(&context, FlowProgress::Started);
            let (name, trigger) = (name.clone(), trigger.clone());
            vec![
                Event::FlowStarted {
                    context,
                    name,
                    node_count: *node_count,
                    trigger,
                },
                status,
            ]
        }
        (Change::StartNode { node, at, .. }, _) => vec![Event::NodeStarted {
            context: node_place(node, *at),
            label: node.label.clone(),
            attempt: node.attempt,
        }],
        (Change::SettleCall(settlement), Receipt::Settled(entry, warnings)) => {
            let context = call_place(entry, settlement.at);
            let update = Event::LedgerUpdate {
                context: context.clone(),
                entry: entry.clone(),
            };
            let warnings = warnings.iter().map(|warning| Event::BudgetWarning {
                context: context.clone(),
                warning: warning.clone(),
            });
            std::iter::once(update).chain(warnings).collect()
        }
        (_, Receipt::Suggested(suggestion)) => vec![Event::OptimizationAvailable {
            context: suggestion_place(suggestion),
            suggestion: shown(suggestion),
        }],
        (_, Receipt::SuggestionChanged(suggestion)) => vec![Event::OptimizationChanged {
            context: suggestion_place(suggestion),
            suggestion: shown(suggestion),
        }],
        (_, Receipt::Call(entry)) => {
            vec![Event::LedgerUpdate {
                context: call_place(entry, entry.timestamp),
                entry: entry.clone(),
            }]
        }
        (
            Change::FinishNode {
                node,
                output,
                latency_ms,
                cached,
                at,
                ..
            },
            Receipt::NodeOver {
                input_tokens,
                output_tokens,
                cost,
            },
        ) => {
            let context = node_place(node, *at);
            let status = status(&context, FlowProgress::NodeComplete);
            let completed = Event::NodeCompleted {
                context,
                label: node.label.clone(),
                input_tokens: *input_tokens,
                output_tokens: *output_tokens,
                cost: *cost,
                latency_ms: *latency_ms,
                result_preview: preview(output).to_owned(),
                cached: *cached,
            };
            vec![completed, status]
        }
        (
            Change::FailNode {
                node, error, at, ..
            }
            | Change::RetryNode { node, error, at },
            _,
        ) => vec![Event::NodeFailed {
            context: node_place(node, *at),
            label: node.label.clone(),
            attempt: node.attempt,
            error: error.clone(),
            will_retry: matches!(change, Change::RetryNode { .. }),
        }],
        (
            Change::FinishRun {
                flow_id,
                run_id,
                status: end,
                error,
                error_node,
                at,
            },
            Receipt::RunOver {
                execution_time_ms,
                input_tokens,
                output_tokens,
                cost,
            },
        ) => {
            let execution_time_ms = *execution_time_ms;
            let context = run_place(*flow_id, run_id, error_node.clone(), *at);
            let (last, progress) = match end {
                RunStatus::Completed => (
                    Event::FlowCompleted {
                        context: context.clone(),
                        execution_time_ms,
                        input_tokens: *input_tokens,
                        output_tokens: *output_tokens,
                        cost: *cost,
                    },
                    FlowProgress::Finished,
                ),
                RunStatus::Cancelled => (
                    Event::FlowCancelled {
                        context: context.clone(),
                        execution_time_ms,
                    },
                    FlowProgress::Failed,
                ),
                _ => {
                    let error = error.clone().unwrap_or_default();
                    (
                        Event::FlowFailed {
                            context: context.clone(),
                            error,
                            execution_time_ms,
                        },
                        FlowProgress::Failed,
                    )
                }
            };
            vec![last, status(&context, progress)]
        }
        _ => Vec::new(),
    }
}

fn status(context: &EventContext, status: FlowProgress) -> Event {
    Event::FlowStatus {
        context: context.clone(),
        status,
    }
}

fn run_place(
    flow_id: FlowId,
    run_id: &RunId,
    node_id: Option<String>,
    timestamp: Timestamp,
) -> EventContext {
    EventContext {
        flow_id: Some(flow_id),
        run_id: Some(run_id.clone()),
        node_id,
        timestamp,
    }
}

fn call_place(entry: &LedgerEntry, timestamp: Timestamp) -> EventContext {
    EventContext {
        flow_id: entry.flow_id,
        run_id: entry.run_id.clone(),
        node_id: entry.node_id.clone(),
        timestamp,
    }
}

fn suggestion_place(suggestion: &Suggestion) -> EventContext {
    EventContext {
        flow_id: Some(suggestion.flow_id),
        run_id: None,
        node_id: Some(suggestion.proposal.node_id.clone()),
        timestamp: suggestion.changed_at,
    }
}

/// As the API gives it in lists; the texts of a trial are for those who ask.
fn shown(suggestion: &Suggestion) -> Box<Suggestion> {
    Box::new(Suggestion {
        trial: None,
        ..suggestion.clone()
    })
}

fn node_place(node: &NodeRef, at: Timestamp) -> EventContext {
    run_place(node.flow_id, &node.run_id, Some(node.node_id.clone()), at)
}
