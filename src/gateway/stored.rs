//! Objects that the provider stores for a client: responses and conversations. Only clients with
//! the key that created an object find it.

use super::Gateway;
use super::client::Client;
use super::internal;
use super::operation::Operation;
use crate::calls::{self, Calls, Ended};
use crate::error::Error;
use crate::event::UsageSource;
use crate::listener::ApiError;
use crate::providers::{Call, Kind, ProviderObject, is_object_id};
use crate::store::{Change, ObjectKind, ObjectName, StoredObject};
use crate::time::Timestamp;

/// The error of a background response whose id could not be written.
const NOT_REMEMBERED: &str = "the background response could not be remembered";

/// Remembers the object that an answer creates before the client can read its id.
pub(super) struct ObjectRecorder<'a> {
    calls: &'a Calls,
    /// The object without its id; none if the answer creates none.
    new: Option<StoredObject>,
    /// True if a response may continue after the answer.
    is_background: bool,
    /// The object's latest state.
    pub(super) seen: Option<ProviderObject>,
    /// The object that was written as open.
    open: Option<ObjectName>,
}

impl<'a> ObjectRecorder<'a> {
    /// Creates a recorder that writes nothing.
    pub(super) fn new(calls: &'a Calls) -> Self {
        Self { calls, new: None, is_background: false, seen: None, open: None }
    }

    pub(super) fn creating(
        calls: &'a Calls,
        kind: ObjectKind,
        client: &Client,
        provider: &str,
        model: Option<&str>,
    ) -> Self {
        let new = StoredObject {
            name: ObjectName { kind, id: String::new(), key_id: client.key_id },
            provider: provider.to_owned(),
            model: model.map(str::to_owned),
            created_at: Timestamp::now(),
            ledger_id: None,
            is_open: false,
            details: None,
        };
        Self { new: Some(new), ..Self::new(calls) }
    }

    /// Sets the row of the call that creates the object.
    pub(super) fn set_row(&mut self, ledger_id: i64) {
        if let Some(new) = &mut self.new {
            new.ledger_id = Some(ledger_id);
            new.created_at = Timestamp::now();
        }
    }

    pub(super) fn record(&mut self, object: &ProviderObject) {
        self.seen = Some(object.clone());
        let Some(mut new) = self.new.take() else {
            return;
        };
        new.name.id.clone_from(&object.id);
        new.is_open = self.is_background && !object.is_over();
        let open = new.is_open.then(|| new.name.clone());
        let changes = vec![Change::Remember(new)];
        match self.calls.commit(changes.clone()) {
            Ok(()) => self.open = open,
            // The answer is paid for, so the client gets it nevertheless.
            Err(Error::Disk(why)) => {
                log::warn!("cannot remember {}, retrying: {why}", object.id);
                self.calls.settle(changes);
                self.open = open;
            }
            Err(error) => log::error!("cannot remember {}: {error}", object.id),
        }
    }

    /// Adapts the settlement of a call: the row of an open response stays pending.
    pub(super) fn conclude(&mut self, ended: Ended) -> Ended {
        let Ended { outcome, mut changes } = ended;
        let is_over = self.seen.as_ref().is_none_or(ProviderObject::is_over);
        match self.open.take() {
            Some(name) if is_over => changes.push(Change::CloseObject(name)),
            Some(_) => changes.clear(),
            // No later request can book the response.
            None if self.is_background && !is_over => {
                changes = calls::with_unknown_end(changes, NOT_REMEMBERED);
            }
            None => {}
        }
        Ended { outcome, changes }
    }
}

impl Gateway {
    /// Returns the recorder for a call's answer.
    pub(super) fn recorder(&self, operation: &Operation<'_>, call: &Call) -> ObjectRecorder<'_> {
        let is_stored = operation.request.is_stored
            && self.providers.kind(&call.provider) == Some(Kind::OpenAi);
        if !is_stored && !operation.request.is_background {
            return ObjectRecorder::new(&self.calls);
        }
        let (client, model) = (&operation.client, Some(&*call.model));
        let kind = ObjectKind::Response;
        let recorder = ObjectRecorder::creating(&self.calls, kind, client, &call.provider, model);
        ObjectRecorder { is_background: operation.request.is_background, ..recorder }
    }

    /// Checks the stored objects that a request continues, and adds their tokens to its prompt.
    /// Returns the provider that has them, if it is known.
    pub(super) fn origin(&self, operation: &mut Operation<'_>) -> Result<Option<String>, ApiError> {
        let mut provider = None;
        if let Some(id) = operation.request.previous_response.clone() {
            let object = self.find(ObjectKind::Response, &id, &operation.client)?;
            match object.as_ref().and_then(|object| self.tokens_of(object)) {
                Some(tokens) => operation.request.prompt.add_tokens(tokens),
                None => operation.request.prompt.add_reference(false),
            }
            provider = object.map(|object| object.provider);
        }
        if let Some(id) = operation.request.conversation.clone() {
            let object = self.find(ObjectKind::Conversation, &id, &operation.client)?;
            operation.request.prompt.add_reference(true);
            provider = object.map(|object| object.provider).or(provider);
        }
        Ok(provider)
    }

    /// Returns the tokens of a response and all turns before it, if the provider has counted them.
    fn tokens_of(&self, object: &StoredObject) -> Option<u64> {
        let row = self.store.ledger_row(object.ledger_id?).ok()??;
        let usage = row.usage;
        let is_counted = usage.source == UsageSource::Provider;
        is_counted.then(|| usage.input_tokens.saturating_add(usage.output_tokens))
    }

    /// Returns an object of the client. None is one that flowledger does not know, which may still
    /// exist: clients without a virtual key may use all objects of the account but those of keys.
    pub(super) fn find(
        &self,
        kind: ObjectKind,
        id: &str,
        client: &Client,
    ) -> Result<Option<StoredObject>, ApiError> {
        let name = ObjectName { kind, id: id.to_owned(), key_id: client.key_id };
        if let Some(object) = self.store.object(&name).map_err(|error| internal(&error))? {
            return Ok(Some(object));
        }
        let is_known = || self.store.is_known_object(kind, id).map_err(|error| internal(&error));
        if client.key_id.is_some() || !is_object_id(id) || is_known()? {
            let message = format!("{} with id '{id}' not found", kind.as_str());
            return Err(ApiError::new(404, "not_found", message));
        }
        Ok(None)
    }
}
