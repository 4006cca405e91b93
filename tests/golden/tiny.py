"""What the scripts of golden numbers share: tiny models and adapters whose numbers are a formula, so that a test can make them again."""
import json

import torch


def wave(count, k):
    """`count` numbers from -1 to 1 that are exact everywhere; `k` tells tensors apart."""
    i = torch.arange(count, dtype=torch.int64)
    return ((i * i * 31 + i * 7919 + k * 10007) % 1009).double() / 504.5 - 1


def formula(model):
    """Fills a model with numbers that the test can compute as well; gives (name, shape) of what its file holds."""
    tied = {k for k in model.state_dict() if k in ("lm_head.weight",) and model.config.tie_word_embeddings}
    named = sorted((k, v) for k, v in model.state_dict().items() if k not in tied and v.is_floating_point())
    for k, (name, p) in enumerate(named):
        scale, centre = (0.35, 0.0) if p.dim() > 1 else (0.1, 0.0) if name.endswith("bias") else (0.1, 1.0)
        p.data.copy_((centre + scale * wave(p.numel(), k)).reshape(p.shape).float())
    return [[name, list(p.shape)] for name, p in named]


# ---- what the goldens of DPO and PPO train: a Llama of three blocks, with LoRA in the last two

LLAMA = dict(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
             max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False)
CONFIG = dict(LLAMA, model_type="llama", hidden_act="silu", rope_parameters=dict(rope_type="default", rope_theta=10000.0))
END, PAD = 46, 47  # ids; no row holds PAD
RANK, ALPHA, TARGETS, BLOCKS = 2, 3.0, ["q_proj", "v_proj"], [1, 2]
FACTOR = 0.3  # factors lie between -FACTOR and FACTOR
LORA = dict(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", target_modules=TARGETS, layers_to_transform=BLOCKS)


def lora():
    """What a test has to know of the adapters."""
    paths = ["model.layers.{}.self_attn.{}".format(block, target) for block in BLOCKS for target in TARGETS]
    return {"rank": RANK, "alpha": ALPHA, "from": BLOCKS[0], "to": BLOCKS[-1] + 1, "factor": FACTOR, "paths": paths}


def ids(count, k):
    """Tokens of a text that is a formula: neither END nor PAD."""
    return [(7 * t * t + 3 * t + 11 * k) % 44 + 1 for t in range(count)]


def llama():
    """The base, and (name, shape) of what its file holds."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", bos_token_id=None, eos_token_id=None, pad_token_id=None, **LLAMA)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    return model, formula(model)


def tokenizer(padding_side):
    """A tokenizer that no text passes through: TRL asks it for the id of its padding."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"t{}".format(i): i for i in range(LLAMA["vocab_size"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", eos_token="t{}".format(END), pad_token="t{}".format(PAD),
                                   padding_side=padding_side)


def factors(model):
    """The trained LoRA factors in our order: block by block, query before value, down (A) before up (B)."""
    named = {name: p for name, p in model.named_parameters() if "lora_" in name}
    find = lambda b, t, f: next(p for n, p in named.items() if "layers.{}.".format(b) in n and t in n and "lora_" + f in n)  # noqa: E731
    found = [find(block, target, factor) for block in BLOCKS for target in TARGETS for factor in "AB"]
    assert len(found) == len(named), list(named)
    return found


def fill(tensors, first):
    """Fills tensors with waves, the first with number `first`."""
    for k, p in enumerate(tensors):
        p.data.copy_((FACTOR * wave(p.numel(), first + k)).reshape(p.shape).float())


def seven(numbers):
    """Numbers of any shape, flattened, to seven significant digits."""
    values = numbers.detach().reshape(-1).tolist() if isinstance(numbers, torch.Tensor) else list(numbers)
    return [float("{:.7g}".format(v)) for v in values]


def flat(tensors):
    """Tensors as one list."""
    return seven(torch.cat([t.detach().reshape(-1) for t in tensors]))


def write(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=None, separators=(",", ":"), ensure_ascii=False)
        f.write("\n")
