//! The table of routes.

use tiny_http::Method::{self, Delete, Get, Options, Patch, Post, Put};

use super::reply::{self, Answer};
use super::request::Request;
use super::{
    Context, assets, bodies, budget, calls_page, end_users, flows, health, hooks, keys, ledger,
    metrics, models, optimizations, overview, prices, providers, runs, schedules, settings,
};
use crate::error::Error;
use crate::listener::{ApiError, Presence, RequestBody, RequestHead};

type Route = fn(&Context, &mut Request<'_, '_>) -> Answer;

/// The methods of a path are adjacent, in the order of its `Allow` header.
#[rustfmt::skip] // One line for each.
static ROUTES: &[(Method, &str, Route)] = &[
    (Get, "/", |_, r| assets::shell(r.head)),
    (Get, "/flows", |_, r| assets::shell(r.head)),
    (Get, "/flows/*", |_, r| assets::shell(r.head)),
    (Get, "/runs", |_, r| assets::shell(r.head)),
    (Get, "/runs/*", |_, r| assets::shell(r.head)),
    (Get, "/calls", |c, r| calls_page::get(c, r)),
    (Get, "/savings", |_, r| assets::shell(r.head)),
    (Get, "/budgets", |_, r| assets::shell(r.head)),
    (Get, "/connect", |_, r| assets::shell(r.head)),
    (Get, "/settings", |_, r| assets::shell(r.head)),
    (Get, "/favicon.ico", |_, r| assets::file("icon.svg", r.head)),
    (Get, "/assets/**", |_, r| assets::file(r.name, r.head)),
    (Get, "/metrics", |c, _| Ok(metrics::text(c))),
    (Get, "/api/health", |c, _| Ok(health(c))),
    (Get, "/api/flows", |c, r| flows::list(c, r.query(), &r.client)),
    (Post, "/api/flows", |c, r| flows::create(c, &r.body()?)),
    (Get, "/api/flows/*", |c, r| flows::get(c, r.id("flow")?)),
    (Put, "/api/flows/*", |c, r| flows::replace(c, r.id("flow")?, &r.body()?)),
    (Delete, "/api/flows/*", |c, r| flows::delete(c, r.id("flow")?)),
    (Post, "/api/flows/*/execute", |c, r| runs::execute(c, r.id("flow")?, r.query(), &r.body()?, &r.client)),
    (Post, "/api/flows/*/estimate", |c, r| runs::estimate(c, r.id("flow")?, &r.body()?)),
    (Get, "/api/flows/*/status", |c, r| runs::status(c, r.id("flow")?)),
    (Get, "/api/flows/*/hook", |c, r| hooks::get(c, r.id("flow")?, r.head)),
    (Put, "/api/flows/*/hook", |c, r| hooks::set(c, r.id("flow")?, r.head)),
    (Delete, "/api/flows/*/hook", |c, r| hooks::delete(c, r.id("flow")?)),
    (Post, "/hooks/*", hooks::deliver),
    (Get, "/api/flows/*/schedule", |c, r| schedules::get(c, r.id("flow")?)),
    (Put, "/api/flows/*/schedule", |c, r| schedules::set(c, r.id("flow")?, &r.body()?)),
    (Delete, "/api/flows/*/schedule", |c, r| schedules::delete(c, r.id("flow")?)),
    // The listener answers GET itself; this is for HEAD and for other methods.
    (Get, "/api/events", |_, _| Ok(reply::stream("text/event-stream", std::io::empty()))),
    (Get, "/api/runs", |c, r| runs::list(c, r.query(), &r.client)),
    (Get, "/api/runs/*", |c, r| runs::get(c, r.name)),
    (Delete, "/api/runs/*", |c, r| runs::delete(c, r.name)),
    (Get, "/api/runs/*/graph", |c, r| runs::graph(c, r.name)),
    (Post, "/api/runs/*/cancel", |c, r| runs::cancel(c, r.name)),
    (Post, "/api/runs/*/resume", |c, r| runs::resume(c, r.name)),
    (Get, "/api/ledger", |c, r| ledger::list(c, r.query(), &r.client)),
    (Get, "/api/ledger/summary", |c, r| ledger::summary(c, r.query(), &r.client)),
    (Get, "/api/ledger.csv", |c, r| ledger::csv(c, r.query())),
    (Get, "/api/ledger/*/body", |c, r| bodies::get(c, r.id("ledger row")?)),
    (Delete, "/api/ledger/*/body", |c, r| bodies::delete(c, r.id("ledger row")?)),
    (Delete, "/api/bodies", |c, _| bodies::delete_all(c)),
    (Get, "/api/models", |c, r| models::list(c, r.query(), &r.client)),
    (Get, "/api/settings", |c, _| settings::get(c)),
    (Get, "/api/ledger/optimizations", |c, r| optimizations::list(c, r.query())),
    (Get, "/api/ledger/*", |c, r| ledger::get(c, r.id("ledger row")?)),
    (Get, "/api/ledger/optimizations/*", |c, r| optimizations::get(c, r.id("suggestion")?, r.query())),
    (Post, "/api/ledger/optimizations/*/apply", |c, r| optimizations::apply(c, r.id("suggestion")?, &r.body()?)),
    (Post, "/api/ledger/optimizations/*/revert", |c, r| optimizations::revert(c, r.id("suggestion")?)),
    (Post, "/api/ledger/optimizations/*/dismiss", |c, r| optimizations::dismiss(c, r.id("suggestion")?)),
    (Post, "/api/ledger/optimizations/*/trial", |c, r| optimizations::trial(c, r.id("suggestion")?, &r.body()?)),
    (Get, "/api/overview", |c, r| overview::get(c, r.query(), &r.client)),
    (Get, "/api/prices", |c, r| prices::find(c, r.query())),
    (Get, "/api/prices/missing", |c, r| prices::missing(c, r.query(), &r.client)),
    (Get, "/api/prices/*", |c, r| prices::get(c, r.id("price")?)),
    (Get, "/api/providers", |c, _| providers::list(c)),
    (Post, "/api/providers/*/test", |c, r| providers::test(c, r.name)),
    (Get, "/api/keys", |c, _| keys::list(c)),
    (Post, "/api/keys", |c, r| keys::create(c, &r.body()?)),
    (Patch, "/api/keys/*", |c, r| keys::edit(c, r.id("key")?, &r.body()?)),
    (Delete, "/api/keys/*", |c, r| keys::delete(c, r.id("key")?, r.query())),
    (Post, "/api/keys/*/rotate", |c, r| keys::rotate(c, r.id("key")?, &r.body()?)),
    (Delete, "/api/end-users/*", |c, r| end_users::erase(c, r.name)),
    (Get, "/api/end-users/*/export", |c, r| end_users::export(c, r.name, r.query())),
    (Get, "/api/budget", |c, _| budget::get(c)),
    (Put, "/api/budget", |c, r| budget::set(c, &r.body()?, r.head.header("if-match"))),
];

/// Dispatches a request to its route.
pub fn answer(
    context: &Context,
    head: &RequestHead,
    body: &mut RequestBody<'_>,
    client: Presence,
) -> Answer {
    // The listener accepts only methods that can be parsed.
    let method = match head.method.parse() {
        Ok(Method::Head) => Get,
        Ok(method) => method,
        Err(()) => Options,
    };
    if method == Options {
        return Ok(reply::preflight());
    }
    let path = head.target.split('?').next().unwrap_or_default();
    let found = ROUTES
        .iter()
        .filter_map(|(supported, route, answer)| Some((supported, answer, matched(route, path)?)));
    let found: Vec<_> = found.collect();
    if let Some((_, answer, name)) = found.iter().find(|(supported, ..)| **supported == method) {
        let mut request = Request { head, client, name, body };
        return answer(context, &mut request);
    }
    if found.is_empty() {
        return Err(Error::NotFound(format!("route {path}")).into());
    }
    let mut allowed: Vec<&str> = found.iter().map(|(supported, ..)| supported.as_str()).collect();
    allowed.dedup();
    let (method, allowed) = (&head.method, allowed.join(", "));
    let message = format!("{path} does not support {method}; use {allowed}");
    Err(ApiError::new(405, "method_not_allowed", message).with("allow", allowed))
}

/// Returns the segment that matches the `*` of `route`, or the rest of the path that matches its
/// `**`, if the path matches.
fn matched<'a>(route: &str, path: &'a str) -> Option<&'a str> {
    if let Some(prefix) = route.strip_suffix("**") {
        return path.strip_prefix(prefix);
    }
    let (mut segments, mut name) = (path.split('/'), "");
    for expected in route.split('/') {
        let segment = segments.next()?;
        if expected == "*" {
            name = segment;
        } else if expected != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_matches_whole_segments() {
        assert_eq!(matched("/", "/"), Some(""));
        assert_eq!(matched("/api/flows/*", "/api/flows/7"), Some("7"));
        assert_eq!(matched("/api/flows/*/hook", "/api/flows/7/hook"), Some("7"));
        assert_eq!(matched("/assets/**", "/assets/1/views/a.js"), Some("1/views/a.js"));
        for path in ["/", "//", "/api/flows", "/api/flows/7/", "/api/flows/7/hook", "api/flows/7"] {
            assert_eq!(matched("/api/flows/*", path), None, "{path}");
        }
    }
}
