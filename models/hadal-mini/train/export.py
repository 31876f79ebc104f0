"""Training checkpoint to Hugging Face directory.

    python export.py WORK_DIR OUT_DIR     reads master-*.safetensors and state.json, writes config, generation config and shards
"""
import json
import pathlib
import sys

import torch

from checkpoint import save_checkpoint
from config import CONFIG
from model import E, L, initial_masters
from train import load_masters


def named(m, bias):
    out = {"model.embed_tokens.weight": m["embed"]}
    for i in range(L):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        out |= {a + "q_a_proj.weight": m["q_a"][i], a + "q_a_layernorm.weight": m["qa_norm"][i], a + "q_b_proj.weight": m["q_b"][i],
                a + "kv_a_proj_with_mqa.weight": m["kv_a"][i], a + "kv_a_layernorm.weight": m["kva_norm"][i],
                a + "kv_b_proj.weight": m["kv_b"][i], a + "o_proj.weight": m["o"][i],
                p + "input_layernorm.weight": m["in_norm"][i], p + "post_attention_layernorm.weight": m["post_norm"][i]}
        if i == 0:
            for x in ("gate", "up", "down"):
                out[f"{p}mlp.{x}_proj.weight"] = m["dense_" + x][0]
            continue
        out[p + "mlp.gate.weight"] = m["router"][i - 1]
        # A constant for all experts changes no choice; above 0 a masked group can never win in readers that mask with 0.
        b = torch.tensor(bias[i - 1])
        out[p + "mlp.gate.e_score_correction_bias"] = b - b.min() + 0.05
        for e in range(E + 1):
            q = f"{p}mlp.experts.{e}." if e < E else f"{p}mlp.shared_experts."
            for x in ("gate", "up", "down"):
                out[f"{q}{x}_proj.weight"] = m[x][i - 1, e]
    p = f"model.layers.{L - 1}."
    out |= {p + "embed_tokens.weight": m["embed"].clone(), p + "enorm.weight": m["enorm"], p + "hnorm.weight": m["hnorm"],
            p + "eh_proj.weight": m["eh"], p + "shared_head.norm.weight": m["mtp_norm"], p + "shared_head.head.weight": m["head"].clone(),
            "model.norm.weight": m["norm"], "lm_head.weight": m["head"]}
    return out


def masters_of(tensors, device):
    """The inverse of `named`: (masters, bias) from dequantised tensors by checkpoint name, float32."""
    t = {k: v.float() for k, v in tensors.items()}
    stack = lambda suffix, layers=range(L): torch.stack([t[f"model.layers.{i}.{suffix}"] for i in layers])
    experts = lambda x: torch.stack([torch.stack(
        [t[f"model.layers.{i}.mlp.experts.{e}.{x}_proj.weight"] for e in range(E)] + [t[f"model.layers.{i}.mlp.shared_experts.{x}_proj.weight"]])
        for i in range(1, L)])
    mtp = f"model.layers.{L - 1}."
    a = "self_attn."
    out = {"embed": t["model.embed_tokens.weight"], "head": t["lm_head.weight"], "norm": t["model.norm.weight"],
           "q_a": stack(a + "q_a_proj.weight"), "qa_norm": stack(a + "q_a_layernorm.weight"), "q_b": stack(a + "q_b_proj.weight"),
           "kv_a": stack(a + "kv_a_proj_with_mqa.weight"), "kva_norm": stack(a + "kv_a_layernorm.weight"),
           "kv_b": stack(a + "kv_b_proj.weight"), "o": stack(a + "o_proj.weight"), "in_norm": stack("input_layernorm.weight"),
           "post_norm": stack("post_attention_layernorm.weight"), "router": stack("mlp.gate.weight", range(1, L)),
           "enorm": t[mtp + "enorm.weight"], "hnorm": t[mtp + "hnorm.weight"], "eh": t[mtp + "eh_proj.weight"],
           "mtp_norm": t[mtp + "shared_head.norm.weight"]}
    out |= {f"dense_{x}": stack(f"mlp.{x}_proj.weight", range(1)) for x in ("gate", "up", "down")}
    out |= {x: experts(x) for x in ("gate", "up", "down")}
    return {k: v.to(device) for k, v in out.items()}, stack("mlp.gate.e_score_correction_bias", range(1, L)).to(device)


def main(work, out):
    masters = initial_masters(0, "cpu")
    load_masters(work, masters)
    bias = json.loads((work / "state.json").read_text())["bias"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(
        {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.95}, indent=2) + "\n")
    print("shards:", save_checkpoint(out, named(masters, bias)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
