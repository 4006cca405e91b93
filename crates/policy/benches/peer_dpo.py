"""TRL's DPOTrainer with PEFT: one measurement a process, one JSON line.

    peer_dpo.py MODEL PAIRS.parquet DTYPE THREADS BATCH STEPS [precompute]

The first rows of the file in order, LoRA of rank 8 on q_proj and v_proj, no dropout, no gradient checkpointing, the base as reference:
in every step, or all at once before (`precompute`, whose time counts). The first step is not timed. Tokens are those that attention
sees, without padding.
"""
import json
import os
import resource
import sys
import tempfile
import time

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", TRL_EXPERIMENTAL_SILENCE="1")
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoTokenizer, TrainerCallback  # noqa: E402
from trl import DPOConfig, DPOTrainer  # noqa: E402

model, pairs, dtype, threads, batch, steps, *rest = sys.argv[1:]
threads, batch, steps, precompute = int(threads), int(batch), int(steps), rest == ["precompute"]
torch.set_num_threads(threads)
torch.manual_seed(0)
roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
rows = [{name: [{"role": role, "content": row[name]}] for name, role in roles.items()}
        for row in pq.read_table(pairs).select(list(roles)).to_pylist()[:batch * (steps + 1)]]
spans, tokens, before = [], [], []  # before: seconds of references that are computed ahead


class Clock(TrainerCallback):
    def on_step_begin(self, *a, **k):
        self.t = time.perf_counter()

    def on_step_end(self, *a, **k):
        spans.append(time.perf_counter() - self.t)


class Counting(DPOTrainer):
    def _precompute_ref_logps(self, *a, **k):
        start = time.perf_counter()
        done = super()._precompute_ref_logps(*a, **k)
        before.append(time.perf_counter() - start)
        return done

    def _get_train_sampler(self, *a, **k):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, model, inputs, *a, **k):
        tokens.append(int(inputs["attention_mask"].sum()))
        return super().training_step(model, inputs, *a, **k)


config = DPOConfig(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, max_steps=steps + 1, learning_rate=1e-4,
    lr_scheduler_type="constant", use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no",
    report_to="none", disable_tqdm=True, dataloader_num_workers=0, max_length=512, beta=0.1, pad_token="<|endoftext|>",
    disable_dropout=True, precompute_ref_log_probs=precompute, model_init_kwargs={"dtype": dtype})
lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, bias="none", target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
trainer = Counting(model=model, args=config, train_dataset=Dataset.from_list(rows),
                   processing_class=AutoTokenizer.from_pretrained(model), callbacks=[Clock()], peft_config=lora)
trainer.train()
seconds = sum(spans[1:]) + sum(before) * steps / (steps + 1)  # of the timed steps' rows
print("RESULT " + json.dumps({
    "tokens": sum(tokens[1:]), "seconds": seconds, "loss": [h["loss"] for h in trainer.state.log_history if "loss" in h][-1],
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
