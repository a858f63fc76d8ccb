//! What a run will cost, before it is run: what to expect, and what it may come to at most.
//!
//! What to expect comes from the flow's own newest runs, where there are any; else from the length of
//! its prompts and a usual length of answers. The most is every node, with every attempt at every
//! target, with answers as long as they may be.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use crate::error::Result;
use crate::event::{FlowId, LedgerEntry, Timestamp, Usage, UsageSource, Usd};
use crate::flow::{self, Agent, Graph, NodeKind, Retry, Scope, Target};
use crate::gateway::{ANSWER_TOKENS_ASSUMED, CacheWrites, Gateway};
use crate::store::{LedgerFilter, Store};

/// How many of the flow's newest rows are looked at.
const ROWS_MAX: usize = 1_000;
/// How long an answer is expected to be, in tokens, where there is no history and no shorter limit.
const ANSWER_TOKENS_USUAL: u64 = 500;
/// How long what an `http` node gives is expected to be, in tokens.
const FETCHED_TOKENS_USUAL: u64 = 1_000;
/// How long it may be: no limit that helps; this is what is reckoned with.
const FETCHED_TOKENS_MAX: u64 = 100_000;
/// How many items a map is expected to have where its list is not known before.
const ITEMS_USUAL: u64 = 10;

/// An estimate of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// What to expect.
    pub expected: Amount,
    /// What it may come to at most.
    pub worst: Amount,
    /// The same of each node that makes calls, in the order in which they run.
    pub nodes: Vec<NodeEstimate>,
    /// How many runs what to expect is taken from; 0 where there are none, and it is reckoned from
    /// the prompts.
    pub runs: usize,
    /// What makes it uncertain, in sentences.
    pub notes: Vec<String>,
}

/// Tokens and money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Amount {
    /// Calls.
    pub calls: u64,
    /// Tokens of prompts.
    pub input_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Money; none where a price is not known.
    pub cost: Option<Usd>,
}

/// An estimate of a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEstimate {
    /// Its id.
    pub node_id: String,
    /// What people call it.
    pub label: String,
    /// The model that is asked first.
    pub model: String,
    /// What to expect.
    pub expected: Amount,
    /// What it may come to at most.
    pub worst: Amount,
}

impl Amount {
    const NOTHING: Self = Self {
        calls: 0,
        input_tokens: 0,
        output_tokens: 0,
        cost: Some(Usd::ZERO),
    };

    fn plus(self, other: Self) -> Self {
        let cost = self.cost.zip(other.cost);
        Self {
            calls: self.calls.saturating_add(other.calls),
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            cost: cost.map(|(one, other)| one.plus(other)),
        }
    }

    fn times(self, count: u64) -> Self {
        let times = |cost: Usd| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            Usd::from_nanousd(cost.nanousd.saturating_mul(count))
        };
        Self {
            calls: self.calls.saturating_mul(count),
            input_tokens: self.input_tokens.saturating_mul(count),
            output_tokens: self.output_tokens.saturating_mul(count),
            cost: self.cost.map(times),
        }
    }
}

/// How long an output is, in tokens.
#[derive(Clone, Copy, Default)]
struct Length {
    expected: u64,
    worst: u64,
}

/// What one look at a graph needs.
struct Look<'a> {
    gateway: &'a Gateway,
    graph: &'a Graph,
    input: &'a Value,
    at: Timestamp,
    /// Outputs of the nodes before, by id.
    lengths: HashMap<&'a str, Length>,
    /// Means of the newest runs, by node.
    history: HashMap<String, Amount>,
    runs: usize,
    notes: Vec<String>,
}

/// Estimates a run of a graph with that input. `flow_id` is whose history counts.
///
/// # Errors
/// When the database cannot be read.
pub fn estimate(
    store: &Store,
    gateway: &Gateway,
    flow_id: Option<FlowId>,
    graph: &Graph,
    input: &Value,
) -> Result<Estimate> {
    let (history, runs) = match flow_id {
        Some(flow_id) => history(store, flow_id)?,
        None => (HashMap::new(), 0),
    };
    let mut look = Look {
        gateway,
        graph,
        input,
        at: Timestamp::now(),
        lengths: HashMap::new(),
        history,
        runs,
        notes: Vec::new(),
    };
    let mut nodes = Vec::new();
    for node in graph.order() {
        nodes.extend(look.node(node));
    }
    let total =
        |of: fn(&NodeEstimate) -> Amount| nodes.iter().map(of).fold(Amount::NOTHING, Amount::plus);
    Ok(Estimate {
        expected: total(|node| node.expected),
        worst: total(|node| node.worst),
        runs,
        notes: look.notes,
        nodes,
    })
}

/// What each node took in the mean of the newest runs in which nothing is open or unknown, and how
/// many these are.
fn history(store: &Store, flow_id: FlowId) -> Result<(HashMap<String, Amount>, usize)> {
    let filter = LedgerFilter {
        flow_id: Some(flow_id),
        ..LedgerFilter::default()
    };
    let rows = store.ledger(&filter, None, ROWS_MAX)?;
    let mut by_run: HashMap<&str, Vec<&LedgerEntry>> = HashMap::new();
    for row in &rows {
        if let Some(run_id) = row.run_id.as_deref() {
            by_run.entry(run_id).or_default().push(row);
        }
    }
    // Of the oldest of them only a part may be here.
    if rows.len() == ROWS_MAX
        && let Some(oldest) = rows.last().and_then(|row| row.run_id.as_deref())
        && by_run.len() > 1
    {
        by_run.remove(oldest);
    }
    by_run.retain(|_, rows| rows.iter().all(|row| row.total_cost_usd.is_some()));
    let mut sums: HashMap<String, Amount> = HashMap::new();
    for row in by_run.values().flatten() {
        let amount = Amount {
            calls: 1,
            input_tokens: row.usage.input_tokens,
            output_tokens: row.usage.output_tokens,
            cost: row.total_cost_usd,
        };
        let sum = sums
            .entry(row.node_id.clone().unwrap_or_default())
            .or_insert(Amount::NOTHING);
        *sum = sum.plus(amount);
    }
    let runs = by_run.len();
    for sum in sums.values_mut() {
        let mean = |sum: u64| sum.div_ceil(runs as u64);
        let cost = sum.cost.map_or(0, |cost| cost.nanousd);
        *sum = Amount {
            calls: mean(sum.calls),
            input_tokens: mean(sum.input_tokens),
            output_tokens: mean(sum.output_tokens),
            cost: Some(Usd::from_nanousd(cost / i64::try_from(runs).unwrap_or(1))),
        };
    }
    Ok((sums, runs))
}

impl<'a> Look<'a> {
    /// Estimates a node after all that it needs. None of one that makes no calls.
    fn node(&mut self, at: usize) -> Option<NodeEstimate> {
        let graph = self.graph;
        let node = &graph.nodes()[at];
        let (agent, items) = match &node.kind {
            NodeKind::Agent(agent) => (agent.as_ref(), None),
            NodeKind::Map(map) => (&map.agent, Some(self.items(&node.id, &map.items))),
            other => {
                let length = self.length_of_free(other);
                self.lengths.insert(&node.id, length);
                return None;
            }
        };
        let Target { provider, model } = &agent.targets[0];
        let prompt = self.prompt(agent, items.is_some());
        let answer = Length {
            expected: u64::from(agent.max_tokens.unwrap_or(u32::MAX)).min(ANSWER_TOKENS_USUAL),
            worst: u64::from(agent.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED)),
        };
        if agent.max_tokens.is_none() {
            self.notes.push(format!(
                "{}: without `maxTokens`, an answer is taken to have {ANSWER_TOKENS_ASSUMED} tokens at most",
                node.id
            ));
        }
        let times = items.unwrap_or(Length {
            expected: 1,
            worst: 1,
        });
        let one = |length: fn(Length) -> u64, target: &Target, writes: CacheWrites| {
            self.amount(target, length(prompt), length(answer), writes)
        };
        let usual = one(
            |length| length.expected,
            &agent.targets[0],
            CacheWrites::None,
        );
        let mut expected = usual.times(times.expected);
        if self.runs > 0 {
            // A node that the newest runs have skipped is expected to be skipped again.
            let mean = self.history.get(&node.id).copied();
            expected = mean.unwrap_or(Amount::NOTHING);
        }
        let Retry { attempts, .. } = agent.retry;
        let worst = agent
            .targets
            .iter()
            .map(|target| {
                let writes = self
                    .gateway
                    .cache_writes(&target.provider, agent.prompt_cache);
                one(|length| length.worst, target, writes)
            })
            .fold(Amount::NOTHING, Amount::plus)
            .times(u64::from(attempts))
            .times(times.worst);
        self.lengths.insert(
            &node.id,
            Length {
                expected: answer.expected.saturating_mul(times.expected),
                worst: answer.worst.saturating_mul(times.worst),
            },
        );
        Some(NodeEstimate {
            node_id: node.id.clone(),
            label: node.label.clone(),
            model: format!("{provider}/{model}"),
            expected,
            worst,
        })
    }

    fn amount(
        &self,
        target: &Target,
        input_tokens: u64,
        output_tokens: u64,
        writes: CacheWrites,
    ) -> Amount {
        let usage = Usage {
            input_tokens,
            output_tokens,
            source: UsageSource::Estimated,
            ..Usage::default()
        };
        let Target { provider, model } = target;
        Amount {
            calls: 1,
            input_tokens,
            output_tokens,
            cost: self
                .gateway
                .cost_at_most(provider, model, &usage, writes, self.at),
        }
    }

    /// How many items a map will have: known where its list comes from the input alone.
    fn items(&mut self, id: &str, template: &str) -> Length {
        match flow::items(template, &Scope::new(self.input, [])) {
            Ok(items) => {
                let count = items.len() as u64;
                Length {
                    expected: count,
                    worst: count,
                }
            }
            Err(_) => {
                let worst = flow::ITEMS_MAX as u64;
                self.notes.push(format!(
                    "{id}: how many items there will be is not known before; {ITEMS_USUAL} are expected, {worst} the most"
                ));
                Length {
                    expected: ITEMS_USUAL,
                    worst,
                }
            }
        }
    }

    /// How long a prompt will be.
    fn prompt(&self, agent: &Agent, has_item: bool) -> Length {
        let texts = [Some(agent.prompt.as_str()), agent.system.as_deref()];
        let lengths = texts.into_iter().flatten().map(|text| self.text(text));
        let mut sum = lengths.fold(Length::default(), |sum, length| Length {
            expected: sum.expected.saturating_add(length.expected),
            worst: sum.worst.saturating_add(length.worst),
        });
        if has_item {
            // The longest item may be all of what the list is made from.
            let all = self.input.to_string().len() as u64;
            sum.worst = sum.worst.saturating_add(all.div_ceil(2));
        }
        sum
    }

    /// How long what a template gives will be: its own text with the input in it, and the outputs
    /// that it names, each time that it does.
    fn text(&self, template: &str) -> Length {
        let bytes = flow::length_without_outputs(template, self.input) as u64;
        let mut length = Length {
            expected: bytes.div_ceil(4),
            worst: bytes.div_ceil(2),
        };
        for (id, of_output) in &self.lengths {
            let named = template.matches(&format!("nodes.{id}.")).count()
                + template.matches(&format!("nodes[\"{id}\"]")).count()
                + template.matches(&format!("nodes['{id}']")).count();
            let named = named as u64;
            length.expected += of_output.expected.saturating_mul(named);
            length.worst = length
                .worst
                .saturating_add(of_output.worst.saturating_mul(named));
        }
        length
    }

    fn length_of_free(&self, kind: &NodeKind) -> Length {
        match kind {
            NodeKind::Template(template) | NodeKind::Output(template) => self.text(template),
            NodeKind::Http(_) => Length {
                expected: FETCHED_TOKENS_USUAL,
                worst: FETCHED_TOKENS_MAX,
            },
            NodeKind::Input(_) => {
                let bytes = self.input.to_string().len() as u64;
                Length {
                    expected: bytes.div_ceil(4),
                    worst: bytes.div_ceil(2),
                }
            }
            _ => Length {
                expected: 1,
                worst: 1,
            },
        }
    }
}
