"""Exported weights mean the same to another program, and come back as they were."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from mpi4py import MPI

from launch import checkpoint
from launch.errors import CheckpointError
from launch.rundir import RunDir
from slurm.strict_yaml import dumps
from workflows.errors import ConfigError
from workflows.llm.config import LlmConfig
from workflows.llm.export import CONFIG_FILE, WEIGHTS_FILE, export_run, import_weights
from workflows.llm.model import Transformer

TORCH = {"fp32": torch.float32, "fp64": torch.float64}
PLAIN = {"width": 32, "layers": 3, "head_width": 8, "seq_len": 24, "vocab_size": 259}
ODD = {
    "kv_heads": 2,
    "tied_head": False,
    "rope_theta": 317.0,
    "norm_eps": 1e-2,
    "head_width": 16,
    "ffn_width": 40,
}


def drawn(config: LlmConfig) -> Transformer:
    """A model whose every weight has a value of its own, so that none hides behind a 0 or a 1."""
    model = Transformer(config.model, 0, TORCH[config.train.dtype])
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + (weight.ndim == 1))
    return model


@pytest.fixture
def saved(tmp_path):
    """Return `make(dtype="fp32", **model) -> (RunDir, model)`: a run's directory with two checkpoints."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir(mode=0o700)

    def make(dtype: str = "fp32", **model: object) -> tuple[RunDir, Transformer]:
        config = LlmConfig.model_validate(
            {"model": {**PLAIN, **model}, "train": {"steps": 9, "dtype": dtype}},
        )
        run.config.write_text(dumps({"config": config.model_dump(mode="json"), "cache_dir": "cache"}))
        made = drawn(config)
        weights = {name: p.detach().numpy() for name, p in made.named_parameters()}
        for step, sign in ((4, -1), (9, 1)):
            arrays = {f"weight/{name}": sign * array for name, array in weights.items()}
            arrays |= {f"moment1/{name}": np.zeros_like(array) for name, array in weights.items()}
            pieces = [checkpoint.whole(name, array) for name, array in arrays.items()]
            checkpoint.save(MPI.COMM_SELF, run.checkpoints, step, pieces, {})
        return run, made

    return make


@pytest.fixture(scope="module")
def llama():
    """The other program's Llama, never asking the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from transformers import LlamaForCausalLM

        yield LlamaForCausalLM


@pytest.mark.parametrize("model", [{}, ODD], ids=["plain", "odd"])
def test_the_other_program_gives_the_same_logits(saved, llama, tmp_path, model):
    run, ours = saved(**model)
    export_run(run, tmp_path / "out")
    theirs, told = llama.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values()), told
    tokens = torch.randint(259, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = ours(tokens), theirs(tokens).logits
    assert found.dtype == torch.float32
    assert wanted.abs().max() > 1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("model", [{}, ODD], ids=["plain", "odd"])
def test_weights_come_back_to_the_bit(saved, tmp_path, model, dtype):
    run, ours = saved(dtype, **model)
    export_run(run, tmp_path / "out")
    back = import_weights(tmp_path / "out")
    named = {name: p.detach().numpy() for name, p in ours.named_parameters()}
    assert back.keys() == named.keys()
    for name, array in named.items():
        np.testing.assert_array_equal(back[name], array, strict=True, err_msg=name)


def test_the_container_is_what_its_own_library_reads_and_writes(saved, tmp_path):
    run, _ = saved()
    export_run(run, tmp_path / "out")
    path = tmp_path / "out" / WEIGHTS_FILE
    theirs = safetensors.torch.load_file(path)
    assert sum(tensor.numel() for tensor in theirs.values()) == sum(
        a.size for a in import_weights(path.parent).values()
    )
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    small = {name: tensor.bfloat16() for name, tensor in theirs.items()}
    safetensors.torch.save_file(small, path)
    back = import_weights(path.parent)["embedding.weight"]
    np.testing.assert_array_equal(back, small["model.embed_tokens.weight"].float().numpy(), strict=True)


def damage(path: Path, how: str) -> None:
    """Damage a weights file: its bytes, or one tensor's entry in its header."""
    held = path.read_bytes()
    start = 8 + int.from_bytes(held[:8], "little")
    header = json.loads(held[8:start])
    first = header["model.embed_tokens.weight"]
    n = first["data_offsets"][1]
    wrong = {
        "shape": {**first, "shape": [258, 32]},
        "behind": {**first, "data_offsets": [-2 * n, -n]},
        "type": {**first, "dtype": "I7"},
        "entry": [1, 2],
    }
    if how == "gone":
        path.unlink()
    elif how in wrong:
        text = json.dumps({**header, "model.embed_tokens.weight": wrong[how]}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + held[start:])
    else:
        path.write_bytes({"cut": held[:-1], "empty": b"", "length": b"\xff" * 8 + held[8:]}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "length", "shape", "behind", "type", "entry", "gone"])
def test_damaged_weights_are_refused_with_their_file(saved, tmp_path, how):
    run, _ = saved()
    export_run(run, tmp_path / "out")
    damage(tmp_path / "out" / WEIGHTS_FILE, how)
    with pytest.raises(
        CheckpointError, match=rf"{WEIGHTS_FILE}: (not a whole safetensors file|No such file)"
    ):
        import_weights(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"num_hidden_layers": 4},
            r"tensor 'model\.layers\.3\.input_layernorm\.weight' is missing with 4 layers",
        ),
        ({"num_hidden_layers": 2}, r"tensor 'model\.layers\.2\..* is none of a Llama's with 2 layers"),
        ({"tie_word_embeddings": False}, r"tensor 'lm_head\.weight' is missing"),
        ({"num_hidden_layers": "many"}, rf"{CONFIG_FILE}: not a Llama's configuration"),
    ],
    ids=str,
)
def test_weights_of_another_model_are_refused_by_name(saved, tmp_path, change, sentence):
    run, _ = saved()
    _, path = export_run(run, tmp_path / "out")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=sentence):
        import_weights(tmp_path / "out")


def test_the_command_writes_both_files_and_names_them(saved, tmp_path, isoflop):
    run, _ = saved()
    done = isoflop("export", run.path, "--format", "safetensors", "--out", tmp_path / "out")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.split() == [str(tmp_path / "out" / name) for name in (WEIGHTS_FILE, CONFIG_FILE)]
    assert all(stat.S_ISREG(Path(path).stat().st_mode) for path in done.stdout.split())
    again = isoflop("export", run.path, "--out", tmp_path / "out")
    assert (again.status, again.stdout) == (2, "")
    assert f"{WEIGHTS_FILE}: is there already; give another --out" in again.stderr


@pytest.mark.parametrize("what", ["gpt", "experts", "format", "nothing", "unknown"])
def test_what_cannot_be_exported_is_said_and_nothing_written(saved, tmp_path, isoflop, what):
    models = {"gpt": {"arch": "gpt"}, "experts": {"experts": 4}}
    run, _ = saved(**models.get(what, {}))
    if what == "nothing":
        run.checkpoints.rename(tmp_path / "elsewhere")
    wanted = "onnx" if what == "format" else "safetensors"
    name = "no-such-run" if what == "unknown" else run.path
    done = isoflop("export", name, "--format", wanted, "--out", tmp_path / "out")
    sentences = {
        "gpt": "run.yaml: model.arch=gpt; only a llama can be exported",
        "experts": "run.yaml: model.experts=4; a Llama has none, only a dense model can be exported",
        "format": "export: --format onnx; there is safetensors",
        "nothing": "checkpoints: holds no checkpoint yet",
        "unknown": "export: no run 'no-such-run' in runs/*/",
    }
    assert (done.status, done.stdout) == (2, "")
    assert sentences[what] in done.stderr
    assert not (tmp_path / "out").exists()
