#!/usr/bin/env bash
# Fetches the libraries of the page into assets/page/vendor: pinned versions from npm, checked
# against their checksums, each with its licence. `make vendor` runs it; the files are committed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/page/vendor"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Downloads PACKAGE@VERSION, compares its SHA-512 (base64, as npm publishes it), unpacks it.
fetch() {
    local package=$1 sum=$2 archive
    archive=$(cd "$work" && npm pack --silent "$package")
    if [ "$(openssl dgst -sha512 -binary "$work/$archive" | base64 -w0)" != "$sum" ]; then
        echo "assets/vendor.sh: the checksum of $package differs" >&2
        exit 1
    fi
    rm -rf "$work/package"
    tar -xzf "$work/$archive" -C "$work"
}

# Without the reference to a source map, which is not served.
without_map() { sed '/^\/\/# sourceMappingURL=/d' "$1"; }

# Components: Preact, its hooks and htm in one module.
fetch htm@3.1.1 983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==
without_map "$work/package/preact/standalone.module.js" >preact.js
cp "$work/package/LICENSE" htm.LICENSE
fetch preact@11.2.0 /HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==
cp "$work/package/LICENSE" preact.LICENSE

# Plots. Its minified file defines a variable, so a line makes it a module.
fetch uplot@1.6.32 KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==
{ without_map "$work/package/dist/uPlot.iife.min.js"; echo 'export default uPlot;'; } >uplot.js
cp "$work/package/LICENSE" uplot.LICENSE

# Layout of graphs.
fetch @dagrejs/dagre@3.1.3 X4aUTwOReZvthaZWOVHqlJ52/ZdhZFEM4+Lh/uR4XooUSLE6p71bcy7MPGzYnNUcNh+nj+i/qJQpCMIdQnSmrg==
without_map "$work/package/dist/dagre.esm.js" >dagre.js
cp "$work/package/LICENSE" dagre.LICENSE
