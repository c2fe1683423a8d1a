"""What a plan says of a layout's memory and messages is what the model, autograd, the ranks and a published run say."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from mpi_ops.schedule_check import simulate
from tests.conftest import ROOT
from workflows.llm.config import LlmConfig, ModelConfig
from workflows.llm.footprint import MEGATRON_FP16, NUMERICS, activation_bytes, footprint, static_bytes
from workflows.llm.model import Transformer, loss
from workflows.llm.ranks import stage_layers
from workflows.llm.share import Share, stage_shapes
from workflows.llm.tensor_parallel import infer_rules
from workflows.study import read_study

MIB = 2**20
GCD_BYTES = 64e9
MODEL = {
    "width": 16,
    "layers": 4,
    "head_width": 4,
    "kv_heads": 2,
    "ffn_width": 24,
    "seq_len": 32,
    "vocab_size": 257,
}
GPT = {"arch": "gpt", "tied_head": False}
EXPERTS = {"experts": 4, "ffn_width": 8}
FRONTIER = sorted((ROOT / "studies").glob("frontier_*.yaml"))


def config(
    parallel: dict | None = None, dtype: str = "fp32", batch: int = 4, masked: bool = False, **model: object
) -> LlmConfig:
    return LlmConfig.model_validate(
        {
            "model": {**MODEL, **model},
            "data": {"mask_documents": masked},
            "train": {"steps": 1, "global_batch": batch, "dtype": dtype},
            "parallel": {"microbatch": 1, **(parallel or {})},
        }
    )


def on_the_card() -> LlmConfig:
    [run] = read_study(ROOT / "studies" / "frontier_175b.yaml").runs
    return run.config


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("model", [{}, {"tied_head": False}, {"arch": "gpt"}, GPT, EXPERTS], ids=str)
def test_parameters_are_those_of_the_split_model_name_by_name(model, stages, tp):
    chosen = ModelConfig(**{**MODEL, **model})
    for layers in stage_layers(chosen, stages):
        real = Transformer(chosen, None, layers=layers)
        shapes = {name: tuple(p.shape) for name, p in real.named_parameters()}
        for name, dim in infer_rules(shapes).items():
            if dim is not None:  # an uneven vocabulary: the first rank's share is the largest
                shapes[name] = tuple(-(-n // tp) if at == dim else n for at, n in enumerate(shapes[name]))
        assert list(stage_shapes(chosen, layers, tp).items()) == list(shapes.items())


def test_one_rank_holds_as_many_parameters_as_the_model_has():
    for model in ({}, GPT, EXPERTS):
        chosen = config(**model)
        assert footprint(chosen, 1).fullest.parameters == chosen.model.parameters()[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize(
    "model", [{}, {"kv_heads": None}, {"arch": "gpt"}, GPT, EXPERTS, {**EXPERTS, "top_k": 1}], ids=str
)
def test_a_microbatch_keeps_what_autograd_keeps_to_the_byte(model, dtype, recompute, masked):
    chosen = config({"recompute": recompute}, dtype, masked=masked, **model)
    real = Transformer(chosen.model, 0, torch.float64 if dtype == "fp64" else torch.float32)
    real.recompute(recompute)
    tokens = torch.zeros((1, chosen.model.seq_len), dtype=torch.int64)
    positions = [torch.arange(chosen.model.seq_len).unsqueeze(0) % 5] if masked else []
    known = {
        t.untyped_storage().data_ptr() for t in (*real.parameters(), *real.buffers(), tokens, *positions)
    }
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim and tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"),
    ):
        logits = real(tokens, *positions)
        loss(logits.float() if dtype == "bf16" else logits, tokens)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert activation_bytes(Share(chosen, 1), NUMERICS[dtype], 0) == found


def test_the_published_layout_has_the_published_number_of_parameters():
    ranks = footprint(on_the_card(), 128, MEGATRON_FP16).ranks
    assert [ranks[place].parameters for place in (0, 1, 14)] == [2_899_359_744, 2_718_480_384, 2_718_480_384]


def test_the_published_memory_is_what_the_formula_says():
    """Measured between steps on a rank of 2,718,480,384 parameters; at most, on stages 1 and 14 (2312.12705)."""
    ranks = footprint(on_the_card(), 128, MEGATRON_FP16).ranks
    assert ranks[1].between_steps_bytes / MIB == pytest.approx(23_361, rel=0.002)
    assert ranks[1].microbatch_bytes == 300 * MIB
    assert [ranks[1].in_flight, ranks[14].in_flight] == [15, 2]
    assert ranks[1].peak_bytes / MIB == pytest.approx(31_435.5, rel=0.01)
    assert ranks[14].peak_bytes / MIB == pytest.approx(27_535.5, rel=0.01)


@pytest.mark.parametrize(
    ("numerics", "zero", "between", "bytes_a_parameter"),
    [
        (NUMERICS["fp32"], 0, False, 16),
        (NUMERICS["fp64"], 0, True, 32),
        (NUMERICS["fp32"], 1, False, 4 + 4 + 12 / 4),
        (NUMERICS["fp32"], 1, True, 16 / 4),
        (NUMERICS["fp32"], 2, False, 4 + 16 / 4),
        (NUMERICS["fp32"], 3, False, 16 / 4),
        (MEGATRON_FP16, 0, False, 2 + 2 + 12),
        (MEGATRON_FP16, 1, False, 2 + 2 + 12 / 4),
        (MEGATRON_FP16, 1, True, 2 + 2 / 4 + 12 / 4),
        (MEGATRON_FP16, 2, False, 2 + 14 / 4),
        (MEGATRON_FP16, 3, False, 16 / 4),
    ],
)
def test_zero_shares_what_its_stage_says(numerics, zero, between, bytes_a_parameter):
    assert static_bytes(1000, numerics, zero, 250, between) == 1000 * bytes_a_parameter


@pytest.mark.parametrize(("tp", "logits"), [(1, 2), (2, 1)])
def test_each_row_of_a_large_vocabulary_costs_the_last_stage_logits_of_each_token_and_a_gradient(tp, logits):
    first, last = [], []
    for rows in (100_000, 200_000):
        made = footprint(config({"pp": 2, "tp": tp}, vocab_size=rows), 2 * tp).ranks
        first.append(made[0].transient_bytes)
        last.append(made[1].transient_bytes)
    assert first[0] == first[1]
    assert last[1] - last[0] == 100_000 // tp * (logits * MODEL["seq_len"] + MODEL["width"]) * 4


@pytest.mark.parametrize("microbatches", [1, 3, 9])
def test_1f1b_keeps_as_many_microbatches_as_there_are_stages_left(microbatches):
    made = footprint(config({"pp": 4}, batch=microbatches), 4)
    assert [rank.in_flight for rank in made.ranks] == [min(microbatches, 4 - place) for place in range(4)]


@pytest.mark.parametrize(
    ("name", "stages"),
    [("gpipe", 1), ("zero_bubble", 1), ("interleaved", 2), ("zbv", 2), ("dualpipev", 2)],
)
def test_other_schedules_keep_what_their_simulation_shows(name, stages):
    chosen = config({"pp": 2, "schedule": name, "stages_per_rank": stages}, batch=6)
    share, made = Share(chosen, 2), footprint(chosen, 2)
    timing = simulate([share.actions(place) for place in range(2)], share.placement)
    assert tuple(rank.in_flight for rank in made.ranks) == timing.peak_in_flight
    for rank in made.ranks:
        kept = rank.peak_bytes - rank.static_bytes - rank.transient_bytes
        assert rank.microbatch_bytes <= kept <= rank.in_flight * rank.microbatch_bytes


def kept_of_a_microbatch(share: Share, place: int) -> int | None:
    """What autograd alone keeps in floating point: the output of a stage is the pipeline's, rows have whole numbers."""
    if share.config.parallel.zero:
        return None
    numerics, output = (
        NUMERICS[share.config.train.dtype],
        share.tokens * share.config.model.width // share.layout.tp,
    )
    numbers = share.expert_rows * (5 if share.layout.ep > 1 else 3)
    if not share.config.model.experts or share.config.parallel.recompute == "full":
        numbers = 0
    return sum(
        activation_bytes(share, numerics, stage)
        - (stage < share.last_stage) * output * numerics.stream
        - len(share.layers[stage]) * numbers * 8
        for stage in share.placement[place]
    )


TWO = [
    *({"tp": 2, "recompute": recompute} for recompute in ("none", "selective", "full")),
    *({"cp": 2, "recompute": recompute} for recompute in ("none", "selective", "full")),
    *({"zero": zero} for zero in (0, 1, 2, 3)),
    {"zero": 3, "recompute": "full"},
    {"pp": 2},
    {"pp": 2, "schedule": "interleaved", "stages_per_rank": 2},
    {"pp": 2, "schedule": "zbv", "stages_per_rank": 2},
]
FOUR = [
    {"tp": 2, "pp": 2},
    {"cp": 4},
    {"cp": 2, "zero": 1},
    {"pp": 2, "zero": 2},
    *({"zero": zero, "replicas": 2} for zero in (1, 2, 3)),
    {"cp": 2, "zero": 3, "replicas": 2},
    {"tp": 4, "recompute": "full"},
]


LEVEL = {**EXPERTS, "top_k": 4}
"""Every token goes to every expert, so that loads are level."""
EXPERTS_ON_TWO = [
    *({"ep": 2}, {"ep": 2, "recompute": "full"}, {"tp": 2, "recompute": "full"}),
    *({"zero": 2}, {"ep": 2, "zero": 3}),
]
EXPERTS_ON_FOUR = [
    *({"ep": 2}, {"ep": 2, "pp": 2}, {"ep": 2, "tp": 2}, {"ep": 2, "cp": 2}),
    *({"ep": 2, "zero": zero} for zero in (1, 2, 3)),
]


@pytest.mark.parametrize(
    ("ranks", "layouts", "experts"), [(2, TWO, EXPERTS_ON_TWO), (4, FOUR, EXPERTS_ON_FOUR)]
)
def test_messages_and_memory_are_those_that_the_ranks_count(mpiexec, ranks, layouts, experts):
    # A vocabulary that tp ranks share evenly: the footprint is that of the rank with most of it.
    even = {"kv_heads": ranks, "vocab_size": 260}
    chosen = [
        config(parallel, dtype, **{**even, **model})
        for parallel in layouts
        for model, dtype in (({}, "fp32"), (GPT, "fp64"), ({}, "bf16"))
        if dtype != "bf16" or not {"cp", "zero"} & parallel.keys()  # ring attention takes one dtype alone
    ]
    chosen += [config(parallel, **even, **LEVEL) for parallel in experts]
    chosen.append(config({"zero": 1}, **even, experts=2, ffn_width=8))  # on four ranks, two have no expert
    cases = json.dumps([each.model_dump(mode="json") for each in chosen])
    ended = mpiexec(ranks, "-m", "tests.workflows.llm.traffic_cases", cases, timeout_s=110)
    assert ended.status == 0, ended.stderr
    for each, found in zip(chosen, json.loads(ended.stdout), strict=True):
        places, share = footprint(each, ranks).ranks, Share(each, ranks)
        if each.parallel.zero:
            first = share.own_elements(share.shapes(0))
            assert max(rank["parameters"] for rank in found if not rank["place"]) == first, each
        for rank in found:
            sent = places[rank["place"]].traffic
            wanted = {axis: [t.messages, t.sent_bytes] for axis, t in sent.items()}
            assert rank["sent"] == wanted, each.parallel
            if not each.parallel.zero:
                assert rank["parameters"] == places[rank["place"]].parameters, each.parallel
            assert rank["kept"] == kept_of_a_microbatch(share, rank["place"]), each.parallel


@pytest.mark.parametrize("path", FRONTIER, ids=lambda path: path.stem)
def test_a_plan_for_frontier_shows_what_fits_a_gcd(path, isoflop):
    plan = json.loads(isoflop("plan", path, "--site", "frontier", "--json").stdout)
    [run] = plan["runs"]
    layout, ranks = run["footprint"]["layout"], run["footprint"]["ranks"]
    assert layout["dp"] * layout["pp"] * layout["cp"] * layout["tp"] == run["ranks"]
    assert all(0 < rank["static_bytes"] < rank["peak_bytes"] < GCD_BYTES for rank in ranks)
    text = isoflop("plan", path, "--site", "frontier").stdout
    assert f"dp{layout['dp']} pp{layout['pp']} tp{layout['tp']}" in text
    assert f"{min(rank['parameters'] for rank in ranks):,} to " in text
    assert f"{max(rank['peak_bytes'] for rank in ranks) / 2**30:.1f} GiB (pp 0)" in text
    messages = [sum(sent["messages"] for sent in rank["traffic"].values()) for rank in ranks]
    assert f"{max(messages):,}" in text


def test_the_study_of_experts_shares_them_and_has_as_many_active_parameters_as_its_dense_model():
    *mixtures, dense = (run.config for run in read_study(ROOT / "studies" / "llm_experts.yaml").runs)
    for mixture in mixtures:
        assert footprint(mixture, 2).layout == {"dp": 2, "pp": 1, "cp": 1, "tp": 1, "ep": 2}
        router = mixture.model.width * mixture.model.experts
        active = dense.model.block_matmul_parameters() + router
        assert mixture.model.block_matmul_parameters() == active


def test_the_layout_study_tries_every_way_that_two_ranks_have():
    runs = read_study(ROOT / "studies" / "llm_layouts.yaml").runs
    shared = Counter(
        (*footprint(run.config, run.resources.ranks).layout.values(), run.config.parallel.zero)
        for run in runs
    )
    assert shared == Counter(
        [(2, 1, 1, 1, 0), (1, 1, 1, 2, 0), (1, 2, 1, 1, 0), (1, 1, 2, 1, 0)]
        + [(2, 1, 1, 1, zero) for zero in (1, 2, 3)]
    )
