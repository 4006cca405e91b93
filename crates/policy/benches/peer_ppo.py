"""TRL's experimental PPOTrainer with PEFT (in TRL up to 1.12.0): one measurement a process, one JSON line.

    peer_ppo.py MODEL PAIRS.parquet DTYPE THREADS BATCH STEPS NEW_TOKENS EPOCHS

Prompts are the first of the file, in order. LoRA of rank 8 on q_proj and v_proj for policy and value model (with its head), a whole
reward model, no dropout, one minibatch; every answer has NEW_TOKENS tokens. The first step is not timed. Tokens are those of prompts and
answers, without padding.
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
from peft import LoraConfig, inject_adapter_in_model  # noqa: E402
from transformers import (AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer,  # noqa: E402
                          TrainerCallback)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402

model, pairs, dtype, *numbers = sys.argv[1:]
threads, batch, steps, new, epochs = map(int, numbers)
torch.set_num_threads(threads)
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left", pad_token="<|endoftext|>")
prompts = pq.read_table(pairs).column("prompt").to_pylist()[:batch * (steps + 1)]
chat = [tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, return_dict=False) for p in prompts]
data = Dataset.from_list([{"input_ids": ids} for ids in chat])
dt = getattr(torch, dtype)
lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "v_proj"]}
policy = AutoModelForCausalLM.from_pretrained(model, dtype=dt)
value, reward = (AutoModelForSequenceClassification.from_pretrained(model, dtype=dt, num_labels=1) for _ in range(2))
reward.requires_grad_(False)
value.requires_grad_(False)
inject_adapter_in_model(LoraConfig(task_type="SEQ_CLS", **lora), value)
for name, parameter in value.named_parameters():
    if "lora_" in name or name.startswith("score"):
        parameter.data = parameter.data.float() if "lora_" in name else parameter.data
        parameter.requires_grad_(True)
ends = []


class Clock(TrainerCallback):
    def on_step_end(self, *a, **k):
        ends.append(time.perf_counter())


trainer = PPOTrainer(
    args=PPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, gradient_accumulation_steps=1, learning_rate=1e-4,
        lr_scheduler_type="constant", use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, dataloader_num_workers=0, response_length=new, num_ppo_epochs=epochs, num_mini_batches=1,
        total_episodes=batch * (steps + 1), local_rollout_forward_batch_size=batch, num_sample_generations=0, temperature=0.7),
    processing_class=tokenizer, model=policy, ref_model=None, reward_model=reward, value_model=value, train_dataset=data,
    eval_dataset=data.select(range(batch)), callbacks=[Clock()], peft_config=LoraConfig(task_type="CAUSAL_LM", **lora))
trainer.dataloader = trainer.accelerator.prepare(torch.utils.data.DataLoader(
    data, batch_size=batch, shuffle=False, collate_fn=trainer.data_collator, drop_last=True))
trainer.train()
timed = [len(x) + new for x in data["input_ids"][batch:]]
print("RESULT " + json.dumps({
    "tokens": sum(timed), "seconds": ends[-1] - ends[0],
    "loss": [h["objective/kl"] for h in trainer.state.log_history if "objective/kl" in h][-1],
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
