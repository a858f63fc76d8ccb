//! A client's request, shared by all its attempts.

use std::cell::OnceCell;
use std::time::{Duration, Instant};

use super::body_store::RequestRows;
use super::chat_request::ChatRequest;
use super::client::Client;
use super::key_rate::KeyUse;
use super::labels::Labels;
use super::loops::SessionKey;
use super::protocol::{ErrorForm, ErrorResponse, Protocol};
use crate::budget::Reserve;
use crate::calls::CallOutcome;
use crate::event::{Attribution, Usage, UsageSource};
use crate::listener::ApiError;
use crate::providers::{ApiFormat, CacheMarks, Call, tokens_estimate};
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
    pub(super) attribution: Attribution,
    /// The sign that the session repeats itself, if it does.
    pub(super) looping: Option<String>,
    /// The maximum age of a stored response; none to always make the call.
    pub(super) cache_age: Option<Duration>,
    pub(super) client: Client,
    /// Counts the request for the rates of its key, from the first attempt on.
    pub(super) key_use: OnceCell<KeyUse>,
    /// The provider that stores the earlier turns, if the request continues any.
    pub(super) origin: Option<String>,
    /// The rows whose bodies are stored; none if bodies are not stored.
    pub(super) rows: Option<&'a RequestRows>,
}

impl Operation<'_> {
    /// Checks that the client's key may use a target, and the models to which a router may fall
    /// back.
    pub(super) fn check_model(&self, target: &Target) -> Result<(), ApiError> {
        if self.client.models.is_none() {
            return Ok(());
        }
        let provider = &target.provider;
        let mut models = self.request.fallback_models();
        models.insert(0, target.model.clone());
        match models.iter().find(|model| !self.client.may_use(provider, model)) {
            None => Ok(()),
            Some(model) => {
                let message = format!(
                    "this key may not use {provider}/{model}; GET /v1/models lists its models"
                );
                Err(ApiError::new(403, "model_not_allowed", message))
            }
        }
    }

    /// Counts the request for the rates of its key, once for all attempts.
    ///
    /// # Errors
    /// 429 if the key has no room.
    pub(super) fn take_rate(&self) -> Result<(), ApiError> {
        let Some(limiter) = self.client.limiter.as_ref().filter(|_| self.key_use.get().is_none())
        else {
            return Ok(());
        };
        let prompt = self.request.prompt.bytes_estimate();
        let tokens = tokens_estimate(prompt, self.request.max_tokens);
        let key_use = limiter.take(tokens, Instant::now()).map_err(|wait| {
            let seconds = wait.as_secs() + 1;
            let name = self.client.key_name.as_deref().unwrap_or_default();
            let message = format!("rate limit of the key `{name}` reached; retry in {seconds} s");
            ApiError::new(429, "rate_limit", message).with("retry-after", seconds.to_string())
        })?;
        // Set only once, because the attempts of a request are made one after the other.
        let _ = self.key_use.set(key_use);
        Ok(())
    }

    /// Notes the row of an attempt, if its body is stored.
    pub(super) fn note_row(&self, id: i64) {
        if let Some(rows) = self.rows {
            rows.add(id, self.attribution.end_user.as_deref());
        }
    }

    pub(super) fn note_error(&self, error: &ErrorResponse) {
        if let Some(rows) = self.rows {
            rows.end(error, self.protocol);
        }
    }

    /// Notes that a call leaves.
    pub(super) fn begin_call(&self) {
        if let Some(key_use) = self.key_use.get() {
            key_use.begin(Instant::now());
        }
    }

    /// Notes the tokens of a call that was made.
    pub(super) fn end_call(&self, outcome: &CallOutcome) {
        let Some(key_use) = self.key_use.get() else {
            return;
        };
        let counted = |usage: &Usage| {
            (usage.source != UsageSource::None).then(|| usage.input_tokens + usage.output_tokens)
        };
        let tokens = match outcome {
            CallOutcome::Answered(answer) => counted(&answer.usage),
            CallOutcome::Failed(failure) => {
                let is_refused = failure.status.is_some_and(|status| (300..500).contains(&status));
                let is_free = is_refused || !failure.sent;
                counted(&failure.usage).or(is_free.then_some(0))
            }
            CallOutcome::Panicked(_) => None,
            // No call was made.
            _ => return,
        };
        key_use.end(tokens, Instant::now());
    }

    /// Returns the client's key and its session, if it states one.
    pub(super) fn session(&self) -> Option<SessionKey> {
        Some((self.client.key_id, self.attribution.session.clone()?))
    }

    pub(super) fn error_form(&self) -> ErrorForm {
        match self.format {
            ApiFormat::Responses => ErrorForm::Response,
            ApiFormat::ContentArray => ErrorForm::ContentArray,
            _ => ErrorForm::Of(self.protocol),
        }
    }

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
            key: None,
        }
    }

    /// Returns the texts to embed, if any.
    pub(super) fn echo_inputs(&self) -> Vec<String> {
        match self.format.is_embedding() {
            true => self.request.inputs(),
            false => Vec::new(),
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
            attribution: self.attribution.clone(),
            billing: None,
            looping: self.looping.clone(),
            reserve: Reserve::default(),
            bounds: None,
        }
    }
}
