//! The official Python SDKs of OpenAI and Anthropic as clients, with `aimock` behind flowledger.
//! tests/interop.py holds the checks; `tests/setup.sh` installs the SDKs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flowledger::gateway::Target;
use flowledger::providers::Kind;

use crate::aimock::Aimock;
use crate::binary::Running;
use crate::harness::{TestServer, add_provider};

/// Python takes seconds to import the SDKs on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(120);

#[test]
fn official_sdks_work_through_the_gateway() {
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/interop/bin/python");
    assert!(python.exists(), "the SDKs are not installed: run tests/setup.sh");
    let mut script = Command::new(python);
    script
        .arg("tests/interop.py")
        .arg(format!("http://{}", server.address()))
        .current_dir(root)
        // Hides the proxies and keys of the machine.
        .env_clear();
    let ended = Running::start(&mut script).end_within(TIME_MAX);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.stdout.matches(": ok").count(), 15, "{}", ended.stdout);
}
