"""`isoflop fit` with its resamples spread over MPI ranks; started by `isoflop fit --ranks N` or by hand:

    srun -n 64 python -m mpi4py -m workflows.bootstrap --data table.csv --columns N=N,D=D,L=loss --bootstrap 100000

Rank 0 reads, fits and prints. A resample follows from its number alone, and all are fitted in the same blocks: any
number of ranks gives the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import zip_longest

from mpi4py import MPI

from analysis.fitting import Block, Resamples
from workflows.fit_verbs import verbs


def main() -> None:
    """Run as one rank; all end with the verb's own code."""
    comm = MPI.COMM_WORLD
    code = tell(comm) if comm.rank == 0 else serve(comm)
    MPI.Finalize()  # a bare sys.exit under `python -m mpi4py` would end the others in the middle of their work
    sys.exit(code)


def tell(comm: MPI.Intracomm) -> int:
    """Run the verb on rank 0 and return its exit code. The other ranks are told when there is nothing left to do."""
    try:
        verbs(["fit", *sys.argv[1:]], obj=partial(spread, comm), standalone_mode=False)
        return 0
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"isoflop: {error}", file=sys.stderr)
        return int(code)
    finally:
        comm.bcast(None)


def serve(comm: MPI.Intracomm) -> int:
    """Fit this rank's blocks of whatever rank 0 asks for, until it asks for nothing; return 0."""
    while (work := comm.bcast(None)) is not None:
        block, numbers = work
        comm.gather(_own(comm, block, numbers))
    return 0


def spread(comm: MPI.Intracomm, block: Block, numbers: Sequence[range]) -> Iterable[Resamples]:
    """Return what `block` makes of each range of numbers, in their order; called on rank 0 alone.

    Cost: a broadcast of the observations and a gather of the resamples, 8 bytes times parameters each.
    """
    comm.bcast((block, numbers))
    shares = comm.gather(_own(comm, block, numbers)) or []
    return [part for turn in zip_longest(*shares) for part in turn if part is not None]


def _own(comm: MPI.Intracomm, block: Block, numbers: Sequence[range]) -> list[Resamples]:
    """Return every size-th block, from this rank's on."""
    return [block(each) for each in numbers[comm.rank :: comm.size]]


if __name__ == "__main__":
    main()
