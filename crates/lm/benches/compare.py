"""`just bench-lm`: our generation and training step beside transformers + PEFT, alternating, with ratios.

    compare.py BENCH_BINARY MODEL_FOLDER OUT.json [--rounds 3] [--threads 2] [--quick]

Every job runs `rounds` times for each program and allocator setting: `plain` is malloc as it comes, `kept` keeps freed
memory (ours: the library's own allocator, as the program uses it; Python: glibc told to keep its heap). The table shows
medians; a ratio is the median of the rounds' own ratios, both programs having run one after the other.

OUT.json: {"machine", "limits": {dtype: [GFLOP/s, ..]}, "read_gb_s", "jobs": [{"job", "allocator", "program", "tokens_per_s":
[..], "peak_mib": [..], "mfu": [..]}], "ratios": [{"job", "allocator", "speed": [..], "memory": [..]}]}.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tomllib

import tokenizers

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("model")
parser.add_argument("out")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--quick", action="store_true", help="one round, kept memory only")
args = parser.parse_args()
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..", "..")

# ---- inputs: the quickstart's questions, as prompts and as one stream that rows are cut from
tokenizer = tokenizers.Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
lists = tomllib.load(open(os.path.join(ROOT, "datasets/everyday/prompts.toml"), "rb"))
questions = [q for name in ("train", "dev", "held_out") for q in lists[name]]
chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
ids = [tokenizer.encode(chat.format(q), add_special_tokens=False).ids for q in questions]
stream = [i for row in ids for i in row]
inputs = args.out + ".inputs"
json.dump({"prompts": ids[:64], "stream": stream}, open(inputs, "w"))

JOBS = {  # name: (kind, dtype, arguments, both allocators?)
    "generate, 8 rows, bfloat16": ("generate", "bfloat16", ["8", "64", "1"], True),
    "generate, 64 rows, bfloat16": ("generate", "bfloat16", ["64", "64", "1"], True),
    "LoRA step, 8 x 256, bfloat16": ("step", "bfloat16", ["8", "256", "2", "keep"], True),
    "LoRA step, 8 x 256, float32": ("step", "float32", ["8", "256", "1", "keep"], False),
    "LoRA step, 8 x 512, recomputed, bfloat16": ("step", "bfloat16", ["8", "512", "1", "recompute"], False),
}
OURS = {"64 rows, one adapter": ["64", "64", "1", "1"], "64 rows, 64 users' adapters": ["64", "64", "1", "64"]}
KEPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}


def call(program, kind, dtype, rest, kept):
    env = dict(os.environ)
    if program == "ours":
        command = [args.binary, kind]
        if not kept:
            env["IDIOLECT_PLAIN_ALLOCATOR"] = "1"
    else:
        command = [sys.executable, os.path.join(HERE, "peer.py"), kind]
        if kept:
            env.update(KEPT)
    command += [args.model, inputs, dtype, str(args.threads), *rest]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not line:
        sys.exit("{} failed:\n{}\n{}".format(" ".join(command), done.stdout[-2000:], done.stderr[-2000:]))
    return json.loads(line[-1][7:])


config = json.load(open(os.path.join(args.model, "config.json")))
e, m, n, v = (config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
d = e // config["num_attention_heads"]
kv = config["num_key_value_heads"] * d
linear = n * (2 * e * e + 2 * e * kv + 3 * e * m)


def flops(kind, rest, result):
    """What the algorithm needs on real tokens; a frozen weight gets no gradient, a recomputed block counts once."""
    if kind == "step":
        rows, t = int(rest[0]), int(rest[1])
        return 3 * rows * (2 * linear * t + 2 * n * e * t * t + 2 * e * v * (t // 2))
    return 2 * (linear + e * v) * result["tokens"] + 2 * linear * result["prompt_tokens"]


rounds = 1 if args.quick else args.rounds
results, limits, reads = {}, {"bfloat16": [], "float32": []}, []
for i in range(rounds):
    for dtype in limits:
        limit = call("peer", "limit", dtype, [], False)
        limits[dtype].append(limit["gflops"])
        reads.append(limit["read_gb_s"])
    for name, (kind, dtype, rest, both) in JOBS.items():
        for kept in ([False, True] if both and not args.quick else [True]):
            for program in ("ours", "peer"):
                r = call(program, kind, dtype, rest, kept)
                seconds = statistics.median(r["total_s"] if kind == "generate" else r["step_s"])
                tokens = r["tokens"] if kind == "generate" else r["rows"] * r["tokens_per_row"]
                entry = results.setdefault((name, "kept" if kept else "plain", program), {})
                for key, value in (("tokens_per_s", tokens / seconds), ("peak_mib", r["peak_mib"]),
                                   ("mfu", flops(kind, rest, r) / seconds / 1e9 / limits[dtype][-1])):
                    entry.setdefault(key, []).append(value)
                print("round {}: {} ({}) {}: {:.0f} tokens/s, {:.0f} MiB".format(
                    i + 1, name, "kept" if kept else "plain", program, tokens / seconds, r["peak_mib"]),
                    file=sys.stderr, flush=True)
    for name, rest in OURS.items():
        r = call("ours", "generate", "bfloat16", rest, True)
        entry = results.setdefault((name, "kept", "ours"), {"mfu": [], "peak_mib": []})
        entry.setdefault("tokens_per_s", []).append(r["tokens"] / statistics.median(r["total_s"]))

ratios = []
for name, (_, _, _, both) in JOBS.items():
    for allocator in ("plain", "kept"):
        ours, peer = (results.get((name, allocator, p)) for p in ("ours", "peer"))
        if ours:
            ratios.append({"job": name, "allocator": allocator,
                           "speed": [a / b for a, b in zip(ours["tokens_per_s"], peer["tokens_per_s"])],
                           "memory": [a / b for a, b in zip(ours["peak_mib"], peer["peak_mib"])]})
    settings = [a for a in ("plain", "kept") if (name, a, "ours") in results]
    if len(settings) == 2:  # each program under the setting that suits it
        best = {p: [max(x) for x in zip(*(results[(name, a, p)]["tokens_per_s"] for a in settings))]
                for p in ("ours", "peer")}
        ratios.append({"job": name, "allocator": "best of both", "memory": [],
                       "speed": [a / b for a, b in zip(best["ours"], best["peer"])]})
machine = next((x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), "?")
json.dump({"machine": machine, "threads": args.threads, "limits": limits, "read_gb_s": reads,
           "jobs": [{"job": k[0], "allocator": k[1], "program": k[2], **r} for k, r in results.items()],
           "ratios": ratios}, open(args.out, "w"), indent=1)

median = statistics.median
print("| job | allocator | ours, tokens/s | peer, tokens/s | ratio (range) | our share of the product limit | our / peer peak MiB |")
print("| --- | --- | --- | --- | --- | --- | --- |")
for r in ratios:
    span = "{:.2f} ({:.2f} to {:.2f})".format(median(r["speed"]), min(r["speed"]), max(r["speed"]))
    if r["allocator"] == "best of both":
        print("| {} | {} | | | {} | | |".format(r["job"], r["allocator"], span))
        continue
    ours, peer = (results[(r["job"], r["allocator"], p)] for p in ("ours", "peer"))
    print("| {} | {} | {:.0f} | {:.0f} | {} | {:.2f} | {:.0f} / {:.0f} = {:.2f} |".format(
        r["job"], r["allocator"], median(ours["tokens_per_s"]), median(peer["tokens_per_s"]), span, median(ours["mfu"]),
        median(ours["peak_mib"]), median(peer["peak_mib"]), median(r["memory"])))
for name in OURS:
    print("| generate, {}, bfloat16 | kept | {:.0f} | | | | |".format(
        name, median(results[(name, "kept", "ours")]["tokens_per_s"])))
print("\nlimits: {} GFLOP/s in bfloat16, {} in float32 ([2048 x 576] x [576 x 1536], plain), {:.0f} GB/s read; {}".format(
    round(median(limits["bfloat16"])), round(median(limits["float32"])), median(reads), machine))
