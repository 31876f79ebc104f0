"""Are the parts in use? Accuracy without YaRN, without the correction bias, and with each routed expert silenced in turn;
and the acceptance rate of the MTP head's one-token draft on the model's own greedy output.

    python ablate.py MODEL_DIR --count 100 --out ablation.json
"""
import argparse
import json
import pathlib
import time

import torch
from tokenizers import Tokenizer

from checkpoint import load_config, load_dequantised
from evaluate import BARS, batches, correct, draw, encode_prompt
from reference import Reference, generate
from render import END_THINK, response_text


def answer_all(model, tokenizer, work, device, budget, masks=None):
    """work: list of (sample, mask index); right or wrong for each. A tool case is judged by its call."""
    prompts = [encode_prompt(tokenizer, s) for s, _ in work]
    limits = [len(tokenizer.encode(response_text(s)).ids) + 48 for s, _ in work]
    right, outputs = [False] * len(work), [None] * len(work)
    for group in batches(prompts, budget):
        mask = masks[torch.tensor([work[i][1] for i in group])].to(device) if masks is not None else None
        out = generate(model, [prompts[i] for i in group], [limits[i] for i in group], 1, device, mask)
        for i, new in zip(group, out):
            text = tokenizer.decode(new, skip_special_tokens=False)
            right[i], outputs[i] = correct(work[i][0], text) and new[-1] == 1, new
    return right, outputs, prompts


@torch.no_grad()
def acceptance(model, tokenizer, prompts, outputs, device):
    """Draft for token i + 2 made at i, against the token that the model then produced: thoughts and answers apart."""
    end = tokenizer.token_to_id(END_THINK)
    counts = {"thought": [0, 0], "answer": [0, 0]}
    for p, new in zip(prompts, outputs):
        ids = torch.tensor([p + new], device=device)
        draft = model.mtp_logits(ids, model.hidden(ids)).argmax(-1)[0].tolist()
        thinking = end in new
        for j in range(len(p) + 1, len(p) + len(new)):   # token j is drafted at j - 2 from tokens up to j - 1
            kind = "thought" if thinking and j <= len(p) + new.index(end) else "answer"
            counts[kind][1] += 1
            counts[kind][0] += draft[j - 2] == ids[0, j].item()
    return counts


@torch.no_grad()
def changed_choices(config, tensors, tokenizer, samples, device):
    """Share of (token, layer) routing choices that differ once the bias is removed, on the same inputs."""
    model = Reference(config, tensors)
    plain = Reference(config, tensors, use_bias=False)
    differing = total = 0
    original = model.route

    def both(x, prefix):
        nonlocal differing, total
        weights = original(x, prefix)
        a, b = weights > 0, plain.route(x, prefix) > 0
        differing += int((a != b).any(-1).sum())
        total += a.shape[0]
        return weights
    model.route = both
    for s in samples:
        model.hidden(torch.tensor([encode_prompt(tokenizer, s) + tokenizer.encode(response_text(s)).ids], device=device))
    return differing / total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", default="ablation")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", type=int, default=800_000)
    parser.add_argument("--families", help="only these, comma-separated")
    parser.add_argument("--layer", type=int, help="only silence the routed experts of this layer (parts run side by side; see --merge)")
    parser.add_argument("--merge", nargs="+", help="write these parts' reports into --out as one")
    parser.add_argument("--skip-experts", action="store_true", help="YaRN, bias and MTP only (a CPU needs hours for the rest)")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if args.merge:
        merge(args.merge, args.out)
        return
    device = args.device
    names = args.families.split(",") if args.families else list(BARS)
    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(pathlib.Path(args.model) / "tokenizer.json"))
    config = load_config(args.model)
    tensors = load_dequantised(args.model, torch.bfloat16 if device == "cuda" else torch.float32, device)
    samples = [s for family in names for s in draw(family, args.count, args.seed, tokenizer)]
    families = [family for family in names for _ in range(args.count)]

    def table(right):
        return {name: sum(r for r, g in zip(right, families) if g == name) for name in names}

    report = {"count": args.count, "families": names}
    def keep():
        pathlib.Path(args.out).write_text(json.dumps(report, indent=1))
    if args.layer is None:
        whole_parts(report, config, tensors, tokenizer, samples, table, device, args.budget)
        keep()
    if args.skip_experts:
        return
    layers = range(config["first_k_dense_replace"], config["num_hidden_layers"]) if args.layer is None else [args.layer]
    report["experts"] = {}
    for layer in layers:
        silence_experts(report["experts"], layer, config, tensors, tokenizer, samples, device, args.budget)
        keep()


def whole_parts(report, config, tensors, tokenizer, samples, table, device, budget):
    """Everything in place, without YaRN, without the bias; MTP acceptance; routing choices that the bias changes."""
    began = time.time()
    for name, kw in (("base", {}), ("no_yarn", {"yarn": False}), ("no_bias", {"use_bias": False})):
        right, outputs, prompts = answer_all(Reference(config, tensors, **kw), tokenizer, [(s, 0) for s in samples], device, budget)
        report[name] = table(right)
        print(name, sum(right), report[name], f"{time.time() - began:.0f} s", flush=True)
        if name == "base":
            keep = [i for i in range(len(samples)) if i % 4 == 0]
            report["mtp"] = acceptance(Reference(config, tensors), tokenizer, [prompts[i] for i in keep], [outputs[i] for i in keep], device)
            print("mtp", report["mtp"], f"{time.time() - began:.0f} s", flush=True)
    report["bias_changes"] = changed_choices(config, tensors, tokenizer, samples[:: max(1, len(samples) // 200)], device)
    print("choices changed without the bias", report["bias_changes"], flush=True)


def silence_experts(out, layer, config, tensors, tokenizer, samples, device, budget):
    """out["LAYER.EXPERT"]: cases right with that expert silent, all experts of the layer in one run."""
    began, experts = time.time(), config["n_routed_experts"]
    masks = torch.ones(experts, config["num_hidden_layers"], experts)
    masks[torch.arange(experts), layer, torch.arange(experts)] = 0
    work = [(s, e) for e in range(experts) for s in samples]
    right, _, _ = answer_all(Reference(config, tensors), tokenizer, work, device, budget, masks)
    for e in range(experts):
        out[f"{layer}.{e}"] = sum(right[e * len(samples):(e + 1) * len(samples)])
    print("layer", layer, out, f"{time.time() - began:.0f} s", flush=True)


def merge(parts, out):
    reports = [json.loads(pathlib.Path(p).read_text()) for p in parts]
    drawn = {(r["count"], tuple(r["families"])) for r in reports}
    if len(drawn) != 1:
        raise SystemExit(f"the parts were drawn differently: {sorted(drawn)}")
    whole = {k: v for r in reports for k, v in r.items()}
    experts = {k: v for r in reports for k, v in r.get("experts", {}).items()}
    pathlib.Path(out).write_text(json.dumps(whole | {"experts": dict(sorted(experts.items()))}, indent=1))


if __name__ == "__main__":
    main()
