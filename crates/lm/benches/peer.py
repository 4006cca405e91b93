"""The Python side of `just bench-lm`: transformers (and PEFT), one measurement a process, one JSON line.

    peer.py generate MODEL INPUTS.json DTYPE THREADS BATCH NEW REPEATS
    peer.py step MODEL INPUTS.json DTYPE THREADS ROWS TOKENS STEPS keep|recompute
    peer.py limit MODEL INPUTS.json DTYPE THREADS

The same inputs and work as benches/peers.rs. A step asks for logits at the scored positions only, as TRL does.
"""
import json
import os
import resource
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402

what, model_path, inputs_path, dtype, threads, *rest = sys.argv[1:]
device = os.environ.get("IDIOLECT_DEVICE", "cpu")
torch.set_num_threads(int(threads))
torch.manual_seed(0)
dtype = getattr(torch, dtype)
inputs = json.load(open(inputs_path))


def load():
    from transformers import AutoModelForCausalLM
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).to(device)
    return model, time.perf_counter() - start


def synchronize():
    if device != "cpu":
        torch.cuda.synchronize()


def generate(batch, new, repeats):
    model, load_s = load()
    model.eval()
    rows = [inputs["prompts"][i % len(inputs["prompts"])] for i in range(batch)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=device)

    def run(n):
        start = time.perf_counter()
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=True,
                             temperature=0.7, top_k=0, top_p=1.0, use_cache=True, pad_token_id=0)
        synchronize()
        assert out.shape[1] == longest + n
        return time.perf_counter() - start

    run(8)
    prefill = [run(1) for _ in range(repeats)]
    return {"tokens": batch * new, "prompt_tokens": sum(map(len, rows)), "prefill_s": prefill,
            "total_s": [run(new) for _ in range(repeats)], "load_s": load_s}


def step(rows, tokens, steps, activations):
    from peft import LoraConfig, get_peft_model
    model, load_s = load()
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"],
                                             task_type="CAUSAL_LM"))
    model.train()
    if activations == "recompute":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    ids = torch.tensor([inputs["stream"][i * tokens:(i + 1) * tokens] for i in range(rows)], device=device)
    half = tokens // 2
    spans, value = [], 0.0
    for _ in range(steps + 1):  # the first is not timed
        start = time.perf_counter()
        logits = model(input_ids=ids, logits_to_keep=half + 1, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), ids[:, half:].reshape(-1))
        loss.backward()
        model.zero_grad()
        synchronize()
        value = loss.item()
        spans.append(time.perf_counter() - start)
    return {"rows": rows, "tokens_per_row": tokens, "step_s": spans[1:], "loss": value, "load_s": load_s}


def limit():
    """GFLOP/s of [2048 x 576] x [576 x 1536], plain; GB/s of a read."""
    x, w = torch.randn(2048, 576, device=device, dtype=dtype), torch.randn(1536, 576, device=device, dtype=dtype)
    out = torch.empty(2048, 1536, device=device, dtype=dtype)
    spans, end = [], time.perf_counter() + 0.7
    while time.perf_counter() < end or len(spans) < 5:
        start = time.perf_counter()
        torch.mm(x, w.t(), out=out)
        synchronize()
        spans.append(time.perf_counter() - start)
    big, reads = torch.ones(64 << 20), []
    for _ in range(7):
        start = time.perf_counter()
        big.sum()
        reads.append(time.perf_counter() - start)
    return {"gflops": 2 * 2048 * 576 * 1536 / 1e9 / statistics.median(spans), "read_gb_s": big.numel() * 4 / 1e9 / min(reads)}


numbers = [int(r) if r.isdigit() else r for r in rest]
result = {"generate": generate, "step": step, "limit": limit}[what](*numbers)
result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print("RESULT " + json.dumps(result), flush=True)
