//! Spellings of a model's name that have one price. All are compared in lower case.

use super::pattern::with_dashed_dates;

/// Suffixes of OpenRouter that select a host and leave the model and its price as they are
/// (<https://openrouter.ai/docs/guides/routing/model-variants/overview>). `:free`, `:batch`,
/// `:extended` and `:thinking` are models of their own, and `:online` adds a fee.
const ROUTING_VARIANTS: [&str; 3] = [":nitro", ":floor", ":exacto"];

/// Prefixes of a model at Gemini's API (`models/`) and at Vertex AI, whose protocol of OpenAI uses
/// `google/` and whose own one uses `publishers/google/models/`.
const GOOGLE_PREFIXES: [&str; 3] = ["models/", "google/", "publishers/google/models/"];

/// Suffixes of OpenRouter that leave the model as it is; the table lists the prices of `:beta`.
const VARIANTS: [&str; 4] = [":nitro", ":floor", ":exacto", ":beta"];

/// Prefixes of a model at Amazon Bedrock that select regions, and the makers after them.
const BEDROCK_REGIONS: [&str; 8] =
    ["us.", "eu.", "jp.", "au.", "in.", "apac.", "us-gov.", "global."];
const BEDROCK_MAKERS: [&str; 4] = ["anthropic", "openai", "amazon", "moonshotai"];

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
    selects_path(&pattern, &model) || selects_spelling(&pattern, &model)
}

/// Compares the names as written, and the paths under which Google's APIs accept the model.
fn selects_path(pattern: &str, model: &str) -> bool {
    let matches = |name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern || with_dashed_dates(pattern).is_some_and(|it| it == name),
    };
    let routed = without_variants(model);
    let bare = without_publisher(routed);
    let mut names = vec![model.to_owned(), routed.to_owned(), publisher_path(routed).to_owned()];
    names.push(bare.to_owned());
    if !bare.contains('/') {
        names.extend(GOOGLE_PREFIXES.iter().map(|prefix| format!("{prefix}{bare}")));
    }
    let dashed: Vec<String> = names.iter().filter_map(|name| with_dashed_dates(name)).collect();
    names.iter().chain(&dashed).any(|name| matches(name))
}

/// Compares the makers, if both names have one, and then all ways to write the model.
fn selects_spelling(pattern: &str, model: &str) -> bool {
    let (start, mut is_prefix) = match pattern.strip_suffix('*') {
        Some(start) => (start, true),
        None => (pattern, false),
    };
    let start = match start.rfind(':') {
        // A prefix of a routing variant selects the model, but not longer names.
        Some(at) if is_prefix && VARIANTS.iter().any(|it| it.starts_with(&start[at..])) => {
            is_prefix = false;
            &start[..at]
        }
        _ => start,
    };
    let start = without_aliases(start);
    let (wanted_maker, wanted) = maker_and_model(start);
    let (maker, model) = maker_and_model(without_aliases(model));
    let is_maker = match (wanted_maker, maker) {
        (None, _) => true,
        (Some(wanted), Some(maker)) => wanted == maker,
        (Some(_), None) if !wanted.is_empty() => true,
        // `anthropic/*` has no model to compare.
        (Some(wanted), None) => wanted == "anthropic" && model.starts_with("claude"),
    };
    let wanted = [wanted.to_owned(), with_dashes(wanted)];
    let dashed = wanted.iter().filter_map(|name| with_dashed_dates(name)).collect::<Vec<_>>();
    let matches = |name: &String| {
        let mut wanted = wanted.iter().chain(&dashed);
        wanted.any(|wanted| name == wanted || (is_prefix && name.starts_with(wanted)))
    };
    is_maker && spellings(model).iter().any(matches)
}

/// Returns the name without suffixes that leave the model as it is.
fn without_aliases(mut name: &str) -> &str {
    while let Some(rest) = VARIANTS.iter().find_map(|variant| name.strip_suffix(variant)) {
        name = rest;
    }
    name.strip_suffix("@default").unwrap_or(name)
}

/// Splits a name into its maker, if it has one, and the model.
fn maker_and_model(name: &str) -> (Option<&str>, &str) {
    let path = publisher_path(name);
    if let Some(model) = path.strip_prefix("models/") {
        return (None, model);
    }
    if let Some((maker, model)) =
        path.strip_prefix("publishers/").and_then(|rest| rest.split_once('/'))
    {
        return (Some(maker), model.strip_prefix("models/").unwrap_or(model));
    }
    let in_region = BEDROCK_REGIONS.iter().find_map(|region| path.strip_prefix(region));
    let dotted = in_region.unwrap_or(path).split_once('.');
    if let Some((maker, model)) = dotted.filter(|(maker, _)| BEDROCK_MAKERS.contains(maker)) {
        return (Some(maker), model);
    }
    path.split_once('/').map_or((None, path), |(maker, model)| (Some(maker), model))
}

/// Returns the spellings of a name in lower case, without maker and routing variants.
pub(super) fn bare_spellings(name: &str) -> Vec<String> {
    let (_, model) = maker_and_model(without_aliases(name));
    spellings(model)
}

/// Returns the ways to write the version, the date and the order of a model's name.
fn spellings(model: &str) -> Vec<String> {
    let mut all = vec![with_dashes(model)];
    all.extend(reordered(&all[0]));
    let with_dots = |name: &String| with_separators(name, '-', '.');
    let dotted: Vec<String> = all.iter().map(with_dots).collect();
    let dates: Vec<String> = all.iter().filter_map(|name| with_dashed_dates(name)).collect();
    let compact: Vec<String> = all.iter().map(|name| with_compact_dates(name)).collect();
    all.push(model.to_owned());
    all.extend(dotted.into_iter().chain(dates).chain(compact));
    all
}

/// Writes versions and dates with dashes: `claude-opus-4.6@20260205` is `claude-opus-4-6-20260205`.
fn with_dashes(model: &str) -> String {
    let name = with_separators(&model.replace('@', "-"), '.', '-');
    // Azure's name, which has no separator.
    match name.strip_prefix("gpt-35") {
        Some(rest) => format!("gpt-3-5{rest}"),
        None => name,
    }
}

/// Replaces the separators between a digit and a number of at most two digits.
fn with_separators(name: &str, old: char, new: char) -> String {
    let is_digit = |char: char| char.is_ascii_digit();
    let replaced = name.char_indices().map(|(at, char)| {
        let (before, after) = (&name[..at], &name[at + char.len_utf8()..]);
        let number = after.chars().take(3).take_while(|char| is_digit(*char)).count();
        let is_separator = char == old && before.ends_with(is_digit) && (1..=2).contains(&number);
        if is_separator { new } else { char }
    });
    replaced.collect()
}

/// Writes `2024-11-20` as `20241120`.
fn with_compact_dates(name: &str) -> String {
    let parts: Vec<&str> = name.split('-').collect();
    let is_number = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut out = String::new();
    for (index, part) in parts.iter().enumerate() {
        let previous = |back: usize| index.checked_sub(back).map_or("", |at| parts[at]);
        let is_month = is_number(part, 2) && is_number(previous(1), 4);
        let is_day = part.len() >= 2
            && part.bytes().take(2).all(|byte| byte.is_ascii_digit())
            && is_number(previous(1), 2)
            && is_number(previous(2), 4);
        if index > 0 && !is_month && !is_day {
            out.push('-');
        }
        out.push_str(part);
    }
    out
}

/// Swaps the family and the version of a Claude model: `claude-4-6-opus` is `claude-opus-4-6`.
fn reordered(name: &str) -> Option<String> {
    let (name, variant) = name.find(':').map_or((name, ""), |at| name.split_at(at));
    let parts: Vec<&str> = name.strip_prefix("claude-")?.split('-').collect();
    let is_version =
        |part: &&&str| part.len() <= 2 && part.parse::<u8>().is_ok_and(|_| !part.starts_with('+'));
    let is_first = parts.first().is_some_and(|part| is_version(&part));
    let (family, version) = match is_first {
        true => {
            let version = parts.iter().take_while(is_version).count();
            (version..version + 1, 0..version)
        }
        false => (0..1, 1..1 + parts.iter().skip(1).take_while(is_version).count()),
    };
    let rest = parts.get(family.len() + version.len()..)?;
    let (family, version) = (parts.get(family)?, parts.get(version)?);
    let ordered = if is_first { [family, version] } else { [version, family] };
    let parts: Vec<&str> = ordered.into_iter().flatten().chain(rest).copied().collect();
    Some(format!("claude-{}{variant}", parts.join("-")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            ("claude-opus-4-6*", "claude-opus-4.6"),
            ("claude-opus-4-6*", "claude-4.6-opus"),
            ("claude-opus-4-6*", "claude-4-6-opus-20260205:batch"),
            ("claude-opus-4-6", "claude-opus-4-6@default"),
            ("claude-4.6-opus", "anthropic/claude-opus-4-6"),
            ("claude-opus-4.*", "claude-opus-4-6"),
            ("claude-3.5-sonnet-2024*", "claude-sonnet-3-5@20241022"),
            ("anthropic/*", "claude-4.6-opus"),
            ("publishers/anthropic/models/*", "anthropic/claude-opus-4-6"),
            ("claude-opus-4-6", "publishers/anthropic/models/claude-opus-4-6"),
            ("publishers/anthropic/models/claude-opus-4-6", "claude-opus-4-6"),
            (
                "projects/p/locations/l/publishers/google/models/gemini-2.5-flash",
                "google/gemini-2.5-flash",
            ),
            ("gpt-4o-20241120*", "gpt-4o-2024-11-20"),
            ("gpt-4o-202411*", "gpt-4o-2024-11-20"),
            ("gpt-4o-2024-11*", "gpt-4o-20241120"),
            ("openai/gpt-4o:nitro", "openai/gpt-4o:floor"),
            ("openai/gpt-4o:nitro", "openai/gpt-4o"),
            ("openai/gpt-4o:nitro", "gpt-4o"),
            ("openai/gpt-4o:n*", "openai/gpt-4o:floor"),
            ("openai/gpt-4o", "gpt-4o:beta"),
            ("gpt-35-turbo*", "gpt-3.5-turbo-0125"),
            ("anthropic.claude-opus-4-6*", "us.anthropic.claude-opus-4-6-v1"),
        ] {
            assert!(selects(pattern, model), "{pattern} {model}");
        }
        for (pattern, model) in [
            ("gpt-4o", "gpt-4o-mini"),
            ("openai/gpt-4o", "openai/gpt-4o:free"),
            ("openai/gpt-4o:nitro", "openai/gpt-4o:free"),
            ("openai/gpt-4o:nitro", "openai/gpt-4o:batch"),
            ("openai/gpt-4o:nitro*", "openai/gpt-4o:extended"),
            ("openai/gpt-4o:nitro*", "openai/gpt-4o-mini"),
            ("openai/gpt-4o*", "azure/gpt-4o"),
            ("anthropic/*", "openai/gpt-4o"),
            ("anthropic/*", "gpt-4o"),
            ("claude-opus-4-6", "claude-opus-4-5"),
            ("claude-opus-4-6*", "claude-sonnet-4.6"),
            ("claude-opus-4", "claude-opus-4.6"),
            ("gpt-4.*", "gpt-4-turbo"),
            ("gpt-4.*", "gpt-4-0613"),
            ("gpt-4o-2024-11-20", "gpt-4o-2024-08-06"),
            ("gemini-2.5-flash", "gemini-2.5-pro"),
        ] {
            assert!(!selects(pattern, model), "{pattern} {model}");
        }
    }

    proptest! {
        #[test]
        fn a_name_and_its_prefixes_select_it(name in "(claude-|gpt-)?[a-z0-9é@:./-]{1,20}") {
            prop_assert!(selects(&name, &name));
            for (at, _) in name.char_indices() {
                prop_assert!(selects(&format!("{}*", &name[..at]), &name), "{name} {at}");
            }
        }
    }
}
