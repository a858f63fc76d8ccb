.DEFAULT_GOAL := help
.PHONY: help run check test interop conformance figures bench bench-quick bench-runs bench-runs-quick \
	bench-gateway bench-ledger bench-optimizer prices

# Where cargo puts what it builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)

help: ## lists these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: ## builds flowledger and serves it on 127.0.0.1:7700
	cargo build --release
	$(TARGET)/release/flowledger serve

check: ## all that CI checks: format, lints, tests
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	$(MAKE) --no-print-directory test

# Every test is run, whatever fails, so that one run shows all there is to mend.
test: ## installs what the tests need (tests/setup.sh) and runs all tests
	tests/setup.sh
	cargo test --no-fail-fast

interop: ## the official SDKs of OpenAI and Anthropic as clients of flowledger
	tests/setup.sh
	cargo test --test main interop::

conformance: ## points Autobahn's fuzzing client (Python 2.7: autobahntestsuite) at examples/echo
	tests/conformance.sh

figures: ## prints the size of the binary, its time to start, and its memory when idle and after an estimate
	cargo build --release
	tests/figures.sh

bench: ## what a delivery to a client costs, beside a bare loop of send (under five minutes)
	cargo bench --bench fanout

bench-quick: ## the same, in less than one
	cargo bench --bench fanout -- quick

bench-runs: ## what a run costs, also with a million runs stored (under five minutes, 3 GB of disk)
	cargo bench --bench runs

bench-runs-quick: ## the same with fewer, in less than one
	cargo bench --bench runs -- quick

bench-gateway: ## what the gateway adds to a call, beside the same calls without it (under two minutes)
	cargo bench --bench gateway

bench-ledger: ## pages, sums and CSV of a million ledger rows, and what it costs a call (under three minutes, 1 GB of disk)
	cargo bench --bench ledger

bench-optimizer: ## what a pass of the optimizer costs over a million calls, and over a thousand more (under a minute)
	cargo bench --bench optimizer

prices: ## brings the price table in assets/ up to date
	python3 assets/make-prices.py
