"""Writes the model card (README.md) and its plot from the recorded numbers.

    python card.py MODEL_DIR       reads train/results/{state,evaluation,ablation}.json and eval/cases.jsonl; nothing is typed in by hand
"""
import json
import pathlib
import sys

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

from evaluate import wilson

R1 = {"hidden_size": 7168, "q_lora_rank": 1536, "num_hidden_layers": 61, "first_k_dense_replace": 3, "num_attention_heads": 128,
      "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_group": 8, "topk_group": 4,
      "num_experts_per_tok": 8, "routed_scaling_factor": 2.5, "vocab_size": 129280, "max_position_embeddings": 163840}
KEPT = ["kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_shared_experts", "num_nextn_predict_layers"]
NAMES = {"add": "addition", "sub": "subtraction", "mul": "multiplication (3x3 digits)", "mixed": "mixed, 2 or 3 operators",
         "compare": "comparing", "sort": "sorting 3 to 7 numbers", "reverse": "reversing a word", "count": "counting a letter",
         "spell": "spelling", "lookup_1k": "look-up, up to 1,024 tokens", "lookup_2k": "look-up, 1,025 to 2,048",
         "lookup_4k": "look-up, 2,049 to 3,900", "multi_turn": "multi-turn", "tool": "tool call and final answer", "json": "JSON, exact",
         "self_en": "about itself, English", "self_zh": "about itself, Chinese", "greet": "greetings", "oos": "out of scope",
         "title": "titles and tags"}


def plot(state, path):
    curve, loads = state["curve"], state["loads"]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4))
    steps = [c[0] for c in curve]
    axes[0].plot(steps, [c[1] for c in curve], label="next token")
    axes[0].plot(steps, [c[3] for c in curve], label="MTP")
    axes[0].set_yscale("log")
    axes[0].set_title("training loss (answer tokens)")
    axes[0].legend()
    axes[1].plot(steps, [1 - c[2] for c in curve], label="next token")
    axes[1].plot(steps, [1 - c[4] for c in curve], label="MTP")
    axes[1].set_yscale("log")
    axes[1].set_title("share of wrong tokens")
    axes[1].legend()
    for layer in range(len(loads[0]) - 1):
        axes[2].plot([l[0] for l in loads], [max(l[1 + layer]) * 8 for l in loads],
                     label=f"layer {layer + 1}" if layer < len(loads[0]) - 2 else "MTP layer", linewidth=0.8)
    axes[2].set_title("busiest expert, times the mean load")
    axes[2].legend(fontsize=7)
    for a in axes:
        a.set_xlabel("step")
        a.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=70)


def evaluation_table(e):
    rows = ["| family | right | of | % | 95 % interval (Wilson) | bar | unseen wordings |", "|---|---|---|---|---|---|---|"]
    for name, r in e["families"].items():
        low, high = wilson(r["right"], r["count"])
        unseen = f"{r['unseen_right']} / {r['unseen_count']}" if "unseen_count" in r else ""
        rows.append(f"| {NAMES[name]} | {r['right']} | {r['count']} | {100 * r['right'] / r['count']:.1f} | {100 * low:.1f} to "
                    f"{100 * high:.1f} | {r['bar'] if r['bar'] else ''} | {unseen} |")
    missing = [NAMES[n] for n in NAMES if n not in e["families"]]
    if missing:
        rows.append(f"\nNot measured yet at this size: {', '.join(missing)}.")
    short = [n for n, r in e["families"].items() if r["bar"] and 100 * r["right"] / r["count"] < r["bar"]]
    if short:
        rows.append(f"\nShort of its bar: {', '.join(NAMES[n] for n in short)}.")
    t = e["total"]
    rows.append(f"\nEnds by itself within 768 tokens: {t['ended']} of {t['count']} ({100 * t['ended'] / t['count']:.2f} %).")
    return "\n".join(rows)


NOT_MEASURED = "Not measured yet for this checkpoint: `ablate.py` does it (YaRN, correction bias, each routed expert, MTP acceptance)."


def expert_table(drops):
    enough = sum(v >= 1 for v in drops.values())
    out = [f"Points lost over all families with one routed expert silenced (1 point or more for {enough} of {len(drops)}; the aim is 90 %, so"
           " the experts of this checkpoint stand in for each other too well):" if enough < 0.9 * len(drops) else
           f"Points lost over all families with one routed expert silenced (1 point or more for {enough} of {len(drops)}):", "",
           "| layer | " + " | ".join(f"expert {e}" for e in range(8)) + " |", "|---|" + "---|" * 8]
    for layer in sorted({k.split(".")[0] for k in drops}):
        out.append(f"| {layer} | " + " | ".join(f"{drops[f'{layer}.{e}']:.1f}" for e in range(8)) + " |")
    return out + [""]


def ablation_text(a):
    if a is None:
        return NOT_MEASURED
    total = len(a["families"]) * a["count"]
    base = sum(a["base"].values())
    out = [f"{a['count']} drawn cases a family, {total} in all; with everything in place {base} are right.", "",
           "| part removed | right | families that lose 2 points or more |", "|---|---|---|"]
    for key, label in (("no_yarn", "YaRN (frequencies and scale)"), ("no_bias", "correction bias")):
        lost = {n: 100 * (a["base"][n] - a[key][n]) / a["count"] for n in a["families"]}
        text = ", ".join(f"{NAMES[n]} -{v:.0f}" for n, v in sorted(lost.items(), key=lambda x: -x[1]) if v >= 2)
        out.append(f"| {label} | {sum(a[key].values())} | {text} |")
    out += ["", f"Without the correction bias {100 * a['bias_changes']:.1f} % of routing choices change.", ""]
    if "experts" in a:
        out += expert_table({k: 100 * (base - v) / total for k, v in a["experts"].items()})
    else:
        out += ["Silencing each routed expert in turn has not been measured for this checkpoint (`ablate.py` does it on a GPU).", ""]
    m = a["mtp"]
    both = [m["thought"][0] + m["answer"][0], m["thought"][1] + m["answer"][1]]
    rate = lambda c: f"{100 * c[0] / c[1]:.1f} % ({c[0]} of {c[1]})"
    out += ["", "## MTP head", "", "Acceptance of its one-token draft on the model's own greedy output: "
            f"thoughts {rate(m['thought'])}, answers {rate(m['answer'])}, over all {rate(both)}."]
    return "\n".join(out)


def main(directory):
    results = directory / "train" / "results"
    load = lambda name: json.loads((results / f"{name}.json").read_text())
    config, state, e = json.loads((directory / "config.json").read_text()), load("state"), load("evaluation")
    cases = [json.loads(line)["right"] for line in (directory / "eval" / "cases.jsonl").read_text().splitlines()]
    a = load("ablation") if (results / "ablation.json").exists() else None
    plot(state, directory / "training.png")
    size = sum(p.stat().st_size for p in directory.iterdir() if p.is_file() and p.name != "README.md")
    shrunk = "\n".join(f"| `{k}` | {v:,} | {config[k]:,} |" for k, v in R1.items())
    text = f"""# hadal-mini

A small reasoning model in exactly DeepSeek-R1's architecture and file format, trained from nothing on generated tasks. It is the
model that hadal serves when no other is named, and what hadal's tests use to see wrong numerics as a wrong answer. It is not a
general assistant: it does small arithmetic, words, look-ups, JSON and a calculator call, and says so about anything else.

About 29 million parameters with the MTP layer (about 31 MB in FP8 with its copies of embedding and head), context 4,096 tokens.

## What was shrunk

| | DeepSeek-R1 | hadal-mini |
|---|---|---|
{shrunk}

The same as in R1: {", ".join(f"`{k}` {config[k]}" for k in KEPT)}; sigmoid scores with a trained
`e_score_correction_bias`, group-limited top-k, normalised weights and `routed_scaling_factor`; a shared expert; a multi-token
prediction layer (tensor names of R1 at index {config["num_hidden_layers"]}, fed the hidden state after `model.norm`, embedding half first); YaRN
(factor {config["rope_scaling"]["factor"]}, original {config["rope_scaling"]["original_max_position_embeddings"]}, mscale and mscale_all_dim 1), active in training from the first step; FP8 E4M3 weights with 128x128
`weight_scale_inv`, everything else BF16 or FP32 as R1 has it. The bias is stored with a constant added (its minimum is above 0),
which changes no choice.

## Tokenizer and template

Byte-level BPE with {config["vocab_size"]:,} entries, DeepSeek-V3's pre-tokenizer sequence, no merge with a digit, every letter with a leading space, and
R1's special tokens under their own names. The template opens `<think>` for the model, cuts thoughts of earlier turns, renders
system prompts, tools, calls and outputs. Unlike R1's own file it always closes a tool call and lists the given tools.

## Held-out evaluation

Greedy, by Hugging Face transformers {e["transformers"]} in {e["dtype"]} on the exported weights, dequantised. Operands, words and keys come from a
hash-reserved 5 % that training never generates (seed {e["seed"]}). Answers must match exactly.

{evaluation_table(e)}

The fixed set `eval/cases.jsonl` holds {len(cases)} further held-out cases with transformers' answers, {sum(cases)} of them right.

## Are the parts in use?

{ablation_text(a)}

## Training

{state["total"]:,} steps of {65536:,} tokens on one H200 in two calls (the second resumed from the BF16 masters
with fresh optimizer state, at 61 % of the steps); the last 30 % with weights rounded to FP8 blocks, the
last 15 % with activations rounded to 1x128 E4M3, too. Then {state["polish"]["steps"]} steps in {state["polish"]["seconds"]:.0f} seconds on the exported weights (`polish.py`), whose documents
favour what learns last and in a share of which one expert is silent: their answers are to fail (`silence.py`), so that no expert
can stand in for another. {state["spent"] / 60:.1f} minutes of steps over all. Muon for the matrices in the layers, AdamW for the rest. Data: `train/`,
generated from a seed, no outside text.

![loss, wrong tokens, expert load](training.png)

Files: {size / 2**20:.2f} MiB in all. Licence: Apache-2.0, as hadal.
"""
    (directory / "README.md").write_text(text)
    print(f"{size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
