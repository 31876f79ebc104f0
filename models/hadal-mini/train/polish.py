"""The short last stage: small steps from an exported directory, with weights and activations rounded as they are served.

    python polish.py MODEL_DIR --state STATE_JSON --out DIR --seconds 38

Its documents favour what learns last, and silence.py keeps the experts from standing in for each other. DIR receives what
train.py leaves (master-*.safetensors, state.json), for export.py. Compiling is not counted as steps.
"""
import argparse
import json
import pathlib
import time

import torch

from checkpoint import load_dequantised
from export import masters_of
from model import Network
from optimizer import Optimizer
from packing import POLISH_MIX
from silence import Pressure, Silence
from train import Feeder, save, to_device

PEAK, FLOOR, RISE_STEPS = 0.12, 0.002, 15   # of the learning rates in optimizer.py
MTP_WEIGHT = 0.15


def step_once(net, item, pressure, fade, device):
    silence = Silence(pressure, item, fade, device)
    batch = to_device(silence.item, device)
    net.refresh(True)
    loss, *rest = net.forward(batch["ids"], batch["t1"], batch["m1"], batch["t2"], batch["m2"], batch["pos"], batch["cu"],
                              batch["longest"], True, MTP_WEIGHT, silence)
    loss.backward()
    return rest


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--state", required=True, help="state.json of the training that made the model")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device, state = args.device, json.loads(pathlib.Path(args.state).read_text())
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    masters, bias = masters_of(load_dequantised(args.model), device)
    optimizer, net = Optimizer(masters), Network(masters, bias, compile_it=device == "cuda")
    feeder = Feeder(args.workers, 1 + state["step"], pathlib.Path(__file__).resolve().parent.parent, POLISH_MIX)
    for _ in range(3):
        step_once(net, feeder.next(), Pressure(device), 1.0, device)
    wait()
    pressure = Pressure(device)
    started, done, first, stats = time.time(), 0, state["step"], torch.zeros(4, device=device)
    while (elapsed := time.time() - started) < args.seconds:
        left = 1 - elapsed / args.seconds
        main_loss, acc, mtp_loss, mtp_acc, loads = step_once(net, feeder.next(), pressure, left, device)
        optimizer.step(net.grads, max(FLOOR, PEAK * min(1.0, (done + 1) / RISE_STEPS) * left))
        stats.add_(torch.stack((main_loss, acc, mtp_loss, mtp_acc)))
        done += 1
        if done % 10 == 0:
            pressure.refresh_odds()
        if done % 50 == 0:
            values = (stats / 50).tolist()
            stats.zero_()
            state["curve"].append([first + done] + [round(v, 5) for v in values])
            state["loads"].append([first + done] + [[round(v, 4) for v in row] for row in (loads / loads.sum(-1, keepdim=True)).tolist()])
            failed = sorted(pressure.failed.tolist())
            print(f"step {first + done} loss {values[0]:.4f} acc {values[1]:.4f} mtp {values[2]:.4f} {values[3]:.4f} "
                  f"silent failing {failed[0]:.3f} {failed[3]:.3f} {failed[16]:.3f} weight {pressure.weight.max():.2f} "
                  f"{done / (time.time() - started):.1f} steps/s reused {feeder.reused} ETA {args.seconds - elapsed:.0f} s", flush=True)
    wait()
    state["polish"] = {"steps": done, "seconds": round(time.time() - started, 1),
                       "failed": [round(v, 4) for v in pressure.failed.tolist()], "weight": [round(v, 3) for v in pressure.weight.tolist()]}
    state["step"] += done
    state["spent"] += time.time() - started
    save(pathlib.Path(args.out), masters, bias, None, state)
    print(f"saved after {done} steps, {state['spent']:.0f} s of steps over all", flush=True)
    for p in feeder.processes:
        p.kill()


if __name__ == "__main__":
    main()
