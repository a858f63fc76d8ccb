//! Finds the operation that a path names, below any of the base paths that clients are given. Pure.
//!
//! A base path names a protocol (`/anthropic/v1/messages`), or an OpenAI-compatible API of another
//! provider (`/v1beta/openai/chat/completions`). The version may be missing, or occur twice if the
//! client adds its own.

use std::borrow::Cow;
use std::fmt::Write;

use percent_encoding::percent_decode_str;

use super::protocol::Protocol;
use crate::listener::{ApiError, RequestHead};
use crate::providers::{API_FORMATS, ApiFormat};
use crate::store::ObjectKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A call of a model.
    Call(ApiFormat),
    /// Counts the tokens of a request.
    Count(ApiFormat),
    /// Objects that the provider stores.
    Object(ObjectKind),
    Models,
    Model,
    /// The version of Ollama.
    OllamaVersion,
    /// Ollama's models in memory.
    OllamaRunning,
    /// An operation of Ollama that changes its models.
    OllamaModels,
    /// Files and batches at the provider.
    Storage(Storage),
}

/// A request about files or batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Upload,
    ListFiles,
    File,
    DeleteFile,
    Content,
    CreateBatch,
    ListBatches,
    Batch,
    CancelBatch,
    DeleteBatch,
    Results,
}

/// The operation of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub protocol: Protocol,
    pub endpoint: Endpoint,
    /// The path after the version.
    pub path: String,
    /// The names in the path, decoded.
    pub names: Vec<String>,
    /// The deployment that a path of Azure names in place of the body's model.
    pub deployment: Option<String>,
}

impl Route {
    /// Returns the model that the path names.
    pub fn model(&self) -> Option<&str> {
        let is_gemini = self.protocol == Protocol::Gemini;
        let named = self.names.first().filter(|_| is_gemini);
        self.deployment.as_deref().or(named.map(String::as_str))
    }
}

/// The path of the Responses API.
const RESPONSES: &str = "responses";

struct Pattern {
    protocol: Protocol,
    /// Methods, in the form of the header `Allow`.
    methods: &'static str,
    /// The part after the version; `*` is a segment, `**` at least one.
    path: &'static str,
    endpoint: Endpoint,
}

const fn pattern(
    protocol: Protocol,
    methods: &'static str,
    path: &'static str,
    endpoint: Endpoint,
) -> Pattern {
    Pattern { protocol, methods, path, endpoint }
}

#[rustfmt::skip] // One line for each.
static PATTERNS: &[Pattern] = &[
    pattern(Protocol::OpenAi, "POST", "chat/completions", Endpoint::Call(ApiFormat::ChatCompletions)),
    pattern(Protocol::OpenAi, "POST", RESPONSES, Endpoint::Call(ApiFormat::Responses)),
    pattern(Protocol::OpenAi, "POST", "responses/compact", Endpoint::Call(ApiFormat::Compaction)),
    pattern(Protocol::OpenAi, "POST", "responses/input_tokens", Endpoint::Count(ApiFormat::ResponseTokenCount)),
    pattern(Protocol::OpenAi, "GET, DELETE", "responses/*", Endpoint::Object(ObjectKind::Response)),
    pattern(Protocol::OpenAi, "POST", "responses/*/cancel", Endpoint::Object(ObjectKind::Response)),
    pattern(Protocol::OpenAi, "GET", "responses/*/input_items", Endpoint::Object(ObjectKind::Response)),
    pattern(Protocol::OpenAi, "POST", "conversations", Endpoint::Object(ObjectKind::Conversation)),
    pattern(Protocol::OpenAi, "GET, POST, DELETE", "conversations/*", Endpoint::Object(ObjectKind::Conversation)),
    pattern(Protocol::OpenAi, "GET, POST", "conversations/*/items", Endpoint::Object(ObjectKind::Conversation)),
    pattern(Protocol::OpenAi, "GET, DELETE", "conversations/*/items/*", Endpoint::Object(ObjectKind::Conversation)),
    pattern(Protocol::OpenAi, "POST", "completions", Endpoint::Call(ApiFormat::Completions)),
    pattern(Protocol::OpenAi, "POST", "embeddings", Endpoint::Call(ApiFormat::Embeddings)),
    pattern(Protocol::OpenAi, "POST", "moderations", Endpoint::Call(ApiFormat::Moderations)),
    pattern(Protocol::OpenAi, "POST", "rerank", Endpoint::Call(ApiFormat::Rerank)),
    pattern(Protocol::OpenAi, "POST", "v2/rerank", Endpoint::Call(ApiFormat::RerankV2)),
    pattern(Protocol::OpenAi, "POST", "images/generations", Endpoint::Call(ApiFormat::Images)),
    pattern(Protocol::OpenAi, "POST", "images/edits", Endpoint::Call(ApiFormat::ImageEdits)),
    pattern(Protocol::OpenAi, "POST", "images/variations", Endpoint::Call(ApiFormat::ImageVariations)),
    pattern(Protocol::OpenAi, "POST", "audio/speech", Endpoint::Call(ApiFormat::Speech)),
    pattern(Protocol::OpenAi, "POST", "audio/transcriptions", Endpoint::Call(ApiFormat::Transcriptions)),
    pattern(Protocol::OpenAi, "POST", "audio/translations", Endpoint::Call(ApiFormat::Translations)),
    pattern(Protocol::OpenAi, "GET, HEAD", "models", Endpoint::Models),
    pattern(Protocol::OpenAi, "GET, HEAD", "models/**", Endpoint::Model),
    pattern(Protocol::Anthropic, "POST", "messages", Endpoint::Call(ApiFormat::Messages)),
    pattern(Protocol::Anthropic, "POST", "messages/count_tokens", Endpoint::Count(ApiFormat::TokenCount)),
    pattern(Protocol::Anthropic, "GET, HEAD", "models", Endpoint::Models),
    pattern(Protocol::Anthropic, "GET, HEAD", "models/**", Endpoint::Model),
    pattern(Protocol::Gemini, "POST", "models/**:generateContent", Endpoint::Call(ApiFormat::GenerateContent)),
    pattern(Protocol::Gemini, "POST", "models/**:streamGenerateContent", Endpoint::Call(ApiFormat::ContentStream)),
    pattern(Protocol::Gemini, "POST", "models/**:countTokens", Endpoint::Count(ApiFormat::ContentTokenCount)),
    pattern(Protocol::Gemini, "POST", "models/**:embedContent", Endpoint::Call(ApiFormat::EmbedContent)),
    pattern(Protocol::Gemini, "POST", "models/**:batchEmbedContents", Endpoint::Call(ApiFormat::BatchEmbedContents)),
    pattern(Protocol::Gemini, "GET, HEAD", "models", Endpoint::Models),
    pattern(Protocol::Gemini, "GET, HEAD", "models/**", Endpoint::Model),
    pattern(Protocol::Ollama, "POST", "api/chat", Endpoint::Call(ApiFormat::OllamaChat)),
    pattern(Protocol::Ollama, "POST", "api/generate", Endpoint::Call(ApiFormat::OllamaGenerate)),
    pattern(Protocol::Ollama, "POST", "api/embed", Endpoint::Call(ApiFormat::OllamaEmbed)),
    pattern(Protocol::Ollama, "POST", "api/embeddings", Endpoint::Call(ApiFormat::OllamaEmbeddings)),
    pattern(Protocol::Ollama, "POST", "api/show", Endpoint::Count(ApiFormat::OllamaShow)),
    pattern(Protocol::Ollama, "GET, HEAD", "api/tags", Endpoint::Models),
    pattern(Protocol::Ollama, "GET, HEAD", "api/version", Endpoint::OllamaVersion),
    pattern(Protocol::Ollama, "GET, HEAD", "api/ps", Endpoint::OllamaRunning),
    pattern(Protocol::Ollama, "POST", "api/pull", Endpoint::OllamaModels),
    pattern(Protocol::Ollama, "POST", "api/push", Endpoint::OllamaModels),
    pattern(Protocol::Ollama, "POST", "api/create", Endpoint::OllamaModels),
    pattern(Protocol::Ollama, "POST", "api/copy", Endpoint::OllamaModels),
    pattern(Protocol::Ollama, "DELETE", "api/delete", Endpoint::OllamaModels),
    pattern(Protocol::Ollama, "POST, HEAD", "api/blobs/*", Endpoint::OllamaModels),
    pattern(Protocol::OpenAi, "POST", "files", Endpoint::Storage(Storage::Upload)),
    pattern(Protocol::OpenAi, "GET", "files", Endpoint::Storage(Storage::ListFiles)),
    pattern(Protocol::OpenAi, "GET", "files/*", Endpoint::Storage(Storage::File)),
    pattern(Protocol::OpenAi, "DELETE", "files/*", Endpoint::Storage(Storage::DeleteFile)),
    pattern(Protocol::OpenAi, "GET", "files/*/content", Endpoint::Storage(Storage::Content)),
    pattern(Protocol::Anthropic, "POST", "files", Endpoint::Storage(Storage::Upload)),
    pattern(Protocol::Anthropic, "GET", "files", Endpoint::Storage(Storage::ListFiles)),
    pattern(Protocol::Anthropic, "GET", "files/*", Endpoint::Storage(Storage::File)),
    pattern(Protocol::Anthropic, "DELETE", "files/*", Endpoint::Storage(Storage::DeleteFile)),
    pattern(Protocol::Anthropic, "GET", "files/*/content", Endpoint::Storage(Storage::Content)),
    pattern(Protocol::OpenAi, "POST", "batches", Endpoint::Storage(Storage::CreateBatch)),
    pattern(Protocol::OpenAi, "GET", "batches", Endpoint::Storage(Storage::ListBatches)),
    pattern(Protocol::OpenAi, "GET", "batches/*", Endpoint::Storage(Storage::Batch)),
    pattern(Protocol::OpenAi, "POST", "batches/*/cancel", Endpoint::Storage(Storage::CancelBatch)),
    pattern(Protocol::Anthropic, "POST", "messages/batches", Endpoint::Storage(Storage::CreateBatch)),
    pattern(Protocol::Anthropic, "GET", "messages/batches", Endpoint::Storage(Storage::ListBatches)),
    pattern(Protocol::Anthropic, "GET", "messages/batches/*", Endpoint::Storage(Storage::Batch)),
    pattern(Protocol::Anthropic, "DELETE", "messages/batches/*", Endpoint::Storage(Storage::DeleteBatch)),
    pattern(Protocol::Anthropic, "POST", "messages/batches/*/cancel", Endpoint::Storage(Storage::CancelBatch)),
    pattern(Protocol::Anthropic, "GET", "messages/batches/*/results", Endpoint::Storage(Storage::Results)),
];

/// Begins the names of Gemini's operations on a model.
const ACTION: char = ':';

/// Returns the version in the paths of a protocol.
fn version(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::OpenAi | Protocol::Anthropic => "/v1/",
        Protocol::Gemini => "/v1beta/",
        Protocol::Ollama => "/",
    }
}

/// A path without its base path and version.
struct Relative<'a> {
    /// The protocol that the base path names.
    protocol: Option<Protocol>,
    deployment: Option<&'a str>,
    /// True if the path has a base path or a version, so no other program of this server has it.
    is_ours: bool,
    path: &'a str,
}

impl<'a> Relative<'a> {
    fn of(path: &'a str) -> Self {
        let mut relative = Self { protocol: None, deployment: None, is_ours: false, path };
        while relative.strip() {}
        relative.path = relative.path.trim_matches('/');
        relative
    }

    /// Removes one part of the base path, if there is another.
    fn strip(&mut self) -> bool {
        const DEPLOYMENTS: &str = "/openai/deployments";
        if let Some(rest) = after(self.path, DEPLOYMENTS) {
            let (name, rest) = rest[1.min(rest.len())..].split_once('/').unwrap_or((rest, ""));
            self.deployment = Some(name);
            self.path = &self.path[self.path.len() - rest.len()..];
            self.protocol = Some(Protocol::OpenAi);
            self.is_ours = true;
            // The path has no further version.
            return false;
        }
        let bases = [
            ("/v1beta/openai", Some(Protocol::OpenAi)),
            ("/openai", Some(Protocol::OpenAi)),
            ("/anthropic", Some(Protocol::Anthropic)),
            ("/gemini", Some(Protocol::Gemini)),
            ("/ollama", Some(Protocol::Ollama)),
            ("/v1beta", Some(Protocol::Gemini)),
            ("/v1alpha", Some(Protocol::Gemini)),
            ("/v1", None),
        ];
        for (base, protocol) in bases {
            if let Some(rest) = after(self.path, base) {
                self.protocol = protocol.or(self.protocol);
                self.path = rest;
                self.is_ours = true;
                return true;
            }
        }
        false
    }
}

/// Returns the rest of a path that begins with these whole segments.
fn after<'a>(path: &'a str, segments: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(segments)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// Returns whether a path is the gateway's: it has a base path or version, or is that of an
/// operation without them.
pub fn is_ours(path: &str) -> bool {
    let relative = Relative::of(path);
    relative.is_ours || PATTERNS.iter().any(|it| matched(it.path, relative.path).is_some())
}

/// Returns the protocol of a request, by its path and headers.
pub fn protocol_of(head: &RequestHead) -> Protocol {
    let relative = Relative::of(head.path());
    let has = |name| head.header(name).is_some();
    let named = relative.protocol.or_else(|| match () {
        () if has_action(relative.path) => Some(Protocol::Gemini),
        () if has("anthropic-version") => Some(Protocol::Anthropic),
        () if has("x-goog-api-key") || has("x-goog-api-client") => Some(Protocol::Gemini),
        () => None,
    });
    named.unwrap_or_else(|| {
        let mut all = PATTERNS.iter();
        let first = relative.path.split('/').next();
        let found = all.find(|it| it.path.split('/').next() == first);
        found.map_or(Protocol::OpenAi, |it| it.protocol)
    })
}

/// Returns the operation of a request.
///
/// # Errors
/// 404 with the closest route, or 405.
pub fn of(head: &RequestHead) -> Result<Route, ApiError> {
    let (path, protocol) = (head.path(), protocol_of(head));
    let relative = Relative::of(path);
    // Gemini has files and batches of its own, which must not reach another provider.
    let is_foreign = |it: &Pattern| {
        relative.protocol == Some(Protocol::Gemini) && matches!(it.endpoint, Endpoint::Storage(_))
    };
    let patterns = PATTERNS.iter().filter(|it| !is_foreign(it));
    let mut found = patterns.filter_map(|it| Some((it, matched(it.path, relative.path)?)));
    // `models` has a form of its own in each protocol; all other paths have one protocol.
    let mut of_path: Vec<_> = found.by_ref().collect();
    of_path.sort_by_key(|(it, _)| it.protocol != protocol);
    let Some((first, _)) = of_path.first() else {
        return Err(unknown(path, relative.path));
    };
    let (allowed, protocol) = (first.methods, first.protocol);
    let mut found = of_path.into_iter().filter(|(it, _)| it.protocol == protocol);
    let is_allowed = |methods: &str| methods.split(", ").any(|it| it == head.method);
    match found.find(|(it, _)| is_allowed(it.methods)) {
        Some((pattern, names)) => Ok(Route {
            protocol: pattern.protocol,
            endpoint: match pattern.endpoint {
                Endpoint::Call(ApiFormat::ContentStream) if !wants_events(head) => {
                    Endpoint::Call(ApiFormat::ContentArray)
                }
                endpoint => endpoint,
            },
            path: relative.path.to_owned(),
            names: names.into_iter().map(decoded).collect(),
            deployment: relative.deployment.map(decoded),
        }),
        None if relative.path == RESPONSES && head.has_token("upgrade", "websocket") => {
            // Codex then falls back to HTTP at once: <https://github.com/openai/codex/issues/43353>.
            let message = format!("{path} does not support WebSockets; use POST");
            Err(ApiError::new(426, "upgrade_required", message).with("upgrade", "HTTP/1.1"))
        }
        None if protocol == Protocol::Gemini && head.method == "POST" => Err(unknown_action(path)),
        None => {
            let message = format!("{path} does not support {}; use {allowed}", head.method);
            Err(ApiError::new(405, "method_not_allowed", message).with("allow", allowed))
        }
    }
}

/// Returns the formats of a protocol's calls that generate text.
pub fn formats_of(protocol: Protocol) -> Vec<ApiFormat> {
    let of_protocol = PATTERNS.iter().filter(|it| it.protocol == protocol);
    let formats = of_protocol.filter_map(|it| match it.endpoint {
        Endpoint::Call(format) if API_FORMATS.contains(&format) => Some(format),
        _ => None,
    });
    formats.collect()
}

/// Returns the usual path of an API format.
pub fn path_of(format: ApiFormat) -> String {
    // The query makes the difference.
    let format = if format == ApiFormat::ContentArray { ApiFormat::ContentStream } else { format };
    let is_path =
        |it: &&Pattern| [Endpoint::Call(format), Endpoint::Count(format)].contains(&it.endpoint);
    PATTERNS.iter().find(is_path).map_or_else(String::new, full_path)
}

fn full_path(pattern: &Pattern) -> String {
    match pattern.path.starts_with("v2/") {
        true => format!("/{}", pattern.path.replace("**", "MODEL")),
        false => format!("{}{}", version(pattern.protocol), pattern.path.replace("**", "MODEL")),
    }
}

/// Returns whether a path names an operation of Gemini's API on a model.
fn has_action(path: &str) -> bool {
    let mut actions = PATTERNS.iter().filter(|it| it.path.contains(ACTION));
    actions.any(|it| matched(it.path, path).is_some())
}

/// Returns whether a stream of Gemini's API consists of server-sent events; it is an array
/// otherwise. `$alt` is the full name: <https://cloud.google.com/apis/docs/system-parameters>.
fn wants_events(head: &RequestHead) -> bool {
    let form = ["alt", "$alt", "%24alt"].iter().find_map(|name| head.query(name));
    form.is_some_and(|form| form.eq_ignore_ascii_case("sse"))
}

fn unknown_action(path: &str) -> ApiError {
    let actions = PATTERNS.iter().filter_map(|it| Some(it.path.split_once(ACTION)?.1));
    let actions: Vec<&str> = actions.collect();
    let message = format!("route {path} not found; use one of :{}", actions.join(", :"));
    ApiError::new(404, "not_found", message)
}

/// Parameters with keys, and the version of Azure's API.
const NOT_PASSED_ON: [&str; 4] = ["key", "access_token", "oauth_token", "api-version"];

/// Returns the query to send to the provider: without keys, and without the version of Azure's API.
pub fn passed_query(head: &RequestHead) -> String {
    let Some((_, query)) = head.target.split_once('?') else {
        return String::new();
    };
    let query = query.split('#').next().unwrap_or_default();
    let is_passed = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        !pair.is_empty() && !NOT_PASSED_ON.contains(&&*decoded(name))
    };
    let pairs: Vec<&str> = query.split('&').filter(is_passed).collect();
    pairs.join("&")
}

fn unknown(path: &str, relative: &str) -> ApiError {
    let distance = |it: &&Pattern| strsim::damerau_levenshtein(it.path, relative);
    let closest = PATTERNS.iter().filter(|it| !it.path.contains('*')).min_by_key(distance);
    let mut message = format!("route {path} not found");
    if let Some(closest) = closest.filter(|it| distance(it) <= it.path.len() / 2) {
        let _ = write!(message, "; did you mean {}?", full_path(closest));
    } else {
        let calls = PATTERNS.iter().filter(|it| match it.endpoint {
            Endpoint::Call(format) => API_FORMATS.contains(&format),
            _ => false,
        });
        let calls: Vec<String> = calls.map(full_path).collect();
        let _ = write!(message, "; use one of {}", calls.join(", "));
    }
    ApiError::new(404, "not_found", message)
}

/// Returns the parts of a path that match the stars of a pattern.
fn matched<'p>(pattern: &str, path: &'p str) -> Option<Vec<&'p str>> {
    let Some((before, after)) = pattern.split_once('*') else {
        return (pattern == path).then(Vec::new);
    };
    let rest = path.strip_prefix(before)?;
    if let Some(after) = after.strip_prefix('*') {
        let name = rest.strip_suffix(after)?;
        return (!name.is_empty()).then(|| vec![name]);
    }
    let (name, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let others = matched(after, rest)?;
    (!name.is_empty()).then(|| [vec![name], others].concat())
}

fn decoded(text: &str) -> String {
    let decoded: Cow<'_, str> = percent_decode_str(text).decode_utf8_lossy();
    decoded.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, target: &str, fields: &str) -> RequestHead {
        let head = format!("{method} {target} HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        RequestHead::parse(head.as_bytes()).unwrap().unwrap().0
    }

    fn post(target: &str) -> Result<Route, ApiError> {
        of(&head("POST", target, ""))
    }

    #[test]
    fn each_base_path_leads_to_the_same_operation() {
        for path in [
            "/v1/chat/completions",
            "/chat/completions",
            "/v1/v1/chat/completions",
            "/openai/v1/chat/completions",
            "/openai/chat/completions",
            "/v1beta/openai/chat/completions",
            "/v1/chat/completions/",
            "/v1/chat/completions?beta=true",
        ] {
            let route = post(path).unwrap();
            assert_eq!(route.endpoint, Endpoint::Call(ApiFormat::ChatCompletions), "{path}");
            assert_eq!(route.protocol, Protocol::OpenAi, "{path}");
        }
        for path in ["/v1/messages", "/messages", "/anthropic/v1/messages", "/anthropic/messages"] {
            let route = post(path).unwrap();
            assert_eq!(route.endpoint, Endpoint::Call(ApiFormat::Messages), "{path}");
        }
    }

    #[test]
    fn a_deployment_names_the_model() {
        let path = "/openai/deployments/groq%2Fllama/chat/completions?api-version=2024-10-21";
        let route = post(path).unwrap();
        assert_eq!(route.endpoint, Endpoint::Call(ApiFormat::ChatCompletions));
        assert_eq!(route.model(), Some("groq/llama"));
    }

    #[test]
    fn models_have_the_form_of_the_protocol() {
        let anthropic = "anthropic-version: 2023-06-01\r\n";
        for (target, fields, protocol) in [
            ("/v1/models", "", Protocol::OpenAi),
            ("/openai/v1/models", "", Protocol::OpenAi),
            ("/v1/models?limit=1000", anthropic, Protocol::Anthropic),
            ("/anthropic/v1/models", "", Protocol::Anthropic),
            ("/v1beta/models?pageSize=5", "", Protocol::Gemini),
            ("/v1/models", "x-goog-api-key: k\r\n", Protocol::Gemini),
        ] {
            let route = of(&head("GET", target, fields)).unwrap();
            assert_eq!((route.endpoint, route.protocol), (Endpoint::Models, protocol), "{target}");
        }
        let route = of(&head("GET", "/v1/models/openai/gpt-4o", "")).unwrap();
        assert_eq!((route.endpoint, &*route.names[0]), (Endpoint::Model, "openai/gpt-4o"));
        let route = of(&head("GET", "/v1/models/openai%2Fgpt-4o", "")).unwrap();
        assert_eq!(route.names, ["openai/gpt-4o"]);
    }

    #[test]
    fn gemini_names_the_model_in_the_path() {
        let call = |format| Endpoint::Call(format);
        for (target, endpoint, model) in [
            ("/v1beta/models/g-1:generateContent", call(ApiFormat::GenerateContent), "g-1"),
            ("/v1/models/g-1:generateContent", call(ApiFormat::GenerateContent), "g-1"),
            ("/v1alpha/models/a/b:8b:generateContent", call(ApiFormat::GenerateContent), "a/b:8b"),
            ("/gemini/v1beta/models/a%2Fb:embedContent", call(ApiFormat::EmbedContent), "a/b"),
            ("/gemini/models/b:batchEmbedContents", call(ApiFormat::BatchEmbedContents), "b"),
            ("/models/g:countTokens", Endpoint::Count(ApiFormat::ContentTokenCount), "g"),
            ("/v1beta/models/g:streamGenerateContent?alt=sse", call(ApiFormat::ContentStream), "g"),
            (
                "/v1beta/models/g:streamGenerateContent?key=x&%24alt=SSE",
                call(ApiFormat::ContentStream),
                "g",
            ),
            ("/v1beta/models/g:streamGenerateContent", call(ApiFormat::ContentArray), "g"),
            ("/v1beta/models/g:streamGenerateContent?alt=json", call(ApiFormat::ContentArray), "g"),
        ] {
            let route = post(target).unwrap();
            assert_eq!((route.protocol, route.endpoint), (Protocol::Gemini, endpoint), "{target}");
            assert_eq!(route.model(), Some(model), "{target}");
        }
        let refusal = post("/v1beta/models/g:predict").unwrap_err();
        assert_eq!(refusal.status, 404);
        assert!(refusal.message.contains("use one of :generateContent"), "{}", refusal.message);
    }

    #[test]
    fn files_and_batches_of_gemini_reach_no_other_provider() {
        for path in
            ["/v1beta/files", "/v1beta/files/f", "/gemini/v1beta/batches", "/v1alpha/batches/b"]
        {
            let head = head("GET", path, "");
            assert_eq!(of(&head).unwrap_err().status, 404, "{path}");
            assert_eq!(protocol_of(&head), Protocol::Gemini, "{path}");
        }
        let storage = Endpoint::Storage(Storage::ListFiles);
        for path in ["/v1/files", "/openai/v1/files", "/v1beta/openai/files"] {
            assert_eq!(of(&head("GET", path, "")).unwrap().endpoint, storage, "{path}");
        }
    }

    #[test]
    fn ollama_has_its_own_paths_beside_the_api() {
        let call = |format| Endpoint::Call(format);
        for (method, path, endpoint) in [
            ("POST", "/api/chat", call(ApiFormat::OllamaChat)),
            ("POST", "/ollama/api/chat", call(ApiFormat::OllamaChat)),
            ("POST", "/api/generate", call(ApiFormat::OllamaGenerate)),
            ("POST", "/api/embed", call(ApiFormat::OllamaEmbed)),
            ("POST", "/api/embeddings", call(ApiFormat::OllamaEmbeddings)),
            ("POST", "/api/show", Endpoint::Count(ApiFormat::OllamaShow)),
            ("GET", "/api/tags", Endpoint::Models),
            ("HEAD", "/api/version", Endpoint::OllamaVersion),
            ("GET", "/api/ps", Endpoint::OllamaRunning),
            ("POST", "/api/pull", Endpoint::OllamaModels),
            ("DELETE", "/ollama/api/delete", Endpoint::OllamaModels),
        ] {
            let route = of(&head(method, path, "")).unwrap();
            assert_eq!((route.protocol, route.endpoint), (Protocol::Ollama, endpoint), "{path}");
            assert!(is_ours(path), "{path}");
        }
        assert_eq!(of(&head("GET", "/api/chat", "")).unwrap_err().status, 405);
    }

    #[test]
    fn a_wrong_path_names_the_right_one() {
        for (path, closest) in [
            ("/v1/chat/completion", "/v1/chat/completions"),
            ("/v1/message", "/v1/messages"),
            ("/anthropic/v1/mesages", "/v1/messages"),
            ("/v1/messages/count_token", "/v1/messages/count_tokens"),
        ] {
            let refusal = post(path).unwrap_err();
            assert_eq!((refusal.status, refusal.code), (404, "not_found"));
            let end = format!("{path} not found; did you mean {closest}?");
            assert!(refusal.message.ends_with(&end), "{}", refusal.message);
        }
        let refusal = post("/v1/nothing/like/it").unwrap_err();
        assert!(refusal.message.contains("use one of /v1/chat/completions"), "{}", refusal.message);
        assert_eq!(of(&head("GET", "/v1/messages", "")).unwrap_err().status, 405);
    }

    #[test]
    fn only_paths_of_the_gateway_are_its_own() {
        for path in ["/v1/x", "/v1", "/openai/x", "/anthropic", "/chat/completions", "/models"] {
            assert!(is_ours(path), "{path}");
        }
        for path in ["/", "/api/flows", "/ws", "/v1x", "/openais", "/assets/app.js", "/hooks/a"] {
            assert!(!is_ours(path), "{path}");
        }
        // The API's other routes.
        for path in ["/api/health", "/api/runs/a", "/api/ledger", "/api/prices/1", "/api/keys"] {
            assert!(!is_ours(path), "{path}");
        }
    }

    #[test]
    fn keys_and_api_versions_are_not_passed_on() {
        let passed = |target| passed_query(&head("POST", target, ""));
        assert_eq!(passed("/v1/messages"), "");
        assert_eq!(passed("/v1/messages?beta=true"), "beta=true");
        assert_eq!(passed("/v1/messages?key=s&a=1&%6bey=t&api-version=x&b"), "a=1&b");
    }
}
