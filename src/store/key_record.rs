//! A stored key, with its permissions and rates.

use crate::ids::FlowId;
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct KeyRecord {
    pub id: i64,
    /// A unique name, which ledger rows and budgets refer to.
    pub name: String,
    pub hash: String,
    pub created_at: Timestamp,
    /// The time of the last use, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// The key is refused from this time on.
    pub expires_at: Option<Timestamp>,
    /// The number of edits and rotations.
    pub revision: i64,
    pub limits: KeyLimits,
}

/// The permissions and rates of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// The flows that the key may name.
    pub flows: Vec<FlowId>,
    /// Patterns of the models that the key may use; none for all.
    pub models: Option<Vec<String>>,
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u64>,
}
