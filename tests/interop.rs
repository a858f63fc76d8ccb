//! Real clients of the gateway: SDKs, coding agents and frameworks. Python and JavaScript files in
//! `tests/interop` hold the checks. `tests/setup.sh` installs the SDKs, and `tests/setup.sh clients`
//! the others, whose tests are ignored by default.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flowledger::gateway::Target;
use flowledger::providers::Kind;
use flowledger::secret::Secret;
use serde_json::json;

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

fn python(script: &str) -> Command {
    let mut command = Command::new(installed("interop/bin/python"));
    // Hides the proxies and keys of the machine.
    command.arg(root().join("tests/interop").join(script)).env_clear();
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A fake upstream, and a server that uses it: as the provider of each protocol, and as one provider
/// for each API of [`ONLY`] that speaks no other. The alias `from-API` begins with one of these and
/// continues with the next.
struct Servers {
    address: String,
    server: TestServer,
    _upstream: Running,
}

/// The API, the kind of the provider, the end of its base URL, and a model.
const ONLY: [(&str, Kind, &str, &str); 4] = [
    ("chat", Kind::OpenAi, "/v1", "gpt-4o-mini"),
    ("responses", Kind::OpenAi, "/v1", "gpt-5"),
    ("messages", Kind::Anthropic, "", "claude-sonnet-4-5"),
    ("gemini", Kind::Gemini, "", "gemini-2.5-flash"),
];

impl Servers {
    fn start(alias: Option<(&str, Target)>) -> Self {
        let mut upstream = Running::start(&mut python("upstream.py"));
        let address = format!("http://{}", upstream.until_stdout("http://"));
        let server = TestServer::start_with(|config| {
            config.token = Some(Secret::new(TOKEN));
            add_provider(config, "openai", Kind::OpenAi, &format!("{address}/v1"));
            add_provider(config, "anthropic", Kind::Anthropic, &address);
            add_provider(config, "gemini", Kind::Gemini, &address);
            add_provider(config, "ollama", Kind::Ollama, &address);
            for (api, kind, path, _) in ONLY {
                let name = format!("only-{api}");
                add_provider(config, &name, kind, &format!("{address}/only/{api}{path}"));
                let apis = serde_json::from_value(json!([api])).unwrap();
                config.providers.get_mut(&name).unwrap().apis = apis;
            }
            for (first, (api, ..)) in ONLY.iter().enumerate() {
                let target = |at: usize| {
                    let (api, .., model) = ONLY[at % ONLY.len()];
                    Target { provider: format!("only-{api}"), model: model.into() }
                };
                let name = format!("from-{api}");
                config.gateway.aliases.insert(name, vec![target(first), target(first + 1)]);
            }
            config.gateway.aliases.extend(alias.map(|(name, target)| (name.into(), vec![target])));
        });
        Self { address, server, _upstream: upstream }
    }

    /// Runs a script with the arguments that all scripts take, and returns its output.
    fn run(&self, script: &str, client: Option<&str>) -> String {
        let authorization = [("authorization", &*format!("Bearer {TOKEN}"))];
        let body = br#"{"name": "interop"}"#;
        let created = self.server.request("POST", "/api/keys", &authorization, body).json();
        let base = format!("http://{}", self.server.address());
        let key = created["key"].as_str().unwrap();
        let mut command = python(script);
        command.args(client).args([&*self.address, &base, key, TOKEN]);
        let ended = Running::start(&mut command).end_within(TIME_MAX);
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        ended.stdout
    }
}

/// Runs the client of this name in `tests/interop/run.py`, and compares the ledger with the counts
/// of the upstream.
fn works(client: &str) {
    Servers::start(None).run("run.py", Some(client));
}

/// Runs a client whose model is an alias of a model at a provider of another API.
fn works_elsewhere(client: &str, model: &str, provider: &str, target: &str) {
    let target = Target { provider: provider.into(), model: target.into() };
    Servers::start(Some((model, target))).run("run.py", Some(client));
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

macro_rules! clients_elsewhere {
    ($($client:ident: $model:literal => $provider:literal $target:literal)*) => {
        $(#[test] #[ignore = "needs tests/setup.sh clients"] fn $client() {
            works_elsewhere(stringify!($client), $model, $provider, $target);
        })*
    };
}

clients_elsewhere! {
    claude_code_on_chat: "claude-haiku-4-5" => "only-chat" "gpt-4o-mini"
    claude_code_on_responses: "claude-haiku-4-5" => "only-responses" "gpt-5"
    claude_code_on_gemini: "claude-haiku-4-5" => "only-gemini" "gemini-2.5-flash"
    codex_on_messages: "gpt-5" => "only-messages" "claude-haiku-4-5"
    codex_on_chat: "gpt-5" => "only-chat" "gpt-4o-mini"
    codex_on_gemini: "gpt-5" => "only-gemini" "gemini-2.5-flash"
    gemini_cli_on_chat: "gemini-2.5-flash" => "only-chat" "gpt-4o-mini"
    gemini_cli_on_messages: "gemini-2.5-flash" => "only-messages" "claude-haiku-4-5"
}

#[test]
fn the_upstream_rejects_what_makers_reject() {
    let ended = Running::start(&mut python("makers_check.py")).end_within(TIME_MAX);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

/// Every SDK with a provider of every API. The script lists the differences.
#[test]
fn sdks_agree_with_providers_of_all_apis() {
    let output = Servers::start(None).run("matrix.py", None);
    assert!(output.contains(" 0 differences"), "{output}");
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
    assert_eq!(ended.stdout.matches(": ok").count(), 16, "{}", ended.stdout);
}
