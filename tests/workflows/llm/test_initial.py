"""A run starts from another program's weights to the bit, whatever its layout, or is refused before it trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from analysis.store import read_run
from launch.errors import CheckpointError
from slurm.strict_yaml import dumps
from tests.launch import alone
from workflows.errors import ConfigError
from workflows.llm.config import LlmConfig, ModelConfig, mathematics
from workflows.llm.export import export_weights
from workflows.llm.initial import initial_sha256, open_initial
from workflows.llm.llama import CONFIG_FILE, WEIGHTS_FILE
from workflows.llm.share import stage_shapes

MODEL = {"width": 32, "layers": 2, "head_width": 8, "kv_heads": 2, "seq_len": 16, "vocab_size": 257}
UNTIED = {**MODEL, "tied_head": False, "rope_theta": 317.0}
LAYOUTS = [
    (MODEL, {"tp": 2, "pp": 2}),
    (MODEL, {"tp": 2, "zero": 1}),
    (UNTIED, {"zero": 2, "replicas": 2}),
    (UNTIED, {"zero": 3}),
    (UNTIED, {"pp": 2, "cp": 2}),
]
Arrays = dict[str, np.ndarray]


def written(directory: Path, model: dict, dtype: str = "float64", seed: int = 1) -> Arrays:
    """Write a Llama with a value of its own for every weight; return our names with them."""
    chosen, rng = ModelConfig(**model), np.random.default_rng(seed)
    shapes = stage_shapes(chosen, range(chosen.layers), tp=1)
    weights = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    export_weights(weights, chosen, dtype, directory)
    return weights


def opened(directory: Path, **model: object) -> Arrays:
    held = open_initial(ModelConfig(**{**MODEL, **model}, init_from=str(directory)))
    return {name: tensor[...] for name, tensor in held.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model", [MODEL, UNTIED], ids=["tied", "untied"])
def test_exported_weights_come_back_to_the_bit(tmp_path, model, dtype):
    weights = written(tmp_path, model, dtype)
    back = opened(tmp_path, **model)
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array, strict=True, err_msg=name)


def test_a_part_is_that_part_in_any_type_of_its_own_library_and_of_several_files(tmp_path):
    written(tmp_path, MODEL, "float32")
    small = {
        name: tensor.bfloat16()
        for name, tensor in safetensors.torch.load_file(tmp_path / WEIGHTS_FILE).items()
    }
    (tmp_path / WEIGHTS_FILE).unlink()
    for part in (0, 1):
        held = dict(list(small.items())[part::2])
        safetensors.torch.save_file(held, tmp_path / f"model-0000{part + 1}-of-00002.safetensors")
    tensor = open_initial(ModelConfig(**MODEL, init_from=str(tmp_path)))["blocks.1.ffn.up.weight"]
    wanted = small["model.layers.1.mlp.up_proj.weight"][3:9, 2:30].float().numpy()
    np.testing.assert_array_equal(tensor[3:9, 2:30], wanted, strict=True)
    one = initial_sha256(ModelConfig(**MODEL, init_from=str(tmp_path)))
    shutil.copy(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-2.safetensors")
    with pytest.raises(ConfigError, match=r"model-2\.safetensors: tensor '.*' is in model-00001-of-00002"):
        initial_sha256(ModelConfig(**MODEL, init_from=str(tmp_path)))
    assert len(one) == 64


@pytest.fixture(scope="module")
def started(tmp_path_factory, config_of, mpiexec):
    """Return [(the weights that a run started from, its state before the first step, its directory)]."""
    place, found, cases = tmp_path_factory.mktemp("initial"), [], []
    for i, (model, parallel) in enumerate(LAYOUTS):
        run = place / str(i) / "run"
        weights = written(place / str(i) / "llama", model)
        named = {**model, "init_from": str(place / str(i) / "llama")}
        config = config_of(model=named, parallel={"microbatch": 1, **parallel}, train={"steps": 1})
        case = {"run": str(run), "config": config, "cache_dir": str(place), "stop_before": None}
        cases.append({**case, "save_first": True})
        found.append((weights, run))
    (place / "cases.json").write_text(json.dumps(cases))
    ended = mpiexec(4, "-m", "tests.workflows.llm.many_runs", str(place / "cases.json"), timeout_s=110)
    assert ended.status == 0, ended.stderr
    return found


@pytest.mark.parametrize("at", range(len(LAYOUTS)), ids=[str(layout) for _, layout in LAYOUTS])
def test_a_run_starts_from_every_bit_under_any_layout(started, at):
    weights, run = started[at]
    state = alone.load(run.with_name("taken-up-0"))
    held = {name.removeprefix("weight/"): a for name, a in state.arrays.items() if name.startswith("weight/")}
    assert held.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(held[name], array, strict=True, err_msg=name)
        assert not state.arrays[f"moment1/{name}"].any()
    [event] = [each for each in read_run(run).events if each["kind"] == b"initial"]
    model = ModelConfig(**LAYOUTS[at][0], init_from=str(run.with_name("llama")))
    assert event["message"].decode() == f"weights with SHA-256 {initial_sha256(model)}"


def test_what_the_folder_holds_makes_the_run_and_not_where_it_lies(tmp_path):
    written(tmp_path / "one", MODEL)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    written(tmp_path / "other", MODEL, seed=2)

    def run_of(name: str | None) -> str:
        model = MODEL if name is None else {**MODEL, "init_from": str(tmp_path / name)}
        return json.dumps(mathematics(LlmConfig(model=model, train={"steps": 1})))

    assert run_of("one") == run_of("copy")
    assert len({run_of(None), run_of("one"), run_of("other")}) == 3
    assert "init" not in run_of(None), "runs that take nothing over keep their names"


WRONG = [
    ({"layers": 3}, "num_hidden_layers is 2, this model's is 3"),
    ({"rope_theta": 5.0}, "rope_theta is 10000.0, this model's is 5.0"),
    ({"head_width": 16}, "head_dim is 8, this model's is 16"),
    ({"tied_head": False}, "tie_word_embeddings is true, this model's is false"),
    ({"vocab_size": 300}, "vocab_size is 257, this model's is 300"),
]


@pytest.mark.parametrize(("model", "sentence"), WRONG, ids=lambda value: str(value)[:24])
def test_another_model_is_refused_by_the_key_that_differs(tmp_path, model, sentence):
    written(tmp_path, MODEL)
    with pytest.raises(ConfigError, match=rf"^model\.init_from: .*{CONFIG_FILE}: {sentence}$"):
        opened(tmp_path, **model)


def test_what_a_config_leaves_out_or_keeps_elsewhere_counts_as_its_own_library_says(tmp_path):
    written(tmp_path, {**MODEL, "kv_heads": None, "norm_eps": 1e-6})
    held = json.loads((tmp_path / CONFIG_FILE).read_text())
    theta = held.pop("rope_theta")
    for key in (
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "attention_bias",
        "mlp_bias",
        "hidden_act",
    ):
        del held[key]
    held["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(held))
    assert opened(tmp_path, kv_heads=None, norm_eps=1e-6)
    held["rope_parameters"]["rope_type"] = "llama3"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(held))
    with pytest.raises(ConfigError, match=r'rope_type is "llama3", this model\'s is "default"'):
        opened(tmp_path, kv_heads=None, norm_eps=1e-6)


def change(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = "model.layers.1.mlp.up_proj.weight"
    if how == "missing":
        return {key: tensor for key, tensor in tensors.items() if key != name}
    if how == "foreign":
        return {**tensors, "model.layers.2.mlp.up_proj.weight": tensors[name].clone()}
    return {**tensors, name: tensors[name][1:].clone()}


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (
            "missing",
            r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is missing of a Llama's with model.layers=2",
        ),
        (
            "foreign",
            r"tensor 'model\.layers\.2\.mlp\.up_proj\.weight' is none of a Llama's with model.layers=2",
        ),
        (
            "shape",
            r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is \[87, 32\], this model's is \[88, 32\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_a_rank_trains(tmp_path, start_program, how, sentence):
    written(tmp_path / "llama", MODEL, "float32")
    path = tmp_path / "llama" / WEIGHTS_FILE
    tensors = change(safetensors.torch.load_file(path), how)
    path.unlink()
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ConfigError, match=sentence):
        opened(tmp_path / "llama")
    if how == "shape":
        ended, run = start_program(2, model={**MODEL, "init_from": str(tmp_path / "llama")})
        assert (ended.status, run.last_exit().code, run.last_exit().step) == (2, 2, -1)
        assert "is [87, 32], this model's is [88, 32]" in run.last_exit().cause
        assert "Traceback" not in ended.stderr


def test_a_plan_refuses_weights_that_are_not_there(tmp_path, isoflop):
    study = {
        "name": "over",
        "workflow": "llm",
        "base": {"model": {**MODEL, "init_from": str(tmp_path / "nowhere")}, "train": {"steps": 1}},
    }
    (tmp_path / "study.yaml").write_text(dumps(study))
    done = isoflop("plan", tmp_path / "study.yaml")
    assert (done.status, done.stdout) == (2, "")
    assert f"model.init_from: {tmp_path}/nowhere/{CONFIG_FILE}: No such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


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
        path.mkdir()
    elif how in wrong:
        text = json.dumps({**header, "model.embed_tokens.weight": wrong[how]}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + held[start:])
    else:
        path.write_bytes({"cut": held[:-1], "empty": b"", "length": b"\xff" * 8 + held[8:]}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "length", "shape", "behind", "type", "entry", "gone"])
def test_damaged_weights_are_refused_with_their_file(tmp_path, how):
    written(tmp_path, MODEL)
    damage(tmp_path / WEIGHTS_FILE, how)
    with pytest.raises(
        CheckpointError, match=rf"{WEIGHTS_FILE}: (not a whole safetensors file|Is a directory)"
    ):
        opened(tmp_path)


@pytest.mark.parametrize("model", [{"arch": "gpt"}, {"experts": 4}], ids=str)
def test_only_a_dense_llama_starts_from_weights(model):
    with pytest.raises(ValueError, match=r"model\.init_from=there: only a llama without experts starts"):
        ModelConfig(**model, init_from="there")
