//! All changes that can be written, as one closed list.

use std::sync::Arc;

use crate::budget::{Budget, CallBounds, Reserve};
use crate::event::suggestion::{Proposal, Realised, Status, Trial};
use crate::event::{
    Attribution, Billing, CallStatus, Charge, Event, EventContext, LedgerEntry, RefusedBy,
    RunStatus, Usage, text_form,
};
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::schedule::Missed;
use crate::time::Timestamp;

use super::body::{Bodies, NewBody};
use super::key_record::{KeyLimits, KeyRecord};

#[derive(Clone, Debug)]
pub struct NodeRef {
    pub flow_id: FlowId,
    pub run_id: RunId,
    pub node_id: String,
    /// The index of a map's item, from 0; none for the node itself.
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
    /// The flow's current graph, as JSON.
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

/// A node that succeeded, or whose failure the flow ignores.
#[derive(Clone, Debug)]
pub struct FinishedNode {
    pub node: NodeRef,
    pub output: String,
    /// Latency of the attempt that returned the output.
    pub latency_ms: u64,
    /// The error, if the run continues despite it.
    pub error: Option<String>,
    pub cached: bool,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct FailedNode {
    pub node: NodeRef,
    pub error: String,
    /// True if a user cancelled it.
    pub cancelled: bool,
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct NewHook {
    pub flow_id: FlowId,
    /// The name in the URL. If the flow has one already, that one stays.
    pub slug: String,
    /// SHA-256 of the secret, in hexadecimal.
    pub secret_hash: String,
    pub at: Timestamp,
}

/// A delivery to a webhook; it is written in one transaction with the run that it starts.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub slug: String,
    /// SHA-256 of the secret that was sent, in hexadecimal.
    pub secret_hash: String,
    /// The sender's idempotency key, if any.
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
    /// The input of its runs, as a JSON object.
    pub input: String,
    pub enabled: bool,
    /// When the schedule was set; earlier times are never due.
    pub at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct NewCall {
    pub at: Timestamp,
    pub flow_id: Option<FlowId>,
    pub run_id: Option<RunId>,
    pub node_id: Option<String>,
    pub attempt: u32,
    /// The same for all attempts of one operation.
    pub operation_id: String,
    pub provider: String,
    pub model: String,
    pub role: Option<String>,
    pub prompt_hash: String,
    pub key_name: Option<String>,
    pub tags: Option<String>,
    pub attribution: Attribution,
    pub billing: Option<Billing>,
    /// The sign that the call's session repeats itself, if it does.
    pub looping: Option<String>,
    /// The strict maximum.
    pub reserve: Reserve,
    /// None if exactly `reserve` is to be reserved.
    pub bounds: Option<CallBounds>,
}

#[derive(Clone, Debug)]
pub struct Settlement {
    pub id: i64,
    pub model: Option<String>,
    pub usage: Usage,
    pub charge: Charge,
    /// Milliseconds; none if unknown.
    pub latency_ms: Option<u64>,
    /// Milliseconds; none if unknown or not streamed.
    pub first_token_ms: Option<u64>,
    /// The final status; never `PENDING`.
    pub status: CallStatus,
    pub error: Option<String>,
    pub at: Timestamp,
}

/// The cost of a row of unknown price, by a price that was added later.
#[derive(Clone, Debug)]
pub struct Correction {
    pub ledger_id: i64,
    /// In the form of ledger rows.
    pub price: Arc<str>,
    pub cost: Usd,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bought {
    /// SHA-256 of everything that the answer depends on, in hexadecimal.
    pub key: String,
    pub at: Timestamp,
    pub model: String,
    /// The text for a node; the response body, byte for byte, for a client.
    pub output: String,
    /// The content type that was sent to a client; none for a node.
    pub content_type: Option<String>,
    pub cost: Option<Usd>,
}

#[derive(Clone, Debug)]
pub struct NewKey {
    /// A unique name, which ledger rows and budgets refer to.
    pub name: String,
    pub hash: String,
    /// The key is refused from this time on.
    pub expires_at: Option<Timestamp>,
    pub limits: KeyLimits,
    pub at: Timestamp,
}

/// The new values of a key; none keeps the current one.
#[derive(Clone, Debug, Default)]
pub struct KeyEdit {
    pub expires_at: Option<Option<Timestamp>>,
    pub flows: Option<Vec<FlowId>>,
    pub models: Option<Option<Vec<String>>>,
    pub requests_per_minute: Option<Option<u32>>,
    pub tokens_per_minute: Option<Option<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    Response,
    Conversation,
    File,
    Batch,
}

text_form!(ObjectKind {
    Response = "response",
    Conversation = "conversation",
    File = "file",
    Batch = "batch",
});

/// Names an object of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    pub kind: ObjectKind,
    /// The provider's id.
    pub id: String,
    /// The virtual key that created it; none for clients without one, which share their objects.
    pub key_id: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    pub name: ObjectName,
    pub provider: String,
    /// The requested model, if the object has one.
    pub model: Option<String>,
    pub created_at: Timestamp,
    /// The row of the call that created it, if it has one.
    pub ledger_id: Option<i64>,
    pub is_open: bool,
    /// Further facts, as JSON.
    pub details: Option<String>,
}

/// One change to write. Its events are derived from it (see [`Batch::apply`](super::Batch::apply)).
#[derive(Clone, Debug)]
pub enum Change {
    CreateFlow(NewFlow),
    /// Replaces the document and the name; the origin stays.
    UpdateFlow {
        id: FlowId,
        flow: NewFlow,
    },
    /// Removes a flow with its webhook and its schedule; its runs and ledger rows stay. Refused
    /// while a run of the flow is open.
    DeleteFlow(FlowId),
    SetHook(NewHook),
    DeleteHook(FlowId),
    /// Takes a delivery. Refused, with all changes of its transaction, if the webhook was removed,
    /// if its secret was replaced, or if the key was used within
    /// [`HOOK_KEY_AGE_MAX_MS`](super::HOOK_KEY_AGE_MAX_MS).
    TakeDelivery(Delivery),
    SetSchedule(NewSchedule),
    DeleteSchedule(FlowId),
    /// Marks a due time of a schedule as run or skipped. Refused, with all changes of its
    /// transaction, if it was marked before, or if the schedule was removed, replaced or disabled.
    TakeDue {
        flow_id: FlowId,
        due: Timestamp,
    },
    QueueRun(NewRun),
    /// A run starts, or continues after a restart.
    StartRun(RunStart),
    /// Resumes a run that failed or was cancelled.
    ResumeRun(RunStart),
    /// Cancels a run; a restart does not undo this. Ignored if the run is over.
    CancelRun {
        run_id: RunId,
        at: Timestamp,
    },
    /// Counts a restart for every run that was in progress when the server ended unexpectedly.
    CountRestarts,
    /// Removes these counts, because the server stops regularly.
    ForgetRestarts,
    /// Removes a run that is over; its ledger rows stay.
    DeleteRun(RunId),
    StartNode {
        node: NodeRef,
        prompt: Option<Prompt>,
        at: Timestamp,
    },
    /// Records the intent of a call. Hard budgets may lower its output limit, or refuse it.
    OpenCall(NewCall),
    /// Records a call that was refused before it was made, with the reason. Its row costs nothing.
    RefuseCall(NewCall, RefusedBy, String),
    /// Records a call that the response cache answered: a row without cost that holds the savings.
    BookCached {
        call: NewCall,
        model: String,
        saved: Option<Usd>,
    },
    KeepAnswer(Arc<Bought>),
    /// Stores the bodies of a call, unless the name of its end user was erased since it began.
    KeepBody(Arc<NewBody>),
    /// Removes up to this number of bodies.
    DeleteBodies(Bodies, usize),
    SetBudgets {
        all: Vec<Budget>,
        /// The expected [`crate::budget::version`] of the current budgets, if it must match.
        version: Option<String>,
    },
    /// Adds a budget. Refused if the name is taken.
    AddBudget(Budget),
    /// Creates a key for a client of the gateway. Refused if the name is taken.
    CreateKey(NewKey),
    EditKey {
        id: i64,
        edit: KeyEdit,
    },
    /// Replaces the hash of a key. The current one stays valid until `valid_until`.
    RotateKey {
        id: i64,
        hash: String,
        valid_until: Timestamp,
        at: Timestamp,
    },
    DeleteKey {
        id: i64,
        with_budgets: bool,
    },
    TouchKey {
        id: i64,
        at: Timestamp,
    },
    SettleCall(Settlement),
    /// Stores the density of a prompt, in tokens per million bytes, unless a higher one is stored.
    RaiseDensity {
        provider: String,
        model: String,
        density: u64,
    },
    /// Removes the names of an end user from all rows; the rows stay.
    EraseEndUser {
        names: Vec<String>,
    },
    /// Adds the cost of a row of unknown price; the row stays as it is. Ignored if the row has a
    /// cost or a correction.
    CorrectCall(Correction),
    /// Remembers an object that a provider stores for a client. Refused if one of its name is open.
    Remember(StoredObject),
    /// Closes an open object. Refused, with all changes of its transaction, if it is not open.
    CloseObject(ObjectName),
    /// Closes an object whose end stays unknown, settles its call if there is one, and frees its
    /// reservation. Refused like [`Change::CloseObject`].
    ExpireObject(ObjectName, Option<Settlement>),
    /// Removes an object, unless it is open.
    ForgetObject(ObjectName),
    FinishNode(FinishedNode),
    /// Skips a node that is not on a selected branch.
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
    /// Adds a suggestion of the optimizer, or updates an open one.
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
    /// Applies a suggestion to a flow. Refused if the flow's document is not `before`.
    ApplySuggestion {
        id: i64,
        proposal: Box<Proposal>,
        before: String,
        after: String,
        at: Timestamp,
    },
    /// Reverts a suggestion. Refused if the flow was changed since.
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

/// The result of a change, for its submitter.
#[derive(Clone, Debug)]
pub enum Receipt {
    Flow(FlowId),
    Hook(String),
    Key(i64),
    /// A key after an edit or a rotation, and its hash before.
    EditedKey(Box<KeyRecord>, String),
    /// The number of rows whose end user was removed.
    Erased(usize),
    /// The number of bodies that were removed.
    DeletedBodies(usize),
    Call(Box<LedgerEntry>),
    /// A call whose output limit the budgets lowered: its row, and the new limit of each choice.
    LoweredCall(Box<LedgerEntry>, u32),
    Done,
}

/// A change that is written but not committed yet.
#[derive(Debug)]
pub struct Applied {
    pub receipt: Receipt,
    pub events: Vec<Event>,
}

/// Wraps a change without events for viewers.
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
