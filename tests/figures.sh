#!/usr/bin/env bash
# Prints the figures of the release build: size of the binary, time from its start to the first
# answered /api/health (new database, then ten starts on it), RSS when idle. `make figures`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

binary=${CARGO_TARGET_DIR:-target}/release/flowledger
data=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true; rm -rf "$data"' EXIT

printf 'size of the binary: %s MB\n' "$(awk "BEGIN { printf \"%.1f\", $(stat -c %s "$binary") / 1e6 }")"

# A port that is free now; nobody else asks for one in the moment until it is taken.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

start() {
    local began=$EPOCHREALTIME
    "$binary" serve --data "$data" --listen "127.0.0.1:$port" >/dev/null 2>&1 &
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
awk '/^VmRSS/ { printf "RSS when idle: %.1f MB\n", $2 / 1000 }' "/proc/$pid/status"
stop
echo 'stopped with status 0'
