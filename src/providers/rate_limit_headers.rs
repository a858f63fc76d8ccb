//! The response headers that report the rest of a rate limit, in the names of another maker. Pure.
//!
//! OpenAI: <https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers>; Anthropic:
//! <https://platform.claude.com/docs/en/api/rate-limits#response-headers>. Gemini has none.

use std::time::Duration;

use crate::time::Timestamp;
use crate::translation::Api;

/// Headers of the same meaning: OpenAI's and Anthropic's name, and whether the value is a time, which
/// OpenAI writes as a duration and Anthropic as a date.
const LIMITS: [(&str, &str, bool); 6] = [
    ("x-ratelimit-limit-requests", "anthropic-ratelimit-requests-limit", false),
    ("x-ratelimit-remaining-requests", "anthropic-ratelimit-requests-remaining", false),
    ("x-ratelimit-reset-requests", "anthropic-ratelimit-requests-reset", true),
    ("x-ratelimit-limit-tokens", "anthropic-ratelimit-tokens-limit", false),
    ("x-ratelimit-remaining-tokens", "anthropic-ratelimit-tokens-remaining", false),
    ("x-ratelimit-reset-tokens", "anthropic-ratelimit-tokens-reset", true),
];

/// Headers that keep their name.
const COMMON: [&str; 2] = ["retry-after", "x-should-retry"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    OpenAi,
    Anthropic,
    Google,
}

fn maker(api: Api) -> Maker {
    match api {
        Api::Chat | Api::Responses => Maker::OpenAi,
        Api::Messages => Maker::Anthropic,
        Api::Gemini => Maker::Google,
    }
}

/// Returns the headers of a provider in the names of the client's API. Others are left out.
pub(super) fn translated(
    headers: &[(String, String)],
    from: Api,
    to: Api,
    now: Timestamp,
) -> Vec<(String, String)> {
    let translated = headers.iter().filter_map(|(name, value)| {
        if COMMON.contains(&name.as_str()) {
            return Some((name.clone(), value.clone()));
        }
        if ["request-id", "x-request-id"].contains(&name.as_str()) {
            let name = if maker(to) == Maker::Anthropic { "request-id" } else { "x-request-id" };
            return Some((name.to_owned(), value.clone()));
        }
        limit(name, value, maker(from), maker(to), now)
    });
    translated.collect()
}

fn limit(
    name: &str,
    value: &str,
    from: Maker,
    to: Maker,
    now: Timestamp,
) -> Option<(String, String)> {
    if from == to {
        return LIMITS
            .iter()
            .any(|(openai, anthropic, _)| [openai, anthropic].contains(&&name))
            .then(|| (name.to_owned(), value.to_owned()));
    }
    let (openai, anthropic, is_time) = LIMITS.iter().find(|(openai, anthropic, _)| match from {
        Maker::OpenAi => *openai == name,
        Maker::Anthropic => *anthropic == name,
        Maker::Google => false,
    })?;
    let (name, value) = match (to, is_time) {
        (Maker::OpenAi, false) => (openai, value.to_owned()),
        (Maker::Anthropic, false) => (anthropic, value.to_owned()),
        (Maker::OpenAi, true) => (openai, duration_until(value, now)?),
        (Maker::Anthropic, true) => (anthropic, date_after(value, now)?),
        (Maker::Google, _) => return None,
    };
    Some(((*name).to_owned(), value))
}

/// Returns the time until a date as OpenAI writes durations, such as `17ms`, `1.5s` and `6m0s`.
fn duration_until(date: &str, now: Timestamp) -> Option<String> {
    let date: Timestamp = date.parse().ok()?;
    let wait_ms = date.0.saturating_sub(now.0).max(0);
    Some(match (wait_ms / 60_000, wait_ms % 60_000) {
        (0, ms @ 0..1_000) => format!("{ms}ms"),
        (0, ms) if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        (0, ms) => format!("{}.{:03}s", ms / 1_000, ms % 1_000),
        (minutes, ms) => format!("{minutes}m{}s", ms / 1_000),
    })
}

/// Returns the date after one of OpenAI's durations.
fn date_after(duration: &str, now: Timestamp) -> Option<String> {
    let wait_ms = i64::try_from(duration_of(duration)?.as_millis()).ok()?;
    Some(Timestamp(now.0.checked_add(wait_ms)?).to_string())
}

/// Parses numbers with units in a row, such as `1h2m3.5s`.
fn duration_of(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let units = &rest[digits..];
        let end = units.find(|c: char| c.is_ascii_digit()).unwrap_or(units.len());
        seconds += number
            * match &units[..end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3_600.0,
                "d" => 86_400.0,
                _ => return None,
            };
        rest = &units[end..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(from: Api, to: Api, headers: &[(&str, &str)]) -> Vec<String> {
        let now: Timestamp = "2026-11-30T10:00:00Z".parse().unwrap();
        let owned: Vec<_> = headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let translated = translated(&owned, from, to, now).into_iter();
        translated.map(|(name, value)| format!("{name}: {value}")).collect()
    }

    #[test]
    fn limits_have_the_names_and_times_of_the_client() {
        let openai = [
            ("x-ratelimit-remaining-requests", "9"),
            ("x-ratelimit-reset-tokens", "1m30s"),
            ("retry-after", "20"),
            ("x-request-id", "r"),
            ("openai-version", "1"),
        ];
        assert_eq!(
            all(Api::Chat, Api::Messages, &openai),
            [
                "anthropic-ratelimit-requests-remaining: 9",
                "anthropic-ratelimit-tokens-reset: 2026-11-30T10:01:30.000Z",
                "retry-after: 20",
                "request-id: r",
            ]
        );
        assert_eq!(all(Api::Responses, Api::Chat, &openai).len(), 4);
        assert_eq!(all(Api::Chat, Api::Gemini, &openai), ["retry-after: 20", "x-request-id: r"]);
        let anthropic = [("anthropic-ratelimit-requests-reset", "2026-11-30T10:00:12Z")];
        assert_eq!(all(Api::Messages, Api::Chat, &anthropic), ["x-ratelimit-reset-requests: 12s"]);
    }

    #[test]
    fn durations_of_openai_are_parsed() {
        let parsed = |text| duration_of(text).map(|it| it.as_millis());
        assert_eq!(parsed("17ms"), Some(17));
        assert_eq!(parsed("1h2m3.5s"), Some(3_723_500));
        for nonsense in ["", "s", "1", "1x", "-1s", "1..2s"] {
            assert_eq!(parsed(nonsense), None, "{nonsense}");
        }
    }
}
