"""Sizes of tiny models: what fields of configurations become, by name, and what each type needs beside that.

`testing/model_zoo.py` makes the models.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 320
LAYERS = 4
WINDOW = 24
"""Tokens of a sliding window and of a chunk of attention: shorter than a page of the cache."""

DROP: Any = object()
"""Value of a recipe's field that is left at the type's default."""

_SIZES: tuple[tuple[Any, str], ...] = (
    (VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size"),
    (0, "pad_token_id num_nextn_predict_layers num_mtp_layers"),
    (
        1,
        "bos_token_id n_shared_experts num_shared_experts moe_num_shared_experts topk_group "
        "first_k_dense_replace num_dense_layers mamba_n_groups",
    ),
    (
        2,
        "eos_token_id encoder_layers decoder_layers num_encoder_layers num_decoder_layers num_key_value_heads "
        "num_kv_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok num_experts_per_token "
        "moe_topk moe_k top_k_experts n_group num_expert_group zero_expert_num n_groups",
    ),
    (3, "sep_token_id eod_token_id"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers num_blocks"),
    (
        4,
        "cls_token_id num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
        "encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads "
        "swa_num_attention_heads linear_num_heads linear_num_value_heads num_experts num_local_experts "
        "n_routed_experts moe_num_experts conv1d_width",
    ),
    (5, "mask_token_id"),
    (
        64,
        "hidden_size n_embd d_model word_embed_proj_dim embedding_size embedding_dim input_embedding_size "
        "output_embedding_size emb_dim lru_width",
    ),
    (
        16,
        "hidden_size_per_layer_input head_dim swa_head_dim dim_head kv_channels d_head linear_key_head_dim "
        "linear_value_head_dim linear_head_dim mamba_d_state mamba_d_head state_size ssm_state_size "
        "mamba_head_dim mamba_chunk_size chunk_size kv_lora_rank qk_nope_head_dim index_head_dim index_topk "
        "index_n_heads",
    ),
    (
        96,
        "intermediate_size ffn_dim dff dim_ff ffn_hidden_size dense_intermediate_size intermediate_size_mlp "
        "prefix_dense_intermediate_size feed_forward_size d_inner decoder_ffn_dim encoder_ffn_dim",
    ),
    (
        32,
        "expert_ffn_hidden_size moe_intermediate_size shared_expert_intermediate_size "
        "shared_experts_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size "
        "num_buckets",
    ),
    (8, "mamba_n_heads mamba_num_heads mamba_dt_rank time_step_rank rotary_dim qk_rope_head_dim"),
    (
        512,
        "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length max_target_positions",
    ),
    (WINDOW, "sliding_window sliding_window_size attention_chunk_size window_size attention_window_size"),
    (24, "q_lora_rank"),
    (2 * WINDOW, "local_attention"),
    (12, "v_head_dim"),
    (0.2, "initializer_range init_std"),
    (128, "relative_max_distance"),
)
_VISION_SIZES: tuple[tuple[int, str], ...] = (
    (2, "depth num_hidden_layers"),
    (
        64,
        "hidden_size out_hidden_size embed_dim projection_dim vision_output_dim projector_input_dim "
        "projector_output_dim",
    ),
    (28, "image_size"),
    (14, "patch_size"),
    (4, "num_heads"),
)
FIELDS: dict[str, Any] = {name: value for value, names in _SIZES for name in names.split()}
"""Tiny values of the fields of text configurations that have them."""
VISION_FIELDS: dict[str, Any] = {name: value for value, names in _VISION_SIZES for name in names.split()}
"""The same for the other parts of a multimodal configuration, on top."""

_TWO = ["sliding_attention", "full_attention"]
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}

RECIPES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"layer_types": _TWO * 2, "rope_parameters": dict.fromkeys(_TWO, _PLAIN)},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "layer_types": _TWO * 2},
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "head_dim": 24,
        "n_group": 1,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_qk_rope_head_dim": 8,
        "swa_v_head_dim": 12,
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "layer_types": _TWO * 3,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {
        "num_hidden_layers": 6,
        "layer_types": _TWO * 3,
        "num_kv_shared_layers": 2,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
    "gemma4_unified_text": {
        "num_hidden_layers": 6,
        "layer_types": _TWO * 3,
        "num_kv_shared_layers": 2,
        "global_head_dim": 32,
    },
    "glm4v_moe_text": {"rope_parameters": {**_PLAIN, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}},
    "glm4v_text": {"rope_parameters": {**_PLAIN, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}},
    "glm5_next_text": {
        "qk_rope_head_dim": 0,
        "index_kpool": 4,
        "head_dim": DROP,
        "indexer_types": ["full"] * 4,
        "n_group": 1,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
    },
    "gpt_bigcode": {"num_key_value_heads": DROP},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "hunyuan_vl_text": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "laguna": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "num_attention_heads_per_layer": [4, 8, 4, 8],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "full_attn_idxs": None, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"num_layers": 2, "head_dim": 8, "num_hidden_layers": DROP},
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": _TWO * 2},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "index_block_size": 8,
        "index_topk_blocks": 2,
        "index_n_heads": 2,
    },
    "ministral": {"head_dim": 16},
    "mistral4": {"rope_parameters": DROP, "head_dim": DROP},
    "mistral_large4_text": {
        "kv_source_layers": [0, 1, 2, 3],
        "indexer_types": ["full"] * 4,
        "no_rope_layers": [1, 0, 1, 0],
        "n_group": 1,
    },
    "nemotron": {"num_key_value_heads": 2},
    "qwen2_5_vl_text": {"rope_parameters": {**_PLAIN, "mrope_section": [2, 3, 3]}},
    "qwen2_vl_text": {"rope_parameters": {**_PLAIN, "mrope_section": [2, 3, 3]}},
    "qwen4_exp_text": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
        "ngram_vocab_size_base": 200,
        "ple_layer_ids": [1],
        "make_ngram_vocab_size_divisible_by": 4,
        "split_ngram_parts": 1,
        "heads_per_ngram": 2,
        "ple_embed_dim": 64,
    },
    "step3p5": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "sliding_window": WINDOW,
        "share_expert_dim": 32,
        "num_sliding_attention_heads": 8,
        "query_pre_attn_scalar": 16,
        "rope_parameters": dict.fromkeys(_TWO, _PLAIN),
    },
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "use_mamba_kernels": False,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "mamba_ngroups": 1,
        "use_mamba_kernels": False,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""Fields by type: what the sizes above can't guess, or what released checkpoints use though it is off by default."""
