# `make` lists the targets. Rust and Go are needed (Go builds the test cluster's programs, once).

# Further arguments for cargo; CI says --locked.
CARGOFLAGS ?=
IMAGE ?= kimup:dev
target = $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help tools test test-restarts test-chaos unit lint demo bench bench-admission bench-attacks bench-registry bench-rollouts bench-sync fuzz release image deny

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

tools: ## build the test cluster's programs (minutes the first time) and print their folder
	@tools/build

# The scenarios wait for the cluster most of the time: more of them at once than there are cores.
test: tools ## run every test: unit, architecture, and the scenarios on a real cluster
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-6} cargo test --workspace $(CARGOFLAGS)

test-restarts: tools ## restart replicas 20 times and rotate the CA 10 times under load, and let the API server hang for minutes (8 minutes)
	KIMUP_RESTARTS=20 KIMUP_ROTATIONS=10 cargo test --test cluster $(CARGOFLAGS) -- --include-ignored --nocapture availability certificates degraded

test-chaos: tools ## 200 random runs of rollouts under kills, partitions and a failing API server, and a storm of 3 minutes (15 minutes)
	KIMUP_CHAOS_RUNS=200 KIMUP_CHAOS_SECONDS=180 cargo test --test cluster $(CARGOFLAGS) -- --nocapture --test-threads 1 exactly_once chaos

unit: ## run the tests that need no cluster
	cargo test --lib --bins --test architecture --test docs --test registry_cost $(CARGOFLAGS)

bench: ## measure the choice among 100,000 tags against the bars of docs/benchmarks.md, on a quiet machine
	cargo bench --no-fail-fast --bench select --bench memory $(CARGOFLAGS)

# The fuzz targets are a workspace of their own; without LLVM's library they compile on any machine.
lint: ## check format and lints, and that the fuzz targets compile
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(CARGOFLAGS) -- -D warnings
	cargo clippy --manifest-path fuzz/Cargo.toml --target-dir $(target) --no-default-features $(CARGOFLAGS) -- -D warnings

# One build of both packages: `cargo run` would build the dependencies once more for the demo's package alone.
demo: ## show the main job on a real cluster; KEEP=1 leaves it running
	@tools/build >/dev/null
	@cargo build --workspace --bins $(CARGOFLAGS)
	@$(target)/debug/kimup-demo --kimup $(target)/debug/kimup $(if $(KEEP),--keep)

# It counts requests, in simulated time: a build for speed would take longer than it saves.
bench-registry: ## count what 1,000 Images cost their registries; fails above the bars
	cargo bench --profile dev --bench registry $(CARGOFLAGS)

bench-attacks: ## measure a client's answers while others attack the webhook's server (6 minutes, quiet machine); fails above the bars
	cargo bench --bench attacks $(CARGOFLAGS)

bench-sync: tools ## measure what 200 Images cost kimup sync on a real cluster (8 minutes); fails above the bars
	@cargo build --release -p kimup --bin kimup $(CARGOFLAGS)
	@cargo build -p kimup-testbed --bin kimup-bench-sync $(CARGOFLAGS)
	@$(target)/debug/kimup-bench-sync --kimup $(target)/release/kimup

# It counts requests and rollouts in flight: a build for speed would take longer than it saves.
bench-rollouts: tools ## count what 500 Deployments on one Image cost the API server (some minutes); fails above the bars
	@cargo build --workspace --bin kimup --bin kimup-bench-rollouts $(CARGOFLAGS)
	@$(target)/debug/kimup-bench-rollouts --kimup $(target)/debug/kimup

# Both in one build, so that they share their dependencies, built for speed.
bench-admission: ## measure admission beside a server that does nothing (under 4 minutes, two quiet cores); fails above the bars; QUICK=1 is shorter
	@cargo build --release --workspace --bin kimup --bin kimup-bench-admission $(CARGOFLAGS)
	@$(target)/release/kimup-bench-admission --kimup $(target)/release/kimup $(if $(QUICK),--quick)

# Without a sanitizer it runs on stable Rust too: what is looked for is panics and broken promises, not memory errors.
FUZZ_SECONDS ?= 60
fuzz: ## fuzz every target for a minute each; FUZZ_SECONDS=n
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing; install it: cargo install --locked cargo-fuzz" >&2; exit 1; }
	@set -e; for name in $$(cargo fuzz list); do echo "== $$name"; mkdir -p fuzz/corpus/$$name; cargo fuzz run --sanitizer none $$name fuzz/corpus/$$name $$(ls -d fuzz/seeds/$$name 2>/dev/null) -- -max_total_time=$(FUZZ_SECONDS) -verbosity=0; done

release: ## build the release binary
	cargo build --release -p kimup $(CARGOFLAGS)
	@ls -lh $(target)/release/kimup

image: ## build the container image; IMAGE=name:tag
	docker build --tag $(IMAGE) .

deny: ## check licences, advisories and duplicates of the dependencies
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing; install it: cargo install --locked cargo-deny" >&2; exit 1; }
	cargo deny check
