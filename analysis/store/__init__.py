"""HDF5 metrics, one file an attempt: the `isoflop-metrics/1` schema, its writer and its reader."""

from analysis.store.reader import AttemptMetrics, RunMetrics, read_attempt, read_last, read_run
from analysis.store.recover import recover
from analysis.store.schema import DistSpec, StreamSpec
from analysis.store.writer import MetricsWriter

__all__ = [
    "AttemptMetrics",
    "DistSpec",
    "MetricsWriter",
    "RunMetrics",
    "StreamSpec",
    "read_attempt",
    "read_last",
    "read_run",
    "recover",
]
