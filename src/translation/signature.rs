//! Signatures that a provider adds to the output of its model, and wants back with it.

use super::Api;

/// Marks a signature of another API within a field of this one.
pub(super) const MARK: &str = "flowledger:";

/// A signature of thinking or of a tool call. Clients send it back in a field of their own API, so
/// that it survives a translated conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The API of the provider that wrote it.
    pub api: Api,
    pub value: String,
    /// The id of the item, if the API has one (Responses).
    pub id: Option<String>,
    /// True if the provider hides the thoughts and the value contains them (`redacted_thinking`).
    pub is_redacted: bool,
}

impl Signature {
    pub fn new(api: Api, value: impl Into<String>) -> Self {
        Self { api, value: value.into(), id: None, is_redacted: false }
    }

    /// Returns the text for a field of `api`: the value itself, or with a mark if it is another API's.
    pub fn text_for(&self, api: Api) -> String {
        if self.api == api {
            return self.value.clone();
        }
        let redacted = if self.is_redacted { "!" } else { "" };
        let id = self.id.as_deref().unwrap_or_default();
        format!("{MARK}{}{redacted}:{id}:{}", self.api.name(), self.value)
    }

    /// Reads a field of `api`.
    pub fn read(api: Api, text: &str) -> Self {
        let own = || Self::new(api, text);
        let Some(rest) = text.strip_prefix(MARK) else {
            return own();
        };
        let mut parts = rest.splitn(3, ':');
        let (Some(name), Some(id), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
            return own();
        };
        let (name, is_redacted) = match name.strip_suffix('!') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let all = [Api::Chat, Api::Responses, Api::Messages, Api::Gemini];
        let Some(origin) = all.into_iter().find(|api| api.name() == name) else {
            return own();
        };
        let id = Some(id.to_owned()).filter(|id| !id.is_empty());
        Self { api: origin, value: value.to_owned(), id, is_redacted }
    }

    /// Returns the id of a tool call that carries the signature, for APIs without another place.
    pub fn attach_to(&self, call_id: &str) -> String {
        format!("{call_id}.{MARK}{}:{}", self.api.name(), self.value)
    }

    /// Separates the id of a tool call from the signature that it carries.
    pub fn detach_from(call_id: &str) -> (&str, Option<Self>) {
        let found = call_id.split_once(&format!(".{MARK}")).and_then(|(id, rest)| {
            let (name, value) = rest.split_once(':')?;
            let all = [Api::Chat, Api::Responses, Api::Messages, Api::Gemini];
            let api = all.into_iter().find(|api| api.name() == name)?;
            Some((id, Some(Self::new(api, value))))
        });
        found.unwrap_or((call_id, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_survive_another_api() {
        let redacted = Signature { is_redacted: true, ..Signature::new(Api::Messages, "a:b") };
        let with_id = Signature { id: Some("rs_1".into()), ..Signature::new(Api::Responses, "x=") };
        for signature in [redacted, with_id, Signature::new(Api::Gemini, "")] {
            for api in [Api::Chat, Api::Responses, Api::Messages, Api::Gemini] {
                let text = signature.text_for(api);
                if api != signature.api {
                    assert_eq!(Signature::read(api, &text), signature, "{text}");
                }
            }
        }
        for text in ["", "flowledger:", "flowledger:x:y:z", "flowledger:chat", "EqQB"] {
            assert_eq!(Signature::read(Api::Messages, text), Signature::new(Api::Messages, text));
        }
    }

    #[test]
    fn an_id_carries_a_signature() {
        let signature = Signature::new(Api::Gemini, "CpcBA/+=");
        let id = signature.attach_to("call_1");
        assert_eq!(Signature::detach_from(&id), ("call_1", Some(signature)));
        assert_eq!(Signature::detach_from("call.1"), ("call.1", None));
    }
}
