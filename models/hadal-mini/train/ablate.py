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
def differing(model, sequences, masks, device):
    """sequences: (prompt ids, continuation ids); masks: [layers, experts], the first layer whole. [masks][sequences]: would
    greedy decoding leave the continuation?

    One pass over a whole continuation shows it: up to the first token that is not the best one, both read the same ids."""
    out = [[False] * len(sequences) for _ in masks]
    for group in batches([p + new for p, new in sequences], 60_000 if device == "cuda" else 6_000):
        full = [sequences[i][0] + sequences[i][1] for i in group]
        ids = torch.full((len(full), max(map(len, full))), 2)
        follows = torch.zeros(ids.shape, dtype=torch.bool)   # positions whose best token is the continuation's next
        for row, mark, f, i in zip(ids, follows, full, group):
            row[:len(f)] = torch.tensor(f)
            mark[len(sequences[i][0]) - 1:len(f) - 1] = True
        ids, follows = ids.to(device), follows.to(device)
        following = ids.roll(-1, 1)[follows]
        owner = torch.arange(len(full), device=device)[:, None].expand_as(ids)[follows]
        states, model.expert_mask = [], None
        model.hidden(ids, states=states)
        for m, mask in enumerate(masks):
            model.expert_mask = mask.to(device).expand(len(full), -1, -1)
            first = int((mask < 1).any(-1).nonzero()[0])   # layers before compute what they always do
            wrong = model.logits(model.hidden_from(states[first - 1], first)[follows]).argmax(-1) != following
            left = torch.zeros(len(full), device=device).index_add_(0, owner, wrong.float()).tolist()
            for i, count in zip(group, left):
                out[m][i] = count > 0
    model.expert_mask = None
    return out


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
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--budget", type=int, default=800_000)
    parser.add_argument("--families", help="only these, comma-separated")
    parser.add_argument("--skip-experts", action="store_true", help="YaRN, bias and MTP only (a CPU needs hours for the rest)")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    device = args.device
    names = args.families.split(",") if args.families else list(BARS)
    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(pathlib.Path(args.model) / "tokenizer.json"))
    config = load_config(args.model)
    tensors = load_dequantised(args.model, getattr(torch, args.dtype), device)
    samples = [s for family in names for s in draw(family, args.count, args.seed, tokenizer)]
    families = [family for family in names for _ in range(args.count)]

    def table(right):
        return {name: sum(r for r, g in zip(right, families) if g == name) for name in names}

    report = {"count": args.count, "families": names}

    def keep(**part):
        report.update(part)
        pathlib.Path(args.out).write_text(json.dumps(report, indent=1))
        print(part, f"{time.time() - began:.0f} s", flush=True)

    began, work = time.time(), [(s, 0) for s in samples]
    base = answer_all(Reference(config, tensors), tokenizer, work, device, args.budget)
    keep(base=table(base[0]))
    if not args.skip_experts:
        keep(experts=silence_experts(config, tensors, tokenizer, samples, base, device, args.budget))
    for name, kw in (("no_yarn", {"yarn": False}), ("no_bias", {"use_bias": False})):
        keep(**{name: table(answer_all(Reference(config, tensors, **kw), tokenizer, work, device, args.budget)[0])})
    _, outputs, prompts = base
    keep(mtp=acceptance(Reference(config, tensors), tokenizer, prompts[::4], outputs[::4], device))
    keep(bias_changes=changed_choices(config, tensors, tokenizer, samples[:: max(1, len(samples) // 200)], device))


def silence_experts(config, tensors, tokenizer, samples, base, device, budget):
    """{"LAYER.EXPERT": cases right with that expert silent}. Only continuations that it changes are generated again."""
    right, outputs, prompts = base
    experts = config["n_routed_experts"]
    names = [(layer, e) for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"]) for e in range(experts)]
    masks = torch.ones(len(names), config["num_hidden_layers"], experts)
    for m, (layer, e) in enumerate(names):
        masks[m, layer, e] = 0
    model = Reference(config, tensors)
    changed = differing(model, list(zip(prompts, outputs)), masks, device)
    work = [(i, m) for m in range(len(names)) for i in range(len(samples)) if changed[m][i]]
    print(f"experts: {len(work)} of {len(names) * len(samples)} continuations change", flush=True)
    again, _, _ = answer_all(model, tokenizer, [(samples[i], m) for i, m in work], device, budget, masks)
    counts = [sum(right)] * len(names)
    for (i, m), is_right in zip(work, again):
        counts[m] += is_right - right[i]
    return {f"{layer}.{e}": count for (layer, e), count in zip(names, counts)}


if __name__ == "__main__":
    main()
