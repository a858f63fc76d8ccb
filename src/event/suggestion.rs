//! The wire and storage form of the optimizer's suggestions, also used in broadcasts.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FlowId, RunId, Timestamp, Usd, text_enum};

text_enum! {
    pub enum Kind {
        /// The same calls cost less with another model.
        ModelSwitch = "model_switch",
        Cache = "cache",
        /// The provider could cache a long common prefix of all prompts.
        PromptCache = "prompt_cache",
        /// Attempts failed after they were billed.
        RetryWaste = "retry_waste",
        /// A limit far above the actual answers blocks budget.
        MaxTokens = "max_tokens",
        /// An output is never used.
        DeadNode = "dead_node",
        /// Consecutive nodes do not depend on each other.
        Parallel = "parallel",
    }
}

text_enum! {
    pub enum Status {
        Open = "OPEN",
        Dismissed = "DISMISSED",
        /// The ledger no longer supports it.
        Withdrawn = "WITHDRAWN",
        Applied = "APPLIED",
        Reverted = "REVERTED",
    }
}

/// Savings in 30 days, as an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saving {
    pub low_usd: Usd,
    pub expected_usd: Usd,
    pub high_usd: Usd,
}

/// A proposed change of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proposal {
    pub kind: Kind,
    pub node_id: String,
    /// The second node, for kinds that involve two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_node_id: Option<String>,
    pub title: String,
    /// A sentence or two with numbers.
    pub reason: String,
    /// Number of calls in the evidence.
    pub calls: u64,
    /// None if it saves no money.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving_per_30_days: Option<Saving>,
    /// Saving per run, in milliseconds; none if it saves no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving_ms: Option<u64>,
    /// Sums of the ledger rows in the evidence.
    pub evidence: Value,
    /// See `optimizer::edit`.
    pub edit: Value,
    /// Alternative changes, the mildest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
    /// SHA-256, in hexadecimal, of the node data that matters to this kind; a dismissal applies to
    /// it.
    pub definition: String,
    /// Number of whole days in the evidence.
    #[serde(default)]
    pub seen_days: u64,
    /// SHA-256, in hexadecimal, of the flow document that the edit applies to.
    pub document: String,
}

/// An alternative change; its fields are those of [`Proposal`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alternative {
    /// `provider/model`.
    pub name: String,
    #[serde(default)]
    pub title: String,
    #[serde(default)]
    pub reason: String,
    pub saving_per_30_days: Saving,
    #[serde(default)]
    pub evidence: Value,
    pub edit: Value,
}

impl Proposal {
    pub fn key(&self) -> String {
        let other = self.other_node_id.as_deref().unwrap_or_default();
        format!("{}\n{}\n{other}", self.kind, self.node_id)
    }

    /// Returns the name of the recommended change, like those of the alternatives, if the kind has any.
    pub fn name(&self) -> Option<String> {
        let values = &self.edit["values"];
        let (provider, model) = (values["provider"].as_str()?, values["model"].as_str()?);
        (self.kind == Kind::ModelSwitch).then(|| format!("{provider}/{model}"))
    }

    /// Returns the proposal with the named change recommended, if it exists.
    pub fn with(&self, name: &str) -> Option<Self> {
        let mut chosen = self.clone();
        let current = self.name()?;
        if current == name {
            return Some(chosen);
        }
        let other = (chosen.alternatives.iter_mut()).find(|other| other.name == name)?;
        other.name = current;
        std::mem::swap(&mut chosen.title, &mut other.title);
        std::mem::swap(&mut chosen.reason, &mut other.reason);
        std::mem::swap(&mut chosen.evidence, &mut other.evidence);
        std::mem::swap(&mut chosen.edit, &mut other.edit);
        let saving = chosen.saving_per_30_days.get_or_insert_default();
        std::mem::swap(saving, &mut other.saving_per_30_days);
        Some(chosen)
    }

    /// Returns whether to show the proposal again to a user who rejected `old`: the node changed,
    /// or the gain doubled, per call or per day. The saving of 30 days does not count, because it
    /// grows with each call in the first days.
    pub fn supersedes(&self, old: &Self) -> bool {
        let has_doubled = |gain: &dyn Fn(&Self) -> Option<f64>| {
            let both = gain(self).zip(gain(old));
            both.is_some_and(|(now, before)| before > 0.0 && now >= 2.0 * before)
        };
        self.definition != old.definition
            || has_doubled(&|it| it.saving_ms.map(|ms| ms as f64))
            || has_doubled(&|it| it.saved().map(|(nanousd, calls)| nanousd / calls))
            || has_doubled(&|it| {
                let saved = it.saved().filter(|_| it.seen_days >= 1);
                saved.map(|(nanousd, _)| nanousd / it.seen_days as f64)
            })
    }

    /// Returns the nano-dollars that the change would have saved on the observed calls, and the
    /// number of these calls. Returns none for a kind that saves no money.
    fn saved(&self) -> Option<(f64, f64)> {
        let number = |key: &str| self.evidence[key].as_f64();
        let (nanousd, calls) = match self.kind {
            Kind::ModelSwitch => {
                let nanousd = number("costNanousd")? - number("toCostNanousd")?;
                (nanousd, number("calls")?)
            }
            Kind::Cache => (number("repeatedCostNanousd")?, number("calls")?),
            Kind::PromptCache => (number("savedNanousd")?, number("calls")?),
            Kind::RetryWaste => {
                let wasted = number("failedCalls")? + number("timedOutCalls")?;
                let calls = number("answeredCalls")? + wasted;
                (number("wastedCostNanousd")?, calls)
            }
            Kind::DeadNode => (number("costNanousd")?, number("calls")?),
            Kind::MaxTokens | Kind::Parallel => return None,
        };
        (calls > 0.0).then_some((nanousd, calls))
    }
}

/// The savings of a suggestion since it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Realised {
    pub since: Timestamp,
    /// Number of measured calls; runs, if it saves time or removed a node.
    pub calls: u64,
    pub would_have_cost_usd: Usd,
    pub cost_usd: Usd,
    /// The difference; negative if the calls cost more.
    pub saved_usd: Usd,
    /// The average time saved in a run, in milliseconds; negative if runs are slower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_ms: Option<i64>,
    /// The average duration of a run before the change, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms_before: Option<u64>,
    /// The average cost of the node per run before the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_cost_usd_before: Option<Usd>,
}

/// A proposal that users can see, and its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Suggestion {
    pub id: i64,
    pub status: Status,
    pub flow_id: FlowId,
    /// The flow's name at the last write.
    pub flow_name: String,
    #[serde(flatten)]
    pub proposal: Proposal,
    pub created_at: Timestamp,
    pub changed_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realised: Option<Realised>,
    /// The newest trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
}

/// A trial: stored inputs of a node, also answered by another model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    pub at: Timestamp,
    /// `provider/model`.
    pub target: String,
    /// The original cost of the inputs that the trial answered; none if any is unknown.
    pub before_cost_usd: Option<Usd>,
    /// The cost of these inputs in the trial; none if any is unknown.
    pub after_cost_usd: Option<Usd>,
    /// Newest first.
    pub items: Vec<TrialItem>,
}

/// An input and its two answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialItem {
    /// The run that stored it.
    pub run_id: RunId,
    /// The index of a map's item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<usize>,
    pub prompt: String,
    pub before: TrialAnswer,
    pub after: TrialOutcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialAnswer {
    pub model: String,
    pub output: String,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// None if unknown.
    pub cost_usd: Option<Usd>,
    pub latency_ms: Option<u64>,
    /// True if the answer reached its limit and was cut off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cut: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TrialOutcome {
    Answered(TrialAnswer),
    Failed { error: String },
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Makes a proposal from calls that cost a dollar each, `repeated` of them repeats.
    fn proposal(calls: u64, repeated: u64, seen_days: u64) -> Proposal {
        Proposal {
            kind: Kind::Cache,
            node_id: "n".to_owned(),
            other_node_id: None,
            title: String::new(),
            reason: String::new(),
            calls: repeated,
            saving_per_30_days: Some(Saving {
                expected_usd: Usd::from_nanousd(30_000_000_000 * repeated as i64),
                ..Saving::default()
            }),
            saving_ms: None,
            evidence: json!({"calls": calls, "repeatedCostNanousd": repeated * 1_000_000_000}),
            edit: Value::Null,
            alternatives: Vec::new(),
            definition: "a".to_owned(),
            seen_days,
            document: String::new(),
        }
    }

    #[test]
    fn only_a_doubled_gain_per_call_or_day_is_news() {
        let hour = proposal(10, 5, 0);
        assert!(!proposal(1_000, 500, 0).supersedes(&hour));
        assert!(!proposal(1_000, 500, 1).supersedes(&hour));
        // The gain per call doubled.
        assert!(proposal(10, 10, 0).supersedes(&hour));
        assert!(!proposal(10, 9, 0).supersedes(&hour));
        // The gain per day doubled.
        let days = proposal(100, 50, 10);
        assert!(!proposal(200, 100, 20).supersedes(&days));
        assert!(!proposal(390, 195, 20).supersedes(&days));
        assert!(proposal(400, 200, 20).supersedes(&days));
        let mut other = proposal(10, 5, 0);
        other.definition = "b".to_owned();
        assert!(other.supersedes(&hour));
    }

    #[test]
    fn a_doubled_time_saving_is_news() {
        let saving =
            |ms| Proposal { kind: Kind::Parallel, saving_ms: Some(ms), ..proposal(10, 0, 0) };
        assert!(saving(400).supersedes(&saving(200)));
        assert!(!saving(399).supersedes(&saving(200)));
    }
}
