# The only commands a newcomer needs. Each installs what is missing, and can be run again.

export NESTBOX_DATA_DIR ?= ./.nestbox
# rustup's installer puts cargo where a shell that was open before does not look.
export PATH := $(PATH):$(HOME)/.cargo/bin

images := $(NESTBOX_DATA_DIR)/images

.DEFAULT_GOAL := help
.PHONY: help demo run test lab bench lint deny build

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## make a sandbox, run code in it, and clean up, on this machine
	@target/release/nestbox demo

run: build ## start the daemon in the foreground, with its data in ./.nestbox
	@target/release/nestbox image build debian
	@target/release/nestbox serve

build: ## build target/release/nestbox
	@scripts/setup.sh
	@cargo build --release

test: ## run every test, on real microVMs
	@scripts/setup.sh tests
	cargo build
	target/debug/nestbox image build debian
	NESTBOX_TEST_IMAGES=$(abspath $(images)) cargo test --workspace
	@scripts/lab/test.sh

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
cargo_deny := 0.20.2

deny: ## check the licences and origins of all crates
	@scripts/setup.sh
	@test "$$(cargo deny --version 2>/dev/null)" = "cargo-deny $(cargo_deny)" || \
		cargo install --quiet --locked cargo-deny@$(cargo_deny)
	cargo fetch --quiet --locked
	cargo deny --offline --locked check -D unmatched-skip licenses sources bans
