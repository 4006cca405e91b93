# The one list of commands. `just --list` shows it.

program := "target/release/idiolect"

# From nothing to per-user aligned models: fetches, builds, runs the quickstart
pipeline *ARGS: build
    {{program}} run pipelines/quickstart.toml {{ARGS}}

# Run any pipeline file, such as: just run pipelines/ppo.toml --dry-run
run PIPELINE *ARGS: build
    {{program}} run {{PIPELINE}} {{ARGS}}

# All tests, with the points at which some of them end the program (the feature kill-points, which no other build has)
test:
    ./setup --compile
    cargo test --release --workspace --features idiolect/kill-points

# The parts that `just build-full` adds: their tests, and that they build
test-full: setup
    cargo test --release --workspace --features idiolect/clouds --test files
    cargo build --release --workspace --bins --features idiolect/clouds

# Fetch libtorch and the base model into .deps (idempotent)
setup:
    ./setup

# Build the program; crates without libtorch are compiled while it is fetched
build:
    ./setup --compile
    cargo build --release --package idiolect

# Build with object stores (s3://, gs://, az://, http://, https://): two minutes more
build-full: setup
    cargo build --release --package idiolect --features clouds

# For every commit: format, lints, documentation, tests
check: setup
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets --features idiolect/kill-points -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --document-private-items --quiet
    cargo test --release --workspace --features idiolect/kill-points --quiet

# SHA-256 of every tensor file of the tiny pipelines, into target/hashes.txt: run it before and after moving code, on one machine, and compare
hashes: build
    cargo test --release --workspace --features idiolect/kill-points --test whole_program -- --ignored hashes

# Compare cuda:0 with the CPU on tiny random models, in 4 minutes; --rehearse runs it without a GPU. Needs a Python with torch 2.11.0
gpu-check *ARGS: build
    mkdir -p target/gpu-check
    strip -o target/gpu-check/idiolect {{program}}
    python3 tests/gpu_check.py --binary target/gpu-check/idiolect --out target/gpu-check/report.json {{ARGS}}

# Make the golden numbers again; needs torch==2.11.0 transformers==5.23.0 gguf peft==0.21.2 trl==1.16.0 datasets in PYTHON. TRL_PPO is a folder for
# TRL 1.12.0, the last with PPO, which is fetched into it
golden PYTHON="python3" TRL_PPO="target/trl-1.12.0" OUT="tests/golden": setup
    {{PYTHON}} tests/golden/make.py --out {{OUT}}
    {{PYTHON}} tests/golden/rows.py --out {{OUT}}
    {{PYTHON}} tests/golden/dpo_step.py {{OUT}}
    test -e {{TRL_PPO}}/trl || {{PYTHON}} -m pip install --quiet --no-deps --target {{TRL_PPO}} trl==1.12.0
    {{PYTHON}} tests/golden/ppo_round.py {{TRL_PPO}} {{OUT}}

# Make the golden numbers anew with PYTHON (as for `golden`) but for share_lora.json, compare with the committed ones and with ours; print the table
parity PYTHON="python3" TRL_PPO="target/trl-1.12.0":
    rm -rf target/parity && mkdir -p target/parity
    just golden {{PYTHON}} {{TRL_PPO}} target/parity
    {{PYTHON}} tests/golden/compare.py tests/golden target/parity
    IDIOLECT_GOLDEN={{justfile_directory()}}/target/parity IDIOLECT_PARITY={{justfile_directory()}}/target/parity \
        cargo test --release --quiet --package lm --test references -- equal
    IDIOLECT_GOLDEN={{justfile_directory()}}/target/parity cargo test --release --quiet --package text -- templates transformers
    IDIOLECT_GOLDEN={{justfile_directory()}}/target/parity cargo test --release --quiet --package policy --lib equals_trl
    cat target/parity/families.md target/parity/smollm2.md

# Generation and training step, compared with transformers + PEFT; needs torch==2.11.0 transformers==5.23.0 peft==0.21.2 in PYTHON
bench-lm PYTHON="python3" *ARGS="": build
    cargo bench --package lm --no-run
    test -e target/bench/base || {{program}} import .deps/base/SmolLM2-135M-Instruct.Q4_1.gguf target/bench/base
    {{PYTHON}} crates/lm/benches/compare.py "$(ls -t target/release/deps/peers-* | grep -E 'peers-[0-9a-f]+$' | head -1)" \
        target/bench/base target/bench/lm.json {{ARGS}} | tee target/bench/lm.md

# Remove what was built and computed, not what was fetched
clean:
    cargo clean
    find checkpoints -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +

# Ingestion and tokenisation, compared with polars and Hugging Face datasets; needs polars datasets==5.2.0 transformers==5.23.0 jinja2 in PYTHON
bench-data PYTHON="python3" *ARGS="": build
    test -e target/bench/base || {{program}} import .deps/base/SmolLM2-135M-Instruct.Q4_1.gguf target/bench/base
    {{PYTHON}} crates/data/benches/compare.py {{program}} target/bench/base target/bench/data.json {{ARGS}} | tee target/bench/data.md

# Fitting a reward model, compared with TRL; needs torch==2.11.0 transformers==5.23.0 trl==1.16.0 peft==0.21.2 datasets pyarrow in PYTHON, and
# DATA, a Parquet file with `prompt`, `chosen`, `rejected`, at least 512 rows
bench-reward PYTHON DATA *ARGS: build
    cargo bench --workspace --no-run
    test -e target/bench/base || {{program}} import .deps/base/SmolLM2-135M-Instruct.Q4_1.gguf target/bench/base
    {{PYTHON}} crates/reward/benches/compare.py "$(ls -t target/release/deps/reward_peers-* | grep -E 'reward_peers-[0-9a-f]+$' | head -1)" \
        target/bench/base {{DATA}} target/bench/reward.json {{ARGS}} | tee target/bench/reward.md

# DPO and PPO, compared with TRL + PEFT; needs what bench-reward needs in PYTHON, DATA, and TRL 1.12.0, the last with PPO, in a folder of its own
# (pip install --no-deps --target DIR trl==1.12.0)
bench-policy PYTHON DATA TRL_PPO *ARGS: build
    cargo bench --workspace --no-run
    test -e target/bench/base || {{program}} import .deps/base/SmolLM2-135M-Instruct.Q4_1.gguf target/bench/base
    {{PYTHON}} crates/policy/benches/compare.py "$(ls -t target/release/deps/policy_peers-* | grep -E 'policy_peers-[0-9a-f]+$' | head -1)" \
        target/bench/base {{DATA}} target/bench/policy.json --ppo-path {{TRL_PPO}} {{ARGS}} | tee target/bench/policy.md

# Memory of a fit by the number of users, with their factors in memory and on disk
bench-users: build
    cargo bench --workspace --no-run
    test -e target/bench/base || {{program}} import .deps/base/SmolLM2-135M-Instruct.Q4_1.gguf target/bench/base
    "$(ls -t target/release/deps/many_users-* | grep -E 'many_users-[0-9a-f]+$' | head -1)" target/bench/base target/bench/users.json | tee target/bench/users.md

# The theories of the three papers, and when pessimism pays, on synthetic users: tables and plots under target/lab; 13 minutes on two cores
lab *ARGS: build
    rm -rf target/lab && mkdir -p target/lab
    {{program}} lab share-lora --out target/lab/share-lora {{ARGS}}
    {{program}} lab rfm --out target/lab/rfm {{ARGS}}
    {{program}} lab loco --out target/lab/loco {{ARGS}}
    {{program}} lab pessimism --out target/lab/pessimism {{ARGS}}

# Preference weights and contextual rewards, compared with scikit-learn and PyTorch; needs numpy scikit-learn torch==2.11.0 in PYTHON
bench-estimate PYTHON *ARGS:
    cargo bench --package estimate --no-run
    mkdir -p target/bench
    {{PYTHON}} crates/estimate/benches/compare.py "$(ls -t target/release/deps/estimate_peers-* | grep -E 'estimate_peers-[0-9a-f]+$' | head -1)" \
        target/bench/estimate.json {{ARGS}} | tee target/bench/estimate.md
