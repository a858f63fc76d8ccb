//! Suggestions of the optimizer, as plain data: what the API gives, what is stored, what is broadcast.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FlowId, RunId, Timestamp, Usd, text_form};

/// What a suggestion is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The same calls cost less with another model.
    ModelSwitch,
    /// Identical prompts were bought again.
    Cache,
    /// A provider could have kept a long beginning that all prompts share.
    PromptCache,
    /// Attempts failed after they were billed.
    RetryWaste,
    /// A limit far above what is used takes room in budgets.
    MaxTokens,
    /// Nobody uses an output.
    DeadNode,
    /// Nodes in a row do not depend on each other.
    Parallel,
}

text_form!(Kind {
    ModelSwitch = "model_switch",
    Cache = "cache",
    PromptCache = "prompt_cache",
    RetryWaste = "retry_waste",
    MaxTokens = "max_tokens",
    DeadNode = "dead_node",
    Parallel = "parallel",
});

/// Where a suggestion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Made, and still holds.
    Open,
    /// Somebody does not want it.
    Dismissed,
    /// It holds no longer.
    Withdrawn,
    /// The flow was changed as it says.
    Applied,
    /// That change was taken back.
    Reverted,
}

text_form!(Status {
    Open = "OPEN",
    Dismissed = "DISMISSED",
    Withdrawn = "WITHDRAWN",
    Applied = "APPLIED",
    Reverted = "REVERTED",
});

/// Money in 30 days, as an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saving {
    /// The lower end.
    pub low_usd: Usd,
    /// What is most likely.
    pub expected_usd: Usd,
    /// The upper end.
    pub high_usd: Usd,
}

/// What is proposed about a node of a flow, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proposal {
    /// What it is about.
    pub kind: Kind,
    /// The node.
    pub node_id: String,
    /// The other node, of a kind that is about two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_node_id: Option<String>,
    /// In a few words.
    pub title: String,
    /// Why, in a sentence or two with numbers.
    pub reason: String,
    /// How many calls it rests on.
    pub calls: u64,
    /// The money that it saves in 30 days; none where it saves something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving_per_30_days: Option<Saving>,
    /// The time that it saves in each run, milliseconds; none where it saves something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving_ms: Option<u64>,
    /// The rows that it rests on, summed up.
    pub evidence: Value,
    /// How it changes the flow (see `optimizer::edit`).
    pub edit: Value,
    /// Other changes to choose from, the mildest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
    /// SHA-256 of what the node says that matters to this kind, in hexadecimal: what a dismissal is about.
    pub definition: String,
    /// How many whole days it rests on.
    #[serde(default)]
    pub seen_days: u64,
    /// SHA-256 of the flow's document that the change is made for, in hexadecimal.
    pub document: String,
}

/// Another change that would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alternative {
    /// What it is called where it is chosen: `provider/model`.
    pub name: String,
    /// In a few words.
    #[serde(default)]
    pub title: String,
    /// Why, in a sentence or two with numbers.
    #[serde(default)]
    pub reason: String,
    /// The money that it saves in 30 days.
    pub saving_per_30_days: Saving,
    /// The rows that it rests on, summed up.
    #[serde(default)]
    pub evidence: Value,
    /// How it changes the flow.
    pub edit: Value,
}

impl Proposal {
    /// What tells it from others of its flow.
    pub fn key(&self) -> String {
        let other = self.other_node_id.as_deref().unwrap_or_default();
        format!("{}\n{}\n{other}", self.kind, self.node_id)
    }

    /// What the change is called that it puts forward, as its alternatives are; none of a kind that has
    /// none.
    pub fn name(&self) -> Option<String> {
        let values = &self.edit["values"];
        let (provider, model) = (values["provider"].as_str()?, values["model"].as_str()?);
        (self.kind == Kind::ModelSwitch).then(|| format!("{provider}/{model}"))
    }

    /// The same with another of its changes put forward, by its name; none where there is none of that
    /// name.
    pub fn with(&self, name: &str) -> Option<Self> {
        let mut chosen = self.clone();
        let present = self.name()?;
        if present == name {
            return Some(chosen);
        }
        let other = (chosen.alternatives.iter_mut()).find(|other| other.name == name)?;
        let present = Alternative {
            name: present,
            title: self.title.clone(),
            reason: self.reason.clone(),
            saving_per_30_days: self.saving_per_30_days.unwrap_or_default(),
            evidence: self.evidence.clone(),
            edit: self.edit.clone(),
        };
        let other = std::mem::replace(other, present);
        chosen.title = other.title;
        chosen.reason = other.reason;
        chosen.saving_per_30_days = Some(other.saving_per_30_days);
        chosen.evidence = other.evidence;
        chosen.edit = other.edit;
        Some(chosen)
    }

    /// Whether somebody who did not want `old` is to be asked again: the node is another one by now, or
    /// what is to be gained has doubled, with a call or in a day. What is expected of 30 days is nothing
    /// to compare: in the first days it grows with each call.
    pub fn is_news_after(&self, old: &Self) -> bool {
        let has_doubled = |now: Option<f64>, before: Option<f64>| {
            let both = now.zip(before);
            both.is_some_and(|(now, before)| before > 0.0 && now >= 2.0 * before)
        };
        let ms = |it: &Self| it.saving_ms.map(|ms| ms as f64);
        let each = |it: &Self| it.seen().map(|(nanousd, calls)| nanousd / calls);
        let a_day = |it: &Self| {
            let days = it.seen_days as f64;
            it.seen().filter(|_| days >= 1.0).map(|seen| seen.0 / days)
        };
        self.definition != old.definition
            || has_doubled(ms(self), ms(old))
            || has_doubled(each(self), each(old))
            || has_doubled(a_day(self), a_day(old))
    }

    /// What would have been saved of the calls that it rests on, in nano-dollars, and how many they are;
    /// none of a kind that saves no money.
    fn seen(&self) -> Option<(f64, f64)> {
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

/// What a suggestion has saved since it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Realised {
    /// When it was applied.
    pub since: Timestamp,
    /// How many calls were measured; runs, where it is about time or about a node that is gone.
    pub calls: u64,
    /// What they would have cost before.
    pub would_have_cost_usd: Usd,
    /// What they cost.
    pub cost_usd: Usd,
    /// The difference, which is negative where they cost more.
    pub saved_usd: Usd,
    /// By how much runs are faster on average, milliseconds; negative where they are slower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_ms: Option<i64>,
    /// How long runs took before on average, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms_before: Option<u64>,
    /// What the node cost in a run before on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_cost_usd_before: Option<Usd>,
}

/// A proposal that was made to people, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Suggestion {
    /// Its number.
    pub id: i64,
    /// Where it is.
    pub status: Status,
    /// The flow.
    pub flow_id: FlowId,
    /// The flow's name, as it was when this was written last.
    pub flow_name: String,
    /// What is proposed.
    #[serde(flatten)]
    pub proposal: Proposal,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its status was set.
    pub changed_at: Timestamp,
    /// When it was applied, if ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_at: Option<Timestamp>,
    /// Of one that was applied: what it has saved since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realised: Option<Realised>,
    /// The newest trial of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
}

/// What a trial gave: inputs that a node had before, answered by another model as well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// When it was made.
    pub at: Timestamp,
    /// Who was asked: `provider/model`.
    pub target: String,
    /// What those inputs cost before that were answered in the trial as well; none where one of these
    /// costs is not known.
    pub before_cost_usd: Option<Usd>,
    /// What they cost in the trial; none where one of these costs is not known.
    pub after_cost_usd: Option<Usd>,
    /// Each input, the newest first.
    pub items: Vec<TrialItem>,
}

/// An input and its two answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialItem {
    /// The run that it was stored with.
    pub run_id: RunId,
    /// Of a map: which of its items, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<usize>,
    /// What was asked.
    pub prompt: String,
    /// The answer that the run was given.
    pub before: TrialAnswer,
    /// What came of it in the trial.
    pub after: TrialOutcome,
}

/// An answer, and what it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialAnswer {
    /// The model that answered, as the provider reports it.
    pub model: String,
    /// The text.
    pub output: String,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Its cost, where known.
    pub cost_usd: Option<Usd>,
    /// Milliseconds.
    pub latency_ms: Option<u64>,
    /// Of an answer in a trial: whether it had as many tokens as it might, and ends there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cut: bool,
}

/// What came of an input in a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TrialOutcome {
    /// An answer.
    Answered(TrialAnswer),
    /// None.
    Failed {
        /// Why.
        error: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Calls that cost a dollar each, of which so many were for nothing.
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
    fn calls_that_add_up_in_the_first_day_are_no_news_but_a_gain_that_has_doubled_is() {
        let hour = proposal(10, 5, 0);
        assert!(!proposal(1_000, 500, 0).is_news_after(&hour));
        assert!(!proposal(1_000, 500, 1).is_news_after(&hour));
        // With each call.
        assert!(proposal(10, 10, 0).is_news_after(&hour));
        assert!(!proposal(10, 9, 0).is_news_after(&hour));
        // In a day.
        let days = proposal(100, 50, 10);
        assert!(!proposal(200, 100, 20).is_news_after(&days));
        assert!(!proposal(390, 195, 20).is_news_after(&days));
        assert!(proposal(400, 200, 20).is_news_after(&days));
        let mut other = proposal(10, 5, 0);
        other.definition = "b".to_owned();
        assert!(other.is_news_after(&hour));
    }

    #[test]
    fn time_that_has_doubled_is_news() {
        let saving = |ms| Proposal {
            kind: Kind::Parallel,
            saving_ms: Some(ms),
            ..proposal(10, 0, 0)
        };
        assert!(saving(400).is_news_after(&saving(200)));
        assert!(!saving(399).is_news_after(&saving(200)));
    }
}
