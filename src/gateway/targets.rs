//! Resolves a client's model name to providers and models.

use std::collections::BTreeMap;

use super::protocol::Protocol;

pub const TARGETS_MAX: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub provider: String,
    pub model: String,
}

/// The targets of each alias, in order of preference.
pub type Aliases = BTreeMap<String, Vec<Target>>;

/// Resolves an alias, then `PROVIDER/MODEL`, then a model of the provider named after the protocol.
pub fn targets(
    protocol: Protocol,
    name: &str,
    aliases: &Aliases,
    is_provider: impl Fn(&str) -> bool,
) -> Vec<Target> {
    if let Some(targets) = aliases.get(name) {
        return targets.clone();
    }
    let (provider, model) = match name.split_once('/') {
        Some((provider, model)) if !model.is_empty() && is_provider(provider) => (provider, model),
        _ => (protocol.name(), name),
    };
    vec![Target { provider: provider.to_owned(), model: model.to_owned() }]
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
            let mut found = targets(protocol, name, &aliases, |it| it == "groq");
            assert_eq!(found.len(), 1);
            found.remove(0)
        };
        assert_eq!(targets(Protocol::OpenAi, "fast", &aliases, |_| true), fast);
        let openai = Protocol::OpenAi;
        assert_eq!(found(openai, "groq/x/y"), target("groq", "x/y"));
        assert_eq!(found(openai, "gpt-5"), target("openai", "gpt-5"));
        assert_eq!(found(openai, "meta/llama"), target("openai", "meta/llama"));
        assert_eq!(found(openai, "groq/"), target("openai", "groq/"));
        let claude = found(Protocol::Anthropic, "claude");
        assert_eq!(claude, target("anthropic", "claude"));
    }
}
