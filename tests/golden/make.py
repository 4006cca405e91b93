"""Makes the golden numbers of the tests, with transformers 5.23 on torch 2.11:

    python tests/golden/make.py [PATH/TO/SmolLM2-135M-Instruct.Q4_1.gguf]

smollm2.json   logits of the default base as transformers' own GGUF loading dequantises it, float32, every 509th
               vocabulary entry at every position; and token ids of texts without digits (transformers' converter does
               not isolate digits, llama.cpp and we do)
llama.json     logits of a tiny Llama whose weights are a formula, so that the test can make them again
"""
import json
import math
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
GGUF = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
    HERE, "..", "..", ".deps", "base", "SmolLM2-135M-Instruct.Q4_1.gguf")
TEXTS = ["What should I cook for a friend who is coming to dinner tonight?",
         "Ünïcödé — “quotes”, emoji 🙂 and\n\n\ttabs  and   spaces.",
         "def f(x):\n    return {'a': [x, -x]}  # a comment"]


def write(name, value):
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(value, f, indent=None, separators=(",", ":"), ensure_ascii=False)
        f.write("\n")


def smollm2():
    folder, name = os.path.split(GGUF)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    texts = [{"text": t, "ids": tokenizer(t)["input_ids"]} for t in TEXTS]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": TEXTS[0]}], tokenize=False,
                                         add_generation_prompt=True)
    rows = []
    for ids in [texts[0]["ids"], texts[1]["ids"], tokenizer(chat)["input_ids"]]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids):].tolist()
        rows.append({"ids": ids, "logits": [[round(float(v), 6) for v in row[::509]] for row in logits],
                     "logsumexp": [round(float(v), 6) for v in logits.logsumexp(-1)], "greedy": greedy})
    write("smollm2.json", {"stride": 509, "texts": texts, "chat": chat, "rows": rows})


def tiny():
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
                         rope_theta=10000.0, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).eval()
    for k, (name, p) in enumerate(sorted(model.named_parameters())):
        i = torch.arange(p.numel(), dtype=torch.float64)
        wave = torch.sin(0.37 * i + 1.3 * k)
        p.data = (1 + 0.1 * wave if p.dim() == 1 else 0.4 * wave).reshape(p.shape).float()
    ids = [[(7 * t * t + 3 * t + 5 * row) % 64 for t in range(length)] for row, length in enumerate([9, 5, 14])]
    rows = []
    for row in ids:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0]
        logp = torch.log_softmax(logits, -1)
        rows.append({"ids": row, "logits": [[round(float(v), 6) for v in r] for r in logits],
                     "answer_start": 3, "answer_logp": sum(float(logp[t - 1, row[t]]) for t in range(3, len(row)))})
    assert math.isfinite(rows[0]["answer_logp"])
    write("llama.json", {"names": sorted(n for n, _ in model.named_parameters()), "rows": rows})


def adamw():
    """100 steps of torch.optim.AdamW with clip_grad_norm_ on f(x) = sum((x - t)^2 * s)."""
    x = torch.tensor([1.0, -2.0, 3.0, 0.5], requires_grad=True)
    target, scale = torch.tensor([0.0, 1.0, 2.5, 0.5]), torch.tensor([1.0, 10.0, 0.1, 3.0])
    optimizer = torch.optim.AdamW([x], lr=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    trace = []
    for step in range(100):
        optimizer.zero_grad()
        ((x - target) ** 2 * scale).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_([x], 1.0)
        optimizer.step()
        if step % 20 == 19:
            trace.append({"step": step, "norm": float(norm), "x": x.tolist()})
    write("adamw.json", trace)


tiny()
adamw()
smollm2()
