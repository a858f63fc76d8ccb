//! A client's request, shared by all its attempts.

use std::time::Duration;

use super::chat_request::ChatRequest;
use super::client::Client;
use super::labels::Labels;
use super::protocol::Protocol;
use crate::budget::Reserve;
use crate::providers::{ApiFormat, CacheMarks, Call};
use crate::store::NewCall;
use crate::time::Timestamp;

use super::targets::Target;

pub(super) struct Operation<'a> {
    /// Joins the ledger rows of the attempts.
    pub(super) id: String,
    pub(super) protocol: Protocol,
    pub(super) format: ApiFormat,
    pub(super) prompt_hash: String,
    /// Headers to forward to the provider.
    pub(super) headers: Vec<(&'static str, String)>,
    /// The query to forward to the provider, without `?`.
    pub(super) query: String,
    pub(super) request: ChatRequest<'a>,
    pub(super) labels: Labels,
    /// The maximum age of a stored response; none to always make the call.
    pub(super) cache_age: Option<Duration>,
    pub(super) client: Client,
}

impl Operation<'_> {
    /// Returns the call at one target. The texts stay in the request's body.
    pub(super) fn call(&self, target: &Target) -> Call {
        Call {
            provider: target.provider.clone(),
            model: target.model.clone(),
            system: None,
            prompt: String::new(),
            max_tokens: self.request.max_tokens,
            temperature: None,
            stream: self.request.is_streamed,
            first_byte_timeout: None,
            total_timeout: None,
            cache_marks: CacheMarks::default(),
        }
    }

    /// Returns the ledger row of one attempt.
    pub(super) fn row(&self, call: &Call, attempt: u32) -> NewCall {
        NewCall {
            at: Timestamp::now(),
            flow_id: self.labels.flow_id,
            run_id: None,
            node_id: None,
            attempt,
            operation_id: self.id.clone(),
            provider: call.provider.clone(),
            model: call.model.clone(),
            role: self.labels.role.clone(),
            prompt_hash: self.prompt_hash.clone(),
            key_name: self.client.key_name.clone(),
            tags: self.labels.tags.clone(),
            reserve: Reserve::default(),
            bounds: None,
        }
    }
}
