//! The official Python SDKs of OpenAI and Anthropic as clients, with `aimock` behind flowledger.
//! tests/interop.py holds the checks; `tests/setup.sh` installs the SDKs.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flowledger::gateway::Target;
use flowledger::providers::Kind;

use crate::aimock::Aimock;
use crate::harness::{TestServer, add_provider};

/// Python takes seconds to import the SDKs on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

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
    let mut child = Command::new(root.join("target/interop/bin/python"))
        .arg("tests/interop.py")
        .arg(format!("http://{}", server.address()))
        .current_dir(root)
        // Hides the proxies and keys of the machine.
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the SDKs are not installed: run tests/setup.sh");
    let deadline = Instant::now() + DEADLINE;
    // Its output fits into its pipes.
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let stdout_text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout_text}{errors}");
    assert_eq!(stdout_text.matches(": ok").count(), 15, "{stdout_text}");
}
