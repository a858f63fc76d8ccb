//! The optimizer proposes savings from the user's own ledger, and measures the applied ones.
//!
//! Its thread (`worker`) runs a pass shortly after calls end: a [`Pass`] sums new rows
//! (`call_stats`), applies the `rules` to flows with new sums, and returns changes for the journal.
//! `edit` changes a flow, `shape` finds savings that the graph alone shows, `trial` tests another
//! model before a flow uses it.

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

/// Returns the proposal with the named change recommended.
///
/// # Errors
/// [`Error::Invalid`] for a change that the proposal does not have.
pub fn chosen(proposal: &Proposal, name: Option<&str>) -> Result<Proposal> {
    let Some(name) = name else {
        return Ok(proposal.clone());
    };
    proposal.with(name).ok_or_else(|| {
        let others = proposal.alternatives.iter().map(|it| it.name.clone());
        let names: Vec<String> = proposal.name().into_iter().chain(others).collect();
        let fault = match names.is_empty() {
            true => "this suggestion has no alternatives".to_owned(),
            false => format!("must be one of {}", names.join(", ")),
        };
        Error::invalid(format!("alternative `{name}` not found"), "alternative", fault)
    })
}

/// Returns an identifier of the recommended change: of its edit, and of the document that it
/// applies to.
pub fn version(proposal: &Proposal) -> String {
    let change = format!("{}\n{}", proposal.document, proposal.edit);
    hex(&Sha256::digest(change))
}

/// Returns a flow's document with a suggestion's edit applied.
///
/// # Errors
/// [`Error::Conflict`] for a node or edge that was removed.
pub fn changed_document(document: &Value, edit: &Value) -> Result<Value> {
    let edit: edit::Edit = serde_json::from_value(edit.clone())
        .map_err(|error| Error::internal(format!("cannot read a stored edit: {error}")))?;
    edit::apply(document, &edit)
}

pub fn read_document(document: &str) -> Result<Value> {
    serde_json::from_str(document)
        .map_err(|error| Error::internal(format!("cannot read a stored flow: {error}")))
}
