//! Passes on requests about files and batches, with bodies of any length, and their responses as they
//! arrive. These requests are free, so they have no ledger row.

use std::fmt;
use std::io::{self, Read};
use std::time::Duration;

use ureq::http::header::{ACCEPT_ENCODING, CONTENT_LENGTH};
use ureq::http::{HeaderMap, HeaderName, Request, Response};
use ureq::{Agent, AsSendBody, Body, SendBody};

use super::Providers;
use super::call::Timeouts;
use super::cancel::Cancel;
use super::client::{header_value, parse_url, redacted};
use super::config::{Kind, ProviderConfig};
use super::content_encoding::{self, Decoder};
use super::failure::{Failure, FailureKind, Fault};
use super::forward::ClientKey;
use super::response_sink::{AnswerHead, answer_head};
use super::transport::{Entered, Scope};
use super::wire::Header;
use super::{anthropic, openai};
use crate::event::Usage;
use crate::secret::Secret;

/// Limits a request and its response: enough for the largest file on a slow line.
const TOTAL_MAX: Duration = Duration::from_secs(60 * 60);

pub enum RelayBody<'a> {
    None,
    Bytes(&'a [u8]),
    /// A body that is read as it is sent, and its length if it is known.
    Stream(&'a mut dyn Read, Option<u64>),
}

pub struct Relay<'a, 'b> {
    pub provider: &'a str,
    pub method: &'static str,
    /// The part of the URL after the version, without a slash at its beginning.
    pub path: &'a str,
    /// The query, without `?`.
    pub query: &'a str,
    /// Headers in addition to those that the protocol needs.
    pub headers: &'a [(&'static str, String)],
    /// Used in place of the configured key.
    pub key: Option<&'a ClientKey>,
    pub body: RelayBody<'b>,
}

/// A response with any status; its body is read from it.
pub struct Relayed {
    pub head: AnswerHead,
    body: Decoder<'static>,
    key: Option<Secret>,
    /// Ties the connection to the call's `Cancel` until the body is read.
    _entered: Entered,
}

impl Relayed {
    /// Reads the whole body, without the provider's key; none if it is too long.
    pub fn read_whole(&mut self, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        (&mut self.body).take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        let bytes = redacted(&bytes, self.key.as_ref()).into_owned();
        Ok(Some(bytes).filter(|bytes| bytes.len() <= bytes_max))
    }
}

impl Read for Relayed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.body.read(buffer)
    }
}

impl fmt::Debug for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head.fmt(f)
    }
}

impl Providers {
    /// Returns whether providers of this kind store files and batches.
    pub fn has_files(&self, provider: &str) -> bool {
        matches!(self.kind(provider), Some(Kind::OpenAi | Kind::Anthropic))
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// Fails without a response; a response may have any status.
    pub fn relay(&self, relay: Relay<'_, '_>, cancel: &Cancel) -> Result<Relayed, Box<Failure>> {
        let provider = relay.provider.to_owned();
        let entered = Scope::enter(cancel);
        let sent = self.send_relay(relay, &entered.scope);
        let failed = |fault: Fault| {
            let message = self.message(&provider, &format!("{provider}: {}", fault.message));
            Box::new(Failure {
                kind: fault.kind,
                message,
                status: fault.status,
                retry_after: fault.retry_after,
                usage: Usage::default(),
                billing: Default::default(),
                model: String::new(),
                latency_ms: entered.scope.elapsed_ms(),
                sent: entered.scope.sent.get(),
            })
        };
        let (response, key) = sent.map_err(failed)?;
        let (head, body) = response.into_parts();
        let codings = content_encoding::of(&head.headers).map_err(Fault::bad_answer);
        let codings = codings.map_err(failed)?;
        Ok(Relayed {
            head: answer_head(head.status.as_u16(), &head.headers, key.as_ref()),
            body: Decoder::new(body.into_reader(), &codings),
            key,
            _entered: entered,
        })
    }

    fn send_relay(
        &self,
        relay: Relay<'_, '_>,
        scope: &Scope,
    ) -> Result<(Response<Body>, Option<Secret>), Fault> {
        if scope.cancel.is_cancelled() {
            return Err(Fault::cancelled());
        }
        let provider = match (self.member(relay.provider, None), relay.key) {
            (Err(fault), Some(_)) => self.providers.get(relay.provider).ok_or(fault)?,
            (usable, _) => usable?,
        };
        let base = base_url(provider)
            .ok_or_else(|| Fault::not_configured("does not store files or batches"))?;
        let mut url = format!("{base}/{}", relay.path);
        if !relay.query.is_empty() {
            url = format!("{url}?{}", relay.query);
        }
        let uri = parse_url(&url, relay.provider)?;
        let headers = headers(&relay, provider).ok_or_else(|| {
            Fault::not_configured("a header or the API key contains invalid characters")
        })?;
        let key = relay.key.map(|own| &own.key).or(provider.key()).cloned();
        let mut builder = Request::builder().method(relay.method).uri(uri);
        if let Some(all) = builder.headers_mut() {
            *all = headers;
        }
        let agent = &self.client(relay.provider)?.agent;
        let sent = match relay.body {
            RelayBody::None => self.run(agent, builder.body(()), scope),
            RelayBody::Bytes(bytes) => self.run(agent, builder.body(bytes), scope),
            RelayBody::Stream(reader, length) => {
                if let Some(length) = length {
                    builder = builder.header(CONTENT_LENGTH, length);
                }
                self.run(agent, builder.body(SendBody::from_reader(reader)), scope)
            }
        };
        Ok((sent?, key))
    }

    fn run(
        &self,
        agent: &Agent,
        request: ureq::http::Result<Request<impl AsSendBody>>,
        scope: &Scope,
    ) -> Result<Response<Body>, Fault> {
        let request =
            request.map_err(|error| Fault::not_configured(format!("invalid request: {error}")))?;
        let Timeouts { connect, total, .. } = self.timeouts;
        let request = agent
            .configure_request(request)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_recv_response(Some(total))
            .timeout_global(Some(TOTAL_MAX))
            .build();
        agent.run(request).map_err(|error| fault(&error, scope))
    }
}

/// Classifies an error before the response.
fn fault(error: &ureq::Error, scope: &Scope) -> Fault {
    if scope.cancel.is_cancelled() {
        return Fault::cancelled();
    }
    let kind = match error {
        ureq::Error::Timeout(_) => FailureKind::Timeout,
        _ if scope.sent.get() => FailureKind::BadAnswer,
        _ => FailureKind::Connect,
    };
    Fault::new(kind, format!("no response: {error}"))
}

/// Returns the URL with the version.
fn base_url(provider: &ProviderConfig) -> Option<String> {
    match provider.kind {
        Kind::OpenAi => Some(provider.base_url().to_owned()),
        Kind::Anthropic => {
            let url = anthropic::url(provider);
            Some(url.strip_suffix("/messages").unwrap_or(&url).to_owned())
        }
        Kind::Gemini | Kind::Ollama | Kind::Echo => None,
    }
}

/// Returns the headers of a request; none if one has invalid characters.
fn headers(relay: &Relay<'_, '_>, provider: &ProviderConfig) -> Option<HeaderMap> {
    let is_anthropic = provider.kind == Kind::Anthropic;
    let ours = |key| match is_anthropic {
        true => anthropic::api_key(key),
        false => openai::authorization(key),
    };
    let key = match relay.key {
        Some(own) if own.is_bearer => Some(openai::authorization(&own.key)),
        Some(own) => Some(ours(&own.key)),
        None => provider.key().map(ours),
    };
    let version = is_anthropic.then(anthropic::version);
    let given = relay.headers.iter().map(|(name, value)| (*name, Header::Plain(value.clone())));
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, header_value(&Header::Plain("identity".to_owned()))?);
    for (name, value) in version.into_iter().chain(given).chain(key) {
        headers.insert(HeaderName::from_static(name), header_value(&value)?);
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::super::testing::provider;
    use super::*;

    #[test]
    fn each_kind_has_its_own_url_and_headers() {
        for (kind, base, url, key) in [
            (Kind::OpenAi, "http://h/v1/", Some("http://h/v1"), "authorization"),
            (Kind::Anthropic, "http://h", Some("http://h/v1"), "x-api-key"),
            (Kind::Ollama, "http://h", None, "authorization"),
        ] {
            let provider = provider(kind, base);
            assert_eq!(base_url(&provider).as_deref(), url);
            let relay = Relay {
                provider: "p",
                method: "GET",
                path: "files",
                query: "",
                headers: &[("anthropic-beta", "a".into())],
                key: None,
                body: RelayBody::None,
            };
            let headers = headers(&relay, &provider).unwrap();
            assert!(headers.contains_key(key) && headers.contains_key("anthropic-beta"));
            assert_eq!(headers.contains_key("anthropic-version"), kind == Kind::Anthropic);
        }
    }
}
