"""The configuration of a language-model run, and what follows from it by arithmetic alone. No torch here."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mpi_ops.layout import AXES, Axis
from workflows.config import Section
from workflows.workflow import RunSize

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

FLOPS_CONVENTION = (
    "counted: 3 x forward matmuls, output head and full (non-causal) attention scores included, of experts those that "
    "a token chooses"
)
HARDWARE_CONVENTION = (
    "the same, and the forward pass of the blocks once more where parallel.recompute is full, of attention's scores "
    "where it is selective"
)
BYTE_VOCABULARY = 256
EXPERT_KEYS = {"experts", "top_k", "capacity", "bias_rate"}
"""Of the model: they say nothing where there are no experts."""


class ModelConfig(Section):
    """A decoder: RMSNorm, rotary positions and SwiGLU, or a GPT's LayerNorm, learned positions, GELU and biases."""

    arch: Literal["llama", "gpt"] = "llama"
    """Kind of block."""
    width: Count = 64
    """Model dimension."""
    layers: Count = 2
    """Blocks."""
    head_width: Count = 16
    """Width of one attention head; even, for the rotary pairs."""
    kv_heads: Count | None = None
    """Key and value heads, each shared by heads / kv_heads query heads; default: as many as heads."""
    ffn_width: Count | None = None
    """Inner width; default: 4 times the width in a GPT, else 8/3 of it, rounded up to a multiple of 8."""
    seq_len: Count = 128
    """Tokens a sequence."""
    vocab_size: Count = BYTE_VOCABULARY
    """Rows of the embedding; the tokenizers byte and bpe need 256."""
    tied_head: bool = True
    """Whether the output head shares the embedding's weights."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary wavelengths."""
    norm_eps: Positive = 1e-5
    """Under the square root of RMSNorm."""
    experts: Annotated[int, Field(ge=0)] = 0
    """Experts in place of each feed-forward part, each of width ffn_width; 0 for a dense model."""
    top_k: Count = 2
    """Experts that a token goes to."""
    capacity: Positive | None = None
    """Tokens of a sequence that an expert takes at most, as a multiple of the mean; default: all that come."""
    bias_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    """How far a step moves the bias that levels the experts' loads; 0 for no levelling."""
    init_from: str | None = None
    """A Hugging Face Llama's folder (safetensors and config.json) whose weights the run starts from; default: drawn."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.width // self.head_width

    @property
    def key_heads(self) -> int:
        """Key and value heads."""
        return self.kv_heads or self.heads

    @property
    def ffn(self) -> int:
        """Inner width of the feed-forward part."""
        return self.ffn_width or (4 * self.width if self.arch == "gpt" else 8 * math.ceil(self.width / 3))

    @model_validator(mode="after")
    def _divides(self) -> ModelConfig:
        if self.width % self.head_width:
            raise ValueError(f"model.width={self.width} is no multiple of model.head_width={self.head_width}")
        if self.head_width % 2:
            raise ValueError(f"model.head_width={self.head_width} is odd; rotary positions need pairs")
        if self.heads % self.key_heads:
            raise ValueError(f"model.kv_heads={self.kv_heads} does not divide the {self.heads} heads")
        return self

    @model_validator(mode="after")
    def _has_experts(self) -> ModelConfig:
        if self.experts and self.top_k > self.experts:
            raise ValueError(f"model.top_k={self.top_k}: 1 to the {self.experts} of model.experts")
        if self.experts and self.arch == "gpt":
            raise ValueError(
                f"model.experts={self.experts} with model.arch=gpt: experts are a llama's SwiGLU"
            )
        return self

    @model_validator(mode="after")
    def _takes_over(self) -> ModelConfig:
        if self.init_from is not None and (self.arch != "llama" or self.experts):
            raise ValueError(
                f"model.init_from={self.init_from}: only a llama without experts starts from weights"
            )
        return self

    def block_matmul_parameters(self) -> int:
        """Return the weights of one block that a token is multiplied with: q, k, v, o, (gate,) up, down; with
        experts those of the router and of the top_k that the token chooses, whether or not they have room for it.
        """
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.key_heads)
        return (
            attention + self.width * self.experts + (self.top_k if self.experts else 1) * self._ffn_matrices
        )

    @property
    def _ffn_matrices(self) -> int:
        """Weights of one feed-forward part, or of one expert."""
        return (2 if self.arch == "gpt" else 3) * self.width * self.ffn

    def parameters(self) -> tuple[int, int]:
        """Return the number of parameters: (total, without embedding, learned positions and head)."""
        norm, biases, positions = self.width, 0, 0
        if self.arch == "gpt":
            norm, positions = 2 * self.width, self.seq_len * self.width
            biases = self.head_width * (self.heads + 2 * self.key_heads) + 2 * self.width + self.ffn
        unused = (self.experts - self.top_k) * self._ffn_matrices if self.experts else 0
        blocks = self.layers * (self.block_matmul_parameters() + unused + biases + 2 * norm) + norm
        embedding = self.vocab_size * self.width * (1 if self.tied_head else 2)
        return blocks + embedding + positions, blocks

    def flops_per_token(self) -> int:
        """Return forward and backward FLOPs a token, a multiply-add counted as 2 (see FLOPS_CONVENTION)."""
        matmuls = self.layers * self.block_matmul_parameters() + self.vocab_size * self.width
        scores = self.layers * 2 * self.seq_len * self.width  # q k^T and its product with v
        return 3 * 2 * (matmuls + scores)

    def block_flops_per_token(self) -> int:
        """Return the FLOPs a token of one forward pass through the blocks: what full recomputing adds."""
        return 2 * self.layers * (self.block_matmul_parameters() + 2 * self.seq_len * self.width)


class DataConfig(Section):
    """Text, cut into documents (files), and what becomes of it."""

    source: str = "stdlib"
    """`stdlib` (the sources of Python's standard library), a file, a glob of files, or a ready `.tokens` file."""
    tokenizer: str = "byte"
    """How text becomes tokens: `byte`; `bpe`, byte pairs learned from the training documents, up to model.vocab_size
    of them; or a `.json` file of Hugging Face's tokenizers."""
    mask_documents: bool = False
    """Whether a token sees those of its own document only, positions counted from the document's start. What follows
    a document's last token is the next document's first one, with or without."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents that training never sees; at least one document."""
    seed: Seed = 0
    """Of the order of training sequences and of the choice of documents for validation."""

    @property
    def kind(self) -> str:
        """`byte`, `bpe` or `file`."""
        return "file" if self.tokenizer.endswith(".json") else self.tokenizer

    @model_validator(mode="after")
    def _known(self) -> DataConfig:
        if self.kind not in ("byte", "bpe", "file"):
            raise ValueError(f"data.tokenizer={self.tokenizer}: byte, bpe, or a tokenizer's .json file")
        return self


class OptimizerConfig(Section):
    """AdamW with a warm-up and a decay."""

    lr: Positive = 1.6e-2
    """Peak learning rate at model.width = 32; scaled by (32 / width) ** lr_width_power."""
    lr_width_power: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """How fast the peak falls with the width; 0 = not at all. Measured at widths 16 to 64: 1."""
    min_lr_ratio: Fraction = 0.1
    """Last learning rate over the peak."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Shape of the decay: a half cosine, or constant and then straight down (warm-up, stable, decay)."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    decay_fraction: Fraction = 0.2
    """Share of the steps in which `wsd` decays."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Decoupled; for matrices only, never for norms."""
    grad_clip: Positive = 1.0
    """Largest global norm of a gradient."""

    @model_validator(mode="after")
    def _shares_fit(self) -> OptimizerConfig:
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"optimizer.warmup_fraction={self.warmup_fraction} and decay_fraction={self.decay_fraction} "
                "are more than the whole run; together at most 1"
            )
        return self


class TrainConfig(Section):
    """How long, how much at a time, and when to look."""

    tokens: Count | None = None
    """Length of training; exactly one of tokens, flops, steps."""
    flops: Positive | None = None
    """Length as training FLOPs, as counted."""
    steps: Count | None = None
    """Length in optimizer steps."""
    global_batch: Count = 8
    """Sequences a step over all ranks."""
    evaluations: Count = 5
    """Times the validation loss is taken, at equal distances in tokens, the last at the end."""
    evaluation_sequences: Count = 256
    """Sequences of each evaluation, always the same ones."""
    log_every: Count = 10
    """Steps between rows of the metrics."""
    checkpoint_every: Count = 500
    """Steps between checkpoints; the end of training is always one."""
    async_checkpoint: bool = True
    """Whether training goes on while a checkpoint is written, for a copy of weights and moments in memory."""
    skip_nonfinite: Annotated[int, Field(ge=0)] = 0
    """Steps in a row that may go without an update, their gradient being no number; one more ends the run."""
    seed: Seed = 0
    """Of the initial weights."""
    dtype: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Of weights, gradients and moments; `bf16` multiplies in bf16 and keeps all else in fp32."""
    compile: bool = False
    """Whether torch.compile makes each block's kernels, with a C++ compiler; pays off in long runs."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        given = [name for name in ("tokens", "flops", "steps") if getattr(self, name) is not None]
        if len(given) != 1:
            held = ", ".join(given) or "none of them"
            raise ValueError(f"train: give exactly one of tokens, flops, steps; it holds {held}")
        return self


class ParallelConfig(Section):
    """How ranks share the work; never changes the result beyond rounding."""

    tp: Count = 1
    """Tensor parallel ranks: each a slice of every matrix."""
    pp: Count = 1
    """Pipeline parallel ranks: each some of the layers."""
    cp: Count = 1
    """Context parallel ranks: each a stretch of every sequence."""
    ep: Count = 1
    """Expert parallel ranks: of the data parallel ones so many neighbours each hold a share of the experts."""
    order: tuple[Axis, ...] = AXES
    """Axes of the grid of ranks, the slowest first; the last one's neighbours are neighbouring ranks."""
    zero: Literal[0, 1, 2, 3] = 0
    """What data-parallel ranks share instead of copying: 1 moments, 2 also gradients, 3 also weights."""
    replicas: Count = 1
    """Whole copies of what `zero` shares out: each of so many parts of the data-parallel ranks shares among itself,
    and gradients are added up between the parts once a step. For shares within a node or a few."""
    microbatch: Count | None = None
    """Sequences a rank handles at once; default: its whole share of the batch."""
    schedule: Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipev"] = "1f1b"
    """Order of the microbatches in the pipeline."""
    stages_per_rank: Count = 1
    """Stretches of layers a pipeline rank holds; 2 for zbv and dualpipev, 2 or more for interleaved."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What of a block is computed again in the backward pass instead of kept: nothing, attention, or all of it."""
    backend: Literal["mpi4py", "gloo", "nccl"] = "mpi4py"
    """Backend of torch.distributed: over MPI or sockets between CPUs, or NCCL (RCCL) between GPUs."""
    timeout_s: Positive = 600.0
    """How long nothing may move, as where a rank hangs, before the job is ended and the late rank named."""

    @property
    def message_timeout_s(self) -> float:
        """How long one operation between ranks may take: the watchdog, which tells more, is to come first."""
        return 1.5 * self.timeout_s


class LlmConfig(Section):
    """One language-model run."""

    model: ModelConfig = Field(default=ModelConfig())
    """The network."""
    data: DataConfig = Field(default=DataConfig())
    """What it reads."""
    optimizer: OptimizerConfig = Field(default=OptimizerConfig())
    """How it learns."""
    train: TrainConfig
    """How long."""
    parallel: ParallelConfig = Field(default=ParallelConfig())
    """On how many ranks, and over what."""

    @model_validator(mode="after")
    def _fits(self) -> LlmConfig:
        kind = self.data.kind
        if self.model.vocab_size < BYTE_VOCABULARY and kind != "file":
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size}: the {kind} tokenizer needs {BYTE_VOCABULARY}"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all ranks together consume in one optimizer step."""
        return self.train.global_batch * self.model.seq_len

    @property
    def steps(self) -> int:
        """Optimizer steps: the wanted length rounded up to whole steps."""
        train = self.train
        if train.steps:
            return train.steps
        tokens = train.tokens or (train.flops or 0) / self.model.flops_per_token()
        return max(1, math.ceil(tokens / self.tokens_per_step))

    def hardware_flops_per_token(self) -> int:
        """Return the FLOPs a token that are done, what is computed again in the backward pass included."""
        scores = 2 * self.model.layers * 2 * self.model.seq_len * self.model.width
        again = {"none": 0, "selective": scores, "full": self.model.block_flops_per_token()}[
            self.parallel.recompute
        ]
        return self.model.flops_per_token() + again

    @property
    def peak_lr(self) -> float:
        """The largest learning rate of the run."""
        scale: float = (32 / self.model.width) ** self.optimizer.lr_width_power
        return self.optimizer.lr * scale


def mathematics(config: LlmConfig) -> dict[str, Any]:
    """Return what decides the result of a run; how its work is shared, watched and saved is left out, and so is
    how many steps it may skip, which decides only whether it gets to an end. Weights to start from count by their
    SHA-256, wherever they lie.

    A microbatch moves sums by a rounding, as a number of ranks does, and the ways to state a length (tokens,
    FLOPs, steps) are one once they are steps: none of these makes another run.

    Raises:
        ConfigError: the weights to start from are not there, or another model's.
        CheckpointError: they are damaged.
    """
    idle = set() if config.model.experts else EXPERT_KEYS
    held = config.model_dump(
        mode="json",
        exclude={
            "parallel": True,
            "train": {"log_every", "checkpoint_every", "async_checkpoint", "skip_nonfinite", "compile"},
            "model": {*idle, "init_from"},
            "data": set() if config.data.mask_documents else {"mask_documents"},
        },
    )
    length = {"steps": config.steps, "tokens": None, "flops": None}
    if config.model.init_from is not None:
        from workflows.llm.initial import initial_sha256

        held["model"]["init_sha256"] = initial_sha256(config.model)
    return {**held, "train": {**held["train"], **length}}


def size(config: LlmConfig) -> RunSize:
    """Return what the run is and costs: parameters, tokens and FLOPs as counted, in whole steps."""
    total, nonembedding = config.model.parameters()
    tokens = config.steps * config.tokens_per_step
    return RunSize(
        total, nonembedding, tokens, float(tokens * config.model.flops_per_token()), FLOPS_CONVENTION
    )
