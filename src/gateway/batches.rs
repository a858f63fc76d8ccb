//! Batches of clients at their providers. A batch is one row: its intent is committed before the
//! batch is created, and stays pending until a client sees the batch's end. It is then booked once,
//! at the batch price, however many clients ask. A batch that is never asked for expires: see
//! `stored`.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::attempt::{Attempt, stopping};
use super::chat_request::ChatRequest;
use super::files::{StorageRequest, id_of, send_document};
use super::labels::Labels;
use super::operation::Operation;
use super::prompt_text::SentPrompt;
use super::protocol::{ErrorResponse, Protocol};
use super::route;
use super::targets::Target;
use crate::calls::{self, Waiter};
use crate::error::Error;
use crate::event::Charge;
use crate::listener::{ApiError, ResponseWriter};
use crate::providers::{
    Answer, ApiFormat, BatchStatus, BatchTally, CacheMarks, Call, Failure, FailureKind, RelayBody,
    Relayed,
};
use crate::store::{Change, ObjectKind, Settlement, StoredObject};
use crate::time::Timestamp;

/// The model of a batch whose requests are in a file.
const FILE_MODEL: &str = "batch";
/// Limits a line of results, in bytes.
const LINE_BYTES_MAX: u64 = 32 << 20;
/// Limits results, in bytes; Anthropic's batches have up to 100,000 requests.
const RESULTS_BYTES_MAX: u64 = 4 << 30;

/// The parts of a request for a batch that matter here.
#[derive(Deserialize)]
struct NewBatch<'a> {
    input_file_id: Option<String>,
    #[serde(borrow, default)]
    requests: Vec<BatchItem<'a>>,
}

#[derive(Deserialize)]
struct BatchItem<'a> {
    #[serde(borrow)]
    params: &'a RawValue,
}

/// The requests of a batch.
struct BatchCall<'a> {
    requests: Vec<ChatRequest<'a>>,
    models: BTreeSet<String>,
}

impl<'a> NewBatch<'a> {
    fn read(body: &'a [u8]) -> Result<Self, ApiError> {
        serde_json::from_slice(body).map_err(|error| {
            let message = format!("cannot read the batch: {error}");
            ApiError::bad_request("invalid_json", message)
        })
    }

    /// Reads the requests, which OpenAI's batches have in a file.
    fn call(&self, protocol: Protocol) -> Result<BatchCall<'a>, ApiError> {
        let mut requests = Vec::new();
        for item in self.requests.iter().filter(|_| protocol == Protocol::Anthropic) {
            let params = item.params.get().as_bytes();
            requests.push(ChatRequest::read(ApiFormat::Messages, params, None)?);
        }
        let models = requests.iter().map(|it| it.model.clone()).collect();
        Ok(BatchCall { requests, models })
    }
}

impl StorageRequest<'_> {
    /// Creates a batch.
    pub(super) fn create_batch(
        mut self,
        body: &[u8],
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        let batch = NewBatch::read(body)?;
        if self.protocol == Protocol::Anthropic && batch.requests.is_empty() {
            return Err(ApiError::bad_request("missing_requests", "`requests` is missing").into());
        }
        // The batch belongs to the provider that has its requests.
        if let Some(file) = &batch.input_file_id
            && let Some(file) = self.gateway.find(ObjectKind::File, file, &self.client)?
        {
            self.provider = file.provider;
        }
        self.check_provider()?;
        let batch = batch.call(self.protocol)?;
        self.check_models(&batch.models)?;
        for request in &batch.requests {
            self.gateway.check_files_of(request, &self.client)?;
        }
        let operation = self.operation(body, &batch)?;
        self.gateway.check_flow(&operation)?;
        operation.take_rate()?;
        let model = operation.request.model.clone();
        let target = Target { provider: self.provider.clone(), model: model.clone() };
        let call = operation.call(&target);
        let prompt = SentPrompt { request: &operation.request, format: operation.format };
        let request = self.gateway.call_request(&operation, &call, &prompt, 1);
        let Some(guard) = self.gateway.in_flight.enter(None) else {
            return Err(stopping().into());
        };
        let presence = reply.presence();
        let waiter = Waiter { cancel: self.cancel, has_left: &|| presence.is_disconnected() };
        let resources = self.gateway.calls.wait(&request, &waiter);
        let opened =
            resources.and_then(|resources| self.gateway.calls.open_call(&request, resources));
        let row = match opened {
            Ok(row) => row,
            Err(ended) => {
                let ended = self.gateway.conclude(&operation, &call, *ended, None, &guard, reply);
                return match ended {
                    Attempt::Over => Ok(()),
                    Attempt::Failed(why) | Attempt::Unusable(why) | Attempt::Refused(why) => {
                        Err(why)
                    }
                };
            }
        };
        operation.begin_call();
        let began = Timestamp::now();
        let root = self.root(ObjectKind::Batch);
        let query = route::passed_query(self.head);
        let created = self.document("POST", root, &query, RelayBody::Bytes(body));
        let (head, bytes) = created.inspect_err(|error| {
            let failure = failure_of(error, &model);
            let providers = &self.gateway.providers;
            let settlement = calls::later_settlement(providers, &call, row, Err(&failure), began);
            self.gateway.calls.settle(vec![Change::SettleCall(settlement)]);
        })?;
        let mut document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        self.remember_batch(id_of(&document), row, model, began);
        let bytes = if self.localize(&mut document) { document.to_string().into() } else { bytes };
        send_document(&head, &bytes, reply);
        Ok(())
    }

    /// Remembers a new batch as open.
    fn remember_batch(&self, id: Option<&str>, row: i64, model: String, began: Timestamp) {
        match id {
            Some(id) => self.commit(vec![Change::Remember(StoredObject {
                ledger_id: Some(row),
                is_open: true,
                model: Some(model).filter(|model| model != FILE_MODEL),
                created_at: began,
                ..self.new_object(self.name(ObjectKind::Batch, id))
            })]),
            None => {
                let lost = calls::unknown_end(row, "the response has no id of a batch");
                self.gateway.calls.settle(vec![Change::SettleCall(lost)]);
            }
        }
    }

    fn operation<'b>(
        &self,
        body: &'b [u8],
        batch: &BatchCall<'_>,
    ) -> Result<Operation<'b>, ApiError> {
        let format = match self.protocol {
            Protocol::Anthropic => ApiFormat::Messages,
            _ => ApiFormat::ChatCompletions,
        };
        let BatchCall { requests, models } = batch;
        let model = models.first().map_or(FILE_MODEL, String::as_str);
        let mut request = ChatRequest::of_batch(format, body, model, models.len() != 1);
        requests.iter().for_each(|it| request.add(it));
        let operation = self.gateway.operation(format, self.route, self.head, request)?;
        Ok(Operation { labels: Labels::read(self.head)?, ..operation })
    }

    /// Checks that the client's key may use all models of a batch. Those of a file are unknown.
    fn check_models(&self, models: &BTreeSet<String>) -> Result<(), ApiError> {
        let refused = match models.iter().find(|it| !self.client.may_use(&self.provider, it)) {
            Some(model) => model,
            None if models.is_empty() && self.client.models.is_some() => "the models of a file",
            None => return Ok(()),
        };
        let message = format!("this key may not use {refused}; GET /v1/models lists its models");
        Err(ApiError::new(403, "model_not_allowed", message))
    }

    /// Passes on a request about a batch, and books the batch if it has ended.
    pub(super) fn batch(
        &self,
        method: &'static str,
        end: &str,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        let path = self.path(ObjectKind::Batch, end);
        let body = if method == "POST" { RelayBody::Bytes(b"") } else { RelayBody::None };
        let query = route::passed_query(self.head);
        let (head, bytes) = self.document(method, &path, &query, body)?;
        let mut document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let status = BatchStatus::read(self.kind(), &document);
        if let Some(status) = &status {
            self.remember_files(&status.files);
        }
        let bytes = if self.localize(&mut document) { document.to_string().into() } else { bytes };
        send_document(&head, &bytes, reply);
        if let Some(status) = status {
            self.book_batch(&status);
        }
        Ok(())
    }

    /// Passes on the results of Anthropic's batch, and books it.
    pub(super) fn results(&self, reply: &mut ResponseWriter<'_>) -> Result<(), Box<ErrorResponse>> {
        let path = self.path(ObjectKind::Batch, "/results");
        let relayed = self.send("GET", &path, &route::passed_query(self.head), RelayBody::None)?;
        let has_results = relayed.head.status == 200;
        self.pass_bytes(relayed, reply)?;
        if has_results && self.is_open() {
            self.book_before_deletion();
        }
        Ok(())
    }

    /// Asks for the status of an open batch, and books it if it has ended.
    pub(super) fn book_before_deletion(&self) {
        if !self.is_open() {
            return;
        }
        let path = self.path(ObjectKind::Batch, "");
        let document = self.document("GET", &path, "", RelayBody::None);
        let document = document.ok().and_then(|(_, bytes)| serde_json::from_slice(&bytes).ok());
        if let Some(status) = document.and_then(|it| BatchStatus::read(self.kind(), &it)) {
            self.book_batch(&status);
        }
    }

    fn is_open(&self) -> bool {
        self.object.as_ref().is_some_and(|object| object.is_open)
    }

    /// Books a batch that has ended. The ledger refuses a second settlement, so that the first of
    /// several clients books it. If its results cannot be read now, the next client tries again.
    fn book_batch(&self, status: &BatchStatus) {
        let Some(object) = self.object.as_ref().filter(|object| object.is_open) else {
            return;
        };
        let (Some(row), true) = (object.ledger_id, status.is_over) else {
            return;
        };
        let call = call_of(object);
        let settlement = match self.answer_of(status) {
            Ok(Some(mut answer)) => {
                if answer.model.is_empty() {
                    answer.model.clone_from(&call.model);
                }
                let providers = &self.gateway.providers;
                let began = object.created_at;
                let (model, billing) = (&answer.model, &mut answer.billing);
                providers.discount_batch(&call, model, billing, began);
                calls::later_settlement(providers, &call, row, Ok(&answer), began)
            }
            // No request was answered, so nothing is billed.
            Ok(None) => Settlement {
                charge: Charge::FREE,
                model: None,
                ..calls::later_settlement(
                    &self.gateway.providers,
                    &call,
                    row,
                    Err(&unanswered(&call)),
                    object.created_at,
                )
            },
            Err(error) => {
                log::warn!("cannot read the results of batch {}: {error}", status.id);
                return;
            }
        };
        let close = Change::CloseObject(object.name.clone());
        match self.gateway.calls.commit(vec![Change::SettleCall(settlement), close]) {
            // Another client saw its end.
            Ok(()) | Err(Error::NotFound(_) | Error::Conflict(_)) => {}
            Err(error) => log::error!("cannot book batch {}: {error}", status.id),
        }
    }

    /// Returns the counts of a batch: those that it states, else those of its results. None if no
    /// request was answered.
    fn answer_of(&self, status: &BatchStatus) -> Result<Option<Answer>, String> {
        if status.is_empty {
            return Ok(None);
        }
        if let Some(answer) = &status.answer {
            return Ok(Some(answer.clone()));
        }
        let path = match (self.protocol, &status.output_file) {
            (Protocol::Anthropic, _) => {
                format!("{}/{}/results", self.root(ObjectKind::Batch), status.id)
            }
            (_, Some(file)) => format!("files/{file}/content"),
            (_, None) => return Ok(None),
        };
        let relayed = self.send("GET", &path, "", RelayBody::None);
        let relayed = relayed.map_err(|_| "the provider was not reached".to_owned())?;
        if relayed.head.status != 200 {
            return Err(format!("status {}", relayed.head.status));
        }
        let mut tally = BatchTally::new(self.kind());
        read_lines(relayed, |line| tally.line(line)).map_err(|error| error.to_string())?;
        Ok(Some(tally.finish()))
    }

    /// Replaces the address of a batch's results by flowledger's: Anthropic's SDKs read them there,
    /// with the client's key. Returns whether there was one.
    pub(super) fn localize(&self, batch: &mut Value) -> bool {
        let Some(url) = batch.get("results_url").and_then(Value::as_str) else {
            return false;
        };
        let Some((_, path)) = url.split_once("/v1/") else {
            return false;
        };
        let scheme = match self.head.header("x-forwarded-proto") {
            Some("https") => "https",
            _ => "http",
        };
        let host = self.head.header("host").unwrap_or("127.0.0.1");
        batch["results_url"] = format!("{scheme}://{host}/v1/{path}").into();
        true
    }
}

/// Visits the lines of results.
fn read_lines(relayed: Relayed, mut visit: impl FnMut(&[u8])) -> std::io::Result<()> {
    let mut results = BufReader::new(relayed.take(RESULTS_BYTES_MAX));
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut results).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        visit(&line);
    }
}

fn call_of(object: &StoredObject) -> Call {
    Call {
        provider: object.provider.clone(),
        model: object.model.clone().unwrap_or_else(|| FILE_MODEL.to_owned()),
        system: None,
        prompt: String::new(),
        max_tokens: None,
        temperature: None,
        stream: false,
        first_byte_timeout: None,
        total_timeout: None,
        cache_marks: CacheMarks::default(),
        key: None,
    }
}

/// Returns the failure of a batch that was not created.
fn failure_of(error: &ErrorResponse, model: &str) -> Failure {
    let (kind, status, message) = match error {
        ErrorResponse::Ours(error) if error.status == 400 => {
            (FailureKind::NotConfigured, None, error.message.clone())
        }
        ErrorResponse::Ours(error) => (FailureKind::BadAnswer, None, error.message.clone()),
        ErrorResponse::Providers(head, _) => {
            let message = format!("the batch was refused with status {}", head.status);
            (FailureKind::Status, Some(head.status), message)
        }
    };
    Failure { kind, status, message, ..unanswered_of(model) }
}

fn unanswered(call: &Call) -> Failure {
    unanswered_of(&call.model)
}

fn unanswered_of(model: &str) -> Failure {
    Failure {
        kind: FailureKind::Status,
        message: "no request of the batch was answered".to_owned(),
        status: None,
        retry_after: None,
        usage: Default::default(),
        billing: Default::default(),
        model: model.to_owned(),
        latency_ms: 0,
        sent: true,
    }
}
