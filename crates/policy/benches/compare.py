"""`just bench-policy`: DPO and PPO beside TRL with PEFT, alternating, with ratios.

    compare.py BENCH_BINARY MODEL_FOLDER PAIRS.parquet OUT.json --ppo-path TRL_1.12_FOLDER
               [--rounds 3] [--threads 2] [--dpo-steps 10] [--ppo-steps 4] [--new 64] [--epochs 4] [--users 32] [--each 16]

Both train on the same rows of the file, in the model's chat template and in the same precision, each under `plain` (malloc as it comes) and
`kept` (freed memory is kept: ours by the library's allocator, as the program uses it; Python by glibc's settings). Speed is in tokens of these
rows: PPO takes prompts in an order of its own. TRL's precomputed reference is measured under `plain` alone. PPO's answers have a fixed length: MODEL_FOLDER is copied with an end token that is never sampled. `users`: so many users of our
own together, and then each alone in the same warm process.

OUT.json: {"machine", "threads", "jobs": [{"job", "dtype", "allocator", "program", "tokens_per_s": [..], "peak_mib": [..]}],
"ratios": [{"job", "dtype", "allocator", "speed": [..], "memory": [..]}], "users": [{"batch", "together_s", "alone_s", "ratio"}]}.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("model")
parser.add_argument("pairs")
parser.add_argument("out")
parser.add_argument("--ppo-path", required=True)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--dpo-steps", type=int, default=10)
parser.add_argument("--ppo-steps", type=int, default=4)
parser.add_argument("--new", type=int, default=64)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--users", type=int, default=32)
parser.add_argument("--each", type=int, default=16)
parser.add_argument("--jobs", default="dpo,ppo,users")
args = parser.parse_args()
HERE = os.path.dirname(os.path.abspath(__file__))
KEPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}


def endless(folder):
    """A copy of the model whose end token is one that is never sampled (checked by the benchmark)."""
    out = folder.rstrip("/") + "-endless"
    if not os.path.exists(out):
        os.makedirs(out)
        for name in os.listdir(folder):
            if name != "generation_config.json":
                shutil.copy(os.path.join(folder, name), out)
        path = os.path.join(out, "tokenizer_config.json")
        config = json.load(open(path))
        config["eos_token"] = "<filename>"
        json.dump(config, open(path, "w"))
    return out


def call(program, job, dtype, kept):
    env = dict(os.environ)
    model = endless(args.model) if job == "ppo" else args.model
    batch, steps = (8, args.ppo_steps) if job == "ppo" else (4, args.dpo_steps)
    numbers = [args.threads, batch, steps] + ([args.new, args.epochs] if job == "ppo" else [])
    tail = [model, args.pairs, dtype, *map(str, numbers)]
    if program == "ours":
        command = [args.binary, "dpo" if job.startswith("dpo") else "ppo", *tail]
        if not kept:
            env["IDIOLECT_PLAIN_ALLOCATOR"] = "1"
    else:
        if job == "ppo":
            env["PYTHONPATH"] = args.ppo_path
        command = [sys.executable, os.path.join(HERE, "peer_ppo.py" if job == "ppo" else "peer_dpo.py"), *tail]
        command += ["precompute"] if job == "dpo, precomputed" else []
        if kept:
            env.update(KEPT)
    return result(command, env)


def result(command, env):
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not line:
        sys.exit("{} failed:\n{}\n{}".format(" ".join(command), done.stdout[-2000:], done.stderr[-3000:]))
    return json.loads(line[-1][7:])


wanted = args.jobs.split(",")
jobs = (["dpo", "dpo, precomputed"] if "dpo" in wanted else []) + (["ppo"] if "ppo" in wanted else [])
results = {}
for i in range(args.rounds):
    for job in jobs:
        for dtype in ("bfloat16", "float32"):
            for kept in (False, True):
                for program in ("ours", "peer"):
                    if job == "dpo, precomputed" and program == "ours":
                        continue  # ours is the same run
                    if job == "dpo, precomputed" and kept:
                        continue
                    r = call(program, job, dtype, kept)
                    key = (job, dtype, "kept" if kept else "plain", program)
                    entry = results.setdefault(key, {"tokens_per_s": [], "peak_mib": []})
                    entry["tokens_per_s"].append(r["tokens"] / r["seconds"])
                    entry["peak_mib"].append(r["peak_mib"])
                    print("round {}: {} {} ({}) {}: {:.0f} tokens/s, {:.0f} MiB, {:.3f}".format(
                        i + 1, *key, r["tokens"] / r["seconds"], r["peak_mib"], r["loss"]), file=sys.stderr, flush=True)
users = []
if "users" in wanted:
    for batch in (4, 1):
        r = result([args.binary, "users", args.model, args.pairs, "bfloat16", str(args.threads), str(batch), str(args.users),
                    str(args.each)], dict(os.environ))
        users.append({"batch": batch, "together_s": r["together_s"], "alone_s": r["alone_s"], "ratio": r["ratio"]})
ratios = []
for (job, dtype, allocator, program), peer in results.items():
    if program == "peer":
        ours = results[("dpo" if job.startswith("dpo") else job, dtype, allocator, "ours")]
        ratios.append({"job": job, "dtype": dtype, "allocator": allocator,
                       "speed": [x / y for x, y in zip(ours["tokens_per_s"], peer["tokens_per_s"])],
                       "memory": [x / y for x, y in zip(ours["peak_mib"], peer["peak_mib"])]})
machine = next((x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), "?")
json.dump({"machine": machine, "threads": args.threads,
           "jobs": [{"job": k[0], "dtype": k[1], "allocator": k[2], "program": k[3], **r} for k, r in results.items()],
           "ratios": ratios, "users": users}, open(args.out, "w"), indent=1)
median = statistics.median
print("| job | precision | allocator | ours, tokens/s | TRL, tokens/s | ratio (range) | our / TRL peak MiB |")
print("| --- | --- | --- | --- | --- | --- | --- |")
for r in ratios:
    ours, peer = (results[("dpo" if p == "ours" and r["job"].startswith("dpo") else r["job"], r["dtype"], r["allocator"], p)]
                  for p in ("ours", "peer"))
    print("| {} | {} | {} | {:.0f} | {:.0f} | {:.2f} ({:.2f} to {:.2f}) | {:.0f} / {:.0f} = {:.2f} |".format(
        r["job"], r["dtype"], r["allocator"], median(ours["tokens_per_s"]), median(peer["tokens_per_s"]), median(r["speed"]),
        min(r["speed"]), max(r["speed"]), median(ours["peak_mib"]), median(peer["peak_mib"]), median(r["memory"])))
for r in users:
    print("\n{} users, {} pairs each, {} a step: together {:.0f} s, one after the other in one warm process {:.0f} s: {:.2f} times".format(
        args.users, args.each, r["batch"], r["together_s"], r["alone_s"], r["ratio"]))
print("\n{}; {} threads".format(machine, args.threads))
