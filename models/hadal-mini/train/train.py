"""Trains hadal-mini on one GPU, in calls that resume from a checkpoint.

    python train.py --out DIR --seconds 480            first call
    python train.py --out DIR --seconds 420 --resume DIR   second call: ends at the planned number of steps

DIR receives master-*.safetensors (bfloat16, what a machine without the full checkpoint resumes from), state.json (step,
plan, correction bias, loss curve) and, on the machine itself, full.pt (float32 masters and optimizer state).
"""
import argparse
import json
import pathlib
import queue
import time

import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from model import MOE, E, Network, initial_masters
from optimizer import Optimizer
from packing import MIX, TOKENS, worker

BUDGET_SECONDS = 860.0  # of steps, both calls together; polish.py takes the rest of 15 minutes
QUANT_FROM = 0.70       # FP8 weights from here on
QUANT_ACT_FROM = 0.85   # and 1x128 activations from here on
PARTS = 4
FULL = "full.pt"


def schedule(progress):
    if progress < 0.02:
        return progress / 0.02
    if progress < 0.45:
        return 1.0
    return max(0.02, 1.0 - (progress - 0.45) / 0.55)


def save(out, masters, bias, optimizer, state):
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(masters, key=lambda k: -masters[k].numel())
    tensors = []
    for k in names:  # large stacks are cut so that no part passes 16 MiB
        flat = masters[k].detach().to(torch.bfloat16).cpu().flatten()
        tensors += [(f"{k}@{i}", piece.contiguous()) for i, piece in enumerate(flat.split(1_000_000))]
    parts, sizes = [{} for _ in range(PARTS)], [0] * PARTS
    for k, v in tensors:
        i = sizes.index(min(sizes))
        parts[i][k] = v
        sizes[i] += v.numel()
    for i, part in enumerate(parts):
        save_file(part, out / f"master-{i}.safetensors")
    state["bias"] = bias.tolist()
    (out / "state.json").write_text(json.dumps(state))
    if optimizer is not None:
        torch.save({"masters": masters, "optimizer": optimizer.state()}, out / FULL)


def load_masters(directory, masters):
    pieces = {}
    for path in sorted(pathlib.Path(directory).glob("master-*.safetensors")):
        pieces.update(load_file(path))
    for k, w in masters.items():
        count = -(-w.numel() // 1_000_000)
        w.copy_(torch.cat([pieces[f"{k}@{i}"] for i in range(count)]).float().view(w.shape))


class Feeder:
    """Steps from the workers; when they fall behind, a recent step is used once more."""

    def __init__(self, workers, seed, directory, mix):
        ctx = mp.get_context("spawn")
        self.queue = ctx.Queue(64)
        self.processes = [ctx.Process(target=worker, args=(seed * 1000 + i, self.queue, directory, mix), daemon=True)
                          for i in range(workers)]
        for p in self.processes:
            p.start()
        self.recent, self.reused, self.turn = [], 0, 0

    def next(self):
        try:
            item = self.queue.get(timeout=120.0 if len(self.recent) < 100 else 0.01)
            self.recent = self.recent[-199:] + [item]
            return item
        except queue.Empty:
            self.reused += 1
            self.turn += 7
            return self.recent[self.turn % (len(self.recent) // 2)]


def to_device(item, device):
    out = {k: torch.from_numpy(v).to(device, non_blocking=True).long() for k, v in item.items() if k != "cu"}
    out["cu"] = torch.from_numpy(item["cu"]).to(device)
    out["longest"] = int((item["cu"][1:] - item["cu"][:-1]).max())
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--resume")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=0, help="plan this many steps instead of measuring (tests)")
    args = parser.parse_args()
    out, device = pathlib.Path(args.out), args.device
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    masters = initial_masters(1234, device)
    bias = torch.zeros(MOE, E, device=device)
    optimizer = Optimizer(masters)
    state = {"step": 0, "total": args.steps, "spent": 0.0, "curve": [], "loads": []}
    if args.resume:
        state = json.loads((pathlib.Path(args.resume) / "state.json").read_text())
        bias.copy_(torch.tensor(state["bias"]))
        full = pathlib.Path(args.resume) / FULL
        if full.exists():
            saved = torch.load(full, map_location=device)
            for k in masters:
                masters[k].copy_(saved["masters"][k])
            optimizer.load(saved["optimizer"])
            print("resumed from the full checkpoint", flush=True)
        else:
            load_masters(args.resume, masters)
            print("resumed from the bfloat16 masters", flush=True)
    feeder = Feeder(args.workers, 1 + state["step"], pathlib.Path(__file__).resolve().parent.parent, MIX)
    net = Network(masters, bias, compile_it=device == "cuda")
    started, first_step, compiled_acts = time.time(), state["step"], False
    mark, mark_step, stats, paused = None, 0, torch.zeros(4, device=device), 0.0
    while True:
        step, total = state["step"], state["total"]
        progress = step / total if total else 0.0
        elapsed = time.time() - started
        if (total and step >= total) or elapsed > args.seconds:
            break
        quant_w, quant_a = progress >= QUANT_FROM, progress >= QUANT_ACT_FROM
        if quant_a and not compiled_acts:
            compiled_acts = True
            print("activations are rounded from here on", flush=True)
        net.refresh(quant_w)
        batch = to_device(feeder.next(), device)
        loss, main_loss, acc, mtp_loss, mtp_acc, loads = net.forward(
            batch["ids"], batch["t1"], batch["m1"], batch["t2"], batch["m2"], batch["pos"], batch["cu"], batch["longest"], quant_a,
            0.3 if progress < 0.6 else 0.15)
        loss.backward()
        optimizer.step(net.grads, schedule(progress) if total else min(1.0, (step + 1) / 150))
        gamma = 0.002 if progress < 0.6 else 0.0005 if progress < 0.85 else 0.0001
        bias.add_(gamma * torch.sign(loads.mean(-1, keepdim=True) - loads))
        stats.add_(torch.stack((main_loss, acc, mtp_loss, mtp_acc)))
        state["step"] = step + 1
        done = state["step"] - first_step
        if done == 40:
            torch.cuda.synchronize() if device == "cuda" else None
            mark, mark_step = time.time(), done
        if not total and done == 240:
            torch.cuda.synchronize() if device == "cuda" else None
            per_step = (time.time() - mark) / (done - mark_step)
            left = BUDGET_SECONDS - (time.time() - started)
            state["total"] = done + int(left / (per_step * (QUANT_ACT_FROM + (1 - QUANT_ACT_FROM) * 1.3 + 0.03)))
            print(f"{per_step * 1e3:.1f} ms a step, {TOKENS / per_step:.0f} tokens/s: {state['total']} steps planned", flush=True)
        if done % 100 == 0:
            values = (stats / 100).tolist()
            if device == "cuda":
                torch.cuda.synchronize()
            spent = time.time() - started
            rate = done / spent
            spread = (loads.max(-1).values / loads.mean(-1)).tolist()
            state["curve"].append([state["step"]] + [round(v, 5) for v in values])
            state["loads"].append([state["step"]] + [[round(v, 4) for v in row] for row in (loads / loads.sum(-1, keepdim=True)).tolist()])
            print(f"step {state['step']}/{state['total']} loss {values[0]:.4f} acc {values[1]:.4f} mtp {values[2]:.4f} {values[3]:.4f} "
                  f"load max/mean {max(spread):.2f} {rate:.1f} steps/s reused {feeder.reused} "
                  f"ETA {(state['total'] - state['step']) / rate:.0f} s", flush=True)
            stats.zero_()
            if not all(map(lambda v: v == v, values)):
                raise SystemExit("the loss is not a number")
    if device == "cuda":
        torch.cuda.synchronize()
    state["spent"] += time.time() - started
    save(out, masters, bias, optimizer if device == "cuda" else None, state)
    print(f"saved at step {state['step']} of {state['total']}, {state['spent']:.0f} s of steps so far", flush=True)
    for p in feeder.processes:
        p.kill()


if __name__ == "__main__":
    main()
