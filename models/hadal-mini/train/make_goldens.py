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

from checkpoint import load_config, load_dequantised, load_transformers
from dummy_weights import plain_tensor, tensor_shapes
from evaluate import draw, encode_prompt
from reference import Reference, generate
from variants import SEEDS, VARIANTS

STEPS, TOP, MARGIN = 32, 64, 1e-3
# BF16 turns near ties among a thousand prompt rows: of a trained model all stored rows but a few are clear enough for that.
UNCLEAR_ROWS, CLEAR_GAP = 2, 0.5
# Digits and letters are routed with many near ties, so the prompts with wide margins are found among words.
PROMPTS = [("short", "self_en"), ("chinese", "self_zh"), ("long", "lookup_2k"), ("multi_turn", "json"), ("tool", "tool"), ("json", "json")]


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
        self.smallest = min(self.smallest, gaps[min(self.first_row, len(gaps) - 1):].min().item())
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


def clear(margins):
    return margins.smallest > MARGIN and margins.smallest_anywhere > 2e-6


def first_with_margins(config, tensors, logits_of, options, clear_gap):
    """The first candidate prompt whose stored rows decide clearly, with its greedy continuation, margins, top-1 gap and rows.
    A GPU searches where there is one, a token at a time; what it finds is computed again in one pass on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scouted = {k: v.to(device) for k, v in tensors.items()}
    for tried, ids in enumerate(map(list, options), 1):
        scout = Margins(config, scouted)
        scout.first_row = len(ids) - 1
        new = generate(scout, [ids], [STEPS], -1, device)[0]
        if tried % 20 == 0:
            print(f"    {tried} candidates tried", flush=True)
        if not clear(scout):
            continue
        margins = Margins(config, tensors)
        margins.first_row = len(ids) - 1
        margins.hidden(torch.tensor([ids + new]))
        rows = forward_rows(logits_of, ids + new, len(ids))
        gaps = (rows[1][:, 0] - rows[1][:, 1]).sort().values
        if clear(margins) and gaps[0] > MARGIN and gaps[UNCLEAR_ROWS] > clear_gap and rows[0][:-1, 0].tolist() == new:
            return ids, ids + new, margins, float(gaps[0]), rows
    return None


@torch.no_grad()
def golden(name, config, tensors, candidates, out, with_hidden, clear_gap=MARGIN):
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
        found = first_with_margins(config, tensors, logits_of, options, clear_gap)
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
        """Candidates; `multi_turn` asks for JSON after a question about the model itself."""
        samples = draw(family, 600, f"golden-{name}", tokenizer)
        firsts = draw("self_en", 600, f"golden-{name}-first", tokenizer) if name == "multi_turn" else samples
        for s, first in zip(samples, firsts):
            if name == "multi_turn":
                s.messages = first.messages + [{"role": "assistant", "content": first.answer}] + s.messages
            yield encode_prompt(tokenizer, s)
    candidates = {name: list(prompts(name, family)) for name, family in PROMPTS}
    manifest = {"transformers": transformers.__version__, "torch": torch.__version__, "steps": STEPS, "top": TOP, "models": {}}
    manifest["models"]["hadal-mini"] = golden("hadal-mini", config, tensors, candidates, out, "short", CLEAR_GAP)
    for name, variant in VARIANTS.items():
        entry = golden(name, variant, variant_tensors(variant, SEEDS[name]), variant_prompts(variant, name), out, "short")
        manifest["models"][name] = entry | {"dummy_seed": SEEDS[name]}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(sum(p.stat().st_size for p in out.iterdir()), "bytes")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
