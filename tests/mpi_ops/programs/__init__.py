"""Programs against torch.distributed as it comes: none knows which backend carries it. ../test_programs.py judges.

Each has `train() -> {variant: losses on this rank}` and runs on any torch.distributed that is initialised. A rank that
sees no loss (it does not hold the last stage of a pipeline) has an empty list.
"""
