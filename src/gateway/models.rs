//! The models that a client can use: aliases, and the lists of the providers, which are requested
//! rarely and kept in memory.
//!
//! Clients expect an answer soon (Claude Code within 3 seconds:
//! <https://code.claude.com/docs/en/llm-gateway-protocol>), so a list is requested on a thread of its
//! own. Until it arrives, and if the provider cannot be asked, the models of the price table count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::protocol::Protocol;
use super::targets::{ANY_END, Aliases};
use crate::listener::{ApiError, RequestHead};
use crate::providers::{Cancel, Kind, Listed, Providers};
use crate::threads::Threads;
use crate::time::Timestamp;

/// Time for which a list is valid, and after which a failed request is repeated.
const LIST_AGE: Duration = Duration::from_secs(24 * 60 * 60);
const PAUSE: Duration = Duration::from_secs(60);
/// Limits how long a client waits for lists.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Stack size of a thread that requests a list, in bytes.
const STACK_BYTES: usize = 512 << 10;
/// Anthropic's default and maximum length of a page:
/// <https://platform.claude.com/docs/en/api/models/list>.
const PAGE_DEFAULT: usize = 20;
const PAGE_MAX: usize = 1_000;

const ALIAS_OWNER: &str = "flowledger";
const ECHO_MODELS: [&str; 2] = ["echo-1", "echo-slow"];

/// A model under the name that clients use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub id: String,
    pub display_name: String,
    /// The provider, or `flowledger` for an alias.
    pub owner: String,
    pub created_at: Option<Timestamp>,
    pub context_tokens: Option<u64>,
}

/// The newest list of each provider.
#[derive(Default)]
pub struct ModelLists {
    state: Arc<State>,
    stopping: Cancel,
    threads: Threads,
}

#[derive(Default)]
struct State {
    lists: Mutex<BTreeMap<String, List>>,
    changed: Condvar,
}

#[derive(Default)]
struct List {
    /// None before the first answer.
    models: Option<Vec<Listed>>,
    valid_until: Option<Instant>,
    is_requested: bool,
}

impl State {
    fn lists(&self) -> MutexGuard<'_, BTreeMap<String, List>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, provider: &str, models: Result<Vec<Listed>, String>) {
        let mut lists = self.lists();
        let list = lists.entry(provider.to_owned()).or_default();
        let age = match models {
            Ok(models) => {
                list.models = Some(models);
                LIST_AGE
            }
            Err(error) => {
                log::debug!("cannot list models: {error}");
                PAUSE
            }
        };
        list.valid_until = Some(Instant::now() + age);
        list.is_requested = false;
        drop(lists);
        self.changed.notify_all();
    }
}

impl ModelLists {
    /// Cancels the requests, and waits for their threads.
    pub fn stop(&self, deadline: Instant) {
        self.stopping.cancel();
        self.threads.join(deadline);
    }

    /// Returns the models that a provider lists; none if it has not answered yet.
    fn of(&self, provider: &str) -> Option<Vec<Listed>> {
        self.state.lists().get(provider)?.models.clone()
    }

    /// Requests outdated lists, and waits for those that are missing.
    fn refresh(&self, providers: &Arc<Providers>, names: &[&str]) {
        let now = Instant::now();
        let mut lists = self.state.lists();
        for name in names {
            let list = lists.entry((*name).to_owned()).or_default();
            if list.is_requested || list.valid_until.is_some_and(|until| now < until) {
                continue;
            }
            let (state, stopping) = (Arc::clone(&self.state), self.stopping.clone());
            let (providers, name) = (Arc::clone(providers), (*name).to_owned());
            let started = self.threads.spawn("models", STACK_BYTES, move || {
                let models = providers.list_models(&name, &stopping);
                state.store(&name, models);
            });
            list.is_requested = started.is_ok();
        }
        // An outdated list is good enough.
        let is_missing = |lists: &mut BTreeMap<String, List>| {
            let mut all = names.iter().filter_map(|name| lists.get(*name));
            all.any(|list| list.is_requested && list.models.is_none())
        };
        let waited = self.state.changed.wait_timeout_while(lists, WAIT_MAX, is_missing);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns the models that clients of a protocol can use, at providers of kinds that support it:
    /// aliases, then models by their bare name, then all with their provider.
    pub fn models(
        &self,
        protocol: Protocol,
        aliases: &Aliases,
        providers: &Arc<Providers>,
        supports: impl Fn(&str) -> bool,
    ) -> Vec<Model> {
        let is_usable = |name: &str| supports(name) && providers.check(name).is_ok();
        let usable: Vec<&str> =
            providers.providers().map(|(name, _)| name).filter(|name| is_usable(name)).collect();
        let listing: Vec<&str> =
            usable.iter().copied().filter(|name| providers.has_client_list(name)).collect();
        self.refresh(providers, &listing);
        let mut models = Vec::new();
        for (alias, targets) in aliases.iter().filter(|(alias, _)| !alias.ends_with(ANY_END)) {
            if targets.iter().any(|target| is_usable(&target.provider)) {
                models.push(Model::named(alias, ALIAS_OWNER));
            }
        }
        let all = usable.iter().map(|name| (*name, self.of_provider(providers, name)));
        let all: Vec<(&str, Vec<Model>)> = all.collect();
        let default = all.iter().find(|(name, _)| *name == protocol.name());
        models.extend(default.into_iter().flat_map(|(_, models)| models.iter().cloned()));
        for (provider, its_models) in all {
            models.extend(
                its_models
                    .into_iter()
                    .map(|model| Model { id: format!("{provider}/{}", model.id), ..model }),
            );
        }
        for target in aliases.values().flatten().filter(|target| is_usable(&target.provider)) {
            let id = format!("{}/{}", target.provider, target.model);
            models.push(Model::named(&id, &target.provider));
        }
        let mut known = BTreeSet::new();
        models.retain(|model| known.insert(model.id.clone()));
        models
    }

    /// Returns the models of one provider.
    fn of_provider(&self, providers: &Providers, provider: &str) -> Vec<Model> {
        let named = |name: &str| Model::named(name, provider);
        let mut models: Vec<Model> = match self.of(provider) {
            _ if providers.kind(provider) == Some(Kind::Echo) => {
                ECHO_MODELS.iter().map(|name| named(name)).collect()
            }
            Some(listed) => listed
                .into_iter()
                .map(|listed| Model {
                    display_name: listed.display_name.unwrap_or_else(|| listed.name.clone()),
                    created_at: listed.created_at,
                    context_tokens: listed.context_tokens,
                    ..named(&listed.name)
                })
                .collect(),
            None => providers.priced_models(provider).into_iter().map(named).collect(),
        };
        models.sort_by(|one, other| one.id.cmp(&other.id));
        models
    }
}

impl Model {
    pub fn named(id: &str, owner: &str) -> Self {
        let (id, owner) = (id.to_owned(), owner.to_owned());
        Self { display_name: id.clone(), id, owner, created_at: None, context_tokens: None }
    }

    /// Returns the model in the form of both protocols: their fields have different names.
    pub fn to_json(&self) -> Value {
        let created_at = self.created_at.unwrap_or(Timestamp(0));
        json!({
            "id": self.id, "object": "model", "created": created_at.0 / 1_000,
            "owned_by": self.owner, "type": "model", "display_name": self.display_name,
            "created_at": created_at.to_string(),
        })
    }
}

/// Returns a list of models, or a page of it for Anthropic's protocol.
///
/// # Errors
/// 400 for an invalid page.
pub fn list(protocol: Protocol, models: &[Model], head: &RequestHead) -> Result<Value, ApiError> {
    let is_paged = protocol == Protocol::Anthropic;
    let (page, has_more) = if is_paged { page(models, head)? } else { (models, false) };
    let data: Vec<Value> = page.iter().map(Model::to_json).collect();
    let id = |model: Option<&Model>| model.map(|model| model.id.clone());
    Ok(json!({
        "object": "list", "data": data, "has_more": has_more,
        "first_id": id(page.first()), "last_id": id(page.last()),
    }))
}

/// Returns a page, and whether others follow in its direction.
fn page<'m>(models: &'m [Model], head: &RequestHead) -> Result<(&'m [Model], bool), ApiError> {
    let invalid = |message: String| ApiError::bad_request("bad_page", message);
    let limit = match head.query("limit") {
        None => PAGE_DEFAULT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=PAGE_MAX).contains(limit))
            .ok_or_else(|| invalid(format!("`limit` must be a number from 1 to {PAGE_MAX}")))?,
    };
    let position = |name: &str| {
        let Some(id) = head.query(name) else {
            return Ok(None);
        };
        let id = percent_decode_str(id).decode_utf8_lossy();
        let found = models.iter().position(|model| model.id == id);
        found.map(Some).ok_or_else(|| invalid(format!("`{name}`: model `{id}` not found")))
    };
    match (position("after_id")?, position("before_id")?) {
        (Some(_), Some(_)) => Err(invalid("use either `after_id` or `before_id`".to_owned())),
        (None, Some(end)) => {
            let start = end.saturating_sub(limit);
            Ok((&models[start..end], start > 0))
        }
        (after, None) => {
            let start = after.map_or(0, |at| at + 1);
            let end = models.len().min(start + limit);
            Ok((&models[start..end], end < models.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_both_directions() {
        let models: Vec<Model> =
            (0..5).map(|number| Model::named(&format!("p/{number}"), "p")).collect();
        let page = |query: &str| {
            let head = format!("GET /v1/models?{query} HTTP/1.1\r\nhost: a\r\n\r\n");
            let (head, _) = RequestHead::parse(head.as_bytes()).unwrap().unwrap();
            let list = list(Protocol::Anthropic, &models, &head)?;
            let ids = list["data"].as_array().unwrap().iter();
            let ids: Vec<String> = ids.map(|it| it["id"].as_str().unwrap()[2..].into()).collect();
            Ok::<_, ApiError>((ids.concat(), list["has_more"].as_bool().unwrap()))
        };
        for (query, expected) in [
            ("limit=2", ("01", true)),
            ("limit=2&after_id=p%2F1", ("23", true)),
            ("limit=2&after_id=p/3", ("4", false)),
            ("limit=2&before_id=p/4", ("23", true)),
            ("limit=2&before_id=p/2", ("01", false)),
            ("", ("01234", false)),
        ] {
            let (ids, has_more) = page(query).unwrap();
            assert_eq!((ids.as_str(), has_more), expected, "{query}");
        }
        for query in
            ["limit=0", "limit=1001", "limit=x", "after_id=none", "after_id=p/1&before_id=p/3"]
        {
            assert_eq!(page(query).unwrap_err().code, "bad_page", "{query}");
        }
    }

    #[test]
    fn a_failed_request_keeps_the_previous_list() {
        let state = State::default();
        let listed = |name: &str| Listed {
            name: name.into(),
            display_name: None,
            created_at: None,
            context_tokens: None,
        };
        state.store("p", Err("no".into()));
        assert!(state.lists()["p"].models.is_none());
        state.store("p", Ok(vec![listed("a")]));
        state.store("p", Err("no".into()));
        assert_eq!(state.lists()["p"].models, Some(vec![listed("a")]));
        assert!(state.lists()["p"].valid_until.unwrap() <= Instant::now() + PAUSE);
    }
}
