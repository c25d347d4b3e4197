# The only commands a newcomer needs. Each installs what is missing, and can be run again.

export NESTBOX_DATA_DIR ?= ./.nestbox
# rustup's installer puts cargo where a shell that was open before does not look.
export PATH := $(PATH):$(HOME)/.cargo/bin

images := $(NESTBOX_DATA_DIR)/images

.DEFAULT_GOAL := help
.PHONY: help demo run check test test-long lab bench lint deny build

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## make a sandbox, run code in it, and clean up, on this machine
	@target/release/nestbox demo

run: build ## start the daemon in the foreground, with its data in ./.nestbox
	@target/release/nestbox image build debian
	@target/release/nestbox serve

build: ## build target/release/nestbox
	@scripts/setup.sh
	@cargo build --release

check: lint deny ## what is said without a VM in minutes: format, clippy, layers, unit tests, crates; no root
	@scripts/test.sh units

test: ## run every test, on real microVMs (SUITES="vm api" some of them)
	@scripts/setup.sh tests
	@NESTBOX_TEST_IMAGES=$(abspath $(images)) scripts/test.sh all $(SUITES)
	@$(if $(SUITES),,scripts/lab/test.sh)

test-long: ## run the tests that are nothing but long
	@scripts/setup.sh tests
	@NESTBOX_TEST_IMAGES=$(abspath $(images)) scripts/test.sh long

lab: ## run the tests on microVMs under Firecracker, in a machine in software (ARGS="pause::")
	@scripts/lab/test.sh $(ARGS)

bench: build ## measure; writes bench/results.json
	@target/release/nestbox image build debian
	@cargo bench --bench sandboxes

lint: ## check the format and what clippy finds
	@scripts/setup.sh
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# Of the licences, sources and versions nothing has to be fetched. What is known against the crates
# has, from a git repository: `cargo deny check advisories`.
deny: ## check the licences and origins of all crates
	@scripts/setup.sh check
	cargo fetch --quiet --locked
	PATH="$(CURDIR)/target/tools/bin:$$PATH" cargo deny --offline --locked check -D unmatched-skip licenses sources bans
