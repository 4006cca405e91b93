"""Whole rounds of TRL's PPOTrainer with PEFT on given responses and scores:

    python tests/golden/ppo_round.py TRL_1.12_FOLDER [OUT_FOLDER]        (needs torch==2.11.0 transformers==5.23.0 peft==0.21.2 datasets,
                                                                     and TRL 1.12.0, the last with PPO, in a folder of its own)

Policy, reference and critic are one tiny Llama: with an adapter, without, and with an adapter of its own and a value head. TRL's own
`train()` runs one round. Three of its functions are replaced: `batch_generation` gives the responses that are here, `get_reward` their scores
where TRL asks the reward model, and numpy's `permutation` the order of the updates. What `train()` holds at its beginning of the updates and at
each optimizer step is read from its local variables. TRL's settings are chosen where its round and ours are the same:

- `vf_coef` is 1, since our critic has an optimizer of its own; AdamW's groups have learning rates of their own here as well;
- TRL does not clip gradients in PPO: ours has a norm of 1e9;
- a token's temperature is TRL's plus 1e-7;
- in the round "one length" all responses are as long as TRL's `response_length`, finished or cut. There everything is the same.
- In the round "many lengths" TRL gives a finished response one more state, after its end token: the score is that state's reward, its value is
  learnt, and it counts in whitened rewards. We give the score to the end token. With gamma and lambda 1 and plain rewards the advantages
  are the same, and so is the policy; what the critic learns is not and is left out.

ppo_round.json: {"config", "names", "lora": as in dpo_step.json; "first": numbers of the first waves of {"policy", "critic", "head"}; "prompts": ids;
"clip", "value_clip", "missing_end_penalty", "epochs", "minibatches", "policy", "critic": AdamW's settings; "rounds": [{"name", "temperature", "estimator",
"beta", "gamma", "lambda", "whiten_rewards", "responses": [{"prompt", "ids", "score"}], "orders": response indices of each epoch, of
each response and token "old", "kl", "values", "advantages", "returns"; "updates": [{"policy_loss", "value_loss", "norm": of the policy's gradient}],
"gradients": of the first update, "policy" and "critic"; "factors": after the round, "policy" and "critic"}]}; the critic's are its factors and then
its head. Numbers have seven significant digits.
"""
import os
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", TRL_EXPERIMENTAL_SILENCE="1")
sys.path.insert(0, sys.argv[1])
import torch  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, get_peft_model, inject_adapter_in_model  # noqa: E402
from transformers import AutoConfig, AutoModelForSequenceClassification  # noqa: E402
from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402
from trl.experimental.ppo import ppo_trainer as module  # noqa: E402

import tiny  # noqa: E402

assert trl.__version__ == "1.12.0", trl.__version__
torch.set_num_threads(1)
OUT = sys.argv[2] if len(sys.argv) > 2 else os.path.dirname(os.path.abspath(__file__))
FIRST = {"policy": 300, "critic": 400, "head": 500}
CLIP, VALUE_CLIP, PENALTY, EPOCHS, MINIBATCHES, SAMPLES, WIDTH = 0.2, 0.1, 0.5, 2, 2, 4, 5
POLICY = {"learning_rate": 0.03, "weight_decay": 0.1, "betas": [0.9, 0.95], "epsilon": 1e-4}
CRITIC = dict(POLICY, learning_rate=0.02, weight_decay=0.0)


ids = tiny.ids
PROMPTS = [ids(4, 1), ids(7, 2), ids(3, 3), ids(6, 4)]


def responses(lengths, finished):
    """Four to each prompt, so long and ended so; some begin alike."""
    out = []
    for n in range(len(PROMPTS) * SAMPLES):
        length = lengths[n % len(lengths)] if finished[n % len(finished)] else WIDTH
        own = ids(length, 5 + n // 2)[:length - 1] + ids(1, 20 + n)  # two that follow each other differ in their last token alone
        own = own[:-1] + [tiny.END] if finished[n % len(finished)] else own
        score = tiny.seven([1.5 * float(tiny.wave(16, 7)[n])])[0]
        out.append({"prompt": n // SAMPLES, "ids": own, "score": score})
    return out


ROUNDS = [
    {"name": "one length", "temperature": 0.7, "estimator": "k1", "beta": 0.2, "gamma": 0.98, "lambda": 0.9, "whiten_rewards": True,
     "responses": responses([WIDTH], [True, False, True]), "orders": [[0, 2, 3, 1], [3, 0, 1, 2]]},
    {"name": "many lengths", "temperature": 1.0, "estimator": "k3", "beta": 0.5, "gamma": 1.0, "lambda": 1.0, "whiten_rewards": False,
     "responses": responses([2, 4, 1, 3, 5], [True, True, False, True]), "orders": [[1, 2, 0, 3], [2, 0, 3, 1]]}]
for r in ROUNDS:  # prompt by prompt, so that a prompt's responses stay together; as minibatches
    r["orders"] = [[SAMPLES * p + s for p in order for s in range(SAMPLES)] for order in r["orders"]]


def local_variables():
    """Those of the trainer's `train`, from inside of it."""
    frame = sys._getframe(1)
    while frame.f_code.co_name != "train" or frame.f_code.co_filename != module.__file__:
        frame = frame.f_back
    return frame.f_locals


class Recording(torch.optim.AdamW):
    """Keeps gradients and losses of every step."""

    def step(self, *args, **kwargs):
        here = local_variables()
        gradients = [[p.grad.clone() for p in group["params"]] for group in self.param_groups]
        seen.append({"policy_loss": here["pg_loss"].item(), "value_loss": here["vf_loss"].item(), "gradients": gradients,
                     "ratio": here["ratio"].detach().clone(), "moved": (here["vpred"] - here["mb_values"]).abs().max().item()})
        return super().step(*args, **kwargs)


def group(parameters, settings):
    return {"params": parameters, "lr": settings["learning_rate"], "weight_decay": settings["weight_decay"],
            "betas": tuple(settings["betas"]), "eps": settings["epsilon"]}


def played(of):
    """Of a round: TRL's numbers before, during and after the updates."""
    base, _ = tiny.llama()
    lora = dict(tiny.LORA)
    config = AutoConfig.for_model("llama", num_labels=1, pad_token_id=tiny.PAD, **tiny.LLAMA)
    value = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").float()
    value.load_state_dict({k: v for k, v in base.state_dict().items() if k.startswith("model.")}, strict=False)
    value.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(task_type="SEQ_CLS", **lora), value)
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **lora))
    own, expected = tiny.factors(policy), tiny.factors(value) + [value.score.weight]
    tiny.fill(own, FIRST["policy"])
    tiny.fill(expected[:-1], FIRST["critic"])
    tiny.fill(expected[-1:], FIRST["head"])
    for parameter in expected:
        parameter.requires_grad_(True)
    optimizer = Recording([group(own, POLICY), group(expected, CRITIC)])
    rows = Dataset.from_list([{"input_ids": PROMPTS[r["prompt"]]} for r in of["responses"]])
    words, count, reward = tiny.tokenizer("left"), len(rows), torch.nn.Linear(1, 1)
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=count, gradient_accumulation_steps=1, total_episodes=count,
            use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            response_length=WIDTH, stop_token="eos", num_ppo_epochs=EPOCHS, num_mini_batches=MINIBATCHES, num_sample_generations=0,
            local_rollout_forward_batch_size=count, temperature=of["temperature"], kl_coef=of["beta"], kl_estimator=of["estimator"],
            gamma=of["gamma"], lam=of["lambda"], whiten_rewards=of["whiten_rewards"], missing_eos_penalty=PENALTY, cliprange=CLIP,
            cliprange_value=VALUE_CLIP, vf_coef=1.0),
        processing_class=words, model=policy, ref_model=None, reward_model=reward, value_model=value, train_dataset=rows, eval_dataset=rows,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)))
    trainer.dataloader = trainer.accelerator.prepare(torch.utils.data.DataLoader(
        rows, batch_size=count, shuffle=False, collate_fn=trainer.data_collator, drop_last=True))

    def given_responses(model, queries, *_):
        padded = torch.tensor([r["ids"] + [tiny.PAD] * (WIDTH - len(r["ids"])) for r in of["responses"]])
        whole = torch.cat([queries, padded], 1)
        logits = module.forward(model, whole, tiny.PAD).logits[:, queries.shape[1] - 1:-1]
        return whole, logits / (of["temperature"] + 1e-7)  # as `generate` divides them

    def reward_or_value(model, *args):
        return (None, torch.tensor([r["score"] for r in of["responses"]]), None) if model is reward else ask(model, *args)

    def permutation(size):
        if not begun:
            begun.update({k: v.clone() for k, v in local_variables().items() if isinstance(v, torch.Tensor)})
        assert size == count
        return torch.tensor(next(orders)).numpy()

    begun, orders, ask, shuffle = {}, iter(of["orders"]), module.get_reward, module.np.random.permutation
    module.batch_generation, module.get_reward, module.np.random.permutation = given_responses, reward_or_value, permutation
    seen.clear()
    trainer.train()
    module.get_reward, module.np.random.permutation = ask, shuffle
    assert len(seen) == EPOCHS * MINIBATCHES
    assert any(((s["ratio"] - 1).abs() > CLIP).any() for s in seen) and any(s["moved"] > VALUE_CLIP for s in seen), "nothing was clipped"
    tokens = lambda name: [tiny.seven(row[:len(r["ids"])]) for row, r in zip(begun[name], of["responses"])]  # noqa: E731
    norm = lambda gradients: torch.cat([g.reshape(-1) for g in gradients]).norm().item()  # noqa: E731
    updates = [dict(zip(("policy_loss", "value_loss", "norm"), tiny.seven([s["policy_loss"], s["value_loss"], norm(s["gradients"][0])])))
               for s in seen]
    return dict(of, old=tokens("logprobs"), kl=tokens("kl"), values=tokens("values"), advantages=tokens("advantages"),
                returns=tokens("returns"), updates=updates,
                gradients={"policy": tiny.flat(seen[0]["gradients"][0]), "critic": tiny.flat(seen[0]["gradients"][1])},
                factors={"policy": tiny.flat(own), "critic": tiny.flat(expected)})


seen = []
tiny.write(os.path.join(OUT, "ppo_round.json"), {
    "config": tiny.CONFIG, "names": tiny.llama()[1], "lora": tiny.lora(), "first": FIRST, "prompts": PROMPTS, "clip": CLIP,
    "value_clip": VALUE_CLIP, "missing_end_penalty": PENALTY, "epochs": EPOCHS, "minibatches": MINIBATCHES, "policy": POLICY, "critic": CRITIC,
    "rounds": [played(of) for of in ROUNDS]})
