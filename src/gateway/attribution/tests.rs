use proptest::prelude::*;
use serde_json::json;

use super::*;

const SESSION: &str = "54c1eb09-bc4c-4d2f-98eb-6d2ab2d5e2fe";
const ACCOUNT: &str = "0a1b2c3d-0000-4000-8000-000000000001";

fn of(fields: &str, body: &str) -> Result<Attribution, ApiError> {
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
    let (head, _) = RequestHead::parse(head.as_bytes()).unwrap().unwrap();
    read(&head, body)
}

/// Returns client, session and end user.
fn names(fields: &str, body: &str) -> [Option<String>; 3] {
    let Attribution { client, session, end_user, project } = of(fields, body).unwrap();
    assert_eq!(project, None);
    [client, session, end_user]
}

#[track_caller]
fn assert_names(fields: &str, body: &serde_json::Value, expected: [Option<&str>; 3]) {
    assert_eq!(names(fields, &body.to_string()), expected.map(|it| it.map(str::to_owned)));
}

#[test]
fn claude_code_states_session_account_and_device() {
    let agent = "user-agent: claude-cli/2.1.86 (external, cli)\r\n";
    let user = |account: &str| {
        let ids =
            json!({"device_id": "d".repeat(64), "account_uuid": account, "session_id": SESSION});
        json!({"metadata": {"user_id": ids.to_string()}})
    };
    let device = "d".repeat(64);
    let client = Some("claude-cli");
    assert_names(agent, &user(ACCOUNT), [client, Some(SESSION), Some(ACCOUNT)]);
    assert_names(agent, &user(""), [client, Some(SESSION), Some(&device)]);
    // Before 2.1.78.
    for (account, expected) in [(ACCOUNT, ACCOUNT), ("", device.as_str())] {
        let old = format!("user_{device}_account_{account}_session_{SESSION}");
        let body = json!({"metadata": {"user_id": old}});
        assert_names(agent, &body, [client, Some(SESSION), Some(expected)]);
    }
    // The header names the same session, and wins if it does not.
    let header = format!("{agent}x-claude-code-session-id: s-1\r\n");
    assert_names(&header, &user(ACCOUNT), [client, Some("s-1"), Some(ACCOUNT)]);
}

#[test]
fn a_session_never_becomes_a_user() {
    for body in [
        json!({"metadata": {"user_id": json!({"session_id": SESSION}).to_string()}}),
        json!({"metadata": {"user_id": format!("user__account__session_{SESSION}")}}),
        json!({"user": format!("user__account__session_{SESSION}")}),
        json!({"user": SESSION, "prompt_cache_key": SESSION}),
        json!({"prompt_cache_key": SESSION}),
        json!({"metadata": {"session_id": SESSION, "user_id": SESSION}}),
    ] {
        assert_names("", &body, [None, Some(SESSION), None]);
    }
    // Nor does one that another name of the session replaces.
    let ids = format!(" {{\"session_id\": \"{SESSION}\"}}");
    for body in [
        json!({"user": SESSION, "prompt_cache_key": SESSION}),
        json!({"metadata": {"session_id": SESSION, "user_id": SESSION}}),
        json!({"metadata": {"user_id": ids}}),
    ] {
        for header in ["x-flowledger-session", "session-id"] {
            assert_names(&format!("{header}: s\r\n"), &body, [None, Some("s"), None]);
        }
    }
}

#[test]
fn codex_states_its_session_in_headers_or_metadata() {
    let agent = "user-agent: codex_cli_rs/0.128.0 (Mac OS 15.5; arm64) iTerm.app\r\n";
    let body = json!({"prompt_cache_key": "thread"});
    let expected = [Some("codex_cli_rs"), Some(SESSION), None];
    let metadata = json!({"session_id": SESSION, "thread_id": "t", "turn_id": "u"});
    for fields in [
        format!("session-id: {SESSION}\r\nthread-id: t\r\n"),
        format!("session_id: {SESSION}\r\nconversation_id: {SESSION}\r\n"),
        format!("conversation_id: {SESSION}\r\n"),
        format!("x-codex-turn-metadata: {metadata}\r\n"),
    ] {
        assert_names(&format!("{agent}{fields}"), &body, expected);
    }
    let body = json!({"prompt_cache_key": "thread", "client_metadata": metadata});
    assert_names(agent, &body, expected);
    // Earlier versions state only the turn.
    let turn = format!("{agent}x-codex-turn-metadata: {{\"turn_id\":\"u\"}}\r\n");
    let body = json!({"prompt_cache_key": "thread"});
    assert_names(&turn, &body, [expected[0], Some("thread"), None]);
}

#[test]
fn other_clients_and_fields_of_openai_are_read() {
    let none = json!({});
    let opencode = "user-agent: opencode/1.1.14 ai-sdk/openai-compatible/1.0.27\r\n";
    let fields = format!("{opencode}x-session-affinity: ses_1\r\nx-session-id: ses_1\r\n");
    assert_names(&fields, &none, [Some("opencode"), Some("ses_1"), None]);
    let fields = format!("{opencode}x-opencode-session: ses_2\r\nx-opencode-request: r\r\n");
    assert_names(&fields, &none, [Some("opencode"), Some("ses_2"), None]);
    let fields = "x-openwebui-user-id: u-1\r\nx-openwebui-user-email: a@b.c\r\n\
                  x-openwebui-user-name: Ann%20B\r\nx-openwebui-chat-id: chat\r\n";
    assert_names(fields, &none, [None, Some("chat"), Some("u-1")]);
    assert_names(
        "x-openwebui-user-name: J%C3%BCrgen%20%zz\r\n",
        &none,
        [None, None, Some("Jürgen %zz")],
    );
    let body = json!({"user": "old", "safety_identifier": "new", "prompt_cache_key": "k"});
    assert_names("", &body, [None, Some("k"), Some("new")]);
    assert_names("", &json!({"user": "u\"é"}), [None, None, Some("u\"é")]);
    let body = json!({"metadata": {"user_id": "u", "session_id": "s"}});
    assert_names("", &body, [None, Some("s"), Some("u")]);
}

#[test]
fn a_client_is_the_product_without_its_version() {
    for (agent, expected) in [
        ("GeminiCLI/0.34.0/gemini-2.5-pro (linux; x64; terminal)", "GeminiCLI"),
        ("OpenAI/Python 1.109.1", "OpenAI/Python"),
        ("AsyncOpenAI/Python 1.109.1", "OpenAI/Python"),
        ("OpenAI/JS 6.1.0", "OpenAI/JS"),
        ("AsyncAnthropic/Python 0.72.0", "Anthropic/Python"),
        ("ai/5.0.1 ai-sdk/provider-utils/3.0.0 runtime/node.js/22", "ai"),
        ("python-requests/2.32.3", "python-requests"),
        ("curl/8.7.1", "curl"),
        ("opencode", "opencode"),
    ] {
        let fields = format!("user-agent: {agent}\r\n");
        assert_eq!(names(&fields, "")[0].as_deref(), Some(expected), "{agent}");
    }
    let sdk = "user-agent: node\r\nx-stainless-lang: js\r\n";
    assert_eq!(names(sdk, "")[0].as_deref(), Some("stainless/js"));
    let long = format!("user-agent: {}/1\r\n", "x".repeat(65));
    for fields in ["", "user-agent: \r\n", "user-agent: <script>/1\r\n", &long] {
        assert_eq!(names(fields, "")[0], None, "{fields}");
    }
}

#[test]
fn explicit_names_win_and_must_be_valid() {
    let body = json!({"user": "derived", "prompt_cache_key": "derived"}).to_string();
    let fields = "session-id: derived\r\nx-flowledger-session: s\r\nx-flowledger-user: Ann B\r\n\
                  x-flowledger-project: website\r\n";
    let origin = of(fields, &body).unwrap();
    let [session, end_user, project] = [origin.session, origin.end_user, origin.project];
    assert_eq!([session, end_user, project], ["s", "Ann B", "website"].map(|it| Some(it.into())));
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for (name, code) in
        [("session", "bad_session"), ("user", "bad_user"), ("project", "bad_project")]
    {
        let error = of(&format!("x-flowledger-{name}: {long}\r\n"), "").unwrap_err();
        assert_eq!((error.status, error.code), (400, code));
    }
    // The empty value is none, so that a template without a value works.
    assert_names("x-flowledger-session:\r\nsession-id: d\r\n", &json!({}), [None, Some("d"), None]);
}

#[test]
fn invalid_derived_names_are_ignored() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for user in [
        json!(long),
        json!("a\nb"),
        json!(""),
        json!(" "),
        json!(7),
        json!(null),
        json!({}),
        json!("a\u{202e}b"),
        json!("a\u{200f}b"),
        json!("a\u{61c}b"),
        json!("a\u{200b}"),
    ] {
        let body = json!({"user": user, "prompt_cache_key": user, "metadata": {"user_id": user}});
        assert_names("", &body, [None, None, None]);
    }
    for body in ["", "[]", "{\"user\":", "{\"metadata\":[1]}", "{\"metadata\":\"x\"}"] {
        assert_eq!(names("session-id: s\r\n", body), [None, Some("s".into()), None], "{body}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bodies_never_panic(body in ".{0,200}", inner in ".{0,100}") {
        let _ = of("", &body);
        let _ = of("", &format!("{{\"metadata\":{inner},\"user\":\"{inner}\"}}"));
        let _ = ClaudeUser::parse(&inner);
    }

    #[test]
    fn derived_names_are_bounded_and_printable(
        user in ".{0,300}", session in ".{0,300}", agent in "[ -~]{0,99}",
    ) {
        let body = json!({"user": user, "prompt_cache_key": session, "metadata": {"user_id": session}});
        for name in names(&format!("user-agent: {agent}\r\n"), &body.to_string()).into_iter().flatten() {
            prop_assert!((1..=NAME_BYTES_MAX).contains(&name.len()));
            prop_assert!(!name.chars().any(char::is_control));
        }
    }
}
