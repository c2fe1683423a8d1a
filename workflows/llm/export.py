"""A run's weights as other programs read them: `model.safetensors` and `config.json` of a Hugging Face Llama.

Both count rotary pairs as (i, i + E/2) and lay heads one after another, so that names are all that changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.errors import CheckpointError
from launch.rundir import RunDir
from slurm.strict_yaml import load
from workflows.config import parse
from workflows.errors import ConfigError
from workflows.llm.config import LlmConfig, ModelConfig

Weights = Mapping[str, NDArray[Any]]
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
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


def export_run(run: RunDir, directory: Path) -> list[Path]:
    """Write the weights of a run's last checkpoint into `directory`; return the files.

    Raises:
        ConfigError: not a Llama, with experts, no checkpoint, or files are there already.
        CheckpointError: every checkpoint is damaged.
    """
    config = read_config(run)
    if config.model.arch != "llama":
        raise ConfigError(f"{run.config}: model.arch={config.model.arch}; only a llama can be exported")
    if config.model.experts:
        raise ConfigError(
            f"{run.config}: model.experts={config.model.experts}; a Llama has none, only a dense model can be exported"
        )
    weights = read_weights(run)
    dtype = next(iter(weights.values())).dtype.name
    return export_weights(weights, config.model, dtype, directory)


def read_config(run: RunDir) -> LlmConfig:
    """Return the exact configuration that a run's directory holds."""
    held = load(run.config)
    return parse(LlmConfig, held.data["config"], lambda at: f"{held.source}: {'.'.join(map(str, at))}")


def read_weights(run: RunDir) -> dict[str, NDArray[Any]]:
    """Return the whole weights of a run's last checkpoint by name, whatever layout saved them."""
    from mpi4py import MPI

    from launch import checkpoint

    saved = checkpoint.load(MPI.COMM_SELF, run.checkpoints)
    if saved is None:
        raise ConfigError(
            f"{run.checkpoints}: holds no checkpoint yet; `isoflop status` shows how far a run is"
        )
    prefix = "weight/"
    return {name.removeprefix(prefix): a for name, a in saved.arrays.items() if name.startswith(prefix)}


def export_weights(weights: Weights, model: ModelConfig, dtype: str, directory: Path) -> list[Path]:
    """Write weights and what they mean into `directory`; return the files. Raises ConfigError if one is there."""
    files = [directory / WEIGHTS_FILE, directory / CONFIG_FILE]
    for path in files:
        if path.exists():
            raise ConfigError(f"{path}: is there already; give another --out")
    theirs = _their_names(model.layers, model.tied_head)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(files[0], {theirs[name]: array for name, array in weights.items()})
    files[1].write_text(json.dumps(llama_config(model, dtype), indent=1) + "\n")
    return files


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


def import_weights(directory: Path) -> dict[str, NDArray[Any]]:
    """Return the weights of a Llama in `directory` by our names; bf16 comes as fp32.

    Raises:
        ConfigError: not a Llama's configuration, or a tensor is missing or none of a Llama's.
        CheckpointError: the file is damaged.
    """
    path = directory / CONFIG_FILE
    try:
        held = json.loads(path.read_text())
        layers, tied = int(held["num_hidden_layers"]), bool(held.get("tie_word_embeddings", False))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a Llama's configuration ({error})") from None
    tensors, names = read_safetensors(directory / WEIGHTS_FILE), _their_names(layers, tied)
    for name in sorted(set(names.values()) ^ set(tensors)):
        here = "is none of a Llama's" if name in tensors else "is missing"
        raise ConfigError(f"{directory / WEIGHTS_FILE}: tensor '{name}' {here} with {layers} layers")
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def _their_names(layers: int, tied: bool) -> dict[str, str]:
    """Return our parameter names with theirs."""
    ends = {ours: theirs for ours, theirs in _ENDS.items() if not (tied and ours == "head")}
    blocks = {
        f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(layers)
        for ours, theirs in _BLOCK.items()
    }
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in (ends | blocks).items()}


def write_safetensors(path: Path, tensors: Weights) -> None:
    """Write a safetensors file: the header's length in 8 bytes, the header as JSON, then all data, little-endian."""
    codes = {np.dtype(dtype): code for code, dtype in _DTYPES.items() if code != "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        code = codes[array.dtype.newbyteorder("<")]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers lie where a reader may map them
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a safetensors file, bf16 as fp32. Raises CheckpointError for one that is damaged."""
    try:
        file = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(file[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(file[8:start].tobytes())
        header.pop("__metadata__", None)
        return {name: _tensor(file[start:], **entry) for name, entry in header.items()}
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None


def _tensor(data: NDArray[Any], dtype: str, shape: list[int], data_offsets: list[int]) -> NDArray[Any]:
    begin, end = data_offsets
    if not 0 <= begin <= end <= len(data):
        raise ValueError(f"bytes {begin} to {end} of {len(data)}")
    array = np.frombuffer(data[begin:end].tobytes(), _DTYPES[dtype]).reshape(shape)
    if dtype == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    return array
