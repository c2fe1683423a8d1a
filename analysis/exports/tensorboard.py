"""TensorBoard's event files, a directory a run, for `tensorboard --logdir OUT`. Numbers keep all their digits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis.exports import RunRecord, missing


def write(runs: Sequence[RunRecord], out: Path) -> list[Path]:
    """Write the streams, and what the summary holds as scalars of the last step; return the runs' directories.

    Raises:
        MissingPackageError: the package tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_DOUBLE
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise missing(out, "events") from None
    kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    for run in runs:
        file = EventFileWriter(str(out / run.run_id))
        for time_s, step, name, value in _scalars(run):
            tensor = TensorProto(dtype=DT_DOUBLE, double_val=[value])  # a `simple_value` has 24 bits
            told = Summary(value=[Summary.Value(tag=name, tensor=tensor, metadata=kind)])
            file.add_event(Event(wall_time=time_s, step=step, summary=told))
        file.close()
    return [out / run.run_id for run in runs]


def _scalars(run: RunRecord) -> Iterator[tuple[float, int, str, float]]:
    """Yield (Unix seconds, step, tag, value) of all that a run has measured."""
    last_step = 0
    for name, rows in run.metrics.streams.items():
        for time_s, row in zip(run.metrics.clocks[name].tolist(), rows, strict=True):
            last_step = max(last_step, int(row["step"]))
            yield time_s, int(row["step"]), name, float(row["value"])
    for name, value in run.metrics.summary.items():
        yield run.span_s[1], last_step, f"summary/{name}", value
