#!/usr/bin/env bash
# Runs Autobahn's fuzzing client against examples/echo, as an independent check of the WebSocket
# protocol. Needs `wstest` of the PyPI package autobahntestsuite, which needs Python 2.7. WSTEST
# names the command if it is not `wstest`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'tests/conformance.sh: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

read -ra wstest <<<"${WSTEST:-wstest}"
command -v "${wstest[0]}" >/dev/null || fail \
    "${wstest[0]} is missing: it comes with autobahntestsuite (python2.7 -m pip install autobahntestsuite; WSTEST may name it)"
"${wstest[@]}" --help >/dev/null 2>&1 || fail "${wstest[*]} does not run here; it needs Python 2.7"
command -v python3 >/dev/null || fail 'python3 is missing, which reads the report'

cargo build --release --example echo
target=${CARGO_TARGET_DIR:-target}
# The same port as in tests/fixtures/autobahn.json.
"$target/release/examples/echo" 9001 &
echo=$!
trap 'kill "$echo" 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    kill -0 "$echo" 2>/dev/null || fail 'the echo server did not start; is port 9001 taken?'
    (: </dev/tcp/127.0.0.1/9001) 2>/dev/null && break
    sleep 0.1
done

rm -rf target/conformance
mkdir -p target/conformance
"${wstest[@]}" -m fuzzingclient -s tests/fixtures/autobahn.json >target/conformance/log 2>&1 ||
    fail 'the fuzzing client failed, see target/conformance/log'
python3 - target/conformance/index.json <<'PYTHON'
import json, sys

PASSED = ("OK", "NON-STRICT", "INFORMATIONAL")
# Number of cases of Autobahn 25.10 in the groups of tests/fixtures/autobahn.json: an incomplete run
# is no success.
CASES_MIN = 301
cases = json.load(open(sys.argv[1]))["flowledger"]
failed = {case: result for case, result in cases.items()
          if result["behavior"] not in PASSED or result["behaviorClose"] not in PASSED}
for case, result in sorted(failed.items()):
    print(f"{case}: {result['behavior']}, close {result['behaviorClose']}")
counts = {name: sum(r["behavior"] == name for r in cases.values()) for name in PASSED}
print(f"{len(cases)} cases, {len(failed)} failed:", ", ".join(f"{n} {c}" for n, c in counts.items()))
if len(cases) < CASES_MIN:
    print(f"only {len(cases)} of at least {CASES_MIN} cases were run")
sys.exit(1 if failed or len(cases) < CASES_MIN else 0)
PYTHON
