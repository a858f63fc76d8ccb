//! Requests that are free: token counts, such as `POST /v1/messages/count_tokens`, and descriptions
//! of models. They have separate limits at the provider
//! (<https://platform.claude.com/docs/en/build-with-claude/token-counting>), so they have no ledger
//! row and need neither a budget nor a permit.

use serde_json::{Value, json};

use super::attempt::{Attempt, stopping};
use super::client_sink::ClientSink;
use super::operation::Operation;
use super::protocol::ErrorResponse;
use super::stored::ObjectRecorder;
use super::targets::Target;
use super::translate::Service;
use super::{Gateway, answer_json, no_target, ollama};
use crate::listener::{ApiError, ResponseWriter};
use crate::providers::{ApiFormat, Call, Forward, Method, count_tokens};

impl Gateway {
    /// Asks the first target of the requested model.
    pub(super) fn count_tokens(
        &self,
        operation: &Operation<'_>,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        let (target, service) = self.counting_target(operation)?;
        match service {
            Service::Echo => {
                answer_json(reply, &echo_answer(operation)?);
                return Ok(());
            }
            Service::Counted | Service::Translated(_) => {
                answer_json(reply, &estimate(operation));
                return Ok(());
            }
            Service::PassedOn => {}
        }
        let Some(guard) = self.in_flight.enter(None) else {
            return Err(stopping().into());
        };
        let call = Call { stream: false, max_tokens: None, ..operation.call(&target) };
        let forward = Forward {
            call: &call,
            api_format: operation.format,
            method: Method::Post,
            path: None,
            query: &operation.query,
            // No settlement, so no estimate.
            texts: &String::new,
            body: &operation.request.for_model(&call.model, false),
            headers: &operation.headers,
            key: self.own_key(operation, &call.provider),
            hides_usage: false,
            has_sound: false,
            drain_max: None,
            translation: None,
        };
        let mut objects = ObjectRecorder::new(&self.calls);
        let mut client = ClientSink::new(false, None, &mut objects, reply);
        let forwarded = self.providers.forward(&forward, &guard.cancel, &mut client);
        let Err(error) = forwarded else {
            return Ok(());
        };
        match self.forward_error(operation.error_form(), *error, reply) {
            Attempt::Over => Ok(()),
            Attempt::Failed(why) | Attempt::Unusable(why) | Attempt::Refused(why) => Err(why),
        }
    }

    fn counting_target(&self, operation: &Operation<'_>) -> Result<(Target, Service), ApiError> {
        let target = self.targets(operation)?.into_iter().next().ok_or_else(no_target)?;
        let service = self.usable(operation, &target)?;
        Ok((target, service))
    }
}

/// Returns an estimate for a provider without a token count: by the tokenizer, which is close for most
/// models (see docs/budgets.md), and the bound of images and built-in tools.
fn estimate(operation: &Operation<'_>) -> Value {
    let request = &operation.request;
    let size = request.text_size(&request.prompt, true);
    let texts = count_tokens(&request.all_texts());
    let tokens = texts.saturating_add(size.media_tokens).saturating_add(size.tool_tokens);
    match operation.format {
        ApiFormat::ContentTokenCount => json!({"totalTokens": tokens}),
        ApiFormat::ResponseTokenCount => {
            json!({"object": "response.input_tokens", "input_tokens": tokens})
        }
        _ => json!({"input_tokens": tokens}),
    }
}

/// Returns the answer of `echo`, whose tokens are words.
fn echo_answer(operation: &Operation<'_>) -> Result<Value, ApiError> {
    match operation.format {
        ApiFormat::ContentTokenCount => {
            let words = operation.request.all_texts().split_whitespace().count();
            Ok(json!({"totalTokens": words}))
        }
        ApiFormat::OllamaShow => Ok(ollama::show()),
        _ => {
            let message = "provider echo does not support token counting";
            Err(ApiError::bad_request("wrong_protocol", message))
        }
    }
}
