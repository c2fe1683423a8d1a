"""A model as Hugging Face's Llama has it: what its `config.json` says and what its weights are called.

Both count rotary pairs as (i, i + E/2) and lay heads one after another, so that names are all that changes.
"""

from __future__ import annotations

from typing import Any

from workflows.llm.config import ModelConfig

WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.safetensors", "config.json", "tokenizer.json"
_ENDS = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def llama_config(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """Return the `config.json` of a LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.width,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_heads,
        "head_dim": model.head_width,
        "max_position_embeddings": model.seq_len,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied_head,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": dtype,
    }


def their_names(model: ModelConfig) -> dict[str, str]:
    """Return our parameter names with theirs."""
    ends = {ours: theirs for ours, theirs in _ENDS.items() if not (model.tied_head and ours == "head")}
    blocks = {
        f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(model.layers)
        for ours, theirs in _BLOCK.items()
    }
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in (ends | blocks).items()}
