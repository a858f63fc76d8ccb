.DEFAULT_GOAL := help
.PHONY: help run check test interop conformance figures bench bench-quick bench-runs bench-runs-quick \
	bench-gateway bench-ledger bench-optimizer bench-page pictures prices vendor

# Cargo's build directory.
TARGET := $(or $(CARGO_TARGET_DIR),target)

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: ## build flowledger and serve it on 127.0.0.1:7700
	cargo build --release
	$(TARGET)/release/flowledger serve

check: ## run all checks of CI: format, lints, tests
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	$(MAKE) --no-print-directory test

# Runs every test even after a failure, so that one run shows all failures.
test: ## install the test dependencies (tests/setup.sh) and run all tests
	tests/setup.sh
	cargo test --no-fail-fast

interop: ## test real SDKs, coding agents and frameworks as clients of the gateway (3 GB of disk)
	tests/setup.sh clients
	cargo test --test main interop:: -- --include-ignored

conformance: ## run Autobahn's WebSocket tests (Python 2.7: autobahntestsuite) on examples/echo
	tests/conformance.sh

figures: ## print binary size, start time, and memory when idle and after an estimate
	cargo build --release
	tests/figures.sh

bench: ## measure message delivery to clients against a bare send loop (under 5 minutes)
	cargo bench --bench fanout

bench-quick: ## run a short version of bench (under 1 minute)
	cargo bench --bench fanout -- quick

bench-runs: ## measure the cost of a run, also with a million stored runs (under 5 minutes, 3 GB of disk)
	cargo bench --bench runs

bench-runs-quick: ## run a short version of bench-runs (under 1 minute)
	cargo bench --bench runs -- quick

bench-gateway: ## measure the overhead of the gateway per call (under 2 minutes)
	cargo bench --bench gateway

bench-ledger: ## measure queries, totals and CSV of a million ledger rows, and the cost per call (under 3 minutes, 1 GB of disk)
	cargo bench --bench ledger

bench-optimizer: ## measure an optimizer pass over a million calls, and over a thousand new ones (under 1 minute)
	cargo bench --bench optimizer

bench-page: ## measure what the page's views load, and their long tasks with 10,000 calls (under 3 minutes)
	cargo bench --bench page

pictures: ## take the pictures of the documents from a seeded server (docs/pictures)
	cargo bench --bench page -- pictures

vendor: ## fetch the page's libraries again (Preact, uPlot, dagre) and check them
	assets/vendor.sh

prices: ## update the price table in assets/
	python3 assets/make-prices.py
