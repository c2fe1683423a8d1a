"""Steps of a Llama on one GPU: this suite's beside a plain torch loop and transformers' LlamaForCausalLM.

All train the same sizes in bf16 with fp32 weights on the same random tokens: autocast, torch's scaled dot-product
attention, clipping, torch's fused AdamW. The plain loop runs this suite's own network; where it is installed,
transformers runs its own. Each is a process of its own; they take turns, round by round; a number is the median over
the rounds of the median step. `of_peak` is the model's FLOPs (6 N D and attention's, nothing computed twice) over the
fastest bf16 matrix product measured in the same process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = {
    "width": 1024,
    "ffn_width": 2816,
    "layers": 12,
    "head_width": 64,
    "vocab_size": 32000,
    "seq_len": 2048,
    "tied_head": False,
}
BATCH, LR = 8, 1e-4
VARIANTS = ("ours", "torch", "transformers", "ours compiled", "torch compiled", "transformers compiled")
Step = Callable[[Any, Any], float]


def ours(compiled: bool) -> Step:
    """Return this suite's step."""
    import torch
    from mpi4py import MPI

    from mpi_ops.process_group import init_process_group
    from workflows.llm.config import LlmConfig
    from workflows.llm.optimizer import AdamW, clip
    from workflows.llm.parallelize import ParallelModel
    from workflows.llm.ranks import layout_of

    config = LlmConfig.model_validate(
        {
            "model": MODEL,
            "train": {"steps": 1, "global_batch": BATCH, "dtype": "bf16", "compile": compiled},
            "parallel": {"backend": "nccl"},
        }
    )
    device = torch.device("cuda", 0)
    init_process_group(MPI.COMM_SELF, "nccl", device=device)
    model = ParallelModel(config, layout_of(config, 1), device)
    model.draw()
    adamw = AdamW(model.parameters(), config.optimizer)

    def step(tokens: Any, targets: Any) -> float:
        value, norm = model.backward(tokens, targets)
        gradients = model.gradients()
        clip(gradients.values(), norm, 1.0)
        adamw.step(LR, gradients)
        return value

    return step


def loop(model: Any, loss_of: Callable[[Any, Any], Any]) -> Step:
    """Return the step of a plain torch loop."""
    import torch

    adamw = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(tokens: Any, targets: Any) -> float:
        adamw.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            value = loss_of(tokens.cuda(), targets.cuda())
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        return value.item()

    return step


def torchs(compiled: bool) -> Step:
    """Return the plain loop over this suite's network."""
    from workflows.llm.config import ModelConfig
    from workflows.llm.model import Transformer, loss

    model: Any = Transformer(ModelConfig.model_validate(MODEL), 0).cuda()
    if compiled:
        model.compile()
    return loop(model, lambda tokens, targets: loss(model(tokens).float(), targets))


def transformers(compiled: bool) -> Step:
    """Return the plain loop over LlamaForCausalLM."""
    import torch.nn.functional as F  # noqa: N812
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = MODEL["width"] // MODEL["head_width"]
    config = LlamaConfig(
        vocab_size=MODEL["vocab_size"],
        hidden_size=MODEL["width"],
        intermediate_size=MODEL["ffn_width"],
        num_hidden_layers=MODEL["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=MODEL["seq_len"],
        tie_word_embeddings=False,
        use_cache=False,
    )
    model: Any = LlamaForCausalLM(config).cuda()
    model.train()
    if compiled:
        model.compile()
    return loop(
        model,
        lambda tokens, targets: F.cross_entropy(
            model(tokens).logits.flatten(0, 1).float(), targets.flatten()
        ),
    )


def job(variant: str, steps: int) -> None:
    """Take the steps of one variant and print what they took."""
    from mpi4py import MPI  # isort: skip  (MPI comes before torch)
    import torch

    from workflows.llm.account import gemm_peak
    from workflows.llm.config import ModelConfig

    kind, *compiled = variant.split()
    step = {"ours": ours, "torch": torchs, "transformers": transformers}[kind](bool(compiled))
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(MODEL["vocab_size"], (BATCH, MODEL["seq_len"] + 1), generator=generator)
    times_s, values = [], []
    for _ in range(steps + 3):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        values.append(step(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()))
        torch.cuda.synchronize()
        times_s.append(time.perf_counter() - began_s)
    step_s = statistics.median(times_s[3:])
    flops = BATCH * MODEL["seq_len"] * ModelConfig.model_validate(MODEL).flops_per_token()
    memory_bytes = torch.cuda.max_memory_allocated()
    peak = gemm_peak(0.0, "bf16", torch.device("cuda", 0))
    found = {
        "step_s": step_s,
        "first_s": times_s[0],
        "tokens_per_s": BATCH * MODEL["seq_len"] / step_s,
        "model_flops_per_s": flops / step_s,
        "of_peak": flops / step_s / peak.flops_per_s,
        "peak_memory_bytes": memory_bytes,
        "first_loss": values[0],
        "last_loss": values[-1],
    }
    print(json.dumps(found), flush=True)
    MPI.Finalize()
    os._exit(0)  # NCCL would warn of a group that nobody took down


def main() -> None:
    """Take the measurements and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout in place of the table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--variant", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    parser.add_argument("--job", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(options.job, options.steps)
    import torch

    if not torch.cuda.is_available():
        print("torch sees no GPU here: nothing was measured", file=sys.stderr)
        return
    chosen = [
        name
        for name in options.variant
        if "transformers" not in name or importlib.util.find_spec("transformers")
    ]
    taken: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for variant in chosen:
            argv = [sys.executable, "-m", "mpi4py", __file__, "--job", variant, "--steps", str(options.steps)]
            root = str(Path(__file__).resolve().parent.parent)
            environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
            done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=environment)
            if done.returncode or not done.stdout.strip():
                sys.exit(f"{variant}: ended with {done.returncode}\n{done.stderr[-2000:]}")
            taken.setdefault(variant, []).append(json.loads(done.stdout.strip().splitlines()[-1]))
    rows = [
        {"variant": variant, **{key: statistics.median(each[key] for each in found) for key in found[0]}}
        for variant, found in taken.items()
    ]
    if options.json:
        about = {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__)}
        print(json.dumps({**about, "rounds": options.rounds, "variants": rows}, indent=1))
        return
    print(f"{'variant':22}{'step, s':>10}{'tokens/s':>12}{'of peak':>9}{'GiB':>7}   losses (first, last)")
    for row in rows:
        print(
            f"{row['variant']:22}{row['step_s']:10.4f}{row['tokens_per_s']:12.0f}{row['of_peak']:9.3f}"
            f"{row['peak_memory_bytes'] / 2**30:7.2f}   {row['first_loss']:.6f} {row['last_loss']:.6f}"
        )


if __name__ == "__main__":
    main()
