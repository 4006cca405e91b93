# The one list of commands. `just --list` shows it.

program := "target/release/idiolect"

# From nothing to per-user aligned models: fetches, builds, runs the quickstart
pipeline *ARGS: build
    {{program}} run pipelines/quickstart.toml {{ARGS}}

# Run any pipeline file: just run pipelines/compare.toml --dry-run
run PIPELINE *ARGS: build
    {{program}} run {{PIPELINE}} {{ARGS}}

# All tests: what CI runs
test: setup
    cargo test --release --workspace

# Fetch libtorch and the base model into .deps (idempotent)
setup:
    ./setup

# Build the program
build: setup
    cargo build --release --package idiolect

# For every commit: format, lints, documentation, tests
check: setup
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --document-private-items --quiet
    cargo test --release --workspace --quiet

# Make the golden numbers again; needs torch 2.11 and transformers 5.23 in PYTHON
golden PYTHON="python3": setup
    {{PYTHON}} tests/golden/make.py

# Remove what was built and computed, not what was fetched
clean:
    cargo clean
    find checkpoints -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
