"""Compares two folders of golden numbers: same structure, same texts and integers, floats within a tolerance.

    python tests/golden/compare.py COMMITTED NEW

Machines add in other orders: the committed numbers come from one machine, the new ones from yours. share_lora.json is not made anew: its script
reads what a test of ours writes.
"""
import json
import os
import sys

TOLERANCE = 2e-4
committed, new = sys.argv[1:]


def walk(a, b, place):
    """The largest difference of two floats at the same place."""
    if isinstance(a, float) or isinstance(b, float):
        return abs(a - b) / max(1.0, abs(a))
    if type(a) is not type(b):
        sys.exit("{}: {} became {}".format(place, type(a).__name__, type(b).__name__))
    if isinstance(a, dict):
        if a.keys() != b.keys():
            sys.exit("{}: keys {} became {}".format(place, sorted(a), sorted(b)))
        return max([walk(a[k], b[k], place + "." + k) for k in a] or [0.0])
    if isinstance(a, list):
        if len(a) != len(b):
            sys.exit("{}: {} entries became {}".format(place, len(a), len(b)))
        return max([walk(x, y, "{}[{}]".format(place, i)) for i, (x, y) in enumerate(zip(a, b))] or [0.0])
    if a != b:
        sys.exit("{}: {!r} became {!r}".format(place, a, b))
    return 0.0


worst = 0.0
for name in sorted(n for n in os.listdir(committed) if n.endswith(".json") and n != "share_lora.json"):
    difference = walk(json.load(open(os.path.join(committed, name))), json.load(open(os.path.join(new, name))), name)
    print("{}: largest difference to the committed numbers {:.1e}".format(name, difference))
    worst = max(worst, difference)
if worst > TOLERANCE:
    sys.exit("the committed golden numbers are not those that this Python makes")
