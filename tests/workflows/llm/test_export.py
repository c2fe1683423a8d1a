"""Exported weights mean the same to another program, and come back as they were."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI

from launch import checkpoint
from launch.rundir import RunDir
from slurm.strict_yaml import dumps
from workflows.llm.config import LlmConfig
from workflows.llm.export import export_run
from workflows.llm.llama import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE
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

    def make(
        dtype: str = "fp32", data: dict | None = None, tokenizer_sha256: str = "", **model: object
    ) -> tuple[RunDir, Transformer]:
        config = LlmConfig.model_validate(
            {"model": {**PLAIN, **model}, "train": {"steps": 9, "dtype": dtype}, "data": data or {}},
        )
        held = {"config": config.model_dump(mode="json"), "cache_dir": str(tmp_path / "cache")}
        run.config.write_text(dumps(held))
        made = drawn(config)
        weights = {name: p.detach().numpy() for name, p in made.named_parameters()}
        for step, sign in ((4, -1), (9, 1)):
            arrays = {f"weight/{name}": sign * array for name, array in weights.items()}
            arrays |= {f"moment1/{name}": np.zeros_like(array) for name, array in weights.items()}
            pieces = [checkpoint.whole(name, array) for name, array in arrays.items()]
            checkpoint.save(
                MPI.COMM_SELF, run.checkpoints, step, pieces, {"tokenizer_sha256": tokenizer_sha256}
            )
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
    export_run(run, tmp_path / "out", pytest.fail)
    theirs, told = llama.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values()), told
    tokens = torch.randint(259, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = ours(tokens), theirs(tokens).logits
    assert found.dtype == torch.float32
    assert wanted.abs().max() > 1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["given", "learned", "beside", "gone"])
def test_the_tokenizer_comes_along_from_wherever_the_run_had_it(saved, tmp_path, isoflop, where):
    """What lies there under another SHA-256 is another run's, or was changed since."""
    text = b'{"version": "1.0"}'
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "0.tokenizer.json").write_bytes(b"another")
    path, data = {
        "given": (tmp_path / "mine.json", {"tokenizer": str(tmp_path / "mine.json")}),
        "learned": (tmp_path / "cache" / "1.tokenizer.json", {"tokenizer": "bpe"}),
        "beside": (
            tmp_path / "a.tokenizer.json",
            {"tokenizer": "bpe", "source": str(tmp_path / "a.tokens")},
        ),
        "gone": (tmp_path / "mine.json", {"tokenizer": "bpe"}),
    }[where]
    path.write_bytes(text)
    run, _ = saved(data=data, tokenizer_sha256=hashlib.sha256(text).hexdigest())
    done, out = isoflop("export", run.path, "--out", tmp_path / "out"), tmp_path / "out" / TOKENIZER_FILE
    assert done.status == 0
    assert (str(out) in done.stdout.split()) is (where != "gone") is out.exists()
    if where == "gone":
        assert "no tokenizer.json, the run's tokenizer with SHA-256" in done.stderr
    else:
        assert (out.read_bytes(), done.stderr) == (text, "")


def test_the_command_writes_both_files_and_names_them(saved, tmp_path, isoflop):
    run, _ = saved()
    done = isoflop("export", run.path, "--to", "safetensors", "--out", tmp_path / "out")
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
    done = isoflop("export", name, "--to", wanted, "--out", tmp_path / "out")
    sentences = {
        "gpt": "run.yaml: model.arch=gpt; only a llama can be exported",
        "experts": "run.yaml: model.experts=4; a Llama has none, only a dense model can be exported",
        "format": "export: --to onnx; there is safetensors, csv, mlflow, tensorboard, wandb",
        "nothing": "checkpoints: holds no checkpoint yet",
        "unknown": "export: no run 'no-such-run' in runs/*/",
    }
    assert (done.status, done.stdout) == (2, "")
    assert sentences[what] in done.stderr
    assert not (tmp_path / "out").exists()
