"""The command, which says at its end how much memory it took: `python -m tests.slurm.command VERB ...`."""

from __future__ import annotations

import resource
import sys

from workflows.cli import main

if __name__ == "__main__":
    try:
        main()
    finally:
        print("peak_kib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
