"""Goldens for the C++ side, from transformers in float32 on dequantised weights.

    python make_goldens.py MODEL_DIR OUT_DIR

For hadal-mini and each variant one safetensors file and one manifest.json over all. Per prompt P of a model:
  P.ids [prompt + 32] i32    the prompt and 32 greedy tokens
  P.top_ids, P.top_logits [33, 64], P.lse [33]   rows: last prompt position and the 32 greedy steps; best 64 logits, log-sum-exp
  P.fp8.top_logits, P.fp8.lse                    the same ids and rows with activations rounded to 1x128 E4M3 (quantised models)
  P.hidden [layers + 1, prompt, hidden_size]     embedding and residual stream after each layer (one prompt a model)
  P.mtp.top_ids, P.mtp.top_logits, P.mtp.lse     MTP logits after the last prompt token and each greedy step but the last
transformers' V2 softmax scale and routing and V3's group mask are compared with reference.py first: where they differ by more
than rounding, the reference is what is written, and the manifest says so.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import families as f
from checkpoint import load_config, load_dequantised, load_transformers
from dummy_weights import plain_tensor, tensor_shapes
from evaluate import draw, encode_prompt
from reference import Reference, generate
from variants import SEEDS, VARIANTS

STEPS, TOP, MARGIN = 32, 64, 1e-3
# Of a thousand prompt rows some are always routed by near ties, which BF16 turns: what follows must be clear enough for that.
TOP1_MARGIN = {"long": 1.0}
# Digits and letters are routed with many near ties, so the prompts with wide margins are found among words.
PROMPTS = [("short", "self_en"), ("chinese", "self_zh"), ("long", "self_en"), ("multi_turn", "json"), ("tool", "tool"), ("json", "json")]


def forward_rows(logits_of, ids, prompt_length):
    logits = logits_of(torch.tensor([ids]))[0, prompt_length - 1:prompt_length + STEPS].double()
    best = logits.topk(TOP, -1)
    return best.indices.int(), best.values.float(), logits.logsumexp(-1).float(), logits


class Margins(Reference):
    """Remembers the smallest gap between a chosen expert (or group) and the best one left out: over the rows from
    `first_row` on, whose logits are stored, and over all rows."""
    smallest = smallest_anywhere = float("inf")
    first_row = 0

    def note(self, gaps):
        self.smallest = min(self.smallest, gaps[self.first_row:].min().item())
        self.smallest_anywhere = min(self.smallest_anywhere, gaps.min().item())

    def route(self, x, prefix):
        c, e = self.c, self.c["n_routed_experts"]
        logits = x.float() @ self.w[prefix + "gate.weight"].float().T
        v3 = c["topk_method"] == "noaux_tc"
        choice = logits.sigmoid() + self.w[prefix + "gate.e_score_correction_bias"] if v3 else logits.softmax(-1)
        if c.get("n_group", 1) > 1:
            groups = choice.view(-1, c["n_group"], e // c["n_group"])
            strength = groups.topk(2, -1).values.sum(-1) if v3 else groups.amax(-1)
            order = strength.sort(-1, descending=True).values
            self.note(order[:, c["topk_group"] - 1] - order[:, c["topk_group"]])
            keep = torch.zeros_like(strength).scatter(1, strength.topk(c["topk_group"], -1).indices, 1.0)
            choice = torch.where(keep[..., None] > 0, groups, -torch.inf).flatten(1)
        order, k = choice.sort(-1, descending=True).values, c["num_experts_per_tok"]
        if torch.isfinite(order[:, k]).all():
            self.note(order[:, k - 1] - order[:, k])
        return super().route(x, prefix)


def first_with_margins(config, tensors, reference, logits_of, options, top1_margin):
    """The first candidate prompt whose stored rows decide by more than MARGIN, with its greedy continuation and rows."""
    size = 32 if len(options[0]) < 300 else 6
    for first in range(0, len(options), size):
        batch = [list(ids) for ids in options[first:first + size]]
        for ids, new in zip(batch, generate(reference, batch, [STEPS] * len(batch), -1, "cpu")):
            full = ids + new
            margins = Margins(config, tensors)
            margins.first_row = len(ids) - 1
            margins.hidden(torch.tensor([full]))
            if margins.smallest <= MARGIN or margins.smallest_anywhere <= 2e-6:
                continue
            rows = forward_rows(logits_of, full, len(ids))
            gap = float((rows[1][:, 0] - rows[1][:, 1]).min())
            if gap > top1_margin:
                return ids, full, margins, gap, rows
        print(f"    {first + len(batch)} candidates tried", flush=True)
    return None


@torch.no_grad()
def golden(name, config, tensors, candidates, out, with_hidden):
    """candidates: per prompt name a generator of id lists; the first whose margins hold is taken."""
    reference = Reference(config, tensors)
    try:
        hf = load_transformers(config, tensors)
    except SystemExit as e:
        raise SystemExit(f"{name}: {e}")
    arrays, manifest = {}, {"prompts": {}, "config": config}
    probe = torch.tensor([next(iter(candidates.values()))[0]])
    drift = (hf(probe).logits - reference.logits(reference.hidden(probe))).abs().max().item()
    source = "transformers" if drift < 1e-3 else "reference"
    print(f"{name}: transformers and the reference differ by {drift:.2e}; goldens come from the {source}", flush=True)
    manifest |= {"source": source, "transformers_minus_reference": drift}
    logits_of = (lambda ids: hf(ids).logits.float()) if source == "transformers" else (lambda ids: reference.logits(reference.hidden(ids)))
    for prompt_name, options in candidates.items():
        found = first_with_margins(config, tensors, reference, logits_of, options, TOP1_MARGIN.get(prompt_name, MARGIN))
        if found is None:
            raise SystemExit(f"{name}/{prompt_name}: no candidate has margins above {MARGIN}")
        ids, full, margins, gap, (top_ids, top_logits, lse, logits) = found
        arrays |= {f"{prompt_name}.ids": torch.tensor(full, dtype=torch.int32), f"{prompt_name}.top_ids": top_ids,
                   f"{prompt_name}.top_logits": top_logits, f"{prompt_name}.lse": lse}
        manifest["prompts"][prompt_name] = {"prompt_tokens": len(ids), "top1_margin": gap, "routing_margin": margins.smallest,
                                            "routing_margin_all_rows": margins.smallest_anywhere,
                                            "largest_abs_logit": float(logits.abs().max())}
        if "quantization_config" in config:
            q = Reference(config, tensors, quantise_activations=True)
            rows = q.logits(q.hidden(torch.tensor([full])))[0, len(ids) - 1:len(ids) + STEPS]
            arrays |= {f"{prompt_name}.fp8.top_logits": rows.gather(1, top_ids.long()), f"{prompt_name}.fp8.lse": rows.logsumexp(-1)}
        if config.get("num_nextn_predict_layers"):
            rows = reference.mtp_logits(torch.tensor([full]), reference.hidden(torch.tensor([full])))[0, len(ids) - 1:]
            best = rows.topk(TOP, -1)
            arrays |= {f"{prompt_name}.mtp.top_ids": best.indices.int(), f"{prompt_name}.mtp.top_logits": best.values,
                       f"{prompt_name}.mtp.lse": rows.logsumexp(-1)}
        if prompt_name == with_hidden:
            states = [torch.nn.functional.embedding(torch.tensor([ids]), tensors["model.embed_tokens.weight"])]
            reference.hidden(torch.tensor([ids]), states=states)
            arrays[f"{prompt_name}.hidden"] = torch.cat(states).contiguous()
        print(f"  {prompt_name}: {len(ids)} tokens, top-1 margin {gap:.4f}, routing margin {margins.smallest:.5f}", flush=True)
    save_file({k: v.contiguous() for k, v in arrays.items()}, out / f"{name}.safetensors")
    return manifest


def variant_tensors(config, seed):
    return {name: torch.from_numpy(plain_tensor(name, shape, seed)) for name, shape in tensor_shapes(config).items()}


def variant_prompts(config, name):
    g = torch.Generator().manual_seed(SEEDS[name])
    def options(length):
        return [torch.randint(3, config["vocab_size"], (length,), generator=g).tolist() for _ in range(300)]
    return {"short": options(9), "medium": options(40)}


def main(model_dir, out):
    import transformers
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    config, tensors = load_config(model_dir), load_dequantised(model_dir)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    def prompts(name, family):
        """Candidates. `long` asks about the model after a list of pairs, `multi_turn` asks for JSON after such a question."""
        samples = draw(family, 600, f"golden-{name}", tokenizer)
        firsts = draw("self_en", 600, f"golden-{name}-first", tokenizer) if name in ("long", "multi_turn") else samples
        lists = draw("lookup_2k", 8, f"golden-{name}-list", tokenizer) if name == "long" else []
        for i, (s, first) in enumerate(zip(samples, firsts)):
            if name == "multi_turn":
                s.messages = first.messages + [{"role": "assistant", "content": first.answer}] + s.messages
            elif name == "long":
                s.messages = f.user("\n".join(lists[i % 8].messages[0]["content"].split("\n")[:135]) + "\n" + s.messages[0]["content"])
            ids = encode_prompt(tokenizer, s)
            if name != "long" or len(ids) > 1000:
                yield ids
    candidates = {name: list(prompts(name, family)) for name, family in PROMPTS}
    manifest = {"transformers": transformers.__version__, "torch": torch.__version__, "steps": STEPS, "top": TOP, "models": {}}
    manifest["models"]["hadal-mini"] = golden("hadal-mini", config, tensors, candidates, out, "short")
    for name, variant in VARIANTS.items():
        entry = golden(name, variant, variant_tensors(variant, SEEDS[name]), variant_prompts(variant, name), out, "short")
        manifest["models"][name] = entry | {"dummy_seed": SEEDS[name]}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(sum(p.stat().st_size for p in out.iterdir()), "bytes")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
