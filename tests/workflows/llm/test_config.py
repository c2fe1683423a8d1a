"""What the configuration says by arithmetic holds for the real network, and every bad value is one sentence."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from workflows.config import parse
from workflows.errors import ConfigError
from workflows.llm.config import LlmConfig, ModelConfig, mathematics, size
from workflows.llm.model import Transformer, loss
from workflows.llm.ranks import check_ranks, stage_layers

MODELS = [
    ModelConfig(width=width, layers=layers, kv_heads=kv_heads, tied_head=tied, seq_len=8, **more)
    for (width, kv_heads), layers, tied, more in itertools.product(
        [(16, None), (32, 1), (64, 2), (48, 3)],
        [1, 3],
        [True, False],
        [{}, {"ffn_width": 40, "vocab_size": 300, "head_width": 8}, {"experts": 5, "ffn_width": 8}],
    )
]


def config(**sections) -> LlmConfig:
    data = {"train": {"steps": 1}, **sections}
    return parse(LlmConfig, data, lambda path: f"f.yaml: {'.'.join(map(str, path))}")


def name(model: ModelConfig) -> str:
    feed_forward = f"f{model.ffn}-x{model.experts}"
    return f"w{model.width}-l{model.layers}-k{model.key_heads}of{model.heads}-{feed_forward}-tied{model.tied_head:d}"


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_parameters_are_those_of_the_real_network(model):
    network = Transformer(model, seed=0)
    counted = {name: p.numel() for name, p in network.named_parameters()}
    outside = sum(n for name, n in counted.items() if name in ("embedding.weight", "head.weight"))
    assert model.parameters() == (sum(counted.values()), sum(counted.values()) - outside)


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_flops_are_those_that_torch_counts_on_the_real_network(model):
    """The attention runs as plain matmuls here: torch counts 2.5 instead of 2 forward passes for the fused
    backward, which computes the scores again. Neither convention halves them for the causal mask."""
    network, batch = Transformer(model, seed=0), 3
    tokens = torch.zeros((batch, model.seq_len), dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(network(tokens), tokens).backward()
    assert counter.get_total_flops() == batch * model.seq_len * model.flops_per_token()


def test_defaults_are_filled_in():
    model = ModelConfig(width=64)
    assert (model.heads, model.key_heads, model.ffn) == (4, 4, 176)
    assert ModelConfig(width=48, kv_heads=1, ffn_width=7).key_heads == 1


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({"steps": 7}, 7),
        ({"tokens": 8 * 128}, 1),
        ({"tokens": 8 * 128 + 1}, 2),
        ({"tokens": 1}, 1),
        ({"flops": 1.0}, 1),
        ({"tokens": 3e8}, 292_969),
        ({"tokens": 4096, "global_batch": 2}, 16),
    ],
)
def test_a_length_is_rounded_up_to_whole_steps(train, steps):
    made = config(train=train)
    assert made.steps == steps
    assert size(made).d_tokens == steps * made.tokens_per_step
    assert size(made).c_flops == size(made).d_tokens * made.model.flops_per_token()


def test_flops_buy_the_steps_that_cost_them():
    made = config(train={"flops": 1e12})
    a_step = made.tokens_per_step * made.model.flops_per_token()
    assert 0 <= made.steps * a_step - 1e12 < a_step
    exact = config(train={"flops": float(5 * a_step)})
    assert exact.steps == 5


def test_three_ways_to_say_one_length_are_one_run():
    a_step = config().tokens_per_step * config().model.flops_per_token()
    ways = [{"steps": 3}, {"tokens": 3 * 8 * 128}, {"flops": float(3 * a_step)}]
    assert len({str(mathematics(config(train=way))) for way in ways}) == 1


@pytest.mark.parametrize(
    ("section", "same"),
    [
        ({"parallel": {"backend": "gloo"}}, True),
        ({"parallel": {"microbatch": 2, "tp": 2, "pp": 2, "zero": 1, "recompute": "full"}}, True),
        ({"parallel": {"ep": 2, "order": ["tp", "dp", "pp", "cp"]}}, True),
        ({"parallel": {"zero": 3, "replicas": 2}}, True),
        ({"model": {"top_k": 1, "capacity": 1.5, "bias_rate": 0}}, True),
        ({"model": {"experts": 4}}, False),
        ({"train": {"steps": 1, "log_every": 3, "checkpoint_every": 3, "compile": True}}, True),
        ({"train": {"steps": 2}}, False),
        ({"train": {"steps": 1, "seed": 1}}, False),
        ({"train": {"steps": 1, "evaluations": 2}}, False),
        ({"data": {"seed": 1}}, False),
        ({"data": {"tokenizer": "bpe"}}, False),
        ({"data": {"mask_documents": True}}, False),
        ({"optimizer": {"eps": 1e-9}}, False),
        ({"model": {"norm_eps": 1e-6}}, False),
    ],
)
def test_only_what_changes_the_result_makes_another_run(section, same):
    assert (mathematics(config(**section)) == mathematics(config())) is same


def test_the_peak_falls_with_the_width_as_told():
    assert config(model={"width": 32}).peak_lr == 1.6e-2
    assert config(model={"width": 64}).peak_lr == 0.8e-2
    assert config(model={"width": 64}, optimizer={"lr_width_power": 0}).peak_lr == 1.6e-2


BAD = [
    ({"model": {"width": 30}}, "model: model.width=30 is no multiple of model.head_width=16"),
    ({"model": {"width": 15, "head_width": 5}}, "model: model.head_width=5 is odd"),
    ({"model": {"width": 64, "kv_heads": 3}}, "model: model.kv_heads=3 does not divide the 4 heads"),
    ({"model": {"width": 64, "kv_heads": 8}}, "model: model.kv_heads=8 does not divide the 4 heads"),
    ({"model": {"width": 8}}, "model: model.width=8 is no multiple of model.head_width=16"),
    ({"model": {"width": 0}}, "model.width: holds 0, allowed is greater than or equal to 1"),
    ({"model": {"arch": "gpt5"}}, "model.arch: holds \"gpt5\", allowed is 'llama' or 'gpt'"),
    ({"model": {"vocab_size": 100}}, " model.vocab_size=100: the byte tokenizer needs 256"),
    ({"model": {"experts": 3, "top_k": 4}}, "model: model.top_k=4: 1 to the 3 of model.experts"),
    ({"model": {"experts": 3, "arch": "gpt"}}, "model: model.experts=3 with model.arch=gpt: experts are a"),
    ({"model": {"experts": -1}}, "model.experts: holds -1, allowed is greater than or equal to 0"),
    ({"model": {"capacity": 0}}, "model.capacity: holds 0, allowed is greater than 0"),
    (
        {"parallel": {"order": ["dp", "ep"]}},
        "parallel.order.1: holds \"ep\", allowed is 'dp', 'pp', 'cp' or 'tp'",
    ),
    ({"model": {"rope_theta": 0}}, "model.rope_theta: holds 0, allowed is greater than 0"),
    ({"data": {"validation_fraction": 0}}, "data.validation_fraction: holds 0, allowed is greater than 0"),
    ({"data": {"validation_fraction": 1}}, "data.validation_fraction: holds 1, allowed is less than 1"),
    (
        {"data": {"tokenizer": "words"}},
        "data: data.tokenizer=words: byte, bpe, or a tokenizer's .json file",
    ),
    ({"model": {"vocab_size": 100}, "data": {"tokenizer": "bpe"}}, "=100: the bpe tokenizer needs 256"),
    ({"data": {"seed": -1}}, "data.seed: holds -1, allowed is greater than or equal to 0"),
    ({"train": {"steps": 1, "seed": 2**63}}, f"train.seed: holds {2**63}, allowed is less than {2**63}"),
    ({"train": {}}, "train: train: give exactly one of tokens, flops, steps; it holds none of them"),
    ({"train": {"steps": 1, "flops": 1}}, "one of tokens, flops, steps; it holds flops, steps"),
    ({"train": {"steps": 0}}, "train.steps: holds 0, allowed is greater than or equal to 1"),
    ({"train": {"flops": float("inf")}}, "train.flops: holds Infinity, allowed is a finite number"),
    (
        {"train": {"steps": 1, "dtype": "fp8"}},
        "train.dtype: holds \"fp8\", allowed is 'fp32', 'bf16' or 'fp64'",
    ),
    ({"optimizer": {"beta1": 1}}, "optimizer.beta1: holds 1, allowed is less than 1"),
    ({"optimizer": {"beta2": float("nan")}}, "optimizer.beta2: holds NaN, allowed is less than 1"),
    ({"optimizer": {"lr": "1e-3"}}, 'optimizer.lr: holds "1e-3", allowed is a valid number'),
    ({"optimizer": {"weight_decay": -0.1}}, "optimizer.weight_decay: holds -0.1, allowed is greater than or"),
    (
        {"optimizer": {"schedule": "wsd", "warmup_fraction": 0.5, "decay_fraction": 0.6}},
        "optimizer.warmup_fraction=0.5 and decay_fraction=0.6 are more than the whole run; together at most 1",
    ),
    (
        {"parallel": {"backend": "mpi"}},
        "parallel.backend: holds \"mpi\", allowed is 'mpi4py', 'gloo' or 'nccl'",
    ),
]


@pytest.mark.parametrize(("sections", "sentence"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_value_is_one_sentence(sections, sentence):
    with pytest.raises(ConfigError) as caught:
        config(**sections)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("f.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "microbatch", "fits"), [(8, None, True), (4, 2, True), (3, None, False), (4, 4, False)]
)
def test_ranks_share_the_batch_in_whole_microbatches_or_are_refused(ranks, microbatch, fits):
    made = config(parallel={"microbatch": microbatch})
    if fits:
        check_ranks(made, ranks)
    else:
        sentence = (
            f"train.global_batch = 8 is no multiple of {ranks * (microbatch or 1)}, "
            f"which is {ranks} data-parallel ranks x microbatch {microbatch or 1}"
        )
        with pytest.raises(ValueError, match=sentence):
            check_ranks(made, ranks)


@pytest.mark.parametrize(
    ("model", "parallel", "ranks", "sentence"),
    [
        ({}, {"tp": 2}, 3, "3 ranks are no multiple of parallel.tp x pp x cp = 2 x 1 x 1"),
        ({"width": 48}, {"tp": 2}, 2, "query heads, model.width / model.head_width = 3 is no multiple of 2"),
        ({"width": 64, "kv_heads": 1}, {"tp": 2}, 2, "model.kv_heads = 1 is no multiple of 2"),
        ({"width": 64, "ffn_width": 9}, {"tp": 2}, 2, "model.ffn_width = 9 is no multiple of 2"),
        ({"seq_len": 6}, {"cp": 2}, 2, "model.seq_len = 6 is no multiple of 4, which is 2 parallel.cp"),
        ({"width": 64, "seq_len": 5}, {"tp": 2}, 2, "model.seq_len / parallel.cp = 5 is no multiple of 2"),
        (
            {"layers": 3},
            {"pp": 2, "stages_per_rank": 2, "schedule": "interleaved"},
            2,
            "model.layers=3: 4 pipeline",
        ),
        ({}, {"pp": 2, "schedule": "zbv"}, 2, "stages_per_rank=1: schedule zbv takes exactly 2"),
        ({}, {"pp": 2, "schedule": "zero_bubble", "zero": 2}, 4, "parallel.zero=2 with schedule zero_bubble"),
        ({"layers": 4}, {"pp": 2, "schedule": "zbv", "stages_per_rank": 2, "zero": 1}, 4, "tied"),
        ({"experts": 4}, {"ep": 4}, 2, "parallel.ep=4 does not divide the 2 data-parallel ranks"),
        ({"experts": 3}, {"ep": 2}, 2, "model.experts = 3 is no multiple of 2, which is parallel.ep"),
        ({}, {"ep": 2}, 2, "parallel.ep=2: there are no experts to share; set model.experts"),
        ({}, {"replicas": 3, "zero": 1}, 2, "parallel.replicas=3 does not divide the 2 data-parallel ranks"),
        ({}, {"replicas": 2}, 4, "parallel.replicas=2 with zero=0, where every rank holds a whole copy"),
        (
            {},
            {"replicas": 2, "zero": 3},
            2,
            "parallel.replicas=2 of 2 data-parallel ranks leaves zero=3 nothing to share out; take fewer, or zero 0",
        ),
        (
            {"experts": 4},
            {"ep": 2, "zero": 1, "replicas": 2},
            4,
            "parallel.ep=2 with replicas=2: take one of them",
        ),
        (
            {"experts": 4, "capacity": 1.5},
            {"cp": 2},
            2,
            "model.capacity=1.5 with parallel.cp x tp = 2 x 1: an",
        ),
        (
            {"experts": 4, "capacity": 1.5},
            {"tp": 2},
            2,
            "model.capacity=1.5 with parallel.cp x tp = 1 x 2: an",
        ),
        (
            {},
            {"order": ["dp", "pp", "cp", "cp"]},
            1,
            "parallel.order=[dp, pp, cp, cp]: each of dp, pp, cp, tp once, the slowest first",
        ),
    ],
)
def test_a_layout_that_the_model_cannot_have_is_refused(model, parallel, ranks, sentence):
    made = config(model=model, parallel=parallel)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_ranks(made, ranks)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"parallel": {"tp": 2}}, "parallel.tp=2: a block is compiled with 1 only"),
        ({"parallel": {"cp": 2}}, "parallel.cp=2: a block is compiled with 1 only"),
        ({"parallel": {"zero": 1}}, "parallel.zero=1: a block is compiled with 0 only"),
        ({"parallel": {"recompute": "full"}}, "parallel.recompute=full: a block is compiled with none only"),
        ({"parallel": {"recompute": "selective"}}, "parallel.recompute=selective: a block is compiled with "),
        ({"parallel": {"pp": 2, "schedule": "zero_bubble"}}, "schedule zero_bubble, which puts off"),
        ({"data": {"mask_documents": True}}, "data.mask_documents=True: a block is compiled with False only"),
        ({"model": {"experts": 4}}, "model.experts=4: a block is compiled with 0 only"),
    ],
)
def test_what_cannot_be_compiled_is_refused(section, sentence):
    made = config(**section, train={"steps": 1, "compile": True})
    with pytest.raises(ValueError, match=f"train.compile=true with {sentence}"):
        check_ranks(made, 2)
    check_ranks(config(**section), 2)


def test_computing_attention_again_costs_its_two_products_a_layer():
    again = {
        what: config(parallel={"recompute": what}).hardware_flops_per_token()
        for what in ("none", "selective", "full")
    }
    model = config().model
    scores, values = 2 * model.seq_len * model.width, 2 * model.seq_len * model.width
    assert again["none"] == model.flops_per_token()
    assert again["selective"] - again["none"] == model.layers * (scores + values)
    assert again["full"] - again["selective"] == 2 * model.layers * model.block_matmul_parameters()


def test_documents_that_would_share_their_experts_room_are_refused():
    experts = {"experts": 4, "capacity": 1.5}
    check_ranks(config(model=experts), 1)
    check_ranks(config(model={"experts": 4}, data={"mask_documents": True}), 1)
    with pytest.raises(
        ValueError, match=r"^data\.mask_documents=true with model.capacity=1.5: experts' room is "
    ):
        check_ranks(config(model=experts, data={"mask_documents": True}), 1)


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"), [(4, 2, [2, 2]), (5, 2, [3, 2]), (7, 3, [3, 3, 1]), (3, 1, [3])]
)
def test_layers_are_shared_out_so_that_the_slowest_stage_is_fast(layers, stages, sizes):
    model = ModelConfig(layers=layers, width=256, vocab_size=4096, head_width=32, ffn_width=1024)
    shares = stage_layers(model, stages)
    assert [len(share) for share in shares] == sizes
    assert [layer for share in shares for layer in share] == list(range(layers))
