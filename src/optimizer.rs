//! The optimizer proposes savings that follow from the user's own ledger, and measures the applied ones.
//!
//! Its thread (`worker`) runs a pass shortly after calls end: a [`Pass`] sums new rows (`call_stats`), lets
//! the `rules` look at flows with new sums, and returns changes for the journal. `edit` changes a flow,
//! `shape` finds what a graph alone shows, `trial` asks another model before a flow does.

mod call_stats;
pub mod diff;
mod edit;
mod model_catalog;
mod models;
mod pass;
mod rules;
mod saving;
mod savings_tracker;
mod shape;
pub mod trial;
mod worker;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::event::suggestion::Proposal;
use crate::ids::hex;
pub use crate::store::document_hash;

pub use self::pass::{Pass, Wanted};
pub use self::worker::{ActivityPublisher, Optimizer, WakeSignal};

/// Returns the proposal with the change of this name recommended.
///
/// # Errors
/// [`Error::Invalid`] if it has no such change.
pub fn chosen(proposal: &Proposal, name: Option<&str>) -> Result<Proposal> {
    let Some(name) = name else {
        return Ok(proposal.clone());
    };
    proposal.with(name).ok_or_else(|| {
        let others = proposal.alternatives.iter().map(|it| it.name.clone());
        let names: Vec<String> = proposal.name().into_iter().chain(others).collect();
        let fault = format!("`{name}` is none of its changes: {}", names.join(", "));
        Error::invalid("there is no such change", "alternative", fault)
    })
}

/// Identifies the recommended change: its edit, and the document that it is for.
pub fn version(proposal: &Proposal) -> String {
    let change = format!("{}\n{}", proposal.document, proposal.edit);
    hex(&Sha256::digest(change))
}

/// Returns a flow's document with a suggestion's edit made.
///
/// # Errors
/// [`Error::Conflict`] if the edited node or edge is gone.
pub fn changed_document(document: &Value, edit: &Value) -> Result<Value> {
    let edit: edit::Edit = serde_json::from_value(edit.clone())
        .map_err(|error| Error::internal(format!("an edit cannot be read: {error}")))?;
    edit::apply(document, &edit)
}

pub fn read_document(document: &str) -> Result<Value> {
    serde_json::from_str(document)
        .map_err(|error| Error::internal(format!("a stored flow cannot be read: {error}")))
}
