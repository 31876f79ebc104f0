"""Three small untrained relatives, by config and seed alone: V2-Lite (no q_lora, greedy softmax routing), V2
(group_limited_greedy), and a V3 without quantisation. Odd sizes on purpose: no dimension of V2-Lite's MLPs divides by 128."""

COMMON = {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "hidden_act": "silu",
          "hidden_size": 256, "num_hidden_layers": 3, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
          "first_k_dense_replace": 1, "moe_layer_freq": 1, "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "vocab_size": 1024,
          "max_position_embeddings": 8192, "rope_theta": 10000, "torch_dtype": "bfloat16", "use_cache": True,
          "initializer_range": 0.02}


def yarn(factor, original, mscale):
    return {"type": "yarn", "factor": factor, "original_max_position_embeddings": original, "beta_fast": 32, "beta_slow": 1,
            "mscale": mscale, "mscale_all_dim": mscale}


VARIANTS = {
    "v2-lite": COMMON | {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "num_attention_heads": 4,
                         "num_key_value_heads": 4, "q_lora_rank": None, "intermediate_size": 684, "moe_intermediate_size": 88,
                         "n_shared_experts": 2, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
                         "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
                         "rope_scaling": yarn(40, 4096, 0.707)},
    "v2": COMMON | {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "num_attention_heads": 8,
                    "num_key_value_heads": 8, "q_lora_rank": 192, "intermediate_size": 512, "moe_intermediate_size": 128,
                    "n_shared_experts": 2, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy",
                    "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 16.0,
                    "rope_scaling": yarn(40, 4096, 1.0)},
    "v3-bf16": COMMON | {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_attention_heads": 8,
                         "num_key_value_heads": 8, "q_lora_rank": 128, "intermediate_size": 512, "moe_intermediate_size": 256,
                         "n_shared_experts": 1, "n_routed_experts": 16, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "topk_method": "noaux_tc",
                         "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
                         "rope_scaling": yarn(8, 1024, 1.0)},
}
SEEDS = {"v2-lite": 11, "v2": 12, "v3-bf16": 13}
