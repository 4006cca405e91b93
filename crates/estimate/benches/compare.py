"""`just bench-estimate`: people's tastes beside scikit-learn and a batched PyTorch fit, low-rank contextual rewards beside PyTorch's L-BFGS.

    compare.py BENCH_BINARY OUT.json [--rounds 3] [--threads 2] [--users 4000] [--million 1000000]

Same votes for all, written by this script: d = 32, 30 votes a person; N = 20,000, dx = dphi = 50, r = 5. scikit-learn's LogisticRegression (lbfgs,
C = 1, no intercept) runs person by person, on one thread, which is faster for it than two; PyTorch's Adam runs on all people at once until its mean
loss is within 1e-4 of the optimum; PyTorch's L-BFGS starts where ours does (spectral), is looked at after every five of its steps and stops within
1e-6 of our objective. float64 everywhere.

OUT.json: {"machine", "threads", "people": {"ours", "sklearn", "torch" (users/s by round), "losses"}, "rank": {"ours_s", "torch_s", "objectives"},
"million": {...}}.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("out")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--users", type=int, default=4000)
parser.add_argument("--million", type=int, default=1_000_000)
args = parser.parse_args()
torch.set_num_threads(args.threads)
torch.set_default_dtype(torch.float64)
rng = np.random.default_rng(1)


def ours(*arguments):
    env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    done = subprocess.run([args.binary, *map(str, arguments)], stdout=subprocess.PIPE, env=env, text=True, check=True)
    return json.loads(next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))[7:])


def loss(margins, y):
    return np.maximum(margins, 0) + np.log1p(np.exp(-np.abs(margins))) - y * margins


folder = tempfile.mkdtemp()
D, VOTES = 32, 30
x = rng.standard_normal((args.users, VOTES, D))
w = rng.standard_normal((args.users, D, 1)) * 0.7
y = (rng.random((args.users, VOTES)) < 1 / (1 + np.exp(-(x @ w)[..., 0]))).astype(np.float64)
np.concatenate([x, y[..., None]], 2).tofile(folder + "/people")
people = {"ours": [], "sklearn": [], "torch": [], "losses": {}}


def sklearn_loop(count):
    total = 0.0
    for i in range(count):
        if y[i].min() == y[i].max():  # it refuses one class
            total += loss(np.zeros(VOTES), y[i]).sum()
            continue
        fit = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-6, max_iter=1000).fit(x[i], y[i])
        b = fit.coef_[0]
        total += loss(x[i] @ b, y[i]).sum() + b @ b / 2
    return total / count


def adam(best):
    X, Y = torch.from_numpy(x), torch.from_numpy(y)
    b = torch.zeros(args.users, D, requires_grad=True)
    optimiser = torch.optim.Adam([b], lr=0.1)
    for step in range(10_000):
        margins = torch.einsum("und,ud->un", X, b)
        value = torch.nn.functional.binary_cross_entropy_with_logits(margins, Y, reduction="sum") + b.square().sum() / 2
        mean = value.item() / args.users
        if mean < best + 1e-4:
            return mean
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return mean


N, DX, DPHI, R = 20_000, 50, 50, 5
cx, z = rng.standard_normal((N, DX)), rng.standard_normal((N, DPHI))
u, v = np.linalg.qr(rng.standard_normal((DX, R)))[0], np.linalg.qr(rng.standard_normal((DPHI, R)))[0]
margins = ((cx @ u) * (z @ v)).sum(1) * 2 / R ** 0.5
outcome = (rng.random(N) < 1 / (1 + np.exp(-margins))).astype(np.float64)
np.concatenate([cx, z, outcome[:, None]], 1).tofile(folder + "/rank")


def lbfgs(target):
    X, Z, Y = torch.from_numpy(cx), torch.from_numpy(z), torch.from_numpy(outcome)
    start = time.perf_counter()
    moment = X.T @ (Z * (Y - 0.5)[:, None]) / N

    def ridged(m):
        return m + torch.eye(len(m)) * (1e-3 * m.trace() / len(m) + 1e-12)
    half = torch.linalg.solve(ridged(X.T @ X / N), moment) * 4
    theta = torch.linalg.solve(ridged(Z.T @ Z / N), half.T).T
    left, values, right = torch.linalg.svd(theta)
    U = (left[:, :R] * values[:R].sqrt()).contiguous().requires_grad_(True)
    V = (right[:R].T * values[:R].sqrt()).contiguous().requires_grad_(True)
    optimiser = torch.optim.LBFGS([U, V], max_iter=5, history_size=10, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        m = ((X @ U) * (Z @ V)).sum(1)
        value = torch.nn.functional.binary_cross_entropy_with_logits(m, Y)
        value = value + 0.125 * (U.T @ U - V.T @ V).square().sum() + 0.5e-4 * (U.square().sum() + V.square().sum())
        value.backward()
        return value
    for _ in range(200):
        optimiser.step(closure)
        value = closure().item()
        if value < target + 1e-6:
            break
    return time.perf_counter() - start, value


rank = {"ours_s": [], "torch_s": [], "objectives": {}}
for i in range(args.rounds):
    r = ours("people", folder + "/people", D, VOTES, 20)
    people["ours"].append(r["users_per_s"])
    people["losses"]["ours"] = r["loss"]
    some = min(args.users, 1000)
    start = time.perf_counter()
    with threadpool_limits(1):
        people["losses"]["sklearn, the first of them"] = float(sklearn_loop(some))
    people["sklearn"].append(some / (time.perf_counter() - start))
    start = time.perf_counter()
    people["losses"]["torch"] = float(adam(r["loss"]))
    people["torch"].append(args.users / (time.perf_counter() - start))
    f = ours("rank", folder + "/rank", N, DX, DPHI, R, 5)
    seconds, value = lbfgs(f["objective"])
    rank["ours_s"].append(f["seconds"])
    rank["torch_s"].append(seconds)
    rank["objectives"] = {"ours": f["objective"], "torch": value}
    print("round {}: ours {:.0f} users/s, sklearn {:.0f}, torch {:.0f}; rank {:.3f} s, torch {:.3f} s".format(
        i + 1, people["ours"][-1], people["sklearn"][-1], people["torch"][-1], f["seconds"], seconds), file=sys.stderr, flush=True)
million = ours("million", D, VOTES, args.million)
machine = next((x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), "?")
json.dump({"machine": machine, "threads": args.threads, "people": people, "rank": rank, "million": million}, open(args.out, "w"), indent=1)


def ratios(a, b):
    r = [p / q for p, q in zip(a, b)]
    return "{:.1f} ({:.1f} to {:.1f})".format(statistics.median(r), min(r), max(r))


median = statistics.median
print("| job | ours | peer | ratio (range) |")
print("| --- | --- | --- | --- |")
print("| tastes, d = 32, 30 votes: scikit-learn, one by one | {:.0f} users/s | {:.0f} users/s | {} |".format(
    median(people["ours"]), median(people["sklearn"]), ratios(people["ours"], people["sklearn"])))
print("| the same: PyTorch, Adam on all at once | {:.0f} users/s | {:.0f} users/s | {} |".format(
    median(people["ours"]), median(people["torch"]), ratios(people["ours"], people["torch"])))
print("| low-rank contextual reward, N = 20,000, 50 x 50, r = 5: PyTorch, L-BFGS | {:.3f} s | {:.3f} s | {} |".format(
    median(rank["ours_s"]), median(rank["torch_s"]), ratios(rank["torch_s"], rank["ours_s"])))
print("\nMean losses: {}. Objectives: {}.".format(people["losses"], rank["objectives"]))
print("{users} users: {seconds:.0f} s, of these {fitting_s:.0f} s of fitting; peak {peak_mib:.0f} MiB".format(**million))
print("\n{}; {} threads".format(machine, args.threads))
