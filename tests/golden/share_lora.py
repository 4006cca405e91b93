"""The losses of 20 steps of P-ShareLoRA (SI: personal down-projections, shared up-projections and head) in plain PyTorch, beside
which `reward::twenty_steps_equal_a_pytorch_loop` is held.

    IDIOLECT_DUMP=FOLDER cargo test --release --package idiolect --test whole_program -- twenty_steps
    python tests/golden/share_lora.py FOLDER [--out tests/golden/share_lora.json]      # torch 2.11, transformers 5.23

FOLDER holds what both start from: the tiny model, the factors as drawn, and every step's rows. Nothing is shared with the
program but these: transformers runs the network row by row, autograd goes back, and the optimiser is written out below.
An absent user's factors and moments do not move, and their step count does not rise (lazy Adam).
"""
import argparse
import json
import os

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "share_lora.json"))
args = parser.parse_args()
plan = json.load(open(os.path.join(args.folder, "plan.json")))
start = load_file(os.path.join(args.folder, "start.safetensors"))
model = AutoModelForCausalLM.from_pretrained(os.path.join(args.folder, "model"), dtype=torch.float32)
model.requires_grad_(False)

parameters = {name: torch.nn.Parameter(t.clone()) for name, t in start.items()}
personal = [n for n in parameters if n.endswith(".down")]
user = None  # whose row is being computed


def adapt(path, layer):
    def hook(module, inputs, output):
        down, up = parameters[path + ".down"][user], parameters[path + ".up"][0]
        return output + (inputs[0] @ down.T @ up.T) * plan["scale"]
    layer.register_forward_hook(hook)


for path, layer in model.named_modules():
    if path + ".down" in parameters:
        adapt(path, layer)


def reward(row):
    hidden = model.model(input_ids=torch.tensor([row["ids"]])).last_hidden_state[0]  # normed, [T, E]
    return parameters["score.weight"][0] @ hidden[row["answer_start"]:].mean(0)


first = {n: torch.zeros_like(p) for n, p in parameters.items()}
second = {n: torch.zeros_like(p) for n, p in parameters.items()}
steps = {}


def adam(name, index, gradient, rate, count):
    b1, b2 = plan["betas"]
    m, v = first[name][index], second[name][index]
    m.mul_(b1).add_(gradient, alpha=1 - b1)
    v.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    step = (m / (1 - b1 ** count)) / ((v / (1 - b2 ** count)).sqrt() + plan["epsilon"])
    parameters[name].data[index].sub_(rate * step)


losses = []
for number, votes in enumerate(plan["steps"]):
    total = 0.0
    for p in parameters.values():
        p.grad = None
    for vote in votes:
        user = vote["user"]
        margin = reward(vote["chosen"]) - reward(vote["rejected"])
        loss = -torch.nn.functional.logsigmoid(margin)
        (loss / len(votes)).backward()
        total += loss.item() / len(votes)
    losses.append(total)
    rate = plan["rates"][number]
    with torch.no_grad():
        shared = [n for n in parameters if n not in personal]
        for owner, names in [(None, shared)] + [(u, personal) for u in sorted({v["user"] for v in votes})]:
            index = slice(None) if owner is None else owner
            gradients = [parameters[n].grad[index] for n in names]
            norm = torch.sqrt(sum((g ** 2).sum() for g in gradients))
            clip = min(1.0, plan["max_grad_norm"] / (norm.item() + 1e-6))
            steps[owner] = steps.get(owner, 0) + 1
            for name, gradient in zip(names, gradients):
                adam(name, index, gradient * clip, rate, steps[owner])
with open(args.out, "w") as f:
    json.dump({"losses": [round(x, 7) for x in losses]}, f)
    f.write("\n")
print(losses)
