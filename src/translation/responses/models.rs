//! The rules that depend on a model's name.

/// A model of OpenAI. Other makers' models behind this API have no rules here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// GPT-4 and earlier, and the chat variant of GPT-5.
    Plain,
    /// o1, o3, o4.
    OSeries,
    Gpt5 {
        /// 1 of `gpt-5.1`; later versions than 5 have the highest.
        minor: u32,
        variant: Variant,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    General,
    Codex,
    CodexMax,
    Pro,
}

impl Model {
    /// Reads a name such as `gpt-5.1-codex`, `openai/o3-mini` or `ft:gpt-4.1:org`.
    pub(super) fn read(name: &str) -> Option<Self> {
        let name = name.rsplit('/').next().unwrap_or(name);
        let name = name.strip_prefix("ft:").unwrap_or(name);
        if ["gpt-4", "gpt-3", "chatgpt-4", "gpt-5-chat"].iter().any(|old| name.starts_with(old)) {
            return Some(Self::Plain);
        }
        if ["o1", "o3", "o4"].iter().any(|old| name.starts_with(old)) {
            return Some(Self::OSeries);
        }
        let version = name.strip_prefix("gpt-")?.split('-').next()?;
        let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
        let minor = match major.parse::<u32>() {
            Ok(5) => minor.parse().ok()?,
            Ok(6..) => u32::MAX,
            _ => return None,
        };
        let variant = match name {
            name if name.contains("codex-max") => Variant::CodexMax,
            name if name.contains("codex") => Variant::Codex,
            name if name.contains("-pro") => Variant::Pro,
            _ => Variant::General,
        };
        Some(Self::Gpt5 { minor, variant })
    }

    /// Models without reasoning reject the fields for it:
    /// <https://github.com/BerriAI/litellm/pull/38842>,
    /// <https://github.com/OpenHands/software-agent-sdk/pull/1208>.
    pub(super) fn can_reason(self) -> bool {
        self != Self::Plain
    }

    /// "All models before gpt-5.1 default to medium reasoning effort, and do not support none":
    /// <https://learn.microsoft.com/en-us/javascript/api/@azure/ai-projects/reasoningeffort>.
    pub(super) fn always_reasons(self) -> bool {
        matches!(self, Self::OSeries | Self::Gpt5 { minor: 0, .. })
    }

    /// Returns the nearest effort that the model accepts. The rules are on the same page.
    pub(super) fn effort(self, effort: &str) -> &str {
        match (self, effort) {
            (Self::Gpt5 { minor: 0, variant: Variant::Pro }, _) => "high",
            (Self::Gpt5 { minor: 0, variant: Variant::General }, "none") => "minimal",
            (Self::Gpt5 { minor: 0, variant: Variant::General }, "minimal") => "minimal",
            (Self::OSeries | Self::Gpt5 { minor: 0, .. }, "none") => "low",
            (Self::OSeries | Self::Gpt5 { .. }, "minimal") => "low",
            (Self::Gpt5 { minor: 1, variant: Variant::CodexMax }, "max") => "xhigh",
            (Self::Gpt5 { minor: 1, variant: Variant::CodexMax }, effort) => effort,
            (Self::OSeries | Self::Gpt5 { minor: 0 | 1, .. }, "xhigh" | "max") => "high",
            // Not every model accepts `max`.
            (Self::Gpt5 { .. }, "max") => "xhigh",
            (_, effort) => effort,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_are_read() {
        let general = |minor| Some(Model::Gpt5 { minor, variant: Variant::General });
        for (name, model) in [
            ("gpt-4o-mini", Some(Model::Plain)),
            ("ft:gpt-4.1:org::id", Some(Model::Plain)),
            ("gpt-5-chat-latest", Some(Model::Plain)),
            ("openai/o3-mini", Some(Model::OSeries)),
            ("gpt-5", general(0)),
            ("gpt-5-mini-2025-08-07", general(0)),
            ("gpt-5.2", general(2)),
            ("gpt-6", general(u32::MAX)),
            ("gpt-5.1-codex-max", Some(Model::Gpt5 { minor: 1, variant: Variant::CodexMax })),
            ("gpt-oss-20b", None),
            ("qwen3", None),
        ] {
            assert_eq!(Model::read(name), model, "{name}");
        }
    }

    #[test]
    fn efforts_are_those_of_the_model() {
        for (name, effort, accepted) in [
            ("o3", "minimal", "low"),
            ("o3", "max", "high"),
            ("gpt-5", "minimal", "minimal"),
            ("gpt-5", "xhigh", "high"),
            ("gpt-5-codex", "minimal", "low"),
            ("gpt-5-pro", "low", "high"),
            ("gpt-5.1", "minimal", "low"),
            ("gpt-5.1", "none", "none"),
            ("gpt-5.1", "xhigh", "high"),
            ("gpt-5.1-codex-max", "xhigh", "xhigh"),
            ("gpt-5.2", "max", "xhigh"),
            ("gpt-5.2", "later", "later"),
        ] {
            let model = Model::read(name).unwrap();
            assert_eq!(model.effort(effort), accepted, "{name} {effort}");
        }
    }
}
