//! Identifies the client of a request by its keys.

use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::Gateway;
use super::key_rate::KeyLimiter;
use super::keys::{KeyLookup, PREFIX};
use crate::budget::is_model;
use crate::ids::FlowId;
use crate::listener::{ApiError, RequestHead};
use crate::providers::ClientKey;
use crate::secret::Secret;

/// Takes precedence over the other headers, which may contain the client's own login.
const KEY_HEADER: &str = "x-flowledger-key";
/// Begins the OAuth tokens of Claude Code.
const LOGIN_PREFIX: &str = "sk-ant-oat";
/// The headers of plain keys: Anthropic's, Azure's and Google's.
const PLAIN_HEADERS: [&str; 3] = ["x-api-key", "api-key", "x-goog-api-key"];

#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    /// The number of the virtual key; numbers are never reused.
    pub(super) key_id: Option<i64>,
    pub(super) key_name: Option<String>,
    /// The flows that a virtual key may name; none if there is no restriction.
    pub(super) flows: Option<Arc<[FlowId]>>,
    /// Patterns of the models that a virtual key may use; none for all.
    pub(super) models: Option<Arc<[String]>>,
    /// Counts the calls of a virtual key.
    pub(super) limiter: Option<Arc<KeyLimiter>>,
    /// The client's own key, if it is neither a virtual key nor the server's token.
    pub(super) own: Option<ClientKey>,
    /// True if the client sent a virtual key or the server's token.
    has_key: bool,
}

impl Client {
    /// Returns whether the client's own key is the login of a subscription, which it sends beside a
    /// key of flowledger.
    pub(super) fn brings_login(&self) -> bool {
        self.has_key && self.own.as_ref().is_some_and(is_login)
    }
}

/// Returns whether a key is the OAuth token of Claude Code, which a Claude plan covers:
/// earendil-works/pi#2085, spacedriveapp/spacebot#51.
pub(super) fn is_login(key: &ClientKey) -> bool {
    key.is_bearer && key.key.expose().starts_with(LOGIN_PREFIX)
}

impl Client {
    pub(super) fn may_use(&self, provider: &str, model: &str) -> bool {
        let may_use = |patterns: &Arc<[String]>| {
            patterns.iter().any(|pattern| is_model(pattern, provider, model))
        };
        self.models.as_ref().is_none_or(may_use)
    }
}

impl Gateway {
    /// Identifies the client by the keys in the request.
    pub(super) fn client(&self, head: &RequestHead) -> Result<Client, ApiError> {
        let mut client = None;
        let mut own = None;
        for (offered, is_bearer, is_explicit) in offered(head) {
            if let Some(token) = &self.token
                && token.matches(offered.expose().as_bytes())
            {
                client.get_or_insert_with(Client::default);
                continue;
            }
            match self.keys.find(&offered) {
                KeyLookup::Valid(key) => {
                    client.get_or_insert_with(|| Client {
                        key_id: Some(key.id),
                        key_name: Some(key.name.to_string()),
                        flows: Some(key.flows),
                        models: key.models,
                        limiter: Some(key.limiter),
                        ..Client::default()
                    });
                }
                _ if client.is_some() && offered.expose().starts_with(PREFIX) => {}
                KeyLookup::Expired => return Err(invalid_key("the key has expired")),
                KeyLookup::Rotated => {
                    let message = "the key was replaced by a new one and is no longer valid";
                    return Err(invalid_key(message));
                }
                // An unknown key in our format is a deleted one; never forward it to a provider.
                KeyLookup::Unknown if offered.expose().starts_with(PREFIX) => {
                    return Err(invalid_key("unknown key; it may have been deleted"));
                }
                // A mistyped key of flowledger.
                KeyLookup::Unknown if is_explicit => {}
                KeyLookup::Unknown => {
                    own.get_or_insert(ClientKey { key: offered, is_bearer });
                }
            }
        }
        match client {
            Some(client) => Ok(Client { own, has_key: true, ..client }),
            None if self.token.is_some() => Err(invalid_key(
                "missing or wrong key; send the server's token or a virtual key as \
                 `Authorization: Bearer KEY`, `x-api-key: KEY` or `x-flowledger-key: KEY`",
            )),
            None => Ok(Client { own, ..Client::default() }),
        }
    }
}

/// Returns the keys of a request, and whether each is a bearer token, and meant only for flowledger.
pub(super) fn offered(head: &RequestHead) -> Vec<(Secret, bool, bool)> {
    let header = |name| head.header(name).map(str::trim);
    let plain = PLAIN_HEADERS.into_iter().filter_map(header);
    let query = head.query("key").map(|key| percent_decode_str(key).decode_utf8_lossy());
    let explicit = header(KEY_HEADER).map(|key| (key.to_owned(), false, true));
    let all = explicit
        .into_iter()
        .chain(head.bearer().map(|key| (key.to_owned(), true, false)))
        .chain(plain.map(|key| (key.to_owned(), false, false)))
        .chain(query.map(|key| (key.into_owned(), false, false)));
    let all = all.filter(|(key, ..)| !key.is_empty());
    all.map(|(key, is_bearer, is_explicit)| (Secret::new(key), is_bearer, is_explicit)).collect()
}

fn invalid_key(message: &str) -> ApiError {
    ApiError::new(401, "invalid_api_key", message)
}
