//! The vocabulary of what can be written, as one closed list.

use std::sync::Arc;

use crate::budget::{Budget, Reserve};
use crate::event::suggestion::{Proposal, Realised, Status, Trial};
use crate::event::{CallStatus, Event, EventContext, LedgerEntry, RefusedBy, RunStatus, Usage};
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::schedule::Missed;
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct NodeRef {
    pub flow_id: FlowId,
    pub run_id: RunId,
    pub node_id: String,
    /// Of a map: which of its items is meant, from 0; none where it is the node itself.
    pub item: Option<usize>,
    pub label: String,
    pub attempt: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub prompt: String,
    pub system: Option<String>,
}

#[derive(Clone, Debug)]
pub struct NewRun {
    pub id: RunId,
    pub flow_id: FlowId,
    pub flow_name: String,
    pub trigger: String,
    pub input: String,
    /// The flow's graph as it is now, JSON.
    pub graph: Arc<str>,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct NewFlow {
    pub name: String,
    pub document: String,
    pub origin: Option<String>,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct RunStart {
    pub flow_id: FlowId,
    pub run_id: RunId,
    pub flow_name: String,
    pub node_count: usize,
    pub trigger: String,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct RunEnd {
    pub flow_id: FlowId,
    pub run_id: RunId,
    pub status: RunStatus,
    pub error: Option<String>,
    pub error_node: Option<String>,
    pub at: Timestamp,
}

/// A node that finished well, or whose run goes on as if it had.
#[derive(Clone, Debug)]
pub struct FinishedNode {
    pub node: NodeRef,
    pub output: String,
    /// Of the attempt that returned it.
    pub latency_ms: u64,
    /// Why it failed, if the run goes on all the same.
    pub error: Option<String>,
    pub cached: bool,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct FailedNode {
    pub node: NodeRef,
    pub error: String,
    /// Whether it was stopped by a person.
    pub cancelled: bool,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct NewHook {
    pub flow_id: FlowId,
    /// Its name in the URL; one that the flow has already stays instead.
    pub slug: String,
    /// SHA-256 of its secret in hexadecimal.
    pub secret_hash: String,
    pub at: Timestamp,
}

/// What a webhook was delivered, beside the run that it starts.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub slug: String,
    /// SHA-256 of the secret that came with it, in hexadecimal.
    pub secret_hash: String,
    /// What the sender calls it, if it shall not be run again.
    pub key: Option<String>,
    pub run_id: RunId,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct NewSchedule {
    pub flow_id: FlowId,
    pub cron: String,
    pub timezone: String,
    pub missed: Missed,
    /// The input of its runs, a JSON object.
    pub input: String,
    pub enabled: bool,
    /// When; nothing before is due.
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct NewCall {
    pub at: Timestamp,
    pub flow_id: Option<FlowId>,
    pub run_id: Option<RunId>,
    pub node_id: Option<String>,
    pub attempt: u32,
    /// Joins the attempts of one operation.
    pub operation_id: String,
    pub provider: String,
    pub model: String,
    pub role: Option<String>,
    pub prompt_hash: String,
    pub key_name: Option<String>,
    pub tags: Option<String>,
    pub reserve: Reserve,
}

#[derive(Clone, Debug)]
pub struct Settlement {
    pub id: i64,
    pub model: Option<String>,
    pub usage: Usage,
    pub cost: Option<Usd>,
    pub price: Option<Arc<str>>,
    /// Milliseconds; none where it is not known.
    pub latency_ms: Option<u64>,
    /// Milliseconds; none where it was not streamed or is not known.
    pub first_token_ms: Option<u64>,
    /// What became of it; not `PENDING`.
    pub status: CallStatus,
    pub error: Option<String>,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bought {
    /// SHA-256 of all that it depends on, in hexadecimal.
    pub key: String,
    pub at: Timestamp,
    pub model: String,
    /// Its text; of a client's, the answer as it was sent, byte for byte.
    pub output: String,
    /// What a client was told that it is; none of a node's.
    pub content_type: Option<String>,
    pub cost: Option<Usd>,
}

#[derive(Clone, Debug)]
pub struct NewKey {
    /// What people, ledger rows and budgets call it; unique.
    pub name: String,
    pub hash: String,
    /// From when on it opens nothing any more.
    pub expires_at: Option<Timestamp>,
    pub at: Timestamp,
}

/// One thing to write. Its events follow from it (see [`Batch::apply`](super::Batch::apply)).
#[derive(Clone, Debug)]
pub enum Change {
    CreateFlow(NewFlow),
    /// The document and the name are replaced; the origin stays.
    UpdateFlow {
        id: FlowId,
        flow: NewFlow,
    },
    /// A flow is removed, with its webhook and its schedule; its runs and ledger rows stay.
    DeleteFlow(FlowId),
    SetHook(NewHook),
    DeleteHook(FlowId),
    /// Refused, with all changes beside it, if the webhook is gone or has another secret, or if the
    /// key was used within [`HOOK_KEY_AGE_MAX_MS`](super::HOOK_KEY_AGE_MAX_MS).
    TakeDelivery(Delivery),
    SetSchedule(NewSchedule),
    DeleteSchedule(FlowId),
    /// A time of a schedule is run or left out. Refused, with all changes beside it, if that was
    /// done before, or if the schedule is gone, was replaced or switched off.
    TakeDue {
        flow_id: FlowId,
        due: Timestamp,
    },
    QueueRun(NewRun),
    /// A run begins, or goes on after a restart.
    StartRun(RunStart),
    /// A run that failed or was cancelled goes on.
    ResumeRun(RunStart),
    /// The run is to be stopped, also by a server that starts again. Ignored if it is over.
    CancelRun {
        run_id: RunId,
        at: Timestamp,
    },
    /// A run that is over is removed; its ledger rows stay.
    DeleteRun(RunId),
    StartNode {
        node: NodeRef,
        prompt: Option<Prompt>,
        at: Timestamp,
    },
    /// The intent of a call. Refused if a hard budget does not allow it.
    OpenCall(NewCall),
    /// A call was refused before it was made, and why: a row of its own that costs nothing.
    RefuseCall(NewCall, RefusedBy, String),
    /// A call need not be made, because its answer was bought before: a row that costs nothing and
    /// says what it saved.
    BookCached {
        call: NewCall,
        model: String,
        saved: Option<Usd>,
    },
    KeepAnswer(Arc<Bought>),
    SetBudgets {
        all: Vec<Budget>,
        /// The [`crate::budget::version`] of those to be replaced, if no others may be.
        version: Option<String>,
    },
    /// A budget is added to those that there are. Refused where there is one of that name.
    AddBudget(Budget),
    /// A key for a client of the gateway. Refused where there is one of that name.
    CreateKey(NewKey),
    DeleteKey {
        id: i64,
        with_budgets: bool,
    },
    TouchKey {
        id: i64,
        at: Timestamp,
    },
    SettleCall(Settlement),
    FinishNode(FinishedNode),
    /// A node is on no branch that was taken.
    SkipNode {
        node: NodeRef,
        at: Timestamp,
    },
    RetryNode {
        node: NodeRef,
        error: String,
        at: Timestamp,
    },
    FailNode(FailedNode),
    /// The optimizer proposes something about a flow, or says anew what it proposed before.
    Propose {
        flow_id: FlowId,
        flow_name: String,
        proposal: Box<Proposal>,
        at: Timestamp,
    },
    CloseSuggestion {
        id: i64,
        status: Status,
        at: Timestamp,
    },
    /// A flow is changed as a suggestion says. Refused where its document is not `before`.
    ApplySuggestion {
        id: i64,
        proposal: Box<Proposal>,
        before: String,
        after: String,
        at: Timestamp,
    },
    /// What a suggestion changed is taken back. Refused where the flow was changed since.
    RevertSuggestion {
        id: i64,
        at: Timestamp,
    },
    SetRealised {
        id: i64,
        realised: Realised,
    },
    SetTrial {
        id: i64,
        trial: Box<Trial>,
    },
    FinishRun(RunEnd),
}

/// What a change left behind, for its submitter.
#[derive(Clone, Debug)]
pub enum Receipt {
    Flow(FlowId),
    Hook(String),
    Key(i64),
    Call(Box<LedgerEntry>),
    Done,
}

/// A change that was written, but is not committed yet.
#[derive(Debug)]
pub struct Applied {
    pub receipt: Receipt,
    pub events: Vec<Event>,
}

/// A change that viewers need not know.
pub(super) fn done<T>(_: T) -> Applied {
    Receipt::Done.into()
}

impl From<Receipt> for Applied {
    fn from(receipt: Receipt) -> Self {
        let events = Vec::new();
        Self { receipt, events }
    }
}

impl From<Vec<Event>> for Applied {
    fn from(events: Vec<Event>) -> Self {
        let receipt = Receipt::Done;
        Self { receipt, events }
    }
}

impl NodeRef {
    pub fn context(&self, at: Timestamp) -> EventContext {
        EventContext {
            flow_id: Some(self.flow_id),
            run_id: Some(self.run_id.clone()),
            node_id: Some(self.node_id.clone()),
            timestamp: at,
        }
    }
}
