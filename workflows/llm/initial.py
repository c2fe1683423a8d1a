"""The weights that a run starts from when `model.init_from` names a Hugging Face Llama: a folder of safetensors.

What decides the run's result is what the folder holds, its SHA-256, not where it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from workflows.errors import ConfigError
from workflows.llm.config import ModelConfig
from workflows.llm.llama import CONFIG_FILE, llama_config, their_names
from workflows.llm.safetensors_file import Tensor, open_safetensors
from workflows.llm.share import stage_shapes

WEIGHTS_FILES = "model*.safetensors"
"""One, or several that share out the tensors."""
DEFAULTS = {
    "head_dim": None,
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "rope_type": "default",
    "rope_scaling": None,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
"""Of a Llama's config.json, for what it leaves out."""
NO_MATTER = {"architectures", "dtype", "max_position_embeddings", "bos_token_id", "eos_token_id"}
"""Keys that do not say what the weights mean."""


def open_initial(model: ModelConfig) -> dict[str, Tensor]:
    """Return the tensors of `model.init_from` by our names, none of them read yet.

    Raises:
        ConfigError: a file or tensor is missing, is another model's or none of a Llama's, or has another shape.
        CheckpointError: a file is damaged.
    """
    directory = Path(model.init_from or "")
    _check_meaning(directory / CONFIG_FILE, model)
    files = _files(directory)
    held: dict[str, tuple[Path, Tensor]] = {}
    for path in files:
        for name, tensor in open_safetensors(path).items():
            if name in held:
                raise ConfigError(f"model.init_from: {path}: tensor '{name}' is in {held[name][0].name} too")
            held[name] = path, tensor
    names, shapes = their_names(model), stage_shapes(model, range(model.layers), tp=1)
    for name in sorted(set(names.values()) ^ set(held)):
        here = (
            f"{held[name][0]}: tensor '{name}' is none"
            if name in held
            else f"{directory}: tensor '{name}' is missing"
        )
        raise ConfigError(f"model.init_from: {here} of a Llama's with model.layers={model.layers}")
    for ours, theirs in names.items():
        path, tensor = held[theirs]
        if tensor.shape != shapes[ours]:
            raise ConfigError(
                f"model.init_from: {path}: tensor '{theirs}' is {list(tensor.shape)}, "
                f"this model's is {list(shapes[ours])}"
            )
    return {ours: held[theirs][1] for ours, theirs in names.items()}


def initial_sha256(model: ModelConfig) -> str:
    """Return the SHA-256 of the weights in `model.init_from`: of a single file its own, of several that of theirs.

    Raises what `open_initial` raises.
    """
    open_initial(model)
    digests = [_sha256(path, path.stat().st_mtime_ns) for path in _files(Path(model.init_from or ""))]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


@lru_cache(maxsize=64)
def _sha256(path: Path, _: int) -> str:
    """Return a file's SHA-256, once for a time of change: a study's runs may all start from it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(directory: Path) -> list[Path]:
    found = sorted(directory.glob(WEIGHTS_FILES))
    if not found:
        raise ConfigError(f"model.init_from: {directory}: holds no {WEIGHTS_FILES}")
    return found


def _check_meaning(path: Path, model: ModelConfig) -> None:
    """See that `config.json` tells of this model: weights of the same shapes may be heads of another width."""
    try:
        theirs = _settings(json.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"model.init_from: {path}: {error.strerror}") from None
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"model.init_from: {path}: not a Llama's configuration ({error})") from None
    ours = {**DEFAULTS, **llama_config(model, "")}
    for key, wanted in ours.items():
        if key not in NO_MATTER and (held := theirs.get(key)) != wanted:
            raise ConfigError(
                f"model.init_from: {path}: {key} is {json.dumps(held)}, this model's is {json.dumps(wanted)}"
            )


def _settings(held: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config.json says, with what it leaves out; newer ones keep what is rotary in a part of its own."""
    told = {**DEFAULTS, **held, **(held.get("rope_parameters") or {})}
    heads = told.get("num_attention_heads")
    told["num_key_value_heads"] = told["num_key_value_heads"] or heads
    told["head_dim"] = told["head_dim"] or told.get("hidden_size", 0) // (heads or 1)
    return told
