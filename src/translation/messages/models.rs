//! The rules that depend on a model's name.

use super::super::conversation::ThinkingMode;

/// A model of Anthropic. Other makers' models behind this API have no rules here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Model {
    family: Family,
    /// `(4, 5)` of `claude-sonnet-4-5-20250929`.
    version: (u32, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Opus,
    Sonnet,
    Haiku,
    /// Fable, Mythos, and later ones, which always think.
    Other,
}

/// How a request switches thinking off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Off {
    /// It is off unless the request switches it on.
    Omitted,
    Disabled,
    BetweenTools,
    Impossible,
}

impl Model {
    /// Reads a name such as `claude-3-7-sonnet-latest` or `us.anthropic.claude-opus-4-6-v1:0`.
    pub(super) fn read(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let (_, name) = name.split_once("claude")?;
        let families =
            [("opus", Family::Opus), ("sonnet", Family::Sonnet), ("haiku", Family::Haiku)];
        let family = families.into_iter().find(|(word, _)| name.contains(word));
        let family = family.map_or(Family::Other, |(_, family)| family);
        // A longer number is a date.
        let number = |word: &str| word.parse::<u32>().ok().filter(|_| word.len() <= 2);
        let mut words = name.split(['-', '.', '@', ':']).map(number).skip_while(Option::is_none);
        let version = match (words.next().flatten(), words.next().flatten()) {
            (Some(major), minor) => (major, minor.unwrap_or(0)),
            // Mythos Preview has no number, and the rules of 4.6.
            _ if name.contains("preview") => (4, 6),
            _ => (u32::MAX, 0),
        };
        Some(Self { family, version })
    }

    /// "Claude 4.7 and later models do not support" a budget, and 4.5 and earlier ones nothing else:
    /// <https://platform.claude.com/docs/build-with-claude/thinking-troubleshooting>.
    pub(super) fn thinking(self) -> Option<ThinkingMode> {
        match self.version {
            version if version >= (4, 6) => Some(ThinkingMode::Adaptive),
            version if version >= (3, 7) => Some(ThinkingMode::Enabled),
            _ => None,
        }
    }

    /// Thinking is on by default since Claude 5; Fable, Mythos and Opus 5.5 cannot switch it off:
    /// <https://docs.apiyi.com/en/live/2026-11/claude-thinking-guide-refresh>,
    /// <https://platform.claude.com/docs/en/models/fable-5/migration-guide>.
    pub(super) fn off(self) -> Off {
        match (self.family, self.version) {
            (Family::Other, _) => Off::Impossible,
            (_, version) if version < (5, 0) => Off::Omitted,
            (_, (5, 0)) | (Family::Haiku, (5, 5)) => Off::Disabled,
            (Family::Sonnet, (5, 5)) => Off::BetweenTools,
            _ => Off::Impossible,
        }
    }

    /// Returns the nearest accepted effort:
    /// <https://platform.claude.com/docs/en/build-with-claude/effort>.
    pub(super) fn effort(self, effort: &str) -> &str {
        match effort {
            "minimal" => "low",
            "xhigh" if self.version < (4, 7) => "high",
            other => other,
        }
    }

    /// Since 4.7 these fields are refused, whether the model thinks or not:
    /// <https://docs.memberjunction.org/v6.2/api/functions/_memberjunction_ai-anthropic.RejectsSamplingParams.html>.
    pub(super) fn rejects_sampling(self) -> bool {
        self.version >= (4, 7) || self.family == Family::Other
    }

    /// "Temperature and top_p cannot both be specified for this model":
    /// <https://git.drupalcode.org/project/ai/-/work_items/3580249>.
    pub(super) fn rejects_both_sampling(self) -> bool {
        self.version >= (4, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_have_a_version() {
        for (name, family, version) in [
            ("claude-3-5-sonnet-20241022", Family::Sonnet, (3, 5)),
            ("claude-3-haiku-20240307", Family::Haiku, (3, 0)),
            ("claude-opus-4-20250514", Family::Opus, (4, 0)),
            ("anthropic/claude-opus-4.5", Family::Opus, (4, 5)),
            ("us.anthropic.claude-opus-4-6-v1:0", Family::Opus, (4, 6)),
            ("claude-sonnet-4@20250514", Family::Sonnet, (4, 0)),
            ("claude-haiku-4-5-20251001", Family::Haiku, (4, 5)),
            ("claude-opus-5-5", Family::Opus, (5, 5)),
            ("claude-mythos-preview", Family::Other, (4, 6)),
            ("claude-fable-5", Family::Other, (5, 0)),
        ] {
            assert_eq!(Model::read(name), Some(Model { family, version }), "{name}");
        }
        assert_eq!(Model::read("kimi-k2"), None);
    }
}
