//! Requests about objects that the provider stores: they go to the provider that created them.
//!
//! A background response continues at the provider after its request. Its ledger row stays pending
//! until a client reads the end of the response, and is then booked once.

use std::time::Duration;

use super::attempt::{Attempt, stopping};
use super::client_sink::ClientSink;
use super::protocol::{ErrorForm, ErrorResponse, Protocol};
use super::route::{self, Route};
use super::stored::ObjectRecorder;
use super::{Gateway, passed_headers};
use crate::calls::{self, Calls};
use crate::error::Error;
use crate::listener::{ApiError, RequestHead, ResponseWriter};
use crate::providers::{
    Answer, ApiFormat, CacheMarks, Call, Cancel, Failure, FailureKind, Forward, Kind, Method,
    ProviderObject, is_object_id,
};
use crate::store::{Change, OPEN_AGE_MAX_MS, ObjectKind, Store, StoredObject};
use crate::time::Timestamp;

/// The time between searches for background responses that were never read to their end.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

impl Gateway {
    /// Passes on a request about a stored object.
    pub(super) fn object(
        &self,
        kind: ObjectKind,
        route: &Route,
        head: &RequestHead,
        body: &[u8],
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        let client = self.client(head)?;
        if !route.names.iter().all(|name| is_object_id(name)) {
            let message = format!("{} not found", route.path);
            return Err(ApiError::new(404, "not_found", message).into());
        }
        let object = match route.names.first() {
            Some(id) => self.find(kind, id, &client)?,
            None => None,
        };
        let provider = match &object {
            Some(object) => object.provider.clone(),
            None => self.default_provider(route.protocol),
        };
        let own_key = self.own_key_of(&client, &provider);
        self.check_provider(&provider, own_key.is_some())?;
        let mut recorder = match route.names.is_empty() {
            true => ObjectRecorder::creating(&self.calls, kind, &client, &provider, None),
            false => ObjectRecorder::new(&self.calls),
        };
        let query = route::passed_query(head);
        let model = object.as_ref().and_then(|object| object.model.clone());
        let call = call(provider, model, query.split('&').any(|pair| pair == "stream=true"));
        let Some(guard) = self.in_flight.enter(None) else {
            return Err(stopping().into());
        };
        let forward = Forward {
            call: &call,
            api_format: ApiFormat::Object,
            method: method(head),
            path: Some(&route.path),
            query: &query,
            texts: &String::new,
            body,
            headers: &passed_headers(route.protocol, head),
            key: own_key,
            hides_usage: false,
            has_sound: false,
            drain_max: None,
            translation: None,
        };
        let mut sink = ClientSink::new(false, None, &mut recorder, reply);
        let forwarded = self.providers.forward(&forward, &guard.cancel, &mut sink);
        let seen = recorder.seen.take();
        if let Some(object) = object {
            let is_deleted = forward.method == Method::Delete && route.names.len() == 1;
            match &forwarded {
                Ok(_) if is_deleted => self.forget(object),
                Ok(answer) => self.book(object, seen, Some(answer), &call),
                Err(_) => self.book(object, seen, None, &call),
            }
        }
        let Err(error) = forwarded else {
            return Ok(());
        };
        match self.forward_error(ErrorForm::Response, *error, reply) {
            Attempt::Over => Ok(()),
            Attempt::Failed(why) | Attempt::Unusable(why) | Attempt::Refused(why) => Err(why),
        }
    }

    /// Books the call of a background response that has ended. The ledger refuses a second
    /// settlement, so that the first of several readers books it.
    fn book(
        &self,
        object: StoredObject,
        seen: Option<ProviderObject>,
        answer: Option<&Answer>,
        call: &Call,
    ) {
        let ended = seen.filter(|seen| seen.id == object.name.id && seen.is_over());
        let (Some(ended), Some(answer)) = (ended, answer) else {
            return;
        };
        let Some(id) = object.ledger_id.filter(|_| object.is_open) else {
            return;
        };
        let status = ended.status.unwrap_or_default();
        let failed = |kind, message: &str| Failure {
            kind,
            message: message.to_owned(),
            status: None,
            retry_after: None,
            usage: answer.usage,
            billing: answer.billing.clone(),
            model: answer.model.clone(),
            latency_ms: 0,
            sent: true,
        };
        let failure = match status.as_str() {
            "failed" => Some(failed(FailureKind::Status, "the background response failed")),
            "cancelled" => {
                Some(failed(FailureKind::Cancelled, "the background response was cancelled"))
            }
            _ => None,
        };
        let result = failure.as_ref().map_or(Ok(answer), Err);
        let settlement =
            calls::later_settlement(&self.providers, call, id, result, object.created_at);
        let close = Change::CloseObject(object.name);
        self.calls.settle(vec![Change::SettleCall(settlement), close]);
    }

    /// Forgets a deleted object. The end of a background response then stays unknown, and its
    /// reservation continues to count.
    fn forget(&self, object: StoredObject) {
        let name = object.name;
        let changes = match object.ledger_id.filter(|_| object.is_open) {
            Some(id) => {
                let message = "the response was deleted before its end was read";
                let lost = calls::unknown_end(id, message);
                vec![Change::SettleCall(lost), Change::CloseObject(name.clone())]
            }
            None => Vec::new(),
        };
        self.calls.settle(changes.into_iter().chain([Change::ForgetObject(name)]).collect());
    }

    /// Returns the provider for objects that flowledger does not know: the one named after the
    /// protocol, or the only one of its kind.
    fn default_provider(&self, protocol: Protocol) -> String {
        let named = protocol.name();
        let mut others = self.providers.providers().filter(|(_, it)| it.kind == Kind::OpenAi);
        match (others.next(), others.next()) {
            (Some((only, _)), None) if !self.providers.knows(named) => only.to_owned(),
            _ => named.to_owned(),
        }
    }

    fn check_provider(&self, provider: &str, has_own_key: bool) -> Result<(), ApiError> {
        if let Err(why) = self.providers.check(provider)
            && !(has_own_key && self.providers.knows(provider))
        {
            return Err(ApiError::bad_request("provider_not_configured", why));
        }
        let kind = self.providers.kind(provider);
        if !kind.is_some_and(|kind| ApiFormat::Object.is_supported_by(kind)) {
            let message = format!("provider {provider} does not store objects");
            return Err(ApiError::bad_request("wrong_protocol", message));
        }
        Ok(())
    }

    /// Settles background responses that were not read to their end in time, until the server ends.
    pub(super) fn expire(calls: &Calls, store: &Store, stop: &Cancel) {
        loop {
            let before = Timestamp(Timestamp::now().0.saturating_sub(OPEN_AGE_MAX_MS));
            match store.open_objects(before) {
                Ok(objects) => objects.into_iter().for_each(|object| expire_one(calls, object)),
                Err(error) => log::error!("cannot read open objects: {error}"),
            }
            if stop.wait(EXPIRY_INTERVAL) {
                return;
            }
        }
    }
}

fn expire_one(calls: &Calls, object: StoredObject) {
    let message = format!(
        "the end of {} {} was not read within {} hours; the provider may have billed it",
        object.name.kind.as_str(),
        object.name.id,
        OPEN_AGE_MAX_MS / (60 * 60 * 1000)
    );
    let lost = object.ledger_id.map(|id| calls::unknown_end(id, &message));
    match calls.commit(vec![Change::ExpireObject(object.name, lost)]) {
        // Another client read its end.
        Ok(()) | Err(Error::Conflict(_) | Error::Stopping) => {}
        Err(error) => log::error!("cannot settle an expired object: {error}"),
    }
}

fn call(provider: String, model: Option<String>, is_streamed: bool) -> Call {
    Call {
        provider,
        model: model.unwrap_or_default(),
        system: None,
        prompt: String::new(),
        max_tokens: None,
        temperature: None,
        stream: is_streamed,
        first_byte_timeout: None,
        total_timeout: None,
        cache_marks: CacheMarks::default(),
        key: None,
    }
}

fn method(head: &RequestHead) -> Method {
    match head.method.as_str() {
        "DELETE" => Method::Delete,
        "POST" => Method::Post,
        _ => Method::Get,
    }
}
