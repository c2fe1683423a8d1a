"""Communication and parallelism over MPI: no knowledge of models, Slurm or files."""
