"""Makes the golden numbers of the tests, with transformers 5.23 on torch 2.11:

    python tests/golden/make.py [--out FOLDER] [PATH/TO/SmolLM2-135M-Instruct.Q4_1.gguf]

families.json   tiny models of every family whose weights are a formula, so that the test can make them again: logits,
                hidden states, log-probabilities, the same from left- and right-padded batches, greedy text
smollm2.json    the default base as transformers' own GGUF loading dequantises it, float32: logits at every 509th
                vocabulary entry, hidden states at every 61st number, log-probabilities; and token ids of texts without
                digits (transformers' converter does not isolate digits, llama.cpp and we do)
adamw.json      100 steps of torch's AdamW
templates.json  apply_chat_template on templates that we wrote with the constructs of published ones
"""
import argparse
import json
import os

import torch
from tiny import formula
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
parser = argparse.ArgumentParser()
parser.add_argument("--out", default=HERE)
parser.add_argument("gguf", nargs="?",
                    default=os.path.join(HERE, "..", "..", ".deps", "base", "SmolLM2-135M-Instruct.Q4_1.gguf"))
args = parser.parse_args()
TEXTS = ["What should I cook for a friend who is coming to dinner tonight?",
         "Ünïcödé — “quotes”, emoji 🙂 and\n\n\ttabs  and   spaces.",
         "def f(x):\n    return {'a': [x, -x]}  # a comment"]


def write(name, value):
    with open(os.path.join(args.out, name), "w") as f:
        json.dump(value, f, indent=None, separators=(",", ":"), ensure_ascii=False)
        f.write("\n")


def short(tensor):
    return [round(float(v), 6) for v in tensor.reshape(-1)]


def logp_of(logits, ids, start):
    """Log-probability of each token from `start`, given what is before it."""
    logp = torch.log_softmax(logits.float(), -1)
    return torch.stack([logp[t - 1, ids[t]] for t in range(start, len(ids))])


# ---- families

SIZES = dict(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
             max_position_embeddings=64, tie_word_embeddings=False)
LLAMA = dict(SIZES, num_key_value_heads=2, rms_norm_eps=1e-5)
GPT = dict(vocab_size=48, n_positions=64, n_embd=32, n_layer=3, n_head=4)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
FAMILIES = {
    "llama": ("llama", dict(LLAMA)),
    "llama, biases, tied": ("llama", dict(LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=12)),
    "llama, RoPE llama3": ("llama", dict(LLAMA, rope_parameters=LLAMA3)),
    "llama, RoPE linear": ("llama", dict(LLAMA, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))),
    "llama, RoPE dynamic": ("llama", dict(LLAMA, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0))),
    "llama, RoPE yarn": ("llama", dict(LLAMA, rope_parameters=YARN)),
    "llama, RoPE yarn with mscale": ("llama", dict(LLAMA, head_dim=16, rope_parameters=dict(
        YARN, beta_fast=8.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.3, truncate=False))),
    "qwen2": ("qwen2", dict(LLAMA)),
    "qwen2, sliding window": ("qwen2", dict(LLAMA, use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "qwen3": ("qwen3", dict(LLAMA, head_dim=12)),
    "mistral, sliding window": ("mistral", dict(LLAMA, sliding_window=8, head_dim=8)),
    "gemma3": ("gemma3_text", dict(LLAMA, head_dim=12, sliding_window=8, query_pre_attn_scalar=16, tie_word_embeddings=True,
                                   layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "gemma3, RoPE linear": ("gemma3_text", dict(
        LLAMA, head_dim=12, sliding_window=8, query_pre_attn_scalar=16, tie_word_embeddings=True,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
            sliding_attention=dict(rope_type="default", rope_theta=10000.0)))),
    "gpt2": ("gpt2", dict(GPT)),
    "gpt2, scaled by block": ("gpt2", dict(GPT, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)),
    "gpt2, not scaled": ("gpt2", dict(GPT, scale_attn_weights=False)),
    "gpt_neox": ("gpt_neox", dict(SIZES, rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                              partial_rotary_factor=0.5))),
    "gpt_neox, serial": ("gpt_neox", dict(SIZES, use_parallel_residual=False)),
    "gptj": ("gptj", dict(GPT, rotary_dim=4)),
}
LENGTHS = [9, 5, 30]  # the last exceeds the windows and llama3's original length
STRIDE = 5


def family(model_type, fields):
    config = AutoConfig.for_model(model_type, bos_token_id=None, eos_token_id=None, pad_token_id=None, **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    names = formula(model)
    rows, ids = [], [[(7 * t * t + 3 * t + 5 * row) % 48 for t in range(n)] for row, n in enumerate(LENGTHS)]
    longest = max(LENGTHS)
    sides = {}
    for side in ("left", "right"):
        pad = [[0] * (longest - len(r)) for r in ids]
        full = torch.tensor([p + r if side == "left" else r + p for r, p in zip(ids, pad)])
        mask = torch.tensor([[0] * len(p) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(p)
                             for r, p in zip(ids, pad)])
        with torch.no_grad():
            out = model(input_ids=full, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        sides[side] = [o[len(p):] if side == "left" else o[:len(r)] for o, r, p in zip(out, ids, pad)]
    for i, row in enumerate(ids):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([row]), output_hidden_states=True)
            greedy = list(row)
            for _ in range(8):
                greedy.append(int(model(input_ids=torch.tensor([greedy])).logits[0, -1].argmax()))
        rows.append({"ids": row, "answer_start": 3, "logits": short(out.logits[0]),
                     "hidden": [short(h[0].reshape(-1)[::STRIDE]) for h in out.hidden_states],
                     "logp": short(logp_of(out.logits[0], row, 3)), "greedy": greedy[len(row):],
                     **{side: short(logp_of(sides[side][i], row, 3)) for side in sides}})
    saved = json.loads(config.to_json_string(use_diff=False))
    keep = {k: v for k, v in saved.items() if k in fields or k in ("model_type", "rope_parameters", "layer_types",
            "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "hidden_act", "hidden_activation", "n_inner",
            "activation_function", "attention_bias", "sliding_window", "tie_word_embeddings")}
    keep["model_type"] = model_type
    return {"config": keep, "names": names, "rows": rows}


def families():
    write("families.json", {"stride": STRIDE, "families": {n: family(*spec) for n, spec in FAMILIES.items()}})


# ---- the default base

def smollm2():
    folder, name = os.path.split(args.gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    texts = [{"text": t, "ids": tokenizer(t)["input_ids"]} for t in TEXTS]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": TEXTS[0]}], tokenize=False,
                                         add_generation_prompt=True)
    rows = []
    for ids in [texts[0]["ids"], texts[1]["ids"], tokenizer(chat)["input_ids"]]:
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        logits = out.logits[0]
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids):].tolist()
        rows.append({"ids": ids, "logits": [short(row[::509]) for row in logits],
                     "logsumexp": short(logits.logsumexp(-1)), "greedy": greedy,
                     "hidden_max": [float(h.abs().max()) for h in out.hidden_states],
                     "hidden": [[float(v) for v in h[0, -1, ::61]] for h in out.hidden_states],
                     "logp": short(logp_of(logits, ids, 1))})
    write("smollm2.json", {"stride": 509, "hidden_stride": 61, "texts": texts, "chat": chat, "rows": rows})


# ---- AdamW

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


# ---- chat templates: ours, each with the constructs of a published one

TEMPLATES = {
    "ChatML with a default system message (SmolLM2, Qwen2.5)":
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind"
        "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "slices, alternation, strip (Llama 2)":
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
        "{% else %}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "dates, trim, tools is none (Llama 3.1)":
        "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = strftime_now('%d %b %Y') %}\n{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
        "{{- '<|h|>system\n\nToday: ' + date_string + '\n\n' }}\n{%- if tools is not none %}\n    {{- 'Tools:\n\n' }}\n"
        "    {%- for t in tools %}\n        {{- t | tojson(indent=4) }}\n        {{- '\n\n' }}\n    {%- endfor %}\n{%- endif %}\n"
        "{{- system_message }}{{- '<|e|>' }}\n{%- for message in messages %}\n    {{- '<|h|>' + message['role'] + '\n\n' "
        "+ message['content'] | trim + '<|e|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|h|>assistant\n\n' }}\n"
        "{%- endif %}\n",
    "namespace, selectattr, loop.last (Mistral)":
        "{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}{%- set ns = namespace(index=0) %}"
        "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.index = ns.index + 1 %}"
        "{%- if ns.index == users | length and tools %}{{- '[TOOLS] ' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}"
        "{{- '[INST] ' + m.content + '[/INST]' }}{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}"
        "{%- else %}{{- raise_exception('only user and assistant') }}{%- endif %}{%- endfor %}",
    "renamed roles (Gemma)":
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}{{ '<t>' + role + '\n' + message['content'] | trim + '<e>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<t>model\n'}}{% endif %}",
    "reversed loops, split, string tests (Qwen3)":
        "{%- set ns = namespace(found=false, last=messages|length - 1) %}\n{%- for message in messages[::-1] %}\n"
        "    {%- set index = (messages|length - 1) - loop.index0 %}\n    {%- if not ns.found and message.role == 'user' and "
        "message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}\n"
        "        {%- set ns.found = true %}\n        {%- set ns.last = index %}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- for message in messages %}\n    {%- set content = message.content %}\n    {%- if '</think>' in content %}\n"
        "        {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}\n"
        "        {%- set content = content.split('</think>')[-1].lstrip('\n') %}\n    {%- endif %}\n    {%- if loop.index0 > ns.last "
        "and thought is defined and thought %}\n        {{- '<' + message.role + '>' + thought + '|' + content }}\n    {%- else %}\n"
        "        {{- '<' ~ message.role ~ '>' ~ content }}\n    {%- endif %}\n    {%- if loop.last or (not loop.last and "
        "messages[loop.index0 + 1].role != 'tool') %}\n        {{- '<|e|>\n' }}\n    {%- endif %}\n{%- endfor %}\n",
    "tools as JSON lines, items, mapping (Hermes, Command R)":
        "{%- macro kind(p) %}{%- if p.type == 'string' %}str{%- elif p.type is string %}{{ p.type | upper }}{%- else %}any{%- endif %}"
        "{%- endmacro %}{%- if tools %}{%- for t in tools %}{{- t | tojson }}\n{% for name, p in t.function.parameters.properties.items() %}"
        "{{ name }}: {{ kind(p) }}{{ ', ' if not loop.last else '' }}{% endfor %}{%- endfor %}{%- endif %}"
        "{% for m in messages %}{% if m.get('name') %}{{ m['name'] | title }}: {% endif %}{{ m.content }}{{ '|' }}{% endfor %}",
    "tool calls in messages (DeepSeek)":
        "{% set ns = namespace(first=true) %}{{ bos_token }}{%- for m in messages %}{%- if m['role'] == 'assistant' and "
        "'tool_calls' in m and m['tool_calls'] is not none %}{%- for call in m['tool_calls'] %}{%- if ns.first %}"
        "{%- set ns.first = false -%}{{ '<calls>' + call['function']['name'] + ' ' + (call['function']['arguments'] | tojson) }}"
        "{%- else %}{{ '\n' + call['function']['name'] }}{%- endif %}{%- endfor %}{%- elif m['content'] is not none %}"
        "{{- '<' + m['role'] + '>' + m['content'] }}{%- endif %}{%- endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
    "generation tags (SmolLM3, training templates)":
        "{%- for message in messages -%}\n    {%- if message.role == 'assistant' -%}\n        {{ '<|a|>' }}\n        "
        "{%- generation %}\n{{ message.content + eos_token }}\n        {% endgeneration -%}\n    {%- else -%}\n        "
        "{{ '<|' + message.role + '|>' + message.content }}\n    {%- endif -%}\n{%- endfor -%}\n"
        "{% if add_generation_prompt %}{{ '<|a|>' }}{% endif %}",
    "whitespace control and loop controls (Zephyr, Phi)":
        "{% for message in messages %}\n{% if message['role'] == 'skip' %}\n{% continue %}\n{% endif %}\n"
        "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
}
USER, OTHER = {"role": "user", "content": "  Hi <b>you</b> & 'me'\n"}, {"role": "user", "content": "And ünïcödé?"}
SYSTEM, SAYS = {"role": "system", "content": " Be brief. "}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."}
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": [True, "é"]}}},
                                                              {"function": {"name": "g", "arguments": {}}}]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"properties": {
    "where": {"type": "string"}, "days": {"type": "integer"}, "x": {}}, "required": []}}}]
CONVERSATIONS = [[USER], [SYSTEM, USER, SAYS, OTHER], [USER, SAYS], [SAYS, USER], [USER, SAYS, OTHER, dict(SAYS, name="ann lee")],
                 [USER, {"role": "skip", "content": "x"}, SAYS]]


def templates():
    import datetime
    from transformers.utils import chat_template_utils

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 3, 5, 12)

    chat_template_utils.datetime = Fixed
    out = []
    for name, template in TEMPLATES.items():
        cases = []
        conversations = CONVERSATIONS + ([[USER, CALLS]] if "tool calls" in name else [])
        for messages, tools, go in [(c, t, o) for c in conversations for t, o in ((None, True), (TOOLS, False))]:
            case = {"messages": messages, "tools": tools, "open": go, "text": None, "generations": []}
            try:
                text, spans = chat_template_utils.render_jinja_template(
                    conversations=[messages], tools=tools, chat_template=template, add_generation_prompt=go,
                    return_assistant_tokens_mask="generation %" in template, bos_token="<s>", eos_token="</s>")
                case.update(text=text[0], generations=[list(s) for s in spans[0]] if spans else [])
            except Exception as e:  # a template that refuses; anything else must not pass for it
                if type(e).__name__ not in ("TemplateError",):
                    raise
            cases.append(case)
        out.append({"name": name, "template": template, "cases": cases})
    write("templates.json", out)


torch.set_num_threads(1)
templates()
families()
adamw()
smollm2()
