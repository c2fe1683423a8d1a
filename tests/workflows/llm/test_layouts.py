"""Every layout makes the same steps as one process: losses, gradients, norms, and the weights after three updates."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest

UNTIED, GPT = {"tied_head": False}, {"arch": "gpt"}
EXPERTS = {"experts": 4, "ffn_width": 8, "bias_rate": 0.05}
ROOM = {**EXPERTS, "capacity": 1.0}
SCHEDULES = {"gpipe": 1, "1f1b": 1, "interleaved": 2, "zero_bubble": 1, "zbv": 2, "dualpipev": 2}


def case(model: dict | None = None, **parallel) -> dict:
    return {"model": model or {}, "parallel": parallel}


def masked(model: dict | None = None, **parallel) -> dict:
    return {**case(model, **parallel), "masked": True}


def pipelines(**more) -> list[dict]:
    return [case(pp=2, schedule=name, stages_per_rank=v, **more) for name, v in SCHEDULES.items()]


ONE = [
    case(),
    case(recompute="full"),
    case(recompute="selective"),
    case(UNTIED),
    case(GPT),
    case(microbatch=4),
    case(schedule="zbv", stages_per_rank=2),
    *(case(model, recompute="full") for model in (EXPERTS, ROOM)),
    masked(),
    masked(GPT, recompute="full"),
]
TWO = [
    *(case(model, **{axis: 2}) for axis in ("tp", "pp", "cp") for model in ({}, UNTIED, GPT)),
    case(),
    *pipelines(),
    case(UNTIED, pp=2, schedule="zbv", stages_per_rank=2),
    *(case(model, zero=zero) for zero in (1, 2, 3) for model in ({}, UNTIED)),
    case(tp=2, recompute="full"),
    case(zero=3, recompute="full"),
    case(zero=1, cp=2),
    *(case(model, ep=2, recompute=again) for model in (EXPERTS, ROOM) for again in ("none", "full")),
    case({**EXPERTS, "top_k": 1, "layers": 2}, ep=2, microbatch=2),
    *(case(EXPERTS, **{axis: 2}) for axis in ("tp", "pp", "cp")),
    *(case(ROOM, zero=zero, ep=ep) for zero in (1, 2, 3) for ep in (1, 2)),
    case(ROOM),
    *(masked(model, **{axis: 2}) for axis in ("tp", "pp", "cp") for model in ({}, GPT)),
    masked(cp=2, recompute="full"),
    masked(cp=2, recompute="selective"),
    case(tp=2, recompute="selective"),
    case(pp=2, recompute="selective", schedule="zero_bubble"),
    case(zero=3, recompute="selective"),
    masked(zero=3),
    {**case(tp=2), "dtype": "fp32", "bound": 1e-4},
    {**case(EXPERTS, ep=2), "dtype": "bf16", "bound": 1e-2, "only": ["loss", "evaluated"]},
    {**case(tp=2), "dtype": "bf16", "bound": 1e-2, "only": ["loss", "evaluated"]},
    {**case(cp=2), "dtype": "bf16", "bound": 1e-2, "only": ["loss", "evaluated"]},
    {**case(pp=2, schedule="zero_bubble"), "dtype": "bf16", "bound": 1e-2, "only": ["loss", "evaluated"]},
]
FOUR = [
    case(tp=2),
    case(pp=2),
    case(cp=2),
    case(tp=2, pp=2),
    case(tp=2, cp=2),
    case(pp=2, cp=2),
    case(tp=2, zero=1),
    *(case(model, zero=zero, replicas=2) for zero, model in ((1, {}), (2, UNTIED), (3, {}))),
    case(zero=3, cp=2, replicas=2),
    case(pp=2, zero=3),
    case(pp=2, zero=1, schedule="zero_bubble"),
    case(pp=2, schedule="zero_bubble"),
    case(pp=2, schedule="zbv", stages_per_rank=2),
    case(UNTIED, tp=2, pp=2, schedule="dualpipev", stages_per_rank=2),
    *(case(model, ep=2, pp=pp) for model in (EXPERTS, ROOM) for pp in (1, 2)),
    case(EXPERTS, ep=4),
    case(EXPERTS, ep=2, cp=2),
    case(EXPERTS, ep=2, tp=2),
    *(case(EXPERTS, ep=2, zero=zero) for zero in (1, 2, 3)),
    case(EXPERTS, ep=2, zero=3, recompute="full"),
    case({**EXPERTS, **UNTIED}, ep=2, zero=1, pp=2),
    case(ROOM, ep=2, pp=2, schedule="zero_bubble"),
    case(order=["tp", "cp", "pp", "dp"], tp=2, pp=2),
    case(EXPERTS, order=["cp", "dp", "pp", "tp"], ep=2, pp=2),
    masked(cp=4),
    masked(GPT, tp=2, cp=2),
]
ALL_FOUR = [
    *(
        case({"kv_heads": 4} if tp == 4 else {}, tp=tp, pp=pp, cp=cp)
        for tp, pp, cp in itertools.product((1, 2, 4), repeat=3)
        if tp * pp * cp <= 4
    ),
    *(
        case(model, zero=zero, **axis)
        for zero in (1, 2, 3)
        for axis in ({}, {"tp": 2}, {"pp": 2}, {"cp": 2})
        for model in ({}, UNTIED)
    ),
    *(
        case(model, zero=zero, replicas=2, **axis)
        for zero in (1, 2, 3)
        for axis in ({}, {"cp": 2}, {"recompute": "full"})
        for model in ({}, UNTIED, GPT)
    ),
    *pipelines(tp=2),
    *pipelines(cp=2),
    *pipelines(),
    case(GPT, tp=2, pp=2),
    *(case(ROOM, ep=2, pp=2, schedule=name, stages_per_rank=v) for name, v in SCHEDULES.items()),
    *(case({**EXPERTS, "top_k": 1}, ep=2, **axis) for axis in ({}, {"tp": 2}, {"pp": 2}, {"cp": 2})),
    *(case(EXPERTS, zero=zero, tp=2, ep=ep) for zero in (1, 2, 3) for ep in (1, 2)),
    *(case(EXPERTS, zero=zero, cp=2, ep=2) for zero in (1, 2, 3)),
    *(case(EXPERTS, zero=zero, ep=4) for zero in (1, 2, 3)),
]

WIDE = {"width": 32, "head_width": 8, "kv_heads": 2}  # heads that GPUs have a kernel for
BF16 = {"dtype": "bf16", "bound": 1e-2, "only": ["loss", "evaluated"]}
ON_GPUS = {
    1: [*ONE, {**case(WIDE), **BF16}],
    2: [*TWO, *({**case(WIDE, **{axis: 2}), **BF16} for axis in ("tp", "pp", "cp"))],
    4: [*FOUR, case(pp=4), *pipelines(tp=2), {**masked(WIDE, cp=4), **BF16}],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        pytest.param(1, ONE, id="1 rank"),
        pytest.param(2, TWO, id="2 ranks"),
        pytest.param(4, FOUR, id="4 ranks"),
        pytest.param(4, ALL_FOUR, id="4 ranks, all", marks=pytest.mark.full),
    ],
)
def test_a_layout_changes_no_step_beyond_rounding(mpiexec, ranks, cases):
    done = mpiexec(ranks, "-m", "tests.workflows.llm.layout_cases", json.dumps(cases), timeout_s=580)
    assert done.status == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {}


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", ON_GPUS)
def test_gpus_change_no_step_beyond_rounding(gpus, mpiexec, ranks):
    cases = ["tests.workflows.llm.layout_cases", json.dumps(ON_GPUS[ranks]), "nccl"]
    done = mpiexec(ranks, "-m", "tests.sharing_gpus", *cases, timeout_s=580)
    assert done.status == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {}


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
@pytest.mark.parametrize(("ranks", "cases"), [(1, [case(), case(GPT)]), (2, [case(), case(pp=2)])])
def test_compiled_blocks_change_no_step_beyond_rounding(mpiexec, ranks, cases):
    compiled = json.dumps([{**each, "compile": True} for each in cases])
    done = mpiexec(ranks, "-m", "tests.workflows.llm.layout_cases", compiled, timeout_s=580)
    assert done.status == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {}
