"""The command, which says at its end how much memory it took: `python -m tests.slurm.command VERB ...`."""

from __future__ import annotations

import sys
from pathlib import Path

from workflows.cli import main

if __name__ == "__main__":
    try:
        main()
    finally:
        # Not getrusage's figure: that keeps the size of the process that started this one.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print("peak_kib", status["VmHWM"].split()[0], file=sys.stderr)
