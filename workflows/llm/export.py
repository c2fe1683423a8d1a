"""A run's weights as other programs read them: the files of a Hugging Face Llama, its tokenizer among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.rundir import RunDir
from slurm.strict_yaml import load
from workflows.config import parse
from workflows.errors import ConfigError
from workflows.llm.config import LlmConfig, ModelConfig
from workflows.llm.llama import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, llama_config, their_names
from workflows.llm.safetensors_file import write_safetensors

Weights = Mapping[str, NDArray[Any]]


def export_run(run: RunDir, directory: Path, say: Callable[[str], None]) -> list[Path]:
    """Write the weights of a run's last checkpoint into `directory`, and its tokenizer; return the files.

    A tokenizer that is no longer where the run had it from is told to `say`: weights are of use without it.

    Raises:
        ConfigError: not a Llama, with experts, no checkpoint, or files are there already.
        CheckpointError: every checkpoint is damaged.
    """
    held = load(run.config)
    config = parse(LlmConfig, held.data["config"], lambda at: f"{held.source}: {'.'.join(map(str, at))}")
    if config.model.arch != "llama":
        raise ConfigError(f"{run.config}: model.arch={config.model.arch}; only a llama can be exported")
    if config.model.experts:
        raise ConfigError(
            f"{run.config}: model.experts={config.model.experts}; a Llama has none, only a dense model can be exported"
        )
    weights, meta = _last_weights(run)
    dtype = next(iter(weights.values())).dtype.name
    files = export_weights(weights, config.model, dtype, directory)
    if wanted := meta.get("tokenizer_sha256"):
        tokenizer = _tokenizer(config, Path(held.data["cache_dir"]), wanted)
        if tokenizer is None:
            say(f"{directory}: no {TOKENIZER_FILE}, the run's tokenizer with SHA-256 {wanted[:12]} is gone")
        else:
            files.append(directory / TOKENIZER_FILE)
            files[-1].write_bytes(tokenizer)
    return files


def export_weights(weights: Weights, model: ModelConfig, dtype: str, directory: Path) -> list[Path]:
    """Write weights and what they mean into `directory`; return the files. Raises ConfigError if one is there."""
    for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE):
        if (directory / name).exists():
            raise ConfigError(f"{directory / name}: is there already; give another --out")
    files, theirs = [directory / WEIGHTS_FILE, directory / CONFIG_FILE], their_names(model)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(files[0], {theirs[name]: array for name, array in weights.items()})
    files[1].write_text(json.dumps(llama_config(model, dtype), indent=1) + "\n")
    return files


def _last_weights(run: RunDir) -> tuple[dict[str, NDArray[np.floating]], dict[str, Any]]:
    """Return the whole weights of a run's last checkpoint by name, whatever layout saved them, and its meta."""
    from mpi4py import MPI

    from launch import checkpoint

    saved = checkpoint.load(MPI.COMM_SELF, run.checkpoints)
    if saved is None:
        raise ConfigError(
            f"{run.checkpoints}: holds no checkpoint yet; `isoflop status` shows how far a run is"
        )
    prefix = "weight/"
    weights = {name.removeprefix(prefix): a for name, a in saved.arrays.items() if name.startswith(prefix)}
    return weights, saved.meta


def _tokenizer(config: LlmConfig, cache_dir: Path, sha256: str) -> bytes | None:
    """Return the JSON of the tokenizer with this SHA-256: given, beside ready tokens, or learned into the cache."""
    given = [Path(config.data.tokenizer)] if config.data.kind == "file" else []
    beside = Path(config.data.source).with_suffix(".tokenizer.json")
    for path in (*given, beside, *sorted(cache_dir.glob("*.tokenizer.json"))):
        if path.is_file() and hashlib.sha256(held := path.read_bytes()).hexdigest() == sha256:
            return held
    return None
