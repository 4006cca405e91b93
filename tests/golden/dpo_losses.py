"""The losses of TRL's DPOTrainer on made-up log-probabilities, pair by pair, by its own `_compute_loss`.

    python tests/golden/dpo_losses.py        (needs trl==1.16.0 with its dependencies)

Writes dpo_losses.json beside itself: {"pairs": [{"policy": [chosen, rejected], "reference": [chosen, rejected]}], each a list of the
tokens' log-probabilities, "cases": [{"loss", "beta", "label_smoothing", "ld_alpha", "losses": one a pair}]}.
"""
import json
import os
import random
from collections import defaultdict
from types import SimpleNamespace

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402

random.seed(5)
lengths = [(3, 5), (6, 2), (4, 4), (1, 7)]
draw = lambda n: [round(random.uniform(-4, -0.1), 4) for _ in range(n)]  # noqa: E731
pairs = [{"policy": [draw(a), draw(b)], "reference": [draw(a), draw(b)]} for a, b in lengths]


def loss_of(pair, loss, beta, label_smoothing, ld_alpha):
    width = max(len(x) for x in pair["policy"])
    pad = lambda rows: torch.tensor([r + [0.0] * (width - len(r)) for r in rows], dtype=torch.float64)  # noqa: E731
    mask = torch.tensor([[0] + [1] * len(r) + [0] * (width - len(r)) for r in pair["policy"]])  # a prompt of one token
    given = iter([pad(pair["policy"]), pad(pair["reference"])])

    def model(**_):
        x = next(given)
        return SimpleNamespace(log_probs=x, entropy=torch.zeros_like(x), mean_logits=torch.zeros_like(x),
                               token_accuracy=torch.zeros_like(x), is_top1=torch.zeros_like(x).bool(), log_sum_sq_probs=torch.zeros_like(x))

    gather = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda m: m)
    host = SimpleNamespace(
        model=torch.nn.Identity(), ref_model=model, accelerator=gather, aux_loss_enabled=False, ld_alpha=ld_alpha,
        precompute_ref_logps=False, f_divergence_type="reverse_kl", loss_types=[loss], loss_weights=[1.0], beta=beta,
        label_smoothing=label_smoothing, use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
        _tp_size=1, args=SimpleNamespace(gradient_checkpointing_kwargs=None))
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    import trl.trainer.dpo_trainer as module
    module.disable_gradient_checkpointing = lambda *a, **k: torch.no_grad()
    return DPOTrainer._compute_loss(host, model, inputs, False).item()


cases = []
for loss, beta, smoothing, alpha in [("sigmoid", 0.1, 0.0, None), ("sigmoid", 0.5, 0.0, 0.3), ("hinge", 0.1, 0.0, None),
                                     ("ipo", 0.2, 0.0, None), ("robust", 0.1, 0.2, None), ("sigmoid", 0.1, 0.0, 0.0)]:
    cases.append({"loss": loss, "beta": beta, "label_smoothing": smoothing, "ld_alpha": alpha,
                  "losses": [loss_of(p, loss, beta, smoothing, alpha) for p in pairs]})
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "dpo_losses.json"), "w") as f:
    json.dump({"pairs": pairs, "cases": cases}, f, indent=1)
    f.write("\n")
