//! Sums of the calls of each node, by day, so that the cost of a pass depends only on its new rows.
//! Pure.
//!
//! Prices depend on the length of a prompt (tiers), so sums are separate for each length class:
//! within one, the token sums determine the cost at another price. Rows are summed here and not by
//! SQL because repeats and prompt caches depend on their order, and the ledger has no index by
//! flow.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::AddAssign;

use super::saving::{DailySpend, MS_PER_DAY, Spend};
use crate::event::{CallStatus, Usage, UsageSource};
use crate::flow::{Concern, Target};
use crate::ids::FlowId;
use crate::money::Usd;
use crate::store::{CallRow, NodeChange};
use crate::time::Timestamp;

pub const WINDOW_DAYS: i64 = 30;
/// Limits the nodes with statistics; calls of further nodes are ignored.
const NODES_MAX: usize = 10_000;
/// Number of newest prompts kept to find repeats.
const PROMPTS_MAX: usize = 100_000;
/// Time for which providers keep a prompt prefix by default (Anthropic: 5 minutes).
const PROMPT_CACHE_MS: i64 = 5 * 60 * 1000;
/// Number of newest answers kept per target; more calls rarely overlap.
const STARTS_MAX: usize = 32;

/// The proposed `cache.maxAgeS`: the time for which repeated answers would be kept.
pub const ANSWER_AGE_S: i64 = 7 * 24 * 60 * 60;
const ANSWER_AGE_MS: i64 = ANSWER_AGE_S * 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered at a known cost, for the first time within [`ANSWER_AGE_S`].
    First,
    /// Answered at a known cost, although the same prompt had been answered before.
    Repeated,
    Unpriced,
    Failed,
    TimedOut,
    Refused,
    /// Any other call, such as a failure from before a change of the retries.
    Other,
}

pub const ANSWERED: &[Outcome] = &[Outcome::First, Outcome::Repeated];
pub const WASTED: &[Outcome] = &[Outcome::Failed, Outcome::TimedOut];

#[derive(Clone, Copy, Debug, Default)]
pub struct CallSums {
    pub spend: Spend,
    pub usage: Usage,
    pub prompt_tokens_max: u64,
    pub answer_tokens_max: u64,
    pub estimated: u64,
    /// Calls made while the provider still cached the prefix of an earlier prompt.
    pub prefix_hits: u64,
    /// Calls answered since the node's retries last changed.
    pub answered_since_retry_change: u64,
}

impl AddAssign for CallSums {
    fn add_assign(&mut self, other: Self) {
        let (mine, others) = (&mut self.usage, other.usage);
        for (mine, other) in [
            (&mut mine.input_tokens, others.input_tokens),
            (&mut mine.cached_input_tokens, others.cached_input_tokens),
            (&mut mine.cache_write_tokens, others.cache_write_tokens),
            (&mut mine.cache_write_1h_tokens, others.cache_write_1h_tokens),
            (&mut mine.output_tokens, others.output_tokens),
            (&mut mine.reasoning_tokens, others.reasoning_tokens),
        ] {
            *mine = mine.saturating_add(other);
        }
        self.spend += other.spend;
        self.prompt_tokens_max = self.prompt_tokens_max.max(other.prompt_tokens_max);
        self.answer_tokens_max = self.answer_tokens_max.max(other.answer_tokens_max);
        self.estimated += other.estimated;
        self.prefix_hits += other.prefix_hits;
        self.answered_since_retry_change += other.answered_since_retry_change;
    }
}

/// A day's number since 1970, the outcome, and the length class of the prompts.
type Bucket = (i64, Outcome, usize);

/// The calls of a node in the window, to one target or to all.
#[derive(Debug)]
pub struct NodeCalls<'a> {
    pub since: Timestamp,
    targets: Vec<&'a TargetStats>,
}

impl<'a> NodeCalls<'a> {
    /// Returns none if there are no calls.
    fn new(targets: impl Iterator<Item = &'a TargetStats>) -> Option<Self> {
        let targets: Vec<&TargetStats> = targets.collect();
        let since = targets.iter().filter_map(|stats| stats.since()).min()?;
        Some(Self { since, targets })
    }

    fn buckets(&self) -> impl Iterator<Item = (&Bucket, &CallSums)> {
        self.targets.iter().flat_map(|stats| &stats.buckets)
    }

    fn of(&self, outcomes: &[Outcome]) -> impl Iterator<Item = (&Bucket, &CallSums)> {
        let all = self.buckets();
        all.filter(|((_, outcome, _), _)| outcomes.contains(outcome))
    }

    pub fn sum(&self, outcomes: &[Outcome]) -> CallSums {
        total(self.of(outcomes).map(|(_, sums)| sums))
    }

    pub fn answered(&self) -> CallSums {
        self.sum(ANSWERED)
    }

    pub fn count(&self, outcome: Outcome) -> u64 {
        self.sum(&[outcome]).spend.calls
    }

    pub fn all(&self) -> CallSums {
        total(self.buckets().map(|(_, sums)| sums))
    }

    /// Returns the answered calls of each length class.
    pub fn by_class(&self) -> impl Iterator<Item = CallSums> {
        let mut classes = BTreeMap::<usize, CallSums>::new();
        for ((_, _, class), sums) in self.of(ANSWERED) {
            *classes.entry(*class).or_default() += *sums;
        }
        classes.into_values()
    }

    pub fn daily_spend(&self, outcomes: &[Outcome]) -> DailySpend {
        let mut days = BTreeMap::<i64, Spend>::new();
        for ((day, _, _), sums) in self.of(outcomes) {
            *days.entry(*day).or_default() += sums.spend;
        }
        let by_day = days.into_values().map(|spend| spend.nanousd);
        DailySpend {
            total: self.sum(outcomes).spend,
            by_day: by_day.filter(|nanousd| *nanousd > 0).collect(),
        }
    }
}

fn total<'a>(all: impl Iterator<Item = &'a CallSums>) -> CallSums {
    all.fold(CallSums::default(), |mut total, sums| {
        total += *sums;
        total
    })
}

/// The calls of a node to one target.
#[derive(Debug, Default)]
struct TargetStats {
    first_at: Option<Timestamp>,
    /// Start times of the newest answers, in order.
    starts: Vec<Timestamp>,
    buckets: BTreeMap<Bucket, CallSums>,
}

/// The last change of a node in one concern: rows up to `last_call` are outdated.
#[derive(Clone, Copy, Debug, Default)]
struct LastChange {
    last_call: i64,
    at: Option<Timestamp>,
}

type NodeKey = (FlowId, String);
/// By [`Concern`].
type LastChanges = [LastChange; Concern::ALL.len()];

/// Returns the start of the first day in the window.
pub fn window_start(now: Timestamp) -> Timestamp {
    Timestamp((now.0.div_euclid(MS_PER_DAY) - WINDOW_DAYS) * MS_PER_DAY)
}

#[derive(Default)]
pub struct CallStats {
    pub cursor: i64,
    /// Rows that were not settled when they were read.
    pub pending: BTreeSet<i64>,
    nodes: HashMap<NodeKey, BTreeMap<Target, TargetStats>>,
    changes: HashMap<NodeKey, LastChanges>,
    /// Answers of each target by day. Changes of nodes do not reset them: a target that served one
    /// node can serve others.
    answers: HashMap<Target, BTreeMap<i64, u64>>,
    /// The answer times of the newest prompts.
    prompts: HashMap<u64, Timestamp>,
    prompts_in_order: VecDeque<u64>,
    first_day: i64,
    /// The prompt lengths, in tokens, at which prices change, in ascending order. Longer prompts
    /// belong to the next class.
    pub bounds: Vec<u64>,
    /// Flows with new sums, for the pass to take.
    pub changed_flows: BTreeSet<FlowId>,
}

impl CallStats {
    pub fn new(cursor: i64, bounds: Vec<u64>) -> Self {
        Self { cursor, bounds, ..Self::default() }
    }

    pub fn flows(&self) -> impl Iterator<Item = FlowId> {
        self.nodes.keys().map(|(flow_id, _)| *flow_id)
    }

    /// Removes the calls that a node's change outdates, now and in rows read later.
    pub fn forget(&mut self, change: &NodeChange) {
        let node = (change.flow_id, change.node_id.clone());
        let changes = self.changes.entry(node.clone()).or_default();
        let last_change = &mut changes[change.concern as usize];
        if last_change.last_call >= change.last_call {
            if last_change.last_call == change.last_call {
                last_change.at = last_change.at.max(Some(change.at));
            }
            return;
        }
        last_change.last_call = change.last_call;
        last_change.at = Some(change.at);
        if change.concern == Concern::Question {
            self.nodes.remove(&node);
            return;
        }
        let is_outdated = |outcome| match change.concern {
            Concern::Repeats => outcome == Outcome::Repeated,
            _ => WASTED.contains(&outcome),
        };
        let targets = self.nodes.get_mut(&node);
        for stats in targets.into_iter().flat_map(BTreeMap::values_mut) {
            for ((day, outcome, class), mut sums) in std::mem::take(&mut stats.buckets) {
                let outcome = if is_outdated(outcome) { Outcome::Other } else { outcome };
                if change.concern == Concern::Failures {
                    sums.answered_since_retry_change = 0;
                }
                *stats.buckets.entry((day, outcome, class)).or_default() += sums;
            }
        }
    }

    /// Removes the changes of a deleted flow.
    pub fn forget_changes(&mut self, flow_id: FlowId) {
        self.changes.retain(|(of, _), _| *of != flow_id);
    }

    /// Returns the start of the calls that count for this concern; none if unknown, or if the
    /// question changed at the same time.
    pub fn changed_at(&self, flow_id: FlowId, node: &str, concern: Concern) -> Option<Timestamp> {
        let changes = self.changes.get(&(flow_id, node.to_owned()))?;
        let (changed, question) = (changes[concern as usize], changes[Concern::Question as usize]);
        // A new node changed in every concern.
        let is_own = concern == Concern::Question || changed.last_call > question.last_call;
        changed.at.filter(|_| is_own)
    }

    /// Adds a new row, or one that was pending.
    pub fn take(&mut self, row: &CallRow<'_>) {
        self.cursor = self.cursor.max(row.id);
        if row.status == CallStatus::Pending {
            self.pending.insert(row.id);
            return;
        }
        self.pending.remove(&row.id);
        let day = row.at.0.div_euclid(MS_PER_DAY);
        let Some((flow_id, node_id)) = row.node.filter(|_| day >= self.first_day) else {
            return;
        };
        let target = Target { provider: row.provider.to_owned(), model: row.model.to_owned() };
        let is_answered = row.status == CallStatus::Success;
        // A cached answer was free and involved no target.
        if !row.cached {
            let days = self.answers.entry(target.clone()).or_default();
            *days.entry(day).or_default() += u64::from(is_answered);
        }
        let node = (flow_id, node_id.to_owned());
        let changes = self.changes.get(&node).copied().unwrap_or_default();
        let is_since = |concern| row.id > changes[concern as usize].last_call;
        if !is_since(Concern::Question) {
            return;
        }
        self.changed_flows.insert(flow_id);
        let has_room = self.nodes.len() < NODES_MAX || self.nodes.contains_key(&node);
        if row.cached || !has_room {
            return;
        }
        let question = changes[Concern::Question as usize].last_call;
        let is_repeated = is_answered && self.is_repeated(flow_id, question, row);
        let class = self.bounds.partition_point(|bound| *bound < row.usage.input_tokens);
        let stats = self.nodes.entry(node).or_default();
        let stats = stats.entry(target).or_default();
        let first_at = stats.first_at.map_or(row.at, |first| first.min(row.at));
        stats.first_at = Some(first_at);
        let is_prefix_hit = is_answered && stats.record_start(row);
        let is_since_retry_change = is_answered && is_since(Concern::Failures);
        let bucket = (day, outcome(row, is_repeated, is_since), class);
        *stats.buckets.entry(bucket).or_default() += CallSums {
            spend: Spend::of_call(row.cost.unwrap_or(Usd::ZERO)),
            usage: row.usage,
            prompt_tokens_max: row.usage.input_tokens,
            answer_tokens_max: if is_answered { row.usage.output_tokens } else { 0 },
            estimated: u64::from(row.usage.source == UsageSource::Estimated),
            prefix_hits: u64::from(is_prefix_hit),
            answered_since_retry_change: u64::from(is_since_retry_change),
        };
    }

    /// Returns whether a cache would still have had the answer to the same prompt. A prompt from
    /// before a change of the question counts as different.
    fn is_repeated(&mut self, flow_id: FlowId, question: i64, row: &CallRow<'_>) -> bool {
        let mut hasher = DefaultHasher::new();
        let target = (row.provider, row.model);
        (flow_id, row.node, question, target, row.prompt_hash).hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(answered_at) = self.prompts.get_mut(&hash) {
            let age_ms = row.at.0.saturating_sub(answered_at.0);
            let is_kept = (0..=ANSWER_AGE_MS).contains(&age_ms);
            if !is_kept {
                *answered_at = row.at;
            }
            return is_kept;
        }
        self.prompts.insert(hash, row.at);
        self.prompts_in_order.push_back(hash);
        if self.prompts_in_order.len() > PROMPTS_MAX
            && let Some(oldest) = self.prompts_in_order.pop_front()
        {
            self.prompts.remove(&oldest);
        }
        false
    }

    /// Removes the days before the window, now and in rows read later.
    pub fn expire(&mut self, now: Timestamp) {
        let first_day = window_start(now).0.div_euclid(MS_PER_DAY);
        self.first_day = first_day;
        self.nodes.retain(|(flow_id, _), targets| {
            targets.retain(|_, stats| {
                let count = stats.buckets.len();
                stats.buckets = stats.buckets.split_off(&(first_day, Outcome::First, 0));
                if stats.buckets.len() < count {
                    self.changed_flows.insert(*flow_id);
                }
                !stats.buckets.is_empty()
            });
            !targets.is_empty()
        });
        self.answers.retain(|_, days| {
            *days = days.split_off(&first_day);
            !days.is_empty()
        });
    }

    /// Returns the calls of a node to a target, if any.
    pub fn calls_to(
        &self,
        flow_id: FlowId,
        node_id: &str,
        target: &Target,
    ) -> Option<NodeCalls<'_>> {
        let targets = self.nodes.get(&(flow_id, node_id.to_owned()))?;
        NodeCalls::new(targets.get(target).into_iter())
    }

    /// Returns the calls of a node to all its targets, if any.
    pub fn calls_of(&self, flow_id: FlowId, node_id: &str) -> Option<NodeCalls<'_>> {
        let targets = self.nodes.get(&(flow_id, node_id.to_owned()))?;
        NodeCalls::new(targets.values())
    }

    /// Returns the number of answered calls of each target, over all flows.
    pub fn targets(&self) -> BTreeMap<Target, u64> {
        let all = self.answers.iter();
        all.map(|(target, days)| (target.clone(), days.values().sum())).collect()
    }
}

fn outcome(row: &CallRow<'_>, is_repeated: bool, is_since: impl Fn(Concern) -> bool) -> Outcome {
    let is_billed = row.cost.is_some_and(|cost| cost.nanousd > 0);
    let is_wasted = is_billed && is_since(Concern::Failures);
    match row.status {
        _ if row.refused => Outcome::Refused,
        CallStatus::Success if row.cost.is_none() => Outcome::Unpriced,
        CallStatus::Success if !is_repeated => Outcome::First,
        CallStatus::Success if is_since(Concern::Repeats) => Outcome::Repeated,
        CallStatus::Failed if is_wasted => Outcome::Failed,
        CallStatus::Timeout if is_wasted => Outcome::TimedOut,
        _ => Outcome::Other,
    }
}

impl TargetStats {
    fn since(&self) -> Option<Timestamp> {
        let ((first_day, ..), _) = self.buckets.first_key_value()?;
        Some(self.first_at?.max(Timestamp(first_day * MS_PER_DAY)))
    }

    /// Notes the start of an answer. Returns whether an earlier one started before this call, but
    /// not too long before: only then can the call read a prompt prefix from the provider's cache.
    fn record_start(&mut self, row: &CallRow<'_>) -> bool {
        let starts = &mut self.starts;
        let before = starts.partition_point(|at| *at <= row.at);
        let newest = before.checked_sub(1).and_then(|newest| starts.get(newest));
        let is_prefix_hit =
            newest.is_some_and(|at| row.at.0.saturating_sub(at.0) < PROMPT_CACHE_MS);
        if let Some(ms) = row.begun_ms {
            let ms = i64::try_from(ms).unwrap_or(i64::MAX);
            let at = Timestamp(row.at.0.saturating_add(ms));
            starts.insert(starts.partition_point(|other| *other <= at), at);
            if starts.len() > STARTS_MAX {
                starts.remove(0);
            }
        }
        is_prefix_hit
    }
}

#[cfg(test)]
mod tests;
