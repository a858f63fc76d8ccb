//! Resolves a client's model name to providers and models.

use std::collections::BTreeMap;
use std::time::Duration;

use super::hours::Hours;
use super::protocol::Protocol;
use crate::providers::weighted;
use crate::time::Timestamp;

pub const TARGETS_MAX: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub provider: String,
    pub model: String,
}

/// The targets of each alias, in order of preference.
pub type Aliases = BTreeMap<String, Vec<Target>>;

/// When a target of an alias is used.
#[derive(Clone, Debug, Default)]
pub struct TargetRule {
    /// Adjacent targets with a weight share one place. One with weight 0 is not used.
    pub weight: Option<u32>,
    /// None for always.
    pub hours: Option<Hours>,
}

impl TargetRule {
    fn applies(&self, at: Timestamp) -> bool {
        self.weight != Some(0) && self.hours.as_ref().is_none_or(|hours| hours.contains(at))
    }
}

/// Returns the targets that apply now, in the order in which to try them. Those that share a place
/// are in random order by their weights.
pub fn select(
    targets: Vec<Target>,
    rules: &[TargetRule],
    at: Timestamp,
    random: &mut dyn FnMut(u32) -> u32,
) -> Vec<Target> {
    // Targets without a weight separate the places, also outside their hours.
    let mut place = 0;
    let mut left: Vec<(Target, usize, Option<u32>)> = Vec::with_capacity(targets.len());
    for (target, rule) in targets.into_iter().zip(rules) {
        place += usize::from(rule.weight.is_none());
        if rule.applies(at) {
            left.push((target, place, rule.weight));
        }
        place += usize::from(rule.weight.is_none());
    }
    let mut selected = Vec::with_capacity(left.len());
    while let Some((_, first, _)) = left.first() {
        let group = left.iter().take_while(|(_, place, _)| place == first);
        let weights: Vec<u32> = group.map_while(|(_, _, weight)| *weight).collect();
        let next = weighted(&weights, random).unwrap_or(0);
        selected.push(left.remove(next).0);
    }
    selected
}

/// Returns the time until the first target applies.
pub fn wait(rules: &[TargetRule], at: Timestamp) -> Option<Duration> {
    let used = rules.iter().filter(|rule| rule.weight != Some(0));
    used.filter_map(|rule| Some(rule.hours.as_ref()?.wait(at))).min()
}

/// The end of an alias that stands for all names with the same beginning.
pub const ANY_END: char = '*';

/// Resolves an alias, then `PROVIDER/MODEL`, then the longest alias with `*` that fits, then a model of
/// the provider named after the protocol. Also returns the alias.
pub fn targets<'a>(
    protocol: Protocol,
    name: &str,
    aliases: &'a Aliases,
    is_provider: impl Fn(&str) -> bool,
) -> (Vec<Target>, Option<&'a str>) {
    let one = |provider: &str, model: &str| {
        vec![Target { provider: provider.to_owned(), model: model.to_owned() }]
    };
    if let Some((alias, targets)) = aliases.get_key_value(name) {
        return (targets.clone(), Some(alias));
    }
    if let Some((provider, model)) = name.split_once('/')
        && !model.is_empty()
        && is_provider(provider)
    {
        return (one(provider, model), None);
    }
    let fits = |alias: &str| alias.strip_suffix(ANY_END).is_some_and(|it| name.starts_with(it));
    let fitting = aliases.iter().filter(|(alias, _)| fits(alias));
    match fitting.max_by_key(|(alias, _)| alias.len()) {
        Some((alias, targets)) => (targets.clone(), Some(alias)),
        None => (one(protocol.name(), name), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_to_aliases_providers_or_the_protocol_default() {
        let target =
            |provider: &str, model: &str| Target { provider: provider.into(), model: model.into() };
        let fast = vec![target("openai", "a"), target("groq", "b/c")];
        let aliases = Aliases::from([("fast".to_owned(), fast.clone())]);
        let found = |protocol, name: &str| {
            let (mut found, _) = targets(protocol, name, &aliases, |it| it == "groq");
            assert_eq!(found.len(), 1);
            found.remove(0)
        };
        assert_eq!(targets(Protocol::OpenAi, "fast", &aliases, |_| true), (fast, Some("fast")));
        let openai = Protocol::OpenAi;
        assert_eq!(found(openai, "groq/x/y"), target("groq", "x/y"));
        assert_eq!(found(openai, "gpt-5"), target("openai", "gpt-5"));
        assert_eq!(found(openai, "meta/llama"), target("openai", "meta/llama"));
        assert_eq!(found(openai, "groq/"), target("openai", "groq/"));
        let claude = found(Protocol::Anthropic, "claude");
        assert_eq!(claude, target("anthropic", "claude"));
    }

    #[test]
    fn an_alias_with_a_star_stands_for_all_names_that_fit() {
        let aliases = ["claude-*", "claude-haiku-*", "claude-haiku-4-5"];
        let aliases: Aliases =
            aliases.iter().map(|alias| ((*alias).to_owned(), vec![target(alias)])).collect();
        let alias_of = |name: &str| {
            let (targets, alias) = targets(Protocol::Anthropic, name, &aliases, |it| it == "groq");
            assert_eq!(alias.unwrap_or(name), alias.map_or(name, |_| &targets[0].model));
            alias
        };
        assert_eq!(alias_of("claude-haiku-4-5"), Some("claude-haiku-4-5"));
        assert_eq!(alias_of("claude-haiku-4-5-20251001"), Some("claude-haiku-*"));
        assert_eq!(alias_of("claude-sonnet-4-5"), Some("claude-*"));
        assert_eq!(alias_of("gpt-5"), None);
        assert_eq!(alias_of("groq/claude-x"), None);
    }

    fn target(model: &str) -> Target {
        Target { provider: "p".into(), model: model.into() }
    }

    fn rule(weight: Option<u32>, hours: Option<&str>) -> TargetRule {
        let hours = hours.map(|hours| Hours::parse(hours, None).unwrap());
        TargetRule { weight, hours }
    }

    #[test]
    fn eighty_of_a_hundred_requests_go_to_the_first_model() {
        let targets = vec![target("a"), target("b"), target("c")];
        let rules = [rule(Some(80), None), rule(Some(20), None), rule(None, None)];
        let mut firsts = BTreeMap::<String, u32>::new();
        for number in 0..100 {
            // The second choice has one model left.
            let mut random = |below: u32| number.min(below - 1);
            let selected = select(targets.clone(), &rules, Timestamp(0), &mut random);
            let models: Vec<&str> = selected.iter().map(|it| it.model.as_str()).collect();
            assert!(
                [["a", "b", "c"], ["b", "a", "c"]].contains(&[models[0], models[1], models[2]])
            );
            *firsts.entry(models[0].to_owned()).or_default() += 1;
        }
        assert_eq!(firsts, BTreeMap::from([("a".to_owned(), 80), ("b".to_owned(), 20)]));
    }

    #[test]
    fn targets_without_weight_keep_their_place() {
        let targets = vec![target("local"), target("a"), target("b"), target("off")];
        let rules =
            [rule(None, None), rule(Some(1), None), rule(Some(1), None), rule(Some(0), None)];
        let selected = select(targets, &rules, Timestamp(0), &mut |below| below - 1);
        let models: Vec<&str> = selected.iter().map(|it| it.model.as_str()).collect();
        assert_eq!(models, ["local", "b", "a"]);
    }

    #[test]
    fn a_target_outside_its_hours_still_separates_weights() {
        let targets = vec![target("a"), target("night"), target("b")];
        let rules = [rule(Some(1), None), rule(None, Some("22:00-06:00")), rule(Some(99), None)];
        let noon: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let selected = select(targets, &rules, noon, &mut |below| below - 1);
        let models: Vec<&str> = selected.iter().map(|it| it.model.as_str()).collect();
        assert_eq!(models, ["a", "b"]);
    }

    #[test]
    fn a_nightly_switch_follows_the_hours() {
        let targets = vec![target("night"), target("day")];
        let rules = [rule(None, Some("22:00-06:00")), rule(None, Some("06:00-20:00"))];
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let first = |at| {
            let selected = select(targets.clone(), &rules, at, &mut |_| 0);
            selected.first().map(|it| it.model.clone())
        };
        assert_eq!(first(at("2026-11-30T23:00:00Z")).as_deref(), Some("night"));
        assert_eq!(first(at("2026-11-30T12:00:00Z")).as_deref(), Some("day"));
        assert_eq!(first(at("2026-11-30T21:00:00Z")), None);
        assert_eq!(wait(&rules, at("2026-11-30T21:00:00Z")), Some(Duration::from_secs(3_600)));
    }
}
