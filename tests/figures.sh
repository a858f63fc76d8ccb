#!/usr/bin/env bash
# Prints figures of the release build: size of the binary, time from start to the first answered
# /api/health (new database, then ten starts on it), RSS when idle and after a first estimate of
# tokens, and the duration of that estimate. `make figures`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

binary=${CARGO_TARGET_DIR:-target}/release/flowledger
data=$(mktemp -d)
pid=
upstream=
trap 'for it in $pid $upstream; do kill "$it" 2>/dev/null || true; done; rm -rf "$data" "$data".*' EXIT

printf 'size of the binary: %s MB\n' "$(awk "BEGIN { printf \"%.1f\", $(stat -c %s "$binary") / 1e6 }")"

# A free port. The race until the server binds it is acceptable.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# A provider that counts no tokens, so that flowledger estimates them.
python3 -u - >"$data.upstream" <<'PYTHON' &
import http.server

ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"Once upon"},"finish_reason":"stop"}]}'


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port)
server.serve_forever()
PYTHON
upstream=$!
for _ in $(seq 500); do
    [ -s "$data.upstream" ] && break
    sleep 0.01
done
printf '[providers.local]\nkind = "openai"\nbase_url = "http://127.0.0.1:%s/v1"\n' \
    "$(cat "$data.upstream")" >"$data.toml"

start() {
    local began=$EPOCHREALTIME
    "$binary" serve --config "$data.toml" --data "$data" --listen "127.0.0.1:$port" >/dev/null 2>&1 &
    pid=$!
    for _ in $(seq 5000); do
        if { exec 3<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null; then
            printf 'GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
            read -r answer <&3
            exec 3>&-
            case $answer in *200*) break ;; esac
        fi
    done
    awk "BEGIN { printf \"%.1f\n\", ($EPOCHREALTIME - $began) * 1000 }"
}

stop() {
    kill -TERM "$pid"
    wait "$pid"
    pid=
}

printf 'start to first answer, new database (ms): '
start >"$data.ms"; cat "$data.ms"; rm "$data.ms"
stop
times=()
for _ in 1 2 3 4 5 6 7 8 9 10; do
    start >"$data.ms"; times+=("$(cat "$data.ms")"); rm "$data.ms"
    [ "${#times[@]}" = 10 ] || stop
done
printf 'start to first answer, ten more starts: %s ms\n' "${times[*]}"
sleep 1
rss() {
    awk -v label="$1" '/^VmRSS/ { printf "RSS %s: %.1f MB\n", label, $2 / 1000 }' "/proc/$pid/status"
}

rss 'when idle'
# Only the first of these calls loads the vocabulary.
python3 - "$port" <<'PYTHON'
import json
import statistics
import sys
import time
import urllib.request

BODY = {"model": "local/any", "messages": [{"role": "user", "content": "Tell me a story."}]}
URL = f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions"


def call():
    began = time.monotonic()
    request = urllib.request.Request(URL, json.dumps(BODY).encode())
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request).read()
    return (time.monotonic() - began) * 1000


first, later = call(), [call() for _ in range(20)]
print(f"call with the first estimate: {first:.1f} ms, later ones: {statistics.median(later):.1f} ms")
PYTHON
rss 'after an estimate'
stop
echo 'stopped with status 0'
