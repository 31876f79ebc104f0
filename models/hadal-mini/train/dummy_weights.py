"""The counter generator of `--load-format dummy` in numpy: src/weights/DUMMY.md is its specification."""
import numpy as np

U64 = np.uint64
GOLDEN = 0x9E3779B97F4A7C15


def uniform(name, count, seed=0, first=0):
    """float32 [count] in [-1, 1): elements first, first + 1, ... of the tensor `name`."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    start = (h ^ (seed * GOLDEN % 2**64)) % 2**64
    with np.errstate(over="ignore"):
        z = U64(start) + (np.arange(first, first + count, dtype=U64) + U64(1)) * U64(GOLDEN)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        z = z ^ (z >> U64(31))
    return (z >> U64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)


def bfloat16(x):
    """float32 rounded to the nearest bfloat16 (ties to even), as float32."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(np.float32)


def plain_tensor(name, shape, seed=0):
    """A tensor of an unquantised checkpoint, as float32."""
    v = uniform(name, int(np.prod(shape)), seed)
    if name.endswith("norm.weight"):
        return bfloat16(np.float32(1) + np.float32(0.25) * v).reshape(shape)
    if name.endswith("e_score_correction_bias"):
        return (np.float32(0.2) + np.float32(0.15) * v).reshape(shape)
    if name.endswith("embed_tokens.weight"):
        return bfloat16(np.float32(np.sqrt(3.0)) * v).reshape(shape)
    return bfloat16(np.float32(np.sqrt(3.0 / shape[-1])) * v).reshape(shape)


def tensor_shapes(c):
    """Checkpoint names and shapes of a DeepSeek V2/V3 config."""
    d, h = c["hidden_size"], c["num_attention_heads"]
    qk = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    out = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,), "lm_head.weight": (c["vocab_size"], d)}

    def mlp(prefix, width):
        out.update({prefix + "gate_proj.weight": (width, d), prefix + "up_proj.weight": (width, d), prefix + "down_proj.weight": (d, width)})

    for i in range(c["num_hidden_layers"] + c.get("num_nextn_predict_layers", 0)):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        if c.get("q_lora_rank"):
            out |= {a + "q_a_proj.weight": (c["q_lora_rank"], d), a + "q_a_layernorm.weight": (c["q_lora_rank"],),
                    a + "q_b_proj.weight": (h * qk, c["q_lora_rank"])}
        else:
            out[a + "q_proj.weight"] = (h * qk, d)
        out |= {a + "kv_a_proj_with_mqa.weight": (c["kv_lora_rank"] + c["qk_rope_head_dim"], d),
                a + "kv_a_layernorm.weight": (c["kv_lora_rank"],),
                a + "kv_b_proj.weight": (h * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"]),
                a + "o_proj.weight": (d, h * c["v_head_dim"]), p + "input_layernorm.weight": (d,), p + "post_attention_layernorm.weight": (d,)}
        if i < c["first_k_dense_replace"]:
            mlp(p + "mlp.", c["intermediate_size"])
            continue
        out[p + "mlp.gate.weight"] = (c["n_routed_experts"], d)
        if c["topk_method"] == "noaux_tc":
            out[p + "mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
        for e in range(c["n_routed_experts"]):
            mlp(f"{p}mlp.experts.{e}.", c["moe_intermediate_size"])
        mlp(p + "mlp.shared_experts.", c["moe_intermediate_size"] * c["n_shared_experts"])
        if i >= c["num_hidden_layers"]:
            out |= {p + "embed_tokens.weight": (c["vocab_size"], d), p + "enorm.weight": (d,), p + "hnorm.weight": (d,),
                    p + "eh_proj.weight": (d, 2 * d), p + "shared_head.norm.weight": (d,), p + "shared_head.head.weight": (c["vocab_size"], d)}
    return out
