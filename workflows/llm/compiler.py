"""torch.compile made ready for a rank: a folder of its own for what it makes, and a compiler that is there.

Imported only where it is used: it loads torch's compiler, which costs a rank more than a second.
"""

from __future__ import annotations

import atexit
import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch

from workflows.errors import ConfigError


def prepare_compiler(folder: Path) -> None:
    """Give torch.compile a new folder of this rank's until the process ends, and try it on a small function.

    One that stays would hand on what a killed rank left half written, and pickles; and its usual name in /tmp is
    known to all. `folder` lies in a run's directory, where the next attempt finds and removes what a kill leaves.

    Raises:
        ConfigError: it cannot compile here; the sentence says what torch says.
    """
    folder.mkdir(mode=0o700, parents=True)
    atexit.register(_remove, folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    try:
        torch.compile(torch.square)(torch.ones(2))
    except Exception as error:  # torch wraps whatever its back end raises
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"train.compile=true needs a C++ compiler and Python's headers on every node ({said}); "
            "set CXX to one, or take train.compile: false"
        ) from None


def _remove(folder: Path) -> None:
    """Remove a rank's folder, and the one around it with the last rank's."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()
