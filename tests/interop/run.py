"""Runs one client and compares the ledger with the token counts that the upstream sent.

Arguments: the client (a name in CLIENTS), the upstream's address, flowledger's address, a key for the client,
and the token of the server. Without the last three, the client calls the upstream directly, which shows
whether a failure is the client's own. tests/setup.sh installs the clients.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests/interop"
PYTHON = ROOT / "target/interop"
PYDANTIC_AI = ROOT / "target/interop-pydantic-ai"
FRAMEWORKS = ROOT / "target/interop-frameworks"
NODE = ROOT / "target/aimock/node"
JAVASCRIPT = ROOT / "target/interop-js"
AGENTS = ROOT / "target/interop-agents/node_modules"

ANSWER = "Paris is the capital of France."
QUESTION = "What is the capital of France? [tool]"
LOGIN = "sk-ant-oat01-interop"
CLIENT_MAX_S = 300
SETTLE_MAX_S = 20

# The counts and the model of a row.
COLUMNS = ["input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"]


class Client:
    """A command. Its texts contain `{base}`, the address to test, and `{key}`. `files` are below its home."""

    def __init__(self, command, env=None, files=None, agent=False):
        self.command, self.env, self.files, self.agent = command, env or {}, files or {}, agent


def python(script, directory=PYTHON):
    return Client([directory / "bin/python", SCRIPTS / script, "{base}", "{key}"])


def javascript(script):
    # Packages are resolved from the place of the script, so it is started through a link beside them.
    link = JAVASCRIPT / "scripts" / script
    return Client([NODE, "--preserve-symlinks", "--preserve-symlinks-main", link, "{base}", "{key}"])


def agent(command, env=None, files=None):
    files = {name: text if isinstance(text, str) else json.dumps(text) for name, text in (files or {}).items()}
    return Client(command, env, files, agent=True)


def claude_code(**env):
    package = AGENTS / "@anthropic-ai/claude-code/cli-wrapper.cjs"
    command = [NODE, package, "-p", QUESTION, "--model", "claude-haiku-4-5", "--allowedTools", "Bash"]
    return agent(command, {
        "ANTHROPIC_BASE_URL": "{base}", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", **env})


def codex(extra=""):
    return agent(
        [AGENTS / ".bin/codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox",
         QUESTION],
        {"FLOWLEDGER_KEY": "{key}"},
        {".codex/config.toml": f"""
model = "gpt-5"
model_provider = "flowledger"
[analytics]
enabled = false
[model_providers.flowledger]
name = "flowledger"
base_url = "{{base}}/v1"
env_key = "FLOWLEDGER_KEY"
wire_api = "responses"
{extra}"""})


def opencode(package, path, model):
    provider = {"npm": package, "name": "flowledger", "models": {model: {}},
                "options": {"baseURL": "{base}" + path, "apiKey": "{key}"}}
    name = f"flowledger/{model}"
    # The package's own command needs its install script, which does not run.
    binary = next(iter(sorted(AGENTS.glob("opencode-*/bin/opencode"))), "opencode")
    return agent([binary, "run", QUESTION], {"OPENCODE_DISABLE_MODELS_FETCH": "1"}, {
        "work/opencode.json": {"model": name, "small_model": name, "autoupdate": False, "share": "disabled",
                               "provider": {"flowledger": provider}}})


def copilot(model, path="/v1", **env):
    return agent([AGENTS / ".bin/copilot", "-p", QUESTION, "--allow-all-tools"], {
        "COPILOT_PROVIDER_BASE_URL": "{base}" + path, "COPILOT_PROVIDER_API_KEY": "{key}",
        "COPILOT_MODEL": model, **env})


CLIENTS = {
    "openai_python": python("openai_sdk.py"),
    "openai_javascript": javascript("openai_sdk.mjs"),
    "anthropic_python": python("anthropic_sdk.py"),
    "anthropic_typescript": javascript("anthropic_sdk.mjs"),
    "google_python": python("google_sdk.py"),
    "google_javascript": javascript("google_sdk.mjs"),
    "vercel": javascript("vercel_sdk.mjs"),
    "openai_agents": python("agents_sdk.py"),
    "ollama_python": python("ollama_sdk.py"),
    "ollama_javascript": javascript("ollama_sdk.mjs"),
    "pydantic_ai": python("pydantic_agents.py", PYDANTIC_AI),
    "frameworks": python("frameworks.py", FRAMEWORKS),
    "claude_code": claude_code(ANTHROPIC_API_KEY="{key}"),
    "claude_code_discovery": claude_code(
        ANTHROPIC_AUTH_TOKEN="{key}", CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY="1"),
    # The login of a subscription beside a key of flowledger.
    "claude_code_login": claude_code(
        CLAUDE_CODE_OAUTH_TOKEN=LOGIN, ANTHROPIC_CUSTOM_HEADERS="x-flowledger-key: {key}"),
    "codex": codex(),
    "codex_websocket": codex("supports_websockets = true"),
    "gemini_cli": agent(
        [NODE, AGENTS / ".bin/gemini", "-m", "gemini-2.5-flash", "--yolo", "-p", QUESTION],
        {"GOOGLE_GEMINI_BASE_URL": "{base}", "GEMINI_API_KEY": "{key}"},
        {".gemini/settings.json": {
            "security": {"auth": {"selectedType": "gemini-api-key"}, "folderTrust": {"enabled": False}},
            "privacy": {"usageStatisticsEnabled": False}, "general": {"enableAutoUpdate": False}}}),
    "opencode_chat": opencode("@ai-sdk/openai-compatible", "/v1", "gpt-4o-mini"),
    "opencode_responses": opencode("@ai-sdk/openai", "/v1", "gpt-5"),
    "opencode_anthropic": opencode("@ai-sdk/anthropic", "/v1", "claude-haiku-4-5"),
    "opencode_google": opencode("@ai-sdk/google", "/v1beta", "gemini-2.5-flash"),
    "copilot_chat": copilot("gpt-4o-mini"),
    "copilot_responses": copilot("gpt-5", COPILOT_PROVIDER_WIRE_API="responses"),
    "copilot_azure": copilot("gpt-4o-mini", path="", COPILOT_PROVIDER_TYPE="azure"),
    "copilot_deployment": copilot("gpt-4o-mini", path="", COPILOT_PROVIDER_TYPE="azure",
                                  COPILOT_PROVIDER_AZURE_API_VERSION="2024-10-21"),
    "copilot_anthropic": copilot("claude-haiku-4-5", path="", COPILOT_PROVIDER_TYPE="anthropic"),
    "qwen_code": agent(
        [NODE, AGENTS / ".bin/qwen", "--auth-type", "openai", "--yolo", "-p", QUESTION],
        {"OPENAI_BASE_URL": "{base}/v1", "OPENAI_API_KEY": "{key}", "OPENAI_MODEL": "gpt-4o-mini"}),
    "cline": agent(
        ["sh", "-c", f"{AGENTS}/.bin/cline auth openai -k {{key}} -m gpt-4o-mini -b {{base}}/v1 &&"
         f" {AGENTS}/.bin/cline -P openai-compatible -m gpt-4o-mini '{QUESTION}'"]),
}

# Clients whose model is, at flowledger, an alias of a model at a provider of another API (tests/interop.rs).
CLIENTS |= {
    "claude_code_on_chat": CLIENTS["claude_code"],
    "claude_code_on_responses": CLIENTS["claude_code"],
    "claude_code_on_gemini": CLIENTS["claude_code"],
    "codex_on_messages": CLIENTS["codex"],
    "codex_on_chat": CLIENTS["codex"],
    "codex_on_gemini": CLIENTS["codex"],
    "gemini_cli_on_chat": CLIENTS["gemini_cli"],
    "gemini_cli_on_messages": CLIENTS["gemini_cli"],
}

# The column `client` of the rows, and whether all of them have the same session.
ORIGINS = {
    "openai_python": ("OpenAI/Python", False),
    "openai_javascript": ("OpenAI/JS", False),
    "openai_agents": ("Agents/Python", False),
    "anthropic_python": ("Anthropic/Python", False),
    "anthropic_typescript": ("Anthropic/JS", False),
    "google_python": ("google-genai-sdk", False),
    "google_javascript": ("google-genai-sdk", False),
    "ollama_python": ("ollama-python", False),
    "ollama_javascript": ("ollama-js", False),
    "claude_code": ("claude-cli", True),
    "claude_code_discovery": ("claude-cli", True),
    "claude_code_login": ("claude-cli", True),
    "codex": ("codex_exec", True),
    "codex_websocket": ("codex_exec", True),
    "gemini_cli": ("GeminiCLI-tui", False),
    "opencode_chat": ("opencode", True),
    "opencode_responses": ("opencode", True),
    "opencode_anthropic": ("opencode", True),
    "opencode_google": ("opencode", True),
    "qwen_code": ("QwenCode", False),
}


def get(url, token=""):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=SETTLE_MAX_S) as response:
        return json.load(response)


def execute(client, base, key):
    """Runs the command in a new home directory and without the environment of the caller."""
    fill = lambda text: str(text).replace("{base}", base).replace("{key}", key)
    with tempfile.TemporaryDirectory() as home:
        work = pathlib.Path(home) / "work"
        work.mkdir()
        for name, text in client.files.items():
            path = pathlib.Path(home) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fill(text))
        # Coding agents start with `#!/usr/bin/env node`.
        path = os.pathsep.join([str(NODE.parent), "/usr/local/bin", "/usr/bin", "/bin"])
        env = {"HOME": home, "PATH": path, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1",
               **{name: fill(value) for name, value in client.env.items()}}
        ended = subprocess.run(
            [fill(word) for word in client.command], cwd=work, env=env, timeout=CLIENT_MAX_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(ended.stdout, flush=True)
    assert ended.returncode == 0, f"exit code {ended.returncode}"
    return ended.stdout


def model(entry):
    """The model of a request: in Gemini's path, or in the body."""
    _, _, named = entry["path"].partition("/models/")
    return named.split(":")[0] or entry["body"]["model"]


def rows(base, token):
    """The settled rows, oldest first."""
    until = time.monotonic() + SETTLE_MAX_S
    while True:
        items = get(f"{base}/api/ledger?limit=1000", token)["items"]
        if all(row["status"] != "PENDING" for row in items):
            return items[::-1]
        assert time.monotonic() < until, f"a row is still pending: {items}"
        time.sleep(0.02)


def compare(settled, sent):
    """Fails unless each response with token counts has exactly one row with these counts."""
    for row in settled:
        assert row["status"] == "SUCCESS" and row["key_name"], row
    booked = [row for row in settled if row["usage_source"] != "none"]
    for row in booked:
        assert row["usage_source"] == "provider", row
    expected = sorted((model(entry), *(entry["usage"][c] for c in COLUMNS)) for entry in sent)
    actual = sorted((row["model_used"], *(row[c] for c in COLUMNS)) for row in booked)
    assert actual == expected, f"the ledger has {actual}, the upstream sent {expected}"
    # The price table does not know the providers of one API.
    unpriced = {row["model_used"] for row in booked if row["total_cost_usd"] is None
                and row["provider"] != "ollama" and not row["provider"].startswith("only-")}
    assert not unpriced, f"no cost for {unpriced}"


def main(name, upstream, base="", key="anything", token=""):
    client = CLIENTS[name]
    output = execute(client, base or upstream, key)
    journal = get(f"{upstream}/journal")["items"]
    sent = [entry for entry in journal if entry["usage"] and entry["status"] == 200]
    rejected = [(entry["path"], entry["rejected"]) for entry in journal if "rejected" in entry]
    assert not rejected, f"the provider rejected {rejected}"
    if client.agent:
        assert ANSWER in output, "the answer is missing"
        assert any("interop-tool-result" in json.dumps(entry["body"].get(field)) for entry in sent
                   for field in ("messages", "input", "contents")), "the tool was not called"
    assert sent, "no call arrived"
    if base:
        settled = rows(base, token)
        compare(settled, sent)
        origin = name.partition("_on_")[0]
        if origin in ORIGINS:
            client_name, has_session = ORIGINS[origin]
            assert {row["client"] for row in settled} == {client_name}, settled
            sessions = {row.get("session") for row in settled}
            assert not has_session or len(sessions) == 1 and None not in sessions, sessions
        if name == "claude_code_login":
            assert {row["billing"] for row in settled} == {"subscription"}, settled
            logins = {entry["headers"].get("authorization") for entry in sent}
            assert logins == {f"Bearer {LOGIN}"}, logins
    print(f"{name}: {len(sent)} calls, ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
