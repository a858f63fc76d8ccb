//! Files of clients at their providers, and lists of files and batches. These requests are free, so
//! they have no ledger row. Uploads and contents stream through.
//!
//! All keys share the provider's account, so a key finds only the files and batches that it created:
//! see `stored`.

use std::io::Read;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::attempt::stopping;
use super::client::Client;
use super::protocol::{ErrorResponse, Protocol};
use super::route::{self, Route, Storage};
use super::{Gateway, passed_headers};
use crate::listener::{ApiError, RequestBody, RequestHead, ResponseWriter};
use crate::providers::{AnswerHead, Cancel, Kind, Relay, RelayBody, Relayed, is_object_id};
use crate::store::{Change, ObjectKind, ObjectName, StoredObject};
use crate::time::Timestamp;

/// Names the provider of a new file or batch, or of a list.
const PROVIDER_HEADER: &str = "x-flowledger-provider";
/// Limits an upload, in bytes: OpenAI's limit of a file.
const UPLOAD_BYTES_MAX: u64 = 512 << 20;
/// Limits the time to receive an upload.
const UPLOAD_TIME_MAX: Duration = Duration::from_secs(30 * 60);
/// Limits a document about files or batches, in bytes: a page of a list.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;
const READ_BYTES: usize = 64 << 10;
/// Limits the pages that are read at the provider for one page of a key's own objects.
const PAGES_MAX: usize = 50;
/// The maximum length of a page at every provider.
const PAGE_OBJECTS_MAX: usize = 100;

/// One request about files or batches.
pub(super) struct StorageRequest<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) protocol: Protocol,
    pub(super) route: &'a Route,
    pub(super) head: &'a RequestHead,
    pub(super) client: Client,
    /// The provider that has the object.
    pub(super) provider: String,
    /// The object that the path names, unless flowledger does not know it.
    pub(super) object: Option<StoredObject>,
    pub(super) id: Option<&'a str>,
    pub(super) cancel: &'a Cancel,
}

/// The page of a list that a client asks for.
struct Paging<'a> {
    limit: usize,
    /// The name of the cursor.
    direction: &'static str,
    is_backwards: bool,
    /// The other parts of the query.
    others: &'a [&'a str],
}

/// The client's own objects of several pages.
struct OwnPage {
    /// The last page without its objects.
    document: Map<String, Value>,
    own: Vec<Value>,
    /// True if the provider has further pages.
    has_more: bool,
}

/// The kind of the objects that a request is about.
fn kind_of(storage: Storage) -> ObjectKind {
    match storage {
        Storage::Upload
        | Storage::ListFiles
        | Storage::File
        | Storage::DeleteFile
        | Storage::Content => ObjectKind::File,
        Storage::CreateBatch
        | Storage::ListBatches
        | Storage::Batch
        | Storage::CancelBatch
        | Storage::DeleteBatch
        | Storage::Results => ObjectKind::Batch,
    }
}

impl Gateway {
    /// Answers a request about files or batches.
    pub(super) fn storage(
        &self,
        storage: Storage,
        route: &Route,
        head: &RequestHead,
        body: &mut RequestBody<'_>,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        let client = self.client(head)?;
        let id = route.names.first().map(String::as_str);
        let object = match id {
            Some(id) if is_object_id(id) => self.find(kind_of(storage), id, &client)?,
            Some(_) => return Err(ApiError::new(404, "not_found", "object not found").into()),
            None => None,
        };
        let Some(guard) = self.in_flight.enter(None) else {
            return Err(stopping().into());
        };
        let provider = match &object {
            Some(object) => object.provider.clone(),
            None => self.storage_provider(route.protocol, head),
        };
        let request = StorageRequest {
            gateway: self,
            protocol: route.protocol,
            route,
            head,
            client,
            provider,
            object,
            id,
            cancel: &guard.cancel,
        };
        if storage != Storage::CreateBatch {
            request.check_provider()?;
        }
        match storage {
            Storage::Upload => request.upload(body, reply),
            Storage::ListFiles | Storage::ListBatches => request.list(kind_of(storage), reply),
            Storage::File => request.pass("GET", "", reply),
            Storage::DeleteFile | Storage::DeleteBatch => request.delete(kind_of(storage), reply),
            Storage::Content => request.stream("/content", reply),
            Storage::CreateBatch => {
                let bytes = super::body::read(head, body)?;
                request.create_batch(&bytes, reply)
            }
            Storage::Batch => request.batch("GET", "", reply),
            Storage::CancelBatch => request.batch("POST", "/cancel", reply),
            Storage::Results => request.results(reply),
        }
    }

    /// Returns the provider that a request names, else the one named after the protocol, or the only
    /// one of its kind.
    fn storage_provider(&self, protocol: Protocol, head: &RequestHead) -> String {
        if let Some(named) = head.header(PROVIDER_HEADER).filter(|name| !name.is_empty()) {
            return named.to_owned();
        }
        let kind = kind_of_protocol(protocol);
        let mut others = self.providers.providers().filter(|(_, it)| it.kind == kind);
        match (others.next(), others.next()) {
            (Some((only, _)), None) => only.to_owned(),
            _ => protocol.name().to_owned(),
        }
    }
}

fn kind_of_protocol(protocol: Protocol) -> Kind {
    match protocol {
        Protocol::Anthropic => Kind::Anthropic,
        _ => Kind::OpenAi,
    }
}

impl StorageRequest<'_> {
    pub(super) fn kind(&self) -> Kind {
        kind_of_protocol(self.protocol)
    }

    /// Checks that the provider has files and batches in the client's protocol.
    pub(super) fn check_provider(&self) -> Result<(), ApiError> {
        let providers = &self.gateway.providers;
        let own_key = self.gateway.own_key_of(&self.client, &self.provider);
        if let Err(why) = providers.check(&self.provider)
            && !(own_key.is_some() && providers.knows(&self.provider))
        {
            return Err(ApiError::bad_request("provider_not_configured", why));
        }
        if providers.kind(&self.provider) == Some(self.kind()) {
            return Ok(());
        }
        let message = format!(
            "provider {} has no files or batches in this protocol; name another one in the header \
             `X-Flowledger-Provider`",
            self.provider
        );
        Err(ApiError::bad_request("wrong_protocol", message))
    }

    /// Returns the path of an object's kind after the version.
    pub(super) fn root(&self, kind: ObjectKind) -> &'static str {
        match (kind, self.protocol) {
            (ObjectKind::Batch, Protocol::Anthropic) => "messages/batches",
            (ObjectKind::Batch, _) => "batches",
            _ => "files",
        }
    }

    /// Sends a request to the provider, with any status of its response.
    pub(super) fn send(
        &self,
        method: &'static str,
        path: &str,
        query: &str,
        body: RelayBody<'_>,
    ) -> Result<Relayed, Box<ErrorResponse>> {
        let mut headers = passed_headers(self.protocol, self.head);
        if !matches!(body, RelayBody::None) {
            let content_type = self.head.header("content-type").unwrap_or("application/json");
            headers.push(("content-type", content_type.to_owned()));
        }
        let relay = Relay {
            provider: &self.provider,
            method,
            path,
            query,
            headers: &headers,
            key: self.gateway.own_key_of(&self.client, &self.provider),
            body,
        };
        let sent = self.gateway.providers.relay(relay, self.cancel);
        sent.map_err(|failure| self.gateway.refusal(&failure).into())
    }

    /// Sends a request, and reads the document of its response.
    ///
    /// # Errors
    /// Returns the provider's error if the status is not 2xx.
    pub(super) fn document(
        &self,
        method: &'static str,
        path: &str,
        query: &str,
        body: RelayBody<'_>,
    ) -> Result<(AnswerHead, Vec<u8>), Box<ErrorResponse>> {
        let mut relayed = self.send(method, path, query, body)?;
        let bytes = self.read(&mut relayed)?;
        Ok((relayed.head, bytes))
    }

    /// Reads the document of a response with status 2xx.
    fn read(&self, relayed: &mut Relayed) -> Result<Vec<u8>, Box<ErrorResponse>> {
        let bytes = relayed.read_whole(DOCUMENT_BYTES_MAX).map_err(|_| {
            self.bad_answer("the connection was lost before the response was complete")
        })?;
        let bytes = bytes.ok_or_else(|| self.bad_answer("the response is too long"))?;
        match relayed.head.status {
            200..300 => Ok(bytes),
            // Clients cannot follow a redirect: their key would be sent along.
            300..400 => Err(self.bad_answer("the provider redirects; correct its base_url").into()),
            _ => Err(Box::new(ErrorResponse::Providers(relayed.head.clone(), bytes))),
        }
    }

    pub(super) fn bad_answer(&self, message: &str) -> ApiError {
        ApiError::new(502, "provider_bad_answer", format!("{}: {message}", self.provider))
    }

    /// Returns the path of the object that the request names.
    pub(super) fn path(&self, kind: ObjectKind, end: &str) -> String {
        format!("{}/{}{end}", self.root(kind), self.id.unwrap_or_default())
    }

    fn query(&self) -> String {
        route::passed_query(self.head)
    }

    /// Passes on a request about a file.
    fn pass(
        &self,
        method: &'static str,
        end: &str,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        let path = self.path(ObjectKind::File, end);
        let (head, body) = self.document(method, &path, &self.query(), RelayBody::None)?;
        send_document(&head, &body, reply);
        Ok(())
    }

    /// Sends a file as it arrives, and remembers it.
    fn upload(
        &self,
        body: &mut RequestBody<'_>,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        if self.head.header("content-encoding").is_some_and(|it| it != "identity") {
            let message = "send files without content-encoding";
            return Err(ApiError::new(415, "unsupported_encoding", message).into());
        }
        let length = body.length();
        let mut reader = body.reader(UPLOAD_BYTES_MAX, UPLOAD_TIME_MAX)?;
        let stream = RelayBody::Stream(&mut reader, length);
        let sent = self.send("POST", "files", &self.query(), stream);
        if let Some(error) = reader.error() {
            return Err(error.into());
        }
        let mut relayed = sent?;
        let document = self.read(&mut relayed)?;
        if let Some(id) = serde_json::from_slice::<Value>(&document).ok().as_ref().and_then(id_of) {
            self.remember_files(&[id.to_owned()]);
        }
        send_document(&relayed.head, &document, reply);
        Ok(())
    }

    /// Remembers files of the client, before it can read their ids.
    pub(super) fn remember_files(&self, ids: &[String]) {
        let mut changes = Vec::new();
        for id in ids {
            let name = self.name(ObjectKind::File, id);
            if matches!(self.gateway.store.object(&name), Ok(None)) {
                changes.push(Change::Remember(self.new_object(name)));
            }
        }
        self.commit(changes);
    }

    pub(super) fn name(&self, kind: ObjectKind, id: &str) -> ObjectName {
        ObjectName { kind, id: id.to_owned(), key_id: self.client.key_id }
    }

    pub(super) fn new_object(&self, name: ObjectName) -> StoredObject {
        StoredObject {
            name,
            provider: self.provider.clone(),
            model: None,
            created_at: Timestamp::now(),
            ledger_id: None,
            is_open: false,
            details: None,
        }
    }

    pub(super) fn commit(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.gateway.calls.commit(changes) {
            log::error!("cannot remember the objects of a client: {error}");
        }
    }

    /// Deletes a file or a batch, and forgets it. An ended batch is booked before.
    fn delete(
        &self,
        kind: ObjectKind,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        if kind == ObjectKind::Batch {
            self.book_before_deletion();
        }
        let path = self.path(kind, "");
        let (head, body) = self.document("DELETE", &path, &self.query(), RelayBody::None)?;
        if let Some(id) = self.id {
            self.commit(vec![Change::ForgetObject(self.name(kind, id))]);
        }
        send_document(&head, &body, reply);
        Ok(())
    }

    /// Passes on the content of a file as it arrives.
    fn stream(&self, end: &str, reply: &mut ResponseWriter<'_>) -> Result<(), Box<ErrorResponse>> {
        let path = self.path(ObjectKind::File, end);
        let relayed = self.send("GET", &path, &self.query(), RelayBody::None)?;
        self.pass_bytes(relayed, reply)
    }

    pub(super) fn pass_bytes(
        &self,
        mut relayed: Relayed,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        if !(200..300).contains(&relayed.head.status) {
            let document = self.read(&mut relayed)?;
            send_document(&relayed.head, &document, reply);
            return Ok(());
        }
        let mut is_connected = reply.begin(relayed.head.status, &fields(&relayed.head));
        let mut buffer = vec![0; READ_BYTES];
        while is_connected {
            match relayed.read(&mut buffer) {
                Ok(0) => {
                    reply.end();
                    break;
                }
                Ok(length) => is_connected = reply.piece(&buffer[..length]),
                // The connection ends before the response does, so the client notices.
                Err(error) => {
                    log::warn!("{}: cannot read a file: {error}", self.provider);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Returns a page of the client's own objects. The provider's pages contain those of all keys,
    /// so as many of them are read as needed.
    fn list(
        &self,
        kind: ObjectKind,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        let (after, before) = match self.protocol {
            Protocol::Anthropic => ("after_id", "before_id"),
            _ => ("after", "before"),
        };
        let asked = |name: &str| {
            let value = self.head.query(name)?;
            Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
        };
        let limit = asked("limit").and_then(|limit| limit.parse().ok());
        let limit = limit.unwrap_or(20_usize).clamp(1, PAGE_OBJECTS_MAX);
        let is_backwards = asked(before).is_some();
        let (direction, cursor) = match asked(before) {
            Some(cursor) => (before, Some(cursor)),
            None => (after, asked(after)),
        };
        if let Some(cursor) = &cursor {
            self.gateway.find(kind, cursor, &self.client)?;
        }
        let others = self.query();
        let others = others.split('&').filter(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            !pair.is_empty() && !["limit", after, before].contains(&name)
        });
        let others: Vec<&str> = others.collect();
        let paging = Paging { limit, direction, is_backwards, others: &others };
        let OwnPage { document: mut page, mut own, mut has_more } =
            self.own_objects(kind, &paging, cursor)?;
        has_more |= own.len() > limit;
        match is_backwards {
            true => own.drain(..own.len().saturating_sub(limit)).for_each(drop),
            false => own.truncate(limit),
        }
        for batch in &mut own {
            self.localize(batch);
        }
        page.insert("first_id".into(), json!(own.first().and_then(id_of)));
        page.insert("last_id".into(), json!(own.last().and_then(id_of)));
        page.insert("has_more".into(), has_more.into());
        page.insert("data".into(), own.into());
        super::answer_json(reply, &page.into());
        Ok(())
    }

    /// Reads the provider's pages until there are enough of the client's own objects.
    fn own_objects(
        &self,
        kind: ObjectKind,
        paging: &Paging<'_>,
        mut cursor: Option<String>,
    ) -> Result<OwnPage, Box<ErrorResponse>> {
        let Paging { limit, direction, is_backwards, others } = *paging;
        let (mut page, mut own, mut has_more) = (Map::new(), Vec::new(), true);
        for _ in 0..PAGES_MAX {
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.append_pair("limit", &PAGE_OBJECTS_MAX.to_string());
            if let Some(cursor) = &cursor {
                query.append_pair(direction, cursor);
            }
            let query = [&[query.finish().as_str()], others].concat().join("&");
            let (_, body) = self.document("GET", self.root(kind), &query, RelayBody::None)?;
            let Ok(Value::Object(mut document)) = serde_json::from_slice(&body) else {
                return Err(self.bad_answer("the response is no list").into());
            };
            let Some(Value::Array(data)) = document.remove("data") else {
                return Err(self.bad_answer("the response has no `data`").into());
            };
            has_more = document.get("has_more") == Some(&Value::Bool(true)) && !data.is_empty();
            let last = if is_backwards { data.first() } else { data.last() };
            cursor = last.and_then(id_of).map(str::to_owned);
            let mut visible = data;
            visible.retain(|object| id_of(object).is_some_and(|id| self.is_visible(kind, id)));
            own = if is_backwards { [visible, own].concat() } else { [own, visible].concat() };
            page = document;
            if !has_more || cursor.is_none() || own.len() > limit {
                break;
            }
        }
        Ok(OwnPage { document: page, own, has_more })
    }

    /// Returns whether the client may see an object of a list.
    fn is_visible(&self, kind: ObjectKind, id: &str) -> bool {
        self.gateway.find(kind, id, &self.client).is_ok()
    }
}

pub(super) fn id_of(document: &Value) -> Option<&str> {
    document["id"].as_str().filter(|id| is_object_id(id))
}

fn fields(head: &AnswerHead) -> Vec<(&str, &str)> {
    head.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

pub(super) fn send_document(head: &AnswerHead, body: &[u8], reply: &mut ResponseWriter<'_>) {
    reply.whole(head.status, &fields(head), body);
}
