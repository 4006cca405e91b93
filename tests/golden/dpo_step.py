"""A step of TRL's DPOTrainer with PEFT, from rows to gradients, and two steps of AdamW:

    python tests/golden/dpo_step.py [OUT_FOLDER]        (needs torch==2.11.0 transformers==5.23.0 trl==1.16.0 peft==0.21.2 datasets)

The policy is a tiny Llama with LoRA, the reference the same with its adapter off. TRL's own loop runs: its collator pads and masks the rows,
its `_compute_loss` gives the loss, then come backward pass, clip and AdamW. What TRL 1.16 does not have in one call is made of its parts:

- conservative DPO is its `aot` loss, which with one pair is just that; a batch is the mean over its pairs;
- our `nll` is its `sft` loss with a weight, which with one pair is the mean over the chosen response's tokens;
- SimPO is `CPOTrainer.cpo_loss` on `CPOTrainer.get_batch_logps`;
- weights of pairs: TRL has none. Each pair's loss is TRL's, the mean over pairs is weighted here.

dpo_step.json: {"config", "names": the base; "lora": {"rank", "alpha", "from", "to", "factor", "paths"}; "prompts": ids; "pairs": [{"prompt",
"chosen", "rejected", "weight"}]; "users": [{"name", "first": number of the first factor's wave, "beta", "pairs": indices, "policy" and
"reference": [chosen, rejected] log-probabilities of each pair}]; "cases": [{"name", "loss", "label_smoothing", "nll", "ld_alpha",
"weighted", "users": [{"loss": of the batch, "losses": of each pair, "gradients": of all factors}]}]; "adamw": settings, with "users":
[{"norms": before the clip, of each step, "factors": after both}]}. Numbers have seven significant digits.
"""
import os
import sys
import tempfile
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", TRL_EXPERIMENTAL_SILENCE="1")
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from trl import DPOConfig, DPOTrainer  # noqa: E402
from trl.experimental.cpo import CPOTrainer  # noqa: E402

import tiny  # noqa: E402

torch.set_num_threads(1)
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))


ids = tiny.ids
PROMPTS = [ids(4, 1), ids(7, 2), ids(3, 3)]
A, B = ids(5, 4) + [tiny.END], ids(2, 5) + [tiny.END]
CUT = ids(8, 6)  # reached the length limit: no end token
PAIRS = [  # prompt, chosen, rejected, weight; lengths and endings differ on both sides, one response is another's beginning
    (0, A, B, 1.0), (0, B, CUT, 0.25), (1, CUT, ids(1, 7) + [tiny.END], 2.0), (1, ids(6, 6) + [tiny.END], CUT, 0.5),
    (2, A, ids(4, 8), 1.5), (2, [tiny.END], A, 3.0)]
PAIRS = [{"prompt": p, "chosen": c, "rejected": r, "weight": w} for p, c, r, w in PAIRS]
USERS = [{"name": "ann", "first": 100, "beta": 0.3, "pairs": [0, 1, 2, 3, 4]}, {"name": "bob", "first": 200, "beta": 0.1, "pairs": [5, 3, 0]}]
PLAIN = {"loss": "sigmoid", "label_smoothing": 0.0, "nll": 0.0, "ld_alpha": None, "weighted": False}
CASES = [
    dict(PLAIN, name="sigmoid"), dict(PLAIN, name="weighted", weighted=True), dict(PLAIN, name="length-desensitised", ld_alpha=0.4),
    dict(PLAIN, name="hinge", loss="hinge"), dict(PLAIN, name="ipo", loss="ipo"),
    dict(PLAIN, name="robust", loss="robust", label_smoothing=0.2), dict(PLAIN, name="conservative", label_smoothing=0.1),
    dict(PLAIN, name="likelihood", nll=0.5), dict(PLAIN, name="simpo", loss={"simpo": {"gamma": 0.05}})]
ADAMW = {"learning_rate": 0.02, "weight_decay": 0.1, "betas": [0.9, 0.95], "epsilon": 1e-4, "max_grad_norm": 0.2, "steps": 2}


class OfRows(DPOTrainer):
    """TRL's trainer on rows of ids."""

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def pairs_of(self, inputs):
        """The batch's pairs as batches of one."""
        half = len(inputs["input_ids"]) // 2
        return [{k: v[[i, half + i]] for k, v in inputs.items()} for i in range(half)]

    def loss_of_pair(self, model, one):
        """Of one pair: TRL's loss."""
        if isinstance(self.case["loss"], str):
            return super()._compute_loss(model, one, False)
        logits = model(input_ids=one["input_ids"], attention_mask=one["attention_mask"], use_cache=False).logits
        labels = one["input_ids"].masked_fill(one["completion_mask"] == 0, -100)
        logps = CPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
        host = SimpleNamespace(accelerator=self.accelerator, alpha=0.0, loss_type="simpo", beta=self.beta, label_smoothing=0.0,
                               simpo_gamma=self.case["loss"]["simpo"]["gamma"])
        return CPOTrainer.cpo_loss(host, logps[:1], logps[1:])[0].mean()

    def _compute_loss(self, model, inputs, return_outputs):
        if self.whole:
            return super()._compute_loss(model, inputs, return_outputs)
        weights = [PAIRS[n]["weight"] if self.case["weighted"] else 1.0 for n in self.user["pairs"]]
        losses = [self.loss_of_pair(model, one) for one in self.pairs_of(inputs)]
        return sum(w * x for w, x in zip(weights, losses)) / sum(weights)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.seen.append((loss, [p.grad.clone() for p in tiny.factors(self.model)]))
        return loss


def trainer(user, case):
    plain = isinstance(case["loss"], str)
    losses = ["aot" if case["label_smoothing"] and case["loss"] == "sigmoid" else case["loss"] if plain else "sigmoid"]
    weights = [1.0]
    if case["nll"]:
        losses, weights = losses + ["sft"], weights + [case["nll"]]
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=len(user["pairs"]), max_steps=ADAMW["steps"], beta=user["beta"],
        loss_type=losses, loss_weights=weights, label_smoothing=case["label_smoothing"], ld_alpha=case["ld_alpha"],
        learning_rate=ADAMW["learning_rate"], lr_scheduler_type="constant", weight_decay=ADAMW["weight_decay"], optim="adamw_torch",
        adam_beta1=ADAMW["betas"][0], adam_beta2=ADAMW["betas"][1], adam_epsilon=ADAMW["epsilon"], max_grad_norm=ADAMW["max_grad_norm"],
        use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        max_length=None)
    rows = [{"prompt_ids": PROMPTS[p["prompt"]], "chosen_ids": p["chosen"], "rejected_ids": p["rejected"]}
            for p in (PAIRS[n] for n in user["pairs"])]
    made = OfRows(model=tiny.llama()[0], args=config, train_dataset=Dataset.from_list(rows), processing_class=tiny.tokenizer("right"),
                  peft_config=LoraConfig(task_type="CAUSAL_LM", **tiny.LORA))
    tiny.fill(tiny.factors(made.model), user["first"])
    made.user, made.case, made.seen = user, case, []
    made.whole = plain and losses[0] != "aot" and not case["nll"] and not case["weighted"]  # what TRL has in one call
    return made


def of_pairs(made):
    """Of each pair before a step: TRL's loss, and its log-probabilities under policy and reference, [chosen, rejected]."""
    losses, policy, reference = [], [], []
    batch = made.data_collator([dict(row) for row in made.train_dataset])
    for one in made.pairs_of(batch):
        made._metrics["eval"].clear()
        made.model.eval()
        with torch.no_grad():
            losses.append(made.loss_of_pair(made.model, one).item())
            # The reference's are those of TRL's precomputation; the policy's those of its log.
            reference.append([x.item() for x in made.compute_ref_log_probs(made.model, one)])
        log = made._metrics["eval"]
        policy.append([log["logps/chosen"][-1], log["logps/rejected"][-1]] if log else None)
    return losses, policy, reference


cases, users = [], [dict(user) for user in USERS]
for case in CASES:
    found = []
    for user in users:
        made = trainer(user, case)
        losses, policy, reference = of_pairs(made)
        if case["name"] == "sigmoid":
            user.update(policy=list(map(tiny.seven, policy)), reference=list(map(tiny.seven, reference)))
        made.train()
        loss, gradients = made.seen[0]
        found.append({"loss": tiny.seven([loss.item()])[0], "losses": tiny.seven(losses), "gradients": tiny.flat(gradients)})
        if case["name"] == "sigmoid":
            norms = [h["grad_norm"] for h in made.state.log_history if "grad_norm" in h]
            ADAMW.setdefault("users", []).append({"norms": tiny.seven(norms), "factors": tiny.flat(tiny.factors(made.model))})
    cases.append(dict(case, users=found))
tiny.write(os.path.join(OUT, "dpo_step.json"), {
    "config": tiny.CONFIG, "names": tiny.llama()[1], "lora": tiny.lora(), "prompts": PROMPTS, "pairs": PAIRS, "users": users, "cases": cases,
    "adamw": ADAMW})
