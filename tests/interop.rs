//! Real clients of the gateway: SDKs, coding agents and frameworks. Python and JavaScript files in
//! `tests/interop` hold the checks. `tests/setup.sh` installs the SDKs, and `tests/setup.sh clients`
//! the others, whose tests are ignored by default.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flowledger::gateway::Target;
use flowledger::providers::Kind;
use flowledger::secret::Secret;

use crate::aimock::Aimock;
use crate::binary::Running;
use crate::harness::{TestServer, add_provider};

/// Clients take seconds to start, and longer on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(330);

const TOKEN: &str = "interop-token";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns a file that tests/setup.sh installs.
fn installed(path: &str) -> PathBuf {
    let path = root().join("target").join(path);
    assert!(path.exists(), "{} is missing: run tests/setup.sh", path.display());
    path
}

/// Runs the client of this name in `tests/interop/run.py`, and compares the ledger with the counts
/// of the upstream.
fn works(client: &str) {
    let python = installed("interop/bin/python");
    let run = |script: &str| {
        let mut command = Command::new(&python);
        // Hides the proxies and keys of the machine.
        command.arg(root().join("tests/interop").join(script)).env_clear();
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    };
    let mut upstream = Running::start(&mut run("upstream.py"));
    let address = format!("http://{}", upstream.until_stdout("http://"));
    let server = TestServer::start_with(|config| {
        config.token = Some(Secret::new(TOKEN));
        add_provider(config, "openai", Kind::OpenAi, &format!("{address}/v1"));
        add_provider(config, "anthropic", Kind::Anthropic, &address);
        add_provider(config, "gemini", Kind::Gemini, &address);
        add_provider(config, "ollama", Kind::Ollama, &address);
    });
    let authorization = [("authorization", &*format!("Bearer {TOKEN}"))];
    let created =
        server.request("POST", "/api/keys", &authorization, br#"{"name": "interop"}"#).json();
    let base = format!("http://{}", server.address());
    let key = created["key"].as_str().unwrap();
    let arguments = [client, &address, &base, key, TOKEN];
    let ended = Running::start(run("run.py").args(arguments)).end_within(TIME_MAX);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

macro_rules! clients {
    ($($(#[$attribute:meta])? $client:ident)*) => {
        $(#[test] $(#[$attribute])? fn $client() { works(stringify!($client)); })*
    };
}

clients! {
    openai_python openai_javascript openai_agents
    anthropic_python anthropic_typescript
    google_python google_javascript
    ollama_python ollama_javascript
    vercel
    #[ignore = "needs tests/setup.sh clients"] claude_code
    #[ignore = "needs tests/setup.sh clients"] claude_code_discovery
    #[ignore = "needs tests/setup.sh clients"] claude_code_login
    #[ignore = "needs tests/setup.sh clients"] codex
    #[ignore = "needs tests/setup.sh clients"] codex_websocket
    #[ignore = "needs tests/setup.sh clients"] gemini_cli
    #[ignore = "needs tests/setup.sh clients"] opencode_chat
    #[ignore = "needs tests/setup.sh clients"] opencode_responses
    #[ignore = "needs tests/setup.sh clients"] opencode_anthropic
    #[ignore = "needs tests/setup.sh clients"] opencode_google
    #[ignore = "needs tests/setup.sh clients"] copilot_chat
    #[ignore = "needs tests/setup.sh clients"] copilot_responses
    #[ignore = "needs tests/setup.sh clients"] copilot_anthropic
    #[ignore = "needs tests/setup.sh clients"] copilot_azure
    #[ignore = "needs tests/setup.sh clients"] copilot_deployment
    #[ignore = "needs tests/setup.sh clients"] qwen_code
    #[ignore = "needs tests/setup.sh clients"] cline
    #[ignore = "needs tests/setup.sh clients"] frameworks
    #[ignore = "needs tests/setup.sh clients"] pydantic_ai
}

#[test]
fn sdks_report_failures_of_providers() {
    let aimock = Aimock::start();
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, &aimock.openai_url());
        let anthropic = aimock.anthropic_url();
        add_provider(config, "anthropic", Kind::Anthropic, &anthropic);
        add_provider(config, "gone", Kind::OpenAi, "http://127.0.0.1:9/v1");
        let fast = [("gone", "x"), ("openai", "gpt-4o-mini")]
            .map(|(provider, model)| Target { provider: provider.into(), model: model.into() });
        config.gateway.aliases.insert("fast".into(), fast.into());
    });
    let mut script = Command::new(installed("interop/bin/python"));
    script
        .arg("tests/interop/failures.py")
        .arg(format!("http://{}", server.address()))
        .current_dir(root())
        // Hides the proxies and keys of the machine.
        .env_clear();
    let ended = Running::start(&mut script).end_within(TIME_MAX);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.stdout.matches(": ok").count(), 15, "{}", ended.stdout);
}
