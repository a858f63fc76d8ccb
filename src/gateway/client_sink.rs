//! The client as the sink of an answer, which is also recorded if it is to be cached.

use super::cache::{CACHED_HEADER, Recording};
use super::output_limit::MAX_TOKENS_HEADER;
use super::stored::ObjectRecorder;
use crate::calls::{FillGuard, Filled};
use crate::listener::ResponseWriter;
use crate::providers::{AnswerHead, KeyLease, ProviderObject, ResponseSink};

pub(super) struct ClientSink<'a, 'b, 'c> {
    reply: &'a mut ResponseWriter<'b>,
    /// True if the client allows a cached answer, so the header must state that this one is not.
    shows_miss: bool,
    /// The output limit of each choice, if budgets lowered it.
    limit: Option<String>,
    recording: Option<Recording>,
    objects: &'a mut ObjectRecorder<'c>,
    lease: Option<&'a KeyLease<'a>>,
}

impl<'a, 'b, 'c> ClientSink<'a, 'b, 'c> {
    pub(super) fn new(
        shows_miss: bool,
        fill: Option<FillGuard>,
        objects: &'a mut ObjectRecorder<'c>,
        reply: &'a mut ResponseWriter<'b>,
    ) -> Self {
        let recording = fill.map(Recording::new);
        Self { reply, shows_miss, limit: None, recording, objects, lease: None }
    }

    /// Reports a lowered output limit to the client.
    pub(super) fn with_limit(self, limit: Option<u32>) -> Self {
        Self { limit: limit.map(|limit| limit.to_string()), ..self }
    }

    /// Notes the beginning of the response for the state of the provider.
    pub(super) fn with_lease(self, lease: &'a KeyLease<'a>) -> Self {
        Self { lease: Some(lease), ..self }
    }

    /// Returns the answer if it is complete and to be cached.
    pub(super) fn into_filled(self) -> Option<Filled> {
        self.recording.and_then(Recording::into_filled)
    }

    /// If the recording stops, callers that wait for it make the call themselves.
    fn record(&mut self, visit: impl FnOnce(&mut Recording) -> bool) {
        if self.recording.as_mut().is_some_and(|recording| !visit(recording)) {
            self.recording = None;
        }
    }
}

impl ResponseSink for ClientSink<'_, '_, '_> {
    fn object(&mut self, object: &ProviderObject) {
        self.objects.record(object);
    }

    fn whole(&mut self, head: &AnswerHead, body: &[u8]) -> bool {
        self.record(|recording| {
            recording.begin(head) && recording.push(body) && recording.end(true)
        });
        let fields = fields(head, self.shows_miss, self.limit.as_deref());
        self.reply.whole(head.status, &fields, body)
    }

    fn begin(&mut self, head: &AnswerHead) -> bool {
        if let Some(lease) = self.lease {
            lease.begun();
        }
        self.record(|recording| recording.begin(head));
        let fields = fields(head, self.shows_miss, self.limit.as_deref());
        self.reply.begin(head.status, &fields)
    }

    fn piece(&mut self, bytes: &[u8]) -> bool {
        // The client comes first.
        let is_taken = self.reply.piece(bytes);
        self.record(|recording| recording.push(bytes));
        is_taken
    }

    fn end(&mut self, is_whole: bool) {
        self.record(|recording| recording.end(is_whole));
        self.reply.end();
    }
}

/// Returns the headers of the response.
fn fields<'a>(
    head: &'a AnswerHead,
    shows_miss: bool,
    limit: Option<&'a str>,
) -> Vec<(&'a str, &'a str)> {
    let all = head.headers.iter();
    all.map(|(name, value)| (name.as_str(), value.as_str()))
        .chain(shows_miss.then_some((CACHED_HEADER, "false")))
        .chain(limit.map(|limit| (MAX_TOKENS_HEADER, limit)))
        .collect()
}
