#!/usr/bin/env python3
"""Compares a CUDA device with the CPU, stage by stage, on tiny random models. Needs Python's standard library and the release binary.

    python3 tests/gpu_check.py --binary target/release/idiolect               cuda:0 against the CPU
    python3 tests/gpu_check.py --binary target/release/idiolect --rehearse    without a GPU: libtorch's plain kernels against this CPU's, for CI

On a GPU machine without Rust, carry the stripped binary and this file, and run it with a Python that has torch 2.11.0: the loader is pointed
at that torch's `lib`. Everything runs in float32. Each step has a time limit, all together end within `--minutes` (4 by default), and the
JSON report is written after each step, so a crash or a limit loses nothing.

What must agree, and how closely (`TOLERANCE`): logits by their largest difference over the largest logit; every number of a stage's
`metrics.jsonl` except times and accuracies by its relative difference; trained tensors by the norm of the difference over the norm. Training divides by small second
moments, so tensors may differ more than logits. After PPO's first round the sampled tokens may differ, so later rounds need only be finite.

Exit code: 0 if every step agrees, 1 otherwise. Keys of the report: `device`, `binary`, `torch_lib`, `passed`, `seconds`, and `steps`, each with `name`,
`ok`, `seconds`, `detail` and `differences` (what was compared: its difference, unitless).
"""
import argparse
import array
import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

# In a rehearsal the device is the CPU without our own kernels, which takes the path that a GPU takes, and with libtorch's plainest, which round
# otherwise.
PLAIN = {"IDIOLECT_KERNELS": "libtorch", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}

# Scores of PPO come from reward models that each side trained for itself.
TOLERANCE = {"logits": 1e-4, "metrics": 1e-2, "first round": 5e-2, "tensors": 5e-2, "bfloat16 logits": 5e-2}
STEPS = 8
TORCH = "2.11.0"


# ---- files, read and written without libraries ---------------------------------------------------------------------------------------


def write_safetensors(path, tensors):
    header, at, blobs = {}, 0, []
    for name, (shape, values) in tensors.items():
        blob = array.array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def read_safetensors(path):
    """Float32 tensors by name, flat; other types are left out."""
    with open(path, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header, data = json.loads(f.read(length)), f.read()
    out = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            out[name] = array.array("f", data[start:end])
    return out


def read_npy(path):
    with open(path, "rb") as f:
        data = f.read()
    if data[:6] != b"\x93NUMPY":
        raise ValueError("{}: not a NumPy file".format(path))
    (length,) = struct.unpack("<H", data[8:10])
    if b"<f4" not in data[10 : 10 + length]:
        raise ValueError("{}: not float32".format(path))
    return array.array("f", data[10 + length :])


# ---- differences ---------------------------------------------------------------------------------------------------------------------


def largest(a, b):
    """The largest difference over the largest magnitude; infinite for different lengths or a number that is not finite."""
    if len(a) != len(b) or not len(a) or not all(map(math.isfinite, a)) or not all(map(math.isfinite, b)):
        return math.inf
    return max(abs(x - y) for x, y in zip(a, b)) / (max(map(abs, a)) or 1.0)


def norm(a, b):
    """The norm of the difference over the norm; infinite as above."""
    if len(a) != len(b) or not all(map(math.isfinite, a)) or not all(map(math.isfinite, b)):
        return math.inf
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b))) / (math.sqrt(sum(x * x for x in a)) or 1.0)


def numbers(value, path=""):
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        yield path, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, path + "/" + key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from numbers(inner, path + "/" + str(i))


def compare_metrics(a, b, first_line_only):
    """The largest relative difference of any number of two `metrics.jsonl`, times and accuracies excepted, and where it is."""
    with open(a) as f, open(b) as g:
        lines, others = f.read().splitlines(), g.read().splitlines()
    if len(lines) != len(others) or not lines:
        return math.inf, "{} lines and {}".format(len(lines), len(others))
    worst = (0.0, "")
    for i, (line, other) in enumerate(zip(lines, others)):
        mine, theirs = dict(numbers(json.loads(line))), dict(numbers(json.loads(other)))
        if mine.keys() != theirs.keys():
            return math.inf, "line {}: other keys".format(i + 1)
        for key, x in mine.items():
            y = theirs[key]
            if not math.isfinite(x) or not math.isfinite(y):
                return math.inf, "line {}, {}".format(i + 1, key)
            # A share of correct signs jumps where margins are rounding, as in a first step.
            if any(word in key for word in ("second", "per_s", "memory", "accurac")) or (first_line_only and i > 0):
                continue
            difference = abs(x - y) / max(abs(x), abs(y), 1e-2)
            worst = max(worst, (difference, "line {}, {}".format(i + 1, key)))
    return worst


def self_test():
    """The comparisons notice what they should."""
    a = array.array("f", [1.0, -2.0, 3.0])
    assert largest(a, a) == 0 and norm(a, a) == 0
    assert abs(largest(a, array.array("f", [1.0, -2.0, 3.3])) - 0.1) < 1e-6
    assert largest(a, a[:2]) == math.inf and norm(a, array.array("f", [1.0, math.nan, 3.0])) == math.inf
    with tempfile.TemporaryDirectory() as folder:
        one, two = os.path.join(folder, "one"), os.path.join(folder, "two")
        for path, loss in ((one, 1.0), (two, 1.1)):
            with open(path, "w") as f:
                f.write(json.dumps({"step": 0, "users": {"a": {"loss": loss, "seconds": loss * 9}}}) + "\n")
        assert compare_metrics(one, one, False)[0] == 0 and 0.08 < compare_metrics(one, two, False)[0] < 0.1
        write_safetensors(one, {"x": ([3], a)})
        assert list(read_safetensors(one)["x"]) == list(a)


# ---- a tiny model, votes and pipelines -----------------------------------------------------------------------------------------------


def byte_tokens():
    """GPT-2's printable character for every byte."""
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def write_model(folder, family, rng):
    os.makedirs(folder)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = special + byte_tokens()
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, t in enumerate(special)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    e, m, heads, kv_heads, layers = 64, 96, 4, 2, 4
    kv = e // heads * kv_heads
    config = {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[family]], "model_type": family,
        "hidden_act": "silu", "vocab_size": len(tokens), "hidden_size": e, "intermediate_size": m, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    write = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": 2},
        "tokenizer_config.json": {
            "bos_token": special[1], "eos_token": special[2], "pad_token": special[0], "model_max_length": 512,
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "chat_template": template,
        },  # fmt: skip
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []},
        },  # fmt: skip
    }
    for name, value in write.items():
        with open(os.path.join(folder, name), "w") as f:
            json.dump(value, f)

    def matrix(*shape, scale=0.2, plus=0.0):
        return list(shape), [plus + rng.uniform(-scale, scale) for _ in range(math.prod(shape))]

    tensors = {"model.embed_tokens.weight": matrix(len(tokens), e), "model.norm.weight": matrix(e, plus=1.0)}
    for i in range(layers):
        sizes = {
            "self_attn.q_proj": (e, e), "self_attn.k_proj": (kv, e), "self_attn.v_proj": (kv, e), "self_attn.o_proj": (e, e),
            "mlp.gate_proj": (m, e), "mlp.up_proj": (m, e), "mlp.down_proj": (e, m),
        }  # fmt: skip
        for name, shape in sizes.items():
            tensors["model.layers.{}.{}.weight".format(i, name)] = matrix(*shape)
            if family == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                tensors["model.layers.{}.{}.bias".format(i, name)] = matrix(shape[0])
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors["model.layers.{}.{}.weight".format(i, name)] = matrix(e, plus=1.0)
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)


def write_votes(path, rng):
    """One user likes responses with `x`, the other those without."""
    with open(path, "w") as f:
        for n in range(48):
            with_x = "".join(rng.choice("xyz ") for _ in range(8)) + "x"
            without = "".join(rng.choice("abc ") for _ in range(6)) + "d"
            first = with_x if n % 3 else without
            second = without if n % 3 else with_x
            likes_x = n % 2 == 0
            label = "a" if (first == with_x) == likes_x else "b"
            row = {"user": ["ann", "bob"][n % 2], "prompt": "question {}?".format(n // 4), "a": first, "b": second, "label": label}
            f.write(json.dumps(row) + "\n")


OPTIMIZER = """[{table}]
learning_rate = 1e-3
schedule = "linear"
warmup_ratio = 0.1
weight_decay = 0.0
betas = [0.9, 0.999]
epsilon = 1e-8
max_grad_norm = 1.0
"""
LORA = '[lora]\nrank = 2\nalpha = 4\ntargets = ["q_proj", "v_proj"]\nblocks = { last = 2 }\n'
ROWS = 'max_row_tokens = 200\nover_long = "error"\nmicro_batch_tokens = 400\n'
REWARD = (
    'variant = "p-share-lora"\npooling = "mean"\nhead_scale = 1.0\nbatch_votes = 8\n'
    'phases = [{ factors = "global", epochs = 0.5 }, { factors = "personal", epochs = 1.5 }]\n'
    'token_budget = 40000\nactivations = "keep"\nsave_every_steps = 100\n' + ROWS
)
CONFIGS = {
    "import": 'folder = "../model"\n',
    "data": 'card = "../card.toml"\npath = "../votes.jsonl"\n[selection]\nmin_votes = 4\nsplit = { by = "prompt", dev = 0.1, test = 0.2 }\nstrict = false\n',
    "sft": 'scope = "per-user"\nbatch_answers = 4\nmax_epochs = 2\ntoken_budget = 20000\nactivations = "recompute"\nsave_every_steps = 100\n'
    + ROWS + LORA + OPTIMIZER.format(table="optimizer"),  # fmt: skip
    "reward": REWARD + LORA + OPTIMIZER.format(table="optimizer"),
    # Users' factors on disk, pulled towards their mean.
    "reward-on-disk": REWARD + 'personal_factors = "disk"\n[objective]\nshrinkage = 0.1\n' + LORA + OPTIMIZER.format(table="optimizer"),
    "pairs": 'from = "votes"\n',
    "dpo": 'start = "base"\nbeta = 0.1\nbatch_pairs = 2\nmax_epochs = 2\ntoken_budget_per_user = 20000\nactivations = "recompute"\n'
    "save_every_steps = 100\n" + ROWS + LORA + OPTIMIZER.format(table="optimizer"),
    "ppo": 'start = "base"\nsteps = 3\nprompts_per_step = 3\nsamples_per_prompt = 2\nmax_new_tokens = 6\ntemperature = 1.0\nrollout_rows = 8\n'
    'epochs = 2\nminibatches = 2\nclip = 0.2\nwhiten_advantages = true\nguard = "off"\nactivations = "recompute"\nsave_every_steps = 100\n' + ROWS
    + "[method.ppo]\ngamma = 1.0\nlambda = 0.95\nvalue_clip = 0.2\nwhiten_rewards = true\nwarmup_steps = 1\n"
    + OPTIMIZER.format(table="method.ppo.optimizer")
    + '[kl]\nestimator = "k3"\ncontrol = { fixed = { beta = 0.05 } }\n'
    + "[reward]\ncalibration_samples_per_prompt = 2\nclip = 5.0\nmissing_end_penalty = 0.1\ncaution = 0.0\n"
    + LORA + OPTIMIZER.format(table="optimizer"),  # fmt: skip
    "export": 'merged = ["ann"]\nprobe = "question 5?"\ntolerance = 1e-3\n',
}
CARD = (
    'name = "gpu-check"\nsource = "tests/gpu_check.py"\nlicence = "MIT OR Apache-2.0"\n[layout]\nkind = "votes"\nuser_id = "user"\nprompt = "prompt"\n'
    'response_a = "a"\nresponse_b = "b"\nlabel = "label"\nlabel_a = "a"\nlabel_b = "b"\nlabel_tie = "tie"\n'
)
# Pipelines by name: stages, each with its config.
PIPELINES = {
    "sft": ["import", "data", "sft"],
    "reward": ["import", "data", "reward"],
    "reward-on-disk": ["import", "data", ("reward", "reward-on-disk")],
    "dpo": ["import", "data", "pairs", "dpo", "export"],
    "ppo": ["import", "data", "reward", "ppo"],
}


def write_workspace(folder):
    rng = random.Random(5)
    write_model(os.path.join(folder, "model"), "llama", rng)
    write_model(os.path.join(folder, "qwen2"), "qwen2", rng)
    write_votes(os.path.join(folder, "votes.jsonl"), rng)
    for name in ("configs", "pipelines"):
        os.makedirs(os.path.join(folder, name))
    with open(os.path.join(folder, "card.toml"), "w") as f:
        f.write(CARD)
    for name, text in CONFIGS.items():
        with open(os.path.join(folder, "configs", name + ".toml"), "w") as f:
            f.write(text)
    for name, stages in PIPELINES.items():
        for side in ("cpu", "device"):
            with open(os.path.join(folder, "pipelines", "{}-{}.toml".format(name, side)), "w") as f:
                f.write('name = "{}-{}"\nseed = 3\n'.format(name, side))
                for stage in stages:
                    kind, config = stage if isinstance(stage, tuple) else (stage, stage)
                    f.write('[[stage]]\nkind = "{}"\ninclude = "../configs/{}.toml"\n'.format(kind, config))


# ---- running -------------------------------------------------------------------------------------------------------------------------


def torch_lib():
    """`lib` of the torch that this Python would import, without importing it; none if there is none of the release that the binary needs."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    folder = os.path.join(spec.submodule_search_locations[0], "lib") if spec else None
    if not folder or not os.path.exists(os.path.join(folder, "libtorch_cpu.so")):
        return None
    with open(os.path.join(folder, "..", "version.py")) as f:
        version = next((line.split("'")[1] for line in f if line.startswith("__version__")), "?")
    if version.split("+")[0] != TORCH:
        sys.exit("gpu_check: expected torch {}, found {}\nhint: --torch-lib DIR names the folder of another libtorch_cpu.so".format(TORCH, version))
    return folder


# ./setup lays both halves of libtorch out here on a machine with a driver; the program finds them by itself.
FETCHED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".deps", "torch", "cuda", "libtorch_cuda.so")


class Check:
    def __init__(self, options):
        self.binary = os.path.abspath(options.binary)
        with open(self.binary, "rb") as f:
            if b"IDIOLECT_ABORT_AFTER" in f.read():
                sys.exit("gpu_check: expected the program as users build it, found one with the tests' kill points\nhint: just build")
        self.device = ["--device", "cpu" if options.rehearse else options.device, "--threads", "2"]
        self.plain = PLAIN if options.rehearse else {}
        self.cpu = ["--device", "cpu", "--threads", "1"]
        self.lib = os.path.abspath(options.torch_lib) if options.torch_lib else None if options.rehearse or os.path.exists(FETCHED) else torch_lib()
        self.environment = dict(os.environ)
        if self.lib:
            before = self.environment.get("LD_LIBRARY_PATH")
            self.environment["LD_LIBRARY_PATH"] = self.lib + (":" + before if before else "")
        self.started = time.monotonic()
        self.deadline = self.started + 60 * options.minutes
        self.out = os.path.abspath(options.out)
        self.folder = tempfile.mkdtemp(prefix="gpu-check-")
        self.report = {
            "device": "the CPU with plain kernels (rehearsal)" if options.rehearse else options.device,
            "binary": self.binary, "torch_lib": self.lib, "passed": False, "seconds": 0.0, "steps": [],
        }  # fmt: skip

    def run(self, arguments, limit):
        limit = min(limit, self.deadline - time.monotonic())
        if limit <= 0:
            raise TimeoutError("no time was left")
        try:
            changes = self.plain if arguments[-len(self.device) :] == self.device else {}
            done = subprocess.run([self.binary] + arguments, cwd=self.folder, env={**self.environment, **changes}, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise TimeoutError("`idiolect {}` did not end within {:.0f} s".format(" ".join(arguments), limit)) from None
        if done.returncode != 0:
            raise RuntimeError("`idiolect {}`: exit code {}: {}".format(" ".join(arguments), done.returncode, done.stderr.strip()[-600:]))
        return done.stdout

    def step(self, name, work):
        begin = time.monotonic()
        entry = {"name": name, "ok": False, "seconds": 0.0, "detail": "", "differences": {}}
        self.report["steps"].append(entry)
        try:
            entry["detail"] = work(entry["differences"]) or ""
            entry["ok"] = True
        except Exception as error:  # a failed step must not hide the others
            entry["detail"] = "{}: {}".format(type(error).__name__, error)
        entry["seconds"] = round(time.monotonic() - begin, 2)
        self.report["seconds"] = round(time.monotonic() - self.started, 1)
        self.write()
        print("{:16s} {:4s} {:6.1f} s  {}".format(name, "ok" if entry["ok"] else "FAIL", entry["seconds"], entry["detail"]), flush=True)

    def write(self):
        with open(self.out + ".part", "w") as f:
            json.dump(self.report, f, indent=1, allow_nan=False)
        os.replace(self.out + ".part", self.out)

    # -- steps --

    def doctor(self, _):
        said = self.run(["doctor"], 120)  # loading the CUDA libraries for the first time is slow
        name = self.device[1]
        if not any(line.split()[:1] == [name] for line in said.splitlines()):
            raise RuntimeError("doctor does not list {}: {}".format(name, said))
        return next(line for line in said.splitlines() if line.split()[:1] == [name])

    def logits(self, model, side, flags, dtype="float32", adapter=None):
        path = os.path.join(self.folder, "logits-{}.npy".format(side))
        arguments = ["score", "--model", model, "--prompt", "question 5? say it", "--greedy", "4", "--dtype", dtype, "--dump", path]
        self.run(arguments + (["--adapter", adapter] if adapter else []) + flags, 60)
        return read_npy(path)

    def agree(self, differences, what, kind, difference, where=""):
        differences[what] = difference if math.isfinite(difference) else str(difference)
        if not difference <= TOLERANCE[kind]:
            raise AssertionError("{} differ by {:.3g} ({}), at most {:.0e} expected".format(what, difference, where or kind, TOLERANCE[kind]))

    def score(self, differences):
        for model in ("model", "qwen2"):
            wanted = self.logits(model, "cpu", self.cpu)
            self.agree(differences, model + " logits", "logits", largest(wanted, self.logits(model, "device", self.device)))
            narrow = largest(wanted, self.logits(model, "device", self.device, dtype="bfloat16"))
            self.agree(differences, model + " logits in bfloat16", "bfloat16 logits", narrow)

    def stage(self, pipeline, kind, tensors, first_line_only=False):
        def work(differences):
            for side, flags in (("cpu", self.cpu), ("device", self.device)):
                file = os.path.join("pipelines", "{}-{}.toml".format(pipeline, side))
                self.run(["run", file, "--dtype", "float32"] + flags, 60)
            cpu, device = (os.path.join(self.folder, "checkpoints", "{}-{}".format(pipeline, side), kind) for side in ("cpu", "device"))
            metrics = [os.path.join(folder, "metrics.jsonl") for folder in (cpu, device)]
            kind_of = "first round" if first_line_only else "metrics"
            self.agree(differences, "metrics", kind_of, *compare_metrics(*metrics, first_line_only))
            mine, theirs = (read_safetensors(os.path.join(folder, tensors)) for folder in (cpu, device))
            if mine.keys() != theirs.keys() or not mine:
                raise AssertionError("other tensors: {} and {}".format(sorted(mine), sorted(theirs)))
            if first_line_only:
                if not all(math.isfinite(v) for values in theirs.values() for v in values):
                    raise AssertionError("a trained number is not finite")
                return None
            worst = max((norm(mine[name], theirs[name]), name) for name in mine)
            self.agree(differences, "tensors", "tensors", *worst)

        return work

    def export(self, differences):
        wanted = self.logits("model", "cpu", self.cpu, adapter="checkpoints/dpo-device/export/adapters/ann")
        got = self.logits("model", "device", self.device, adapter="checkpoints/dpo-device/export/adapters/ann")
        self.agree(differences, "logits of an adapter", "logits", largest(wanted, got))
        merged = self.logits("checkpoints/dpo-device/export/merged/ann", "cpu", self.cpu)
        self.agree(differences, "logits of a merged model", "logits", largest(wanted, merged))
        base = largest(wanted, self.logits("model", "cpu", self.cpu))
        if base < 1e-3:
            raise AssertionError("the adapter changes nothing ({:.1e})".format(base))

    def all(self):
        try:
            write_workspace(self.folder)
            self.step("doctor", self.doctor)
            self.step("score", self.score)
            self.step("sft", self.stage("sft", "sft", "policies.safetensors"))
            self.step("reward", self.stage("reward", "reward", "reward.safetensors"))
            self.step("reward on disk", self.stage("reward-on-disk", "reward", "reward.safetensors"))
            self.step("dpo", self.stage("dpo", "dpo", "policies.safetensors"))
            self.step("ppo", self.stage("ppo", "ppo", "policies.safetensors", first_line_only=True))
            self.step("export", self.export)
            self.end()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        return self.report["passed"]

    def end(self):
        self.report["passed"] = len(self.report["steps"]) == STEPS and all(s["ok"] for s in self.report["steps"])
        self.write()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True, help="the release binary of idiolect")
    parser.add_argument("--device", default="cuda:0", help="the device that is compared with the CPU")
    parser.add_argument("--rehearse", action="store_true", help="plain kernels of the CPU in place of a CUDA device")
    parser.add_argument("--torch-lib", help="folder of libtorch_cpu.so [default: that of this Python's torch]")
    parser.add_argument("--out", default="gpu-check.json", help="the report, written after each step")
    parser.add_argument("--minutes", type=float, default=4, help="the time for all steps together")
    options = parser.parse_args()
    if not os.path.exists(options.binary):
        sys.exit("gpu_check: {}: expected the release binary, found nothing\nhint: just build".format(options.binary))
    self_test()
    check = Check(options)
    if not options.rehearse and not check.lib and not os.path.exists(FETCHED):
        shutil.rmtree(check.folder)
        sys.exit("gpu_check: expected a Python with torch " + TORCH + ", found none\nhint: --torch-lib DIR names the folder of libtorch_cpu.so")
    passed = check.all()
    print("{} in {:.0f} s; the report is in {}".format("all steps agree" if passed else "NOT all steps agree", check.report["seconds"], check.out))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
