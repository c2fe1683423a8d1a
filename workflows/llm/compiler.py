"""torch.compile made ready for ranks: files where no other user can put one, and a compiler that is there.

Imported only where it is used: it loads torch's compiler, which costs a rank more than a second.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch._dynamo.config
import torch._functorch.config
import torch._inductor.config

from launch.rundir import make_private
from workflows.errors import ConfigError


def prepare_compiler(folder: Path) -> None:
    """Let torch.compile keep its libraries in `folder`, and no pickles, and try it on a small function.

    Raises:
        ConfigError: it cannot compile here; the sentence says what torch says.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
        make_private(folder).absolute()
    )  # else in /tmp, by a known name
    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    torch._dynamo.config.automatic_dynamic_local_pgo = False
    try:
        torch.compile(torch.square)(torch.ones(2))
    except Exception as error:  # torch wraps whatever its back end raises
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"train.compile=true needs a C++ compiler and Python's headers on every node ({said}); "
            "set CXX to one, or take train.compile: false"
        ) from None
