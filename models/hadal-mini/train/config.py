"""hadal-mini's shape, in the checkpoint's words, and its YaRN tables."""
import math

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512,
    "moe_intermediate_size": 512, "num_hidden_layers": 5, "num_nextn_predict_layers": 1, "num_attention_heads": 8,
    "num_key_value_heads": 8, "q_lora_rank": 128, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.0,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "initializer_range": 0.02, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
    "vocab_size": 2048, "max_position_embeddings": 4096, "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 1024, "beta_fast": 32, "beta_slow": 1,
                     "mscale": 1.0, "mscale_all_dim": 1.0},
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "torch_dtype": "bfloat16", "use_cache": True,
}


def yarn_get_mscale(scale, mscale):
    return 0.1 * mscale * math.log(scale) + 1.0 if scale > 1 else 1.0


def rope_frequencies(config, yarn=True):
    """[qk_rope_head_dim / 2] angles per position (YaRN, arXiv 2309.00071, as in DeepSeek's release)."""
    dim, theta, s = config["qk_rope_head_dim"], config["rope_theta"], config.get("rope_scaling")
    plain = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    if not s or not yarn:
        return plain
    def correction(rotations):
        return dim * math.log(s["original_max_position_embeddings"] / (rotations * 2 * math.pi)) / (2 * math.log(theta))
    low = max(math.floor(correction(s["beta_fast"])), 0)
    high = min(math.ceil(correction(s["beta_slow"])), dim - 1)
    out = []
    for i, f in enumerate(plain):
        ramp = min(max((i - low) / max(high - low, 0.001), 0), 1)
        out.append(f / s["factor"] * ramp + f * (1 - ramp))
    return out


def rope_multiplier(config, yarn=True):
    s = config.get("rope_scaling")
    if not s or not yarn:
        return 1.0
    return yarn_get_mscale(s["factor"], s.get("mscale", 1)) / yarn_get_mscale(s["factor"], s.get("mscale_all_dim", 0))


def softmax_scale(config, yarn=True):
    s = config.get("rope_scaling")
    scale = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    if s and yarn and s.get("mscale_all_dim", 0):
        scale *= yarn_get_mscale(s["factor"], s["mscale_all_dim"]) ** 2
    return scale
