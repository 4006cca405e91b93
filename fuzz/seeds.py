"""Seeds for the target `ingest`: seeds.py FOLDER. One small file of every encoding and layout."""
import gzip
import io
import json
import os
import sys

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

ENDINGS = ["parquet", "jsonl", "json", "csv", "arrow", "jsonl.gz", "csv.zst", "tsv"]
HEAD = 'name="x"\nsource="y"\nlicence="z"\n[layout]\n'
ONE = HEAD.replace("[layout]", 'one_user="all"\n[layout]')  # rows that name no user
VOTES = HEAD + ('kind="votes"\nuser_id="u"\nprompt="q"\nresponse_a="a"\nresponse_b="b"\nlabel="l"\nlabel_a="1"\nlabel_b="2"\n'
                'label_tie="="\n')
TIMED = VOTES + '[columns]\ntimestamp="t"\nweight="w"\ngroup="g"\ngroup_until="-"\n'
rows = [{"u": "ann", "q": "why?", "a": "so", "b": "no", "l": "1"}, {"u": "bob", "q": "how", "a": "x", "b": "y", "l": "="}]
timed = [dict(r, t="2026-01-01T00:00:0{}Z".format(i), w=0.5 * i, g="a-b") for i, r in enumerate(rows)]
talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
other = talk[:1] + [{"role": "assistant", "content": "no"}]
said = {"turn": 0, "role": "user", "content": "hi", "score": None, "if_chosen": None}
rating = {"Rating": "5", "Rationale": "r"}
aspects = dict.fromkeys(["helpfulness", "honesty", "instruction_following", "truthfulness"], rating)
NESTED = {
    "pairs": [{"chosen": talk, "rejected": other}],
    "hh": [{"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b"}],
    "tldr": [{"info": {"post": "p", "title": "t", "subreddit": "s", "article": None}, "choice": 0, "worker": "w",
              "summaries": [{"text": "a"}, {"text": "b"}]}],
    "prism": [{"user_id": "u", "conversation_history": [
        said, dict(said, role="model", content="a", score=3, if_chosen=True),
        dict(said, role="model", content="b", score=9, if_chosen=False)]}],
    "helpsteer2": [dict(dict.fromkeys(["helpfulness", "correctness", "coherence", "complexity", "verbosity"], i),
                        prompt="p", response="r{}".format(i)) for i in (1, 2)],
    "ultrafeedback": [{"instruction": "i", "completions": [
        {"response": "a", "annotations": aspects}, {"response": "b", "annotations": aspects}]}],
    "arena": [{"judge": "j", "winner": "model_a", "conversation_a": talk, "conversation_b": other, "tstamp": 1772452800.5}],
    "personalllm": [{"prompt": "p", "response_1": "a", "response_2": "b", "response_1_m": 1.0, "response_2_m": 2.0}],
    "multipref": [{"text": "q", "completion_a": "a", "completion_b": "b", "expert_worker_annotations": [],
                   "normal_worker_annotations": [{"evaluator": "e", "overall_pref": "Tie"}]}],
    "alpaca": [{"instruction": "i", "input": "n", "chosen": "a", "rejected": "b"}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "a"},
                  "rejected": {"from": "gpt", "value": "b"}}],
}


def encoded(ending, some):
    lines = "".join(json.dumps(r) + "\n" for r in some)
    table = pa.Table.from_pylist(some)
    if ending == "parquet":
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return sink.getvalue()
    if ending == "arrow":
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()
    if ending == "json":
        return json.dumps(some).encode()
    if ending == "jsonl.gz":
        return gzip.compress(lines.encode(), mtime=0)
    if ending in ("csv", "tsv", "csv.zst"):
        mark = "\t" if ending == "tsv" else ","
        text = mark.join(some[0]) + "\n" + "".join(mark.join(str(v) for v in r.values()) + "\n" for r in some)
        return pa.compress(text.encode(), "zstd", asbytes=True) if ending == "csv.zst" else text.encode()
    return lines.encode()


os.makedirs(sys.argv[1], exist_ok=True)


def stream(some):
    table, sink = pa.Table.from_pylist(some), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def packed(some, codec):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(some), sink, compression=codec)
    return sink.getvalue()


def write(name, card, ending, some):
    body = bytes([ENDINGS.index(ending)]) + card.encode() + b"\n---\n" + encoded(ending, some)
    open(os.path.join(sys.argv[1], name), "wb").write(body)


for ending in ENDINGS:
    write("votes-" + ending, VOTES, ending, rows)
def write_bytes(name, card, ending, content):
    open(os.path.join(sys.argv[1], name), "wb").write(bytes([ENDINGS.index(ending)]) + card.encode() + b"\n---\n" + content)


written = [dict(r, q=json.dumps(talk[:1]), a=str(talk[1:]), b=repr(other[1:])) for r in rows]
columns = list(rows[0])
write_bytes("votes-stream", VOTES, "arrow", stream(rows))
for codec in ("gzip", "brotli", "lz4"):
    write_bytes("votes-" + codec, VOTES, "parquet", packed(rows, codec))
write_bytes("votes-backslash", VOTES, "csv",
            (",".join(columns) + "\n" + "".join('"{u}","{q}","said \\"{a}\\" \\\\",{b},{l}\n'.format(**r) for r in rows)).encode())
write_bytes("votes-utf16", VOTES, "csv", (";".join(columns) + "\r\n" + "".join(";".join(r.values()) + "\r\n" for r in rows)).encode("utf-16"))
write_bytes("votes-nan", VOTES, "jsonl", b"".join(json.dumps(dict(r, n=float("nan"), s="\ud83d")).encode() + b"\n" for r in rows))
write_bytes("times-jsonl", TIMED, "jsonl", b"".join(json.dumps(dict(r, t=1772452800000 + i)).encode() + b"\n" for i, r in enumerate(timed)))
write("written-parquet", VOTES, "parquet", written)
write("timed-jsonl", TIMED, "jsonl", timed)
write("timed-parquet", TIMED, "parquet", timed)
for kind, some in NESTED.items():
    for ending in ("jsonl", "parquet"):
        write("{}-{}".format(kind, ending), (ONE if kind in ("pairs", "hh", "alpaca", "sharegpt") else HEAD) + 'kind="{}"\n'.format(kind), ending, some)
write("ratings-csv", HEAD + 'kind="ratings"\nuser_id="u"\nitem="i"\nrating="r"\nprompt="p"\nmin_gap=1.0\n', "jsonl",
      [{"u": "a", "i": "x", "r": 1.0}, {"u": "a", "i": "y", "r": 5.0}])
write("rankings-jsonl", ONE + 'kind="rankings"\nprompt="q"\nresponses="a"\nscores="s"\nhigher_is_better=true\n', "jsonl",
      [{"q": "p", "a": ["x", "y", "z"], "s": [1, 2, 3]}])
