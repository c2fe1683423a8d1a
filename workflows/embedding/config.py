"""The configuration of an embedding run, and what follows from it by arithmetic alone. No torch here."""

from __future__ import annotations

import math
import pkgutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workflows.config import Section

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

Format = Literal["text", "npz", "npy", "mat", "hdf5", "ogb", "ogb_lsc"]
FORMATS: dict[str, Format] = {
    ".npz": "npz",
    ".npy": "npy",
    ".mat": "mat",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
}
"""By a file's suffix; anything else is text."""
Relation = Literal[
    "paper___cites___paper", "author___writes___paper", "author___affiliated_with___institution"
]
METHODS = sorted(each.name for each in pkgutil.iter_modules([str(Path(__file__).parent / "methods")]))
"""A method is a file in workflows/embedding/methods."""
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


class RmatConfig(Section):
    """A Graph500 R-MAT graph, made instead of read: permuted, both directions, each edge once, without loops."""

    scale: Annotated[int, Field(ge=1, le=40)]
    """The graph has 2^scale nodes."""
    edge_factor: Count = 16
    """Edges drawn for each node."""
    seed: Seed = 1
    """Of the draw; the graph does not depend on the number of ranks."""


class GraphConfig(Section):
    """Where the edges come from and how they are to be understood."""

    path: str | None = None
    """A file of edges; or give `rmat`."""
    rmat: RmatConfig | None = None
    """A generated graph in place of a file."""
    format: Format | None = None
    """Default: by the file's suffix, text for one that says nothing. A directory is `ogb` (the Open Graph Benchmark's
    node and link tasks) or `ogb_lsc` (MAG240M, WikiKG90Mv2)."""
    relations: Annotated[tuple[Relation, ...], Field(min_length=1)] = ("paper___cites___paper",)
    """Of MAG240M (format ogb_lsc): which of its edges; nodes are papers, then authors, then institutions."""
    ids: Literal["integer", "string"] = "integer"
    """Node ids of a text file: 0, 1, 2 ... in the file, or any words, numbered by their hash."""
    comment: Annotated[str, Field(min_length=1, max_length=1)] = "#"
    """Lines that begin with it are passed over."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Between columns; default: spaces and tabs."""
    header_lines: Annotated[int, Field(ge=0)] = 0
    """Lines at the head of a text file that are passed over."""
    weighted: bool = False
    """Whether a third column holds weights."""
    direction: Literal["both", "out", "in"] = "both"
    """Whether an edge joins both its ends, or leads from the first to the second (`out`), or back (`in`)."""
    self_loops: Literal["keep", "drop"] = "keep"
    """What becomes of an edge from a node to itself."""
    duplicates: Literal["sum", "one"] = "sum"
    """Whether an edge that comes several times weighs as all of them, or as the heaviest."""
    partition: Literal["rows", "label_propagation", "metis"] = "rows"
    """Which nodes share a rank: neighbouring ids, or neighbours in the graph, so that less travels. Either way each
    rank has about as many entries."""
    nodes: Count | None = None
    """How many there are; default: the largest id and one. A file too large for `plan` to read needs it."""
    edges: Count | None = None
    """Edges in the file, checked when it is read. A file too large for `plan` to read needs it."""
    chunk_bytes: Annotated[int, Field(ge=1 << 10, le=1 << 30)] = 1 << 24
    """How much of a file a rank reads at once, and of edges it sends at once."""

    @model_validator(mode="after")
    def _source(self) -> GraphConfig:
        if (self.path is None) == (self.rmat is None):
            raise ValueError("graph takes exactly one of path, rmat")
        if self.path and self.path.endswith(PACKED):
            plain = self.path.rpartition(".")[0]
            raise ValueError(
                f"graph.path={self.path} is compressed, ranks could not read their share of it; "
                f"unpack it first, to {plain}"
            )
        if self.rmat and (self.weighted or self.ids == "string" or self.direction != "both"):
            raise ValueError("graph.rmat is unweighted, undirected and has integer ids")
        if self.delimiter in ("\n", "\r", self.comment):
            raise ValueError(f"graph.delimiter={self.delimiter!r}: neither a line's end nor the comment sign")
        return self

    @property
    def kind(self) -> Literal["rmat"] | Format:
        """What the edges are read as."""
        if self.rmat:
            return "rmat"
        return self.format or FORMATS.get(Path(self.path or "").suffix, "text")

    @property
    def mirrored(self) -> bool:
        """Whether an edge stands for both directions. A matrix says itself which entries it has."""
        return self.direction == "both" and self.kind not in ("mat", "npz")


class ProjectionConfig(Section):
    """The random matrix R, whose entries are a hash of (seed, node, column)."""

    kind: Literal["very_sparse", "gaussian"] = "very_sparse"
    """Entries +-sqrt(s/d) with probability 1/2s each, else 0; or normal of variance 1/d."""
    s: float | Literal["sqrt_n"] = 3.0
    """3 is Achlioptas, 1 a dense sign matrix, sqrt_n what the paper's code takes: too sparse once sqrt(n) > dim."""

    @model_validator(mode="after")
    def _at_least_1(self) -> ProjectionConfig:
        if not isinstance(self.s, str) and not 1 <= self.s < math.inf:
            raise ValueError(f"embedding.projection.s={self.s}: a number of at least 1, or sqrt_n")
        return self


class LeavesConfig(Section):
    """The pieces that method `partitioned` cuts a graph into, each embedded by one rank."""

    entries: Count = 200_000_000
    """Most entries of a leaf: what a rank holds at once beside its rows."""
    levels: Annotated[int, Field(ge=1, le=64)] = 8
    """How often what was cut before is cut again, at most."""


class EmbeddingConfig(Section):
    """The method and its parameters."""

    method: str = "fastrp"
    """A name from workflows/embedding/methods."""
    dim: Count = 128
    """Numbers a node."""
    weights: list[Finite] = Field(default=[0.0, 0.0, 1.0, 4.0], min_length=1)
    """FastRP, RandNE: weight of each power, the first being 1."""
    normalization_strength: Finite = -0.5
    """FastRP's beta: nodes count by degree^beta, negative plays down hubs."""
    input_matrix: Literal["transition", "adjacency"] = "transition"
    """What is raised to powers: D^-1 S or S."""
    projection: ProjectionConfig = Field(default=ProjectionConfig())
    """Where powers start."""
    row_l2: bool = True
    """FastRP: whether the rows of each power are scaled to length 1 before they are summed."""
    self_influence: Finite = 0.0
    """FastRP: weight of R itself."""
    features: str | None = None
    """FastRP: a `.npy` of numbers (nodes, features), from which the last columns start in place of R."""
    feature_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """FastRP: share of the columns that start from features; times dim it is a whole number."""
    leaves: LeavesConfig = Field(default=LeavesConfig())
    """Partitioned: how the graph is cut."""
    standardize: bool = False
    """Whether each column of the result gets mean 0 and deviation 1; zero rows stay zero."""
    seed: Seed = 0
    """Of the projection."""

    @model_validator(mode="after")
    def _known(self) -> EmbeddingConfig:
        if self.method not in METHODS:
            raise ValueError(f"embedding.method={self.method}: there is {', '.join(METHODS)}")
        if bool(self.features) != bool(self.feature_ratio) or (self.features and self.method != "fastrp"):
            raise ValueError("embedding.features and a feature_ratio above 0 go together, with method fastrp")
        if not float(self.feature_ratio * self.dim).is_integer():
            raise ValueError(
                f"embedding.feature_ratio={self.feature_ratio} of dim={self.dim} columns is no whole number of them"
            )
        return self


class ClassificationConfig(Section):
    """Labels that are predicted from the vectors, by the protocol of DeepWalk."""

    labels: str
    """`.mat` with `group`, `.cmty` with a line of nodes a label, or lines `node label`."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Between node and label in lines; default: spaces and tabs."""
    header_lines: Annotated[int, Field(ge=0)] = 0
    """Lines at the head of the labels' file that are passed over."""
    percents: list[Annotated[float, Field(gt=0, lt=100)]] = Field(default=[10.0, 50.0, 90.0], min_length=1)
    """Shares of the labelled nodes that train."""
    shuffles: Count = 5
    """Random splits that are averaged."""
    C: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Inverse strength of the regression's penalty."""
    standardize: bool = True
    """Whether columns get mean 0 and deviation 1 first."""
    seed: Seed = 0
    """Of the splits."""


class LinksConfig(Section):
    """Edges that are held out before embedding and looked for after."""

    fraction: Fraction = 0.1
    """Share of the edges; both directions of an edge go together."""
    negatives: Count = 100_000
    """Pairs that are drawn to be no edges; those that are some are left out."""
    hits: list[Count] = Field(default=[50], min_length=1)
    """The K of Hits@K."""
    score: Literal["cosine", "dot"] = "cosine"
    """Similarity of two vectors."""
    seed: Seed = 0
    """Of the choice."""


class OgbConfig(Section):
    """A task of the Open Graph Benchmark, on its own split and by its own score; the graph has its format."""

    metric: Literal["accuracy", "rocauc", "hits", "mrr"]
    """Of nodes: accuracy (ogbn-arxiv, MAG240M), rocauc (ogbn-proteins). Of links: hits (ogbl-collab), mrr
    (ogbl-citation2)."""
    split: str | None = None
    """A folder of `split/`; default: the only one."""
    k: Count = 50
    """The K of Hits@K."""
    score: Literal["cosine", "dot"] = "cosine"
    """Similarity of two vectors, for links."""
    C: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Inverse strength of the regression's penalty, for nodes."""


class EvalConfig(Section):
    """What the vectors are held against."""

    classification: ClassificationConfig | None = None
    """Predict labels of nodes."""
    links: LinksConfig | None = None
    """Predict edges that are held out: the vectors are then those of a smaller graph."""
    ogb: OgbConfig | None = None
    """Do a task of the Open Graph Benchmark."""


class OutputConfig(Section):
    """What is written beside `vectors.h5`, and into it."""

    neighbours: Annotated[int, Field(ge=0, le=1000)] = 0
    """Nearest nodes by cosine of each node, exactly; their number grows the work by nodes squared."""
    npy: bool = False
    """`vectors.npy` as well."""
    powers: bool = False
    """FastRP: each power as well, in `powers/`, which `execution.update_of` starts from."""
    word2vec: bool = False
    """`vectors.txt` as well: a line of nodes and columns, then a line for each node."""


class RunConfig(Section):
    """How the work is done; none of it decides the result, but for `wire` and `overlap` in the last digits."""

    column_block: Count = 32
    """Columns that travel and are multiplied at once: fewer need less memory."""
    wire: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What halo rows travel as."""
    overlap: bool = False
    """Whether a rank's own columns are multiplied while the halo travels."""
    update_of: str | None = None
    """FastRP: directory of a run with `output.powers`; what has changed since is computed, with the same result."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 1
    """Powers between checkpoints; 0 for none."""
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600.0
    """How long a power may take before the job is ended and the late rank named."""


class EmbedConfig(Section):
    """One embedding run."""

    graph: GraphConfig
    """What is embedded."""
    embedding: EmbeddingConfig = Field(default=EmbeddingConfig())
    """How."""
    eval: EvalConfig = Field(default=EvalConfig())
    """How good it is."""
    output: OutputConfig = Field(default=OutputConfig())
    """In what form it is written."""
    execution: RunConfig = Field(default=RunConfig())
    """On what terms."""

    @model_validator(mode="after")
    def _exact(self) -> EmbedConfig:
        plain = self.embedding.method == "fastrp" and not self.embedding.features
        exact = (
            self.execution.wire == "fp32" and not self.execution.overlap and self.graph.partition == "rows"
        )
        if (self.output.powers or self.execution.update_of) and not (plain and exact):
            raise ValueError(
                "output.powers and execution.update_of take embedding.method=fastrp without features, "
                "graph.partition=rows, execution.wire=fp32 and no overlap: only there is a row found by its id and the "
                "same whoever computes it"
            )
        if self.eval.ogb and self.graph.kind not in ("ogb", "ogb_lsc"):
            raise ValueError(f"eval.ogb takes a graph of format ogb or ogb_lsc, not {self.graph.kind}")
        if self.eval.ogb and self.graph.kind == "ogb_lsc" and self.eval.ogb.metric != "accuracy":
            raise ValueError(
                f"eval.ogb.metric={self.eval.ogb.metric}: of ogb_lsc there is accuracy, of MAG240M"
            )
        if self.embedding.method == "partitioned" and not exact:
            raise ValueError(
                "embedding.method=partitioned takes graph.partition=rows, execution.wire=fp32 and no overlap: it cuts "
                "the graph itself, and its products need nothing of others"
            )
        return self


def mathematics(config: EmbedConfig) -> dict[str, Any]:
    """Return what decides the result; how its work is cut is left out."""
    return config.model_dump(
        mode="json",
        exclude={
            "graph": {"chunk_bytes", "edges", "partition"}
            | ({"relations"} if config.graph.kind != "ogb_lsc" else set()),
            "embedding": {"leaves"} if config.embedding.method != "partitioned" else set(),
            "eval": {"ogb"} if config.eval.ogb is None else set(),
            "execution": {"column_block", "checkpoint_every", "timeout_s", "update_of"},
        },
    )


def check_ranks(config: EmbedConfig, ranks: int) -> None:
    """Do nothing if so many ranks can share the rows. Raises ValueError."""
    nodes = 1 << config.graph.rmat.scale if config.graph.rmat else config.graph.nodes
    if nodes is not None and ranks > nodes:
        raise ValueError(f"{ranks} ranks cannot share {nodes} rows, a node each: each takes at least one")
