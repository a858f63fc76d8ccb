//! Spellings of a model's name that have one price. All are compared in lower case.

use super::pattern::with_dashed_dates;

/// Suffixes of OpenRouter that select a host and leave the model and its price as they are
/// (<https://openrouter.ai/docs/guides/routing/model-variants/overview>). `:free`, `:batch`,
/// `:extended` and `:thinking` are models of their own, and `:online` adds a fee.
const ROUTING_VARIANTS: [&str; 3] = [":nitro", ":floor", ":exacto"];

/// Prefixes of a model at Gemini's API (`models/`) and at Vertex AI, whose protocol of OpenAI uses
/// `google/` and whose own one uses `publishers/google/models/`.
const GOOGLE_PREFIXES: [&str; 3] = ["models/", "google/", "publishers/google/models/"];

/// Returns the name without routing variants.
pub(super) fn without_variants(mut name: &str) -> &str {
    while let Some(rest) = ROUTING_VARIANTS.iter().find_map(|variant| name.strip_suffix(variant)) {
        name = rest;
    }
    name
}

/// Returns the name without the path of its publisher at Google.
pub(super) fn without_publisher(name: &str) -> &str {
    let path = publisher_path(name);
    let of_publisher = path.strip_prefix("publishers/").and_then(|rest| {
        let (_, model) = rest.split_once('/')?;
        model.strip_prefix("models/")
    });
    let of_google = || GOOGLE_PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix));
    of_publisher.or_else(of_google).unwrap_or(path)
}

/// Returns the name from `publishers/` on, if it starts with a project and a location.
fn publisher_path(name: &str) -> &str {
    match name.starts_with("projects/").then(|| name.find("/publishers/")).flatten() {
        Some(at) => &name[at + 1..],
        None => name,
    }
}

/// Returns whether a pattern, a name or a prefix with `*`, selects the model under any spelling
/// for which the price table has the same price.
pub fn selects(pattern: &str, model: &str) -> bool {
    let pattern = pattern.to_lowercase();
    let model = model.to_lowercase();
    let matches = |name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern || with_dashed_dates(&pattern).is_some_and(|it| it == name),
    };
    let routed = without_variants(&model);
    let bare = without_publisher(routed);
    let mut names = vec![model.clone(), routed.to_owned(), publisher_path(routed).to_owned()];
    names.push(bare.to_owned());
    if !bare.contains('/') {
        names.extend(GOOGLE_PREFIXES.iter().map(|prefix| format!("{prefix}{bare}")));
    }
    let dashed: Vec<String> = names.iter().filter_map(|name| with_dashed_dates(name)).collect();
    names.iter().chain(&dashed).any(|name| matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_variants_and_publishers_are_removed() {
        assert_eq!(without_variants("openai/gpt-4o:nitro"), "openai/gpt-4o");
        assert_eq!(without_variants("openai/gpt-4o:exacto:floor"), "openai/gpt-4o");
        for own in ["a:free", "a:batch", "a:extended", "a:thinking", "a:online", "llama3:8b"] {
            assert_eq!(without_variants(own), own);
        }
        for name in [
            "gemini-2.5-flash",
            "models/gemini-2.5-flash",
            "google/gemini-2.5-flash",
            "publishers/google/models/gemini-2.5-flash",
            "projects/p/locations/eu/publishers/google/models/gemini-2.5-flash",
        ] {
            assert_eq!(without_publisher(name), "gemini-2.5-flash", "{name}");
        }
        assert_eq!(without_publisher("publishers/anthropic/models/claude"), "claude");
        assert_eq!(without_publisher("openai/gpt-4o"), "openai/gpt-4o");
        assert_eq!(without_publisher("projects/p"), "projects/p");
    }

    #[test]
    fn a_pattern_selects_every_spelling_of_a_model() {
        for (pattern, model) in [
            ("gpt-4o*", "GPT-4o"),
            ("GPT-4o", "gpt-4O"),
            ("openai/gpt-4o", "openai/gpt-4o:nitro"),
            ("openai/gpt-4o:NITRO", "openai/gpt-4o:nitro"),
            ("gemini-2.5*", "models/gemini-2.5-flash"),
            (
                "gemini-2.5-flash",
                "projects/p/locations/l/publishers/google/models/gemini-2.5-flash",
            ),
            ("google/gemini-2.5-flash", "gemini-2.5-flash"),
            ("models/gemini*", "publishers/google/models/gemini-2.5-flash"),
            ("publishers/google/models/gemini*", "google/gemini-2.5-flash"),
            ("gpt-4o-2024-11-20", "gpt-4o-20241120"),
            ("gpt-4o-20241120", "gpt-4o-2024-11-20"),
            ("*", "any/thing:free"),
        ] {
            assert!(selects(pattern, model), "{pattern} {model}");
        }
        for (pattern, model) in [
            ("gpt-4o", "gpt-4o-mini"),
            ("openai/gpt-4o", "openai/gpt-4o:free"),
            ("openai/gpt-4o:nitro", "openai/gpt-4o"),
            ("gemini-2.5-flash", "gemini-2.5-pro"),
        ] {
            assert!(!selects(pattern, model), "{pattern} {model}");
        }
    }
}
