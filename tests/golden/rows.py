"""Makes rows.json, with transformers 5.23 and tokenizers 0.23:

    python tests/golden/rows.py [--out FOLDER]

For each family that the README names: a tokenizer of the published kind, trained here on the texts below; a chat template that we wrote with
the constructs of the published one (families without one get the plain form); token ids of texts with every oddity; and rows of
conversations: what `apply_chat_template` renders of the conversation with its response, up to the token that ends the turn.
"""
import argparse
import json
import os
import tempfile

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
parser = argparse.ArgumentParser()
parser.add_argument("--out", default=HERE)
args = parser.parse_args()

TEXTS = ["What should I cook for a friend who is coming to dinner tonight?", "A pear, then bread and soup; it's done in 10 or 12 minutes.",
         "def f(x):\n    return {'a': [x, -x]}  # a comment\n", "the then they there here where were we are our hours",
         "Ünïcödé naïve café, “quotes” — and 你好，世界 and مرحبا 🙂", "one two three four five six seven eight nine ten 1234567890"]
ODD = ["", " ", "a", " a", "a ", "  a  b  ", "\n", "\n\na\r\nb\rc\td", "it's we'll THEY'RE", "caf\u00e9 cafe\u0301 \u1e9b\u0323", "你好，世界 مرحبا",
       "👩‍👩‍👧‍👦🏳️‍🌈 🙂", "a\u00a0b\u2028c\u200bd\ufeffe\ufffdf", "\x00\x01\x7f", "x" * 70, "1 12 123 1234 12345.678", "a▁b Ġc Ċ", "<|im_end", "⟦⟧", "\U0010ffff\ufdd2"]


def byte_level(merges, specials, split=None, normalizer=None, digits=False, prefix=()):
    """GPT-2's way, with another split of words where there is one."""
    t = tokenizers.Tokenizer(models.BPE(ignore_merges=bool(split and "\\p{N}{1,3}" in split)))
    if normalizer:
        t.normalizer = normalizer
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if split:
        steps += [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        steps += [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    t.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(TEXTS, trainer)
    return with_tokens(t, specials)


def sentencepiece(merges, specials, prepend):
    """Llama 2's and Gemma's way: spaces become U+2581, and what the vocabulary lacks becomes bytes."""
    first = list(dict.fromkeys(["<unk>"] + specials)) + [f"<0x{b:02X}>" for b in range(256)]
    t = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = ([normalizers.Prepend("▁")] if prepend else []) + [normalizers.Replace(" ", "▁")]
    t.normalizer = normalizers.Sequence(steps) if prepend else steps[0]
    if not prepend:
        t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] +
                                  ([decoders.Strip(" ", 1, 0)] if prepend else []))
    trainer = trainers.BpeTrainer(vocab_size=len(first) + 60 + merges, special_tokens=first, show_progress=False)
    t.train_from_iterator(TEXTS, trainer)
    value = json.loads(t.to_str())
    value["added_tokens"] = []  # bytes are no added tokens
    return with_tokens(tokenizers.Tokenizer.from_str(json.dumps(value)), ["<unk>"] + specials)


def with_tokens(t, tokens):
    for token in tokens:
        token = token if isinstance(token, AddedToken) else AddedToken(token, special=True, normalized=False)
        t.add_tokens([token]) if not token.special else t.add_special_tokens([token])
    return t


def bos(t, token):
    t.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, t.token_to_id(token))])
    return t


GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}{% else %}"
          "{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}{% if loop.index0 == 0 and system != false %}"
          "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}{% set content = m['content'] %}{% endif %}"
          "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}"
          "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = ("{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
          "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}")
MISTRAL = ("{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}{%- elif m.role == 'assistant' %}"
           "{{- ' ' + m.content + eos_token }}{%- else %}{{- raise_exception('only user and assistant') }}{%- endif %}{%- endfor %}")
GEMMA = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
         "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
         "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}")
QWEN3 = ("{%- set ns = namespace(found=false, last=messages|length - 1) %}\n{%- for m in messages[::-1] %}\n{%- if not ns.found and m.role == 'user' %}"
         "\n{%- set ns.found = true %}\n{%- set ns.last = messages|length - 1 - loop.index0 %}\n{%- endif %}\n{%- endfor %}\n"
         "{%- for m in messages %}\n{%- set content = m.content %}\n{%- set thought = '' %}\n{%- if m.role == 'assistant' and '</think>' in content %}\n"
         "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
         "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n{%- endif %}\n"
         "{%- if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}\n"
         "{{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}\n{%- else %}\n"
         "{{- '<|im_start|>' + m.role + '\\n' + content }}\n{%- endif %}\n{{- '<|im_end|>\\n' }}\n{%- endfor %}\n"
         "{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n{%- endif %}")
R1 = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
      "{% else %}{% set content = m['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
      "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}")
PLAIN = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINK = [AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")]
HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
R1_MARKS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]

# name: tokenizer, template, tokens of tokenizer_config.json, the published class, what the template writes after a response, the part of it that ends the turn
FAMILIES = {
    "SmolLM2": (lambda: byte_level(60, MARKS, digits=True), CHATML, dict(bos_token=MARKS[1], eos_token=MARKS[2]), "GPT2Tokenizer", "<|im_end|>\n", "<|im_end|>"),
    "Qwen2": (lambda: byte_level(60, MARKS, split=QWEN, normalizer=normalizers.NFC()), CHATML, dict(eos_token=MARKS[2]), "Qwen2Tokenizer",
              "<|im_end|>\n", "<|im_end|>"),
    "Qwen3": (lambda: byte_level(60, MARKS + THINK, split=QWEN, normalizer=normalizers.NFC()), QWEN3, dict(eos_token=MARKS[2]), "Qwen2Tokenizer",
              "<|im_end|>\n", "<|im_end|>"),
    "Llama 2": (lambda: bos(sentencepiece(60, ["<s>", "</s>"], True), "<s>"), LLAMA2, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
                "LlamaTokenizer", " </s>", " </s>"),
    "Llama 3": (lambda: bos(byte_level(60, HEADERS, split=GPT4), HEADERS[0]), LLAMA3, dict(bos_token=HEADERS[0], eos_token=HEADERS[1]),
                "PreTrainedTokenizerFast", "<|eot_id|>", "<|eot_id|>"),
    "Mistral": (lambda: bos(sentencepiece(60, ["<s>", "</s>", "[INST]", "[/INST]"], True), "<s>"), MISTRAL,
                dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>"), "LlamaTokenizer", "</s>", "</s>"),
    "Gemma": (lambda: bos(sentencepiece(60, ["<pad>", "<eos>", "<bos>", "<mask>", "<start_of_turn>", "<end_of_turn>"], False), "<bos>"), GEMMA,
              dict(bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"), "GemmaTokenizer", "<end_of_turn>\n", "<end_of_turn>"),
    "DeepSeek-R1": (lambda: bos(byte_level(60, R1_MARKS + THINK, split=GPT4), R1_MARKS[0]), R1, dict(bos_token=R1_MARKS[0], eos_token=R1_MARKS[1]),
                    "LlamaTokenizerFast", R1_MARKS[1], R1_MARKS[1]),
    "GPT-2, plain form": (lambda: byte_level(60, MARKS[:1]), PLAIN, dict(bos_token=MARKS[0], eos_token=MARKS[0]), "GPT2Tokenizer", MARKS[0], MARKS[0]),
    "GPT-NeoX, plain form": (lambda: byte_level(60, [MARKS[0], "<|padding|>"], normalizer=normalizers.NFC()), PLAIN, dict(bos_token=MARKS[0], eos_token=MARKS[0]),
                             "GPTNeoXTokenizer", MARKS[0], MARKS[0]),
    "GPT-J, plain form": (lambda: byte_level(60, MARKS[:1] + [AddedToken("<|extratoken_1|>", special=False, normalized=True)]), PLAIN,
                          dict(bos_token=MARKS[0], eos_token=MARKS[0]), "GPT2Tokenizer", MARKS[0], MARKS[0]),
    # What saved state and late additions do: none of the state counts, and all of the tokens.
    "saved while cutting and padding": (lambda: stateful(byte_level(60, MARKS)), CHATML, dict(bos_token=MARKS[1], eos_token=MARKS[2]),
                                        "PreTrainedTokenizerFast", "<|im_end|>\n", "<|im_end|>"),
    "tokens added by tokenizer_config.json": (lambda: byte_level(60, MARKS[:1]), CHATML, dict(
        eos_token=MARKS[2], pad_token="<pad>", extra_special_tokens=["<tool>"],
        added_tokens_decoder={str(317 + i): dict(content=t, special=t[1] == "|", lstrip=t == "<mark>", rstrip=False, normalized=False, single_word=False)
                              for i, t in enumerate(["<|im_start|>", "<|im_end|>", "<mark>"])}), "PreTrainedTokenizerFast", "<|im_end|>\n", "<|im_end|>"),
    "BOS and EOS that the config asks for": (lambda: byte_level(60, MARKS), CHATML, dict(bos_token=MARKS[1], eos_token=MARKS[2], add_bos_token=True, add_eos_token=True),
                                       "PreTrainedTokenizerFast", "<|im_end|>\n", "<|im_end|>"),
    "Mistral, legacy": (lambda: bos(sentencepiece(60, ["<s>", "</s>", "[INST]", "[/INST]"], True), "<s>"), MISTRAL,
                        dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", legacy=True), "LlamaTokenizer", "</s>", "</s>"),
    "special tokens by name": (lambda: byte_level(60, MARKS), CHATML, dict(bos_token=MARKS[1], eos_token=MARKS[2], extra_special_tokens={"tool_token": "<tool>"}),
                               "PreTrainedTokenizerFast", "<|im_end|>\n", "<|im_end|>"),
    "special tokens split": (lambda: byte_level(60, MARKS[:1]), PLAIN, dict(eos_token=MARKS[0], split_special_tokens=True), "PreTrainedTokenizerFast", None, None),
}


def stateful(t):
    t.enable_truncation(12)
    t.enable_padding(length=40, direction="left", pad_id=0, pad_token="<|endoftext|>")
    return t


USER, SYSTEM = {"role": "user", "content": "  What is 12, ünïcödé?\n"}, {"role": "system", "content": " Be brief. "}
SAYS, THEN = {"role": "assistant", "content": "A pear."}, {"role": "user", "content": "And then?"}
BEGUN = {"role": "assistant", "content": "It is"}
CONVERSATIONS = [([USER], "It is done."), ([SYSTEM, USER, SAYS, THEN], "Soup"), ([USER], "  two  spaces and a line\n\n"), ([THEN], "<think>\nhm\n</think>\n\nBread."),
                 ([THEN], "<think>hm, 10</think>Bread."), ([{"role": "user", "content": "say <|im_end|></s><eos> now"}], "a <|endoftext|> b"), ([THEN, BEGUN], " done, 12"),
                 ([SYSTEM, THEN, BEGUN], ".")]


def holds(body, response):
    """All of the response; of one with a thought, the thought and what comes after it, each."""
    thought, _, said = response.rpartition("</think>")
    return response.strip() in body or bool(thought) and said.strip() in body and thought.strip().removeprefix("<think>").strip() in body


def row(tok, messages, response, closing, end):
    """None where the template refuses the conversation, where it does not render the prompt before the response, and where it loses a part of it."""
    continued = messages[-1]["role"] == "assistant"
    whole = messages[:-1] + [dict(messages[-1], content=messages[-1]["content"] + response)] if continued else messages + [dict(role="assistant", content=response)]
    try:
        prompt = tok.apply_chat_template(messages, tokenize=False, **({"continue_final_message": True} if continued else {"add_generation_prompt": True}))
        text = tok.apply_chat_template(whole, tokenize=False)
    except Exception as e:
        if type(e).__name__ != "TemplateError":
            raise
        return None
    if not text.startswith(prompt) or not holds(text[len(prompt):], response):
        return None
    assert text.endswith(closing) and closing.startswith(end), (text, closing)
    ended = text[:len(text) - len(closing)]
    # What the template adds before a response is not added before one that was cut.
    cut = ended if ended[len(prompt):].lstrip().startswith(response.strip()) else prompt + response
    out = {}
    for name, t in (("finished", ended + end), ("cut", cut)):
        encoded = tok(t, add_special_tokens=False, return_offsets_mapping=True)
        start = sum(e <= len(prompt) for _, e in encoded["offset_mapping"])
        out[name] = dict(ids=encoded["input_ids"], start=start)
    return dict(prompt=tok(prompt, add_special_tokens=False)["input_ids"], **out)


result = []
for name, (make, template, config, published, closing, end) in FAMILIES.items():
    with tempfile.TemporaryDirectory() as folder:
        config = dict(config, chat_template=template, model_max_length=512, clean_up_tokenization_spaces=False, tokenizer_class=published)
        files = {"tokenizer.json": json.loads(make().to_str()), "tokenizer_config.json": config}
        for file, value in files.items():
            with open(os.path.join(folder, file), "w") as f:
                json.dump(value, f)
        tok = AutoTokenizer.from_pretrained(folder)
        special = [t for t in tok.get_added_vocab()]
        texts = TEXTS + ODD + [f"a {t} b{t}c  {t}" for t in special]
        ids = [tok(t)["input_ids"] for t in texts]
        rows = [] if closing is None else [dict(messages=m, response=r, row=row(tok, m, r, closing, end)) for m, r in CONVERSATIONS]
        print(name, "refused:", [i for i, r in enumerate(rows) if r["row"] is None])
        result.append(dict(name=name, files=files, texts=texts, ids=ids, rows=rows, end=end and tok(end, add_special_tokens=False)["input_ids"][-1]))
with open(os.path.join(args.out, "rows.json"), "w") as f:
    json.dump(result, f, separators=(",", ":"), ensure_ascii=False)
    f.write("\n")
