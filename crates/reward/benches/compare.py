"""`just bench-reward`: fitting a reward model beside TRL's RewardTrainer with PEFT, alternating, with ratios.

    compare.py BENCH_BINARY MODEL_FOLDER PAIRS.parquet OUT.json [--rounds 3] [--threads 2] [--batch 4] [--steps 10]

Both fit the same rows of the file in the same precision, each under `plain` (malloc as it comes) and `kept` (freed memory is kept: ours by
the library's allocator, as the program uses it; Python by glibc's settings). Our rows are longer by the chat template, so speed is in
tokens. `64 users`: all rows dealt to 64 users in one run of ours, against 64 processes of TRL on a 64th of the rows each, of which one
is measured, start included, and counted 64 times.

OUT.json: {"machine", "threads", "batch", "steps", "jobs": [{"job", "allocator", "program", "tokens_per_s": [..], "peak_mib": [..]}],
"ratios": [{"job", "allocator", "speed": [..], "memory": [..]}], "users": {"ours_s", "peer_s", "ratio"}}.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("model")
parser.add_argument("pairs")
parser.add_argument("out")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--steps", type=int, default=10)
args = parser.parse_args()
HERE = os.path.dirname(os.path.abspath(__file__))
KEPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}


def call(program, dtype, kept, batch, steps, users=1):
    env = dict(os.environ)
    command = [args.model, args.pairs, dtype, str(args.threads), str(batch), str(steps)]
    if program == "ours":
        command = [args.binary, *command, str(users)]
        if not kept:
            env["IDIOLECT_PLAIN_ALLOCATOR"] = "1"
    else:
        command = [sys.executable, os.path.join(HERE, "peer.py"), *command]
        if kept:
            env.update(KEPT)
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not line:
        sys.exit("{} failed:\n{}\n{}".format(" ".join(command), done.stdout[-2000:], done.stderr[-3000:]))
    return json.loads(line[-1][7:])


results = {}
for i in range(args.rounds):
    for dtype in ("bfloat16", "float32"):
        for kept in (False, True):
            for program in ("ours", "peer"):
                r = call(program, dtype, kept, args.batch, args.steps)
                entry = results.setdefault((dtype, "kept" if kept else "plain", program), {"tokens_per_s": [], "peak_mib": []})
                entry["tokens_per_s"].append(r["tokens"] / r["seconds"])
                entry["peak_mib"].append(r["peak_mib"])
                print("round {}: {} ({}) {}: {:.0f} tokens/s, {:.0f} MiB, loss {:.3f}".format(
                    i + 1, dtype, "kept" if kept else "plain", program, r["tokens"] / r["seconds"], r["peak_mib"], r["loss"]),
                    file=sys.stderr, flush=True)
ours = call("ours", "bfloat16", True, 64, 7, 64)
peer = call("peer", "bfloat16", True, 8, 0)  # a 64th of the rows: the start and one step
users = {"ours_s": ours["process_s"], "peer_s": 64 * peer["process_s"], "ratio": 64 * peer["process_s"] / ours["process_s"]}
ratios = []
for dtype in ("bfloat16", "float32"):
    for allocator in ("plain", "kept"):
        a, b = results[(dtype, allocator, "ours")], results[(dtype, allocator, "peer")]
        ratios.append({"job": dtype, "allocator": allocator,
                       "speed": [x / y for x, y in zip(a["tokens_per_s"], b["tokens_per_s"])],
                       "memory": [x / y for x, y in zip(a["peak_mib"], b["peak_mib"])]})
machine = next((x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), "?")
json.dump({"machine": machine, "threads": args.threads, "batch": args.batch, "steps": args.steps,
           "jobs": [{"job": k[0], "allocator": k[1], "program": k[2], **r} for k, r in results.items()],
           "ratios": ratios, "users": users}, open(args.out, "w"), indent=1)
median = statistics.median
print("| precision | allocator | ours, tokens/s | TRL, tokens/s | ratio (range) | our / TRL peak MiB |")
print("| --- | --- | --- | --- | --- | --- |")
for r in ratios:
    a, b = (results[(r["job"], r["allocator"], p)] for p in ("ours", "peer"))
    print("| {} | {} | {:.0f} | {:.0f} | {:.2f} ({:.2f} to {:.2f}) | {:.0f} / {:.0f} = {:.2f} |".format(
        r["job"], r["allocator"], median(a["tokens_per_s"]), median(b["tokens_per_s"]), median(r["speed"]), min(r["speed"]),
        max(r["speed"]), median(a["peak_mib"]), median(b["peak_mib"]), median(r["memory"])))
print("\n64 users, 512 rows in all: one run of ours {ours_s:.0f} s, 64 of TRL {peer_s:.0f} s (one measured): {ratio:.0f} times".format(**users))
print("\n{}; {} threads, batch {}, {} steps timed".format(machine, args.threads, args.batch, args.steps))
