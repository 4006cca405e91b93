"""`just bench-data`: ingestion and tokenisation beside polars and Hugging Face datasets, alternating, with ratios.

    compare.py IDIOLECT BASE_FOLDER OUT.json [--votes 5000000] [--texts 200000] [--rounds 3] [--hf-rounds 2] [--work DIR]

Votes are generated once per size: texts of words drawn by a fixed seed, 20,000 users, 200,000 prompts, snappy, row groups of
262,144 rows. Every job is a process of its own; its peak memory is that of its largest process (datasets has workers). A ratio is peer seconds over our seconds. Seconds are those of the
whole process, its start included. Ours ends when its file is on disk; of a peer three figures stand: until its call returned, until
its file was on disk as well, and (datasets first reads Parquet into a cache of its own) with the loading.

OUT.json: {"machine", "votes", "bytes", "texts", "jobs": [{"job", "seconds": [..], "peak_mib": [..]}],
"ratios": [{"ours", "peer", "speed": [..]}], "distinct": [{"file", "texts", "distinct", "seconds"}]}.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("base")
parser.add_argument("out")
parser.add_argument("--votes", type=int, default=5_000_000)
parser.add_argument("--texts", type=int, default=200_000)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--hf-rounds", type=int, default=2)
parser.add_argument("--work", default="target/bench/data")
parser.add_argument("--real", nargs="*", default=[], help="real vote files whose texts are tokenised too")
parser.add_argument("--job", help="(internal) run one peer job")
args = parser.parse_args()
COLUMNS = ["user_id", "prompt", "response_a", "response_b", "label"]
THREADS = 2
os.environ["POLARS_MAX_THREADS"] = str(THREADS)


def generate(path, votes, seed=1):
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(seed)
    syllables = ["ba", "con", "ti", "mo", "ra", "sel", "ver", "ing", "lo", "pre", "tan", "du", "es", "or", "ni", "cal"]
    words = np.array(sorted({"".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(9000)}))
    sentences = np.array([" ".join(rng.choice(words, 11)) for _ in range(60_000)])
    prompts = pl.Series([" ".join(rng.choice(words, 22)) + "?" for _ in range(200_000)])
    pool = pl.Series(sentences)

    def answers(n):
        return pool.gather(rng.integers(0, len(pool), n)) + ". " + pool.gather(rng.integers(0, len(pool), n)) + "."

    users = pl.Series(["worker-{:05d}".format(u) for u in range(20_000)])
    labels = pl.Series(["a", "b", "tie"])
    parts = []
    for start in range(0, votes, 1_000_000):
        n = min(1_000_000, votes - start)
        parts.append(pl.DataFrame({
            "user_id": users.gather((rng.random(n) ** 2 * len(users)).astype(int)),
            "prompt": prompts.gather(rng.integers(0, len(prompts), n)), "response_a": answers(n), "response_b": answers(n),
            "label": labels.gather(rng.integers(0, 3, n)), "unused": answers(n)}))
    pl.concat(parts).write_parquet(path, compression="snappy", row_group_size=262_144)


CARD = """name = "generated"
source = "generated"
licence = "none"
[layout]
kind = "votes"
user_id = "user_id"
prompt = "prompt"
response_a = "response_a"
response_b = "response_b"
label = "label"
label_a = "a"
label_b = "b"
label_tie = "tie"
"""


def canonical(batch):
    """What ingestion makes of a batch, without its checks, hashes and splits."""
    swap = [label == "b" for label in batch["label"]]
    pairs = list(zip(batch["response_a"], batch["response_b"], swap))
    return {"prompt": [[{"role": "user", "content": p}] for p in batch["prompt"]],
            "chosen": [b if s else a for a, b, s in pairs], "rejected": [a if s else b for a, b, s in pairs],
            "tie": [label == "tie" for label in batch["label"]]}


def peer(job, source, out):
    """Runs in a process of its own; prints the seconds of loading before and of waiting for the disk after what counts."""
    loading = 0.0
    if job == "polars":
        import polars as pl
        pl.scan_parquet(source).select(COLUMNS).sink_parquet(out, compression="snappy")
    elif job == "polars-eager":
        import polars as pl
        pl.read_parquet(source, columns=COLUMNS).write_parquet(out, compression="snappy")
    else:
        import datasets
        datasets.disable_progress_bars()
        if job == "datasets":
            start = time.perf_counter()
            rows = datasets.load_dataset("parquet", data_files=source, columns=COLUMNS, split="train",
                                         cache_dir=out + ".cache")
            loading = time.perf_counter() - start
            rows = rows.map(canonical, batched=True, num_proc=THREADS,
                            remove_columns=["response_a", "response_b", "label"])
            rows.to_parquet(out)
        elif job == "datasets-tokens":
            import transformers
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            tokenizer = transformers.AutoTokenizer.from_pretrained(args.base)
            start = time.perf_counter()
            rows = datasets.load_dataset("parquet", data_files=source, split="train", cache_dir=out + ".cache")
            loading = time.perf_counter() - start
            rows = rows.map(lambda b: {"input_ids": tokenizer(b["text"], add_special_tokens=False)["input_ids"]},
                            batched=True, num_proc=THREADS, remove_columns=["text"])
            rows.save_to_disk(out)
    start = time.perf_counter()
    for folder, _, files in os.walk(out) if os.path.isdir(out) else [(os.path.dirname(out), [], [os.path.basename(out)])]:
        for name in files:
            with open(os.path.join(folder, name), "rb+") as file:
                os.fsync(file)
    print("SECONDS", json.dumps({"loading": loading, "sync": time.perf_counter() - start}))


if args.job:
    peer(args.job, args.program, args.out)
    sys.exit()

os.makedirs(args.work, exist_ok=True)
work = lambda name: os.path.join(args.work, name)  # noqa: E731
jobs, everything, ratios = {}, {}, {}


def clean(*names):
    for name in names:
        for path in (work(name), work(name) + ".cache"):
            shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.path.exists(path) and os.remove(path)


def measure(job, command):
    """Seconds of a command, and what it printed."""
    os.sync()  # what the job before wrote is not written during this one
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = child.communicate()
    seconds = time.perf_counter() - start
    if child.returncode:
        sys.exit("{} failed:\n{}\n{}".format(" ".join(command), out[-2000:], err[-2000:]))
    entry = jobs.setdefault(job, {"job": job, "seconds": [], "peak_mib": []})
    entry["seconds"].append(seconds)
    return seconds, out


def with_peak(job, command, inner=False):
    """As `measure`, through a wrapper that tells the peak of the child alone."""
    wrapper = ("import resource,subprocess,sys;r=subprocess.run(sys.argv[1:]);"
               "print('PEAK',resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/1024);sys.exit(r.returncode)")
    seconds, out = measure(job, [sys.executable, "-c", wrapper, *command])
    peak = float(out.split("PEAK ")[-1])
    figures = {"": seconds}
    if inner:
        parts = json.loads(out.split("SECONDS ")[-1].splitlines()[0])
        figures = {"": seconds - parts["sync"] - parts["loading"], ", on disk": seconds - parts["loading"]}
        if parts["loading"]:
            figures[", from the file, on disk"] = seconds
    del jobs[job]
    for what, value in figures.items():
        everything.setdefault(job + what, {"job": job + what, "seconds": [], "peak_mib": []})
        everything[job + what]["seconds"].append(value)
        everything[job + what]["peak_mib"].append(peak)
    print("{}: {:.1f} s, {:.0f} MiB".format(job, figures[""], peak), file=sys.stderr, flush=True)
    return figures


source = work("votes-{}.parquet".format(args.votes))
if not os.path.exists(source):
    generate(source, args.votes)
card = work("card.toml")
open(card, "w").write(CARD)
me = os.path.abspath(__file__)


def ours(name, selection):
    clean("ours.parquet", "ours.report.json")
    return with_peak(name, [args.program, "data", "ingest", source, "--card", card, "--out", work("ours.parquet"),
                            "--threads", str(THREADS), "--selection", selection])


def theirs(name, data=source, out="peer.parquet"):
    clean(out)
    return with_peak(name, [sys.executable, me, data, args.base, work(out), "--job", name], inner=True)


def note(a, b, x, y):
    for what, value in y.items():
        ratios.setdefault((a, b + what), []).append(value / x[""])


one = 'split = { by = "prompt", dev = 0.1, test = 0.2 }'
two = 'min_votes = 20\nduplicates = "drop"\n' + one
for i in range(args.rounds):
    mine, full = ours("ours", one), ours("ours, two passes", two)
    for name in ("polars", "polars-eager"):
        other = theirs(name)
        note("ours", name, mine, other)
        note("ours, two passes", name, full, other)
    if i < args.hf_rounds:
        other = theirs("datasets")
        note("ours", "datasets", mine, other)
        note("ours, two passes", "datasets", full, other)
        clean("peer.parquet")

# ---- tokens: distinct texts, rendered for the peer beforehand
import polars as pl  # noqa: E402

rows = args.texts // 2
small, texts = work("texts-votes.parquet"), work("texts.parquet")
frame = pl.read_parquet(source, columns=COLUMNS, n_rows=rows + rows // 8)
frame = frame.with_columns((pl.col("response_a") + " x" + pl.int_range(pl.len()).cast(pl.String)).alias("response_a"),
                           (pl.col("response_b") + " y" + pl.int_range(pl.len()).cast(pl.String)).alias("response_b"))
frame.head(rows).write_parquet(small)
clean("table.parquet", "table.report.json")
subprocess.run([args.program, "data", "ingest", small, "--card", card, "--out", work("table.parquet"), "--selection",
                'split = { by = "prompt", dev = 0.0, test = 0.0 }'], check=True, stdout=subprocess.DEVNULL)
import transformers  # noqa: E402

template = transformers.AutoTokenizer.from_pretrained(args.base)
probe = template.apply_chat_template([{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=True)
before, after = probe.split("\0")
rendered = [before + p + after + a + template.eos_token
            for p, pair in zip(frame["prompt"].head(rows), zip(frame["response_a"], frame["response_b"])) for a in pair]
pl.DataFrame({"text": rendered}).write_parquet(texts)


def tokens(table):
    clean("tokens.arrow")
    return with_peak("ours, tokens", [args.program, "data", "tokenise", table, "--tokenizer", args.base, "--out",
                                      work("tokens.arrow"), "--threads", str(THREADS)])


for _ in range(args.rounds):
    mine, other = tokens(work("table.parquet")), theirs("datasets-tokens", texts, "peer.tokens")
    note("ours, tokens", "datasets-tokens", mine, other)
clean("peer.tokens")

distinct = []
for path in args.real:
    clean("real.parquet", "real.report.json", "tokens.arrow")
    subprocess.run([args.program, "data", "ingest", path, "--out", work("real.parquet"), "--selection",
                    'split = { by = "prompt", dev = 0.0, test = 0.0 }'], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    seconds, out = measure("real", [args.program, "data", "tokenise", work("real.parquet"), "--tokenizer",
                                           args.base, "--out", work("tokens.arrow"), "--threads", str(THREADS)])
    said = out.split()
    name = os.path.join(*path.split(os.sep)[-2:])
    distinct.append({"file": name, "texts": int(said[3]), "distinct": int(said[0]), "seconds": seconds})

machine = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
result = {"machine": machine, "votes": args.votes, "bytes": os.path.getsize(source), "texts": args.texts,
          "jobs": list(everything.values()), "ratios": [{"ours": a, "peer": b, "speed": r} for (a, b), r in ratios.items()],
          "distinct": distinct}
json.dump(result, open(args.out, "w"), indent=1)
print("| job | seconds, median (range) | peak MiB |\n| --- | --- | --- |")
for j in everything.values():
    print("| {} | {:.1f} ({:.1f} to {:.1f}) | {:.0f} |".format(
        j["job"], statistics.median(j["seconds"]), min(j["seconds"]), max(j["seconds"]), max(j["peak_mib"])))
print("\n| ours | peer | peer seconds / our seconds (range) |\n| --- | --- | --- |")
for r in result["ratios"]:
    print("| {} | {} | {:.2f} ({:.2f} to {:.2f}) |".format(
        r["ours"], r["peer"], statistics.median(r["speed"]), min(r["speed"]), max(r["speed"])))
for d in distinct:
    print("\n{file}: {distinct} distinct of {texts} texts, tokenised in {seconds:.2f} s".format(**d))
print("\n{}; {} votes, {:.2f} GB as Parquet, {} texts".format(machine, args.votes, result["bytes"] / 1e9, args.texts))
