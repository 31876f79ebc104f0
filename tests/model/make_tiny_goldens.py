#!/usr/bin/env python3
"""Makes tests/model/data/tiny_goldens.json: what Hugging Face transformers answers on four tiny models.

The weights are those of --load-format dummy (src/weights/DUMMY.md), so the file holds configurations,
prompts, logits and tokens only. Sizes are chosen so that head, expert and scale-block boundaries fall
across each other. Run with transformers 5.17 and torch (CPU): python3 tests/model/make_tiny_goldens.py
"""
import json
import math
import pathlib

import numpy as np
import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer

GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
BASE = dict(
    vocab_size=97, hidden_size=192, intermediate_size=320, moe_intermediate_size=96, num_attention_heads=4,
    num_key_value_heads=4, kv_lora_rank=80, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
    n_routed_experts=8, num_experts_per_tok=3, max_position_embeddings=512, rms_norm_eps=1e-6,
    hidden_act="silu", tie_word_embeddings=False, attention_bias=False, moe_layer_freq=1, eos_token_id=1)
YARN = dict(type="yarn", factor=4, original_max_position_embeddings=128, beta_fast=32, beta_slow=1)
V3 = dict(BASE, architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", num_hidden_layers=3, q_lora_rank=72,
          n_shared_experts=1, first_k_dense_replace=1, n_group=4, topk_group=2, topk_method="noaux_tc",
          scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5, num_nextn_predict_layers=1,
          rope_theta=10000, rope_scaling=dict(YARN, mscale=1.0, mscale_all_dim=1.0))
V2 = dict(BASE, architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", num_hidden_layers=3, n_shared_experts=2,
          first_k_dense_replace=1, scoring_func="softmax", norm_topk_prob=False, rope_theta=10000,
          rope_scaling=dict(YARN, mscale=0.707, mscale_all_dim=0.707))
FP8 = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])
VARIANTS = {
    "v3_fp8": dict(V3, quantization_config=FP8),
    "v3_bf16": dict(V3, rope_scaling=None, rope_theta=50000),
    "v2_lite": dict(V2, q_lora_rank=None, n_group=1, topk_group=1, topk_method="greedy", routed_scaling_factor=1.0),
    "v2": dict(V2, q_lora_rank=72, n_group=4, topk_group=2, topk_method="group_limited_greedy", routed_scaling_factor=4.0),
}


def unit_values(name, count, seed=0):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(h ^ (seed * GOLDEN & MASK)) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def weight(name, shape, fp8=False):
    """Float32 value of a dummy tensor, dequantised."""
    f, v, k = np.float32, unit_values(name, math.prod(shape)).reshape(shape), shape[-1]
    if fp8:
        scale_name, (rows, cols) = name + "_scale_inv", [-(-n // 128) for n in shape]
        s = f(math.sqrt(3 / k) / 448) * (f(1) + f(0.5) * unit_values(scale_name, rows * cols).reshape(rows, cols))
        s = np.repeat(np.repeat(s, 128, 0), 128, 1)[: shape[0], : shape[1]]
        return torch.from_numpy(f(448) * v).to(torch.float8_e4m3fn).float() * torch.from_numpy(s.copy())
    if name.endswith(".e_score_correction_bias"):
        return torch.from_numpy(f(0.2) + f(0.15) * v)
    if name.endswith("norm.weight"):
        v = f(1) + f(0.25) * v
    elif name.endswith("embed_tokens.weight"):
        v = f(math.sqrt(3)) * v
    else:
        v = f(math.sqrt(3 / k)) * v
    return torch.from_numpy(v).to(torch.bfloat16).float()


def fill(module, prefix, fp8):
    """Sets every parameter of a module from its checkpoint name; fused experts from their single tensors."""
    for name, target in list(module.named_parameters()) + list(module.named_buffers()):
        full = prefix + name
        if "inv_freq" in name:
            continue
        if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
            for e in range(target.shape[0]):
                base = f"{full.rsplit('.', 1)[0]}.{e}."
                if name.endswith("down_proj"):
                    value = weight(base + "down_proj.weight", tuple(target.shape[1:]), fp8)
                else:
                    half = (target.shape[1] // 2, target.shape[2])
                    value = torch.cat([weight(base + p + ".weight", half, fp8) for p in ("gate_proj", "up_proj")])
                target.data[e] = value
            continue
        is_linear = full.endswith("_proj.weight") or full.endswith("kv_a_proj_with_mqa.weight")
        target.data.copy_(weight(full, tuple(target.shape), fp8 and is_linear))


def rounded(tensor):
    return [float(f"{x:.8g}") for x in tensor.double().flatten().tolist()]


def mtp_logits(model, config, fp8, ids, hidden):
    """Logits of the multi-token-prediction layer: row i sees token i + 1 and the normed hidden state of i."""
    index, rms = config.num_hidden_layers, lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w
    layer = DeepseekV3DecoderLayer(config, index).eval()
    prefix, size = f"model.layers.{index}.", config.hidden_size
    fill(layer, prefix, fp8)
    vocabulary = (config.vocab_size, size)
    both = torch.cat([rms(weight(prefix + "embed_tokens.weight", vocabulary)[ids[:, 1:]], weight(prefix + "enorm.weight", (size,))),
                      rms(hidden[:, :-1], weight(prefix + "hnorm.weight", (size,)))], -1)
    x = both @ weight(prefix + "eh_proj.weight", (size, 2 * size)).T
    n = x.shape[1]
    mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
    position = torch.arange(n)[None]
    out = layer(x, attention_mask=mask, position_ids=position, position_embeddings=model.model.rotary_emb(x, position))
    out = out[0] if isinstance(out, tuple) else out
    normed = rms(out, weight(prefix + "shared_head.norm.weight", (size,)))
    return normed @ weight(prefix + "shared_head.head.weight", vocabulary).T


def golden(name, raw):
    fp8 = "quantization_config" in raw
    plain = {k: v for k, v in raw.items() if k not in ("architectures", "model_type", "quantization_config")}
    cls, model_cls = ((DeepseekV3Config, DeepseekV3ForCausalLM) if raw["model_type"] == "deepseek_v3"
                      else (DeepseekV2Config, DeepseekV2ForCausalLM))
    config = cls(**plain, attn_implementation="eager")
    model = model_cls(config).float().eval()
    fill(model, "", fp8)
    rng = np.random.default_rng(20260101)
    ids = torch.tensor([rng.integers(2, raw["vocab_size"], 75).tolist()])
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
        logits = model.lm_head(hidden)[0]
        result = {"config": raw, "prompt": ids[0].tolist(), "logits": {str(p): rounded(logits[p]) for p in (0, 40, 74)}}
        if raw.get("num_nextn_predict_layers"):
            mtp = mtp_logits(model, config, fp8, ids, hidden)[0]
            result["mtp_logits"] = {str(p): rounded(mtp[p]) for p in (0, 40, 73)}
        greedy, rows, margins = [], {}, []
        for step in range(24):
            last = model(ids).logits[0, -1]
            best = last.topk(2).values
            margins.append(float((best[0] - best[1]) / last.abs().max()))
            greedy.append(int(last.argmax()))
            if step in (1, 12, 23):
                rows[str(step)] = rounded(last)
            ids = torch.cat([ids, last.argmax()[None, None]], 1)
    print(name, "smallest margin", min(margins))
    return result | {"greedy": greedy, "greedy_logits": rows}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out = pathlib.Path(__file__).parent / "data" / "tiny_goldens.json"
    out.write_text(json.dumps({n: golden(n, c) for n, c in VARIANTS.items()}) + "\n")
    print(out, out.stat().st_size, "bytes")
