"""A process group of torch.distributed on its own MPI communicator: its life, its name, and who waits where."""

from __future__ import annotations

import zlib

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch._C._distributed_c10d import Store

from mpi_ops.counters import Tally, tally
from mpi_ops.errors import BackendError
from mpi_ops.torch_version import check_torch
from mpi_ops.work import Work

check_torch()

UNNAMED = ("", "undefined")
_abandoned: list[Work] = []  # MPI may still write into their tensors


class Group(dist.ProcessGroup):
    """What every group has, whatever its operations. `ranks` are its members' numbers in the world.

    The store holds, for each rank, the last collective in which it waited longer than a second, so that a
    rank that has waited too long can say who is missing.
    """

    def __init__(
        self, comm: MPI.Intracomm, store: Store, name: str, ranks: list[int], timeout_s: float
    ) -> None:
        super().__init__(comm.rank, comm.size)  # type: ignore[call-arg]  # the stub has the other overload
        self.comm, self.ranks, self.timeout_s = comm, ranks, timeout_s
        self.pending: set[Work] = set()
        self._name = self._label = name
        self._waiting = store
        self._tallies: dict[str, Tally] = {}
        store.set(f"waiting/{comm.rank}", "0 nothing")

    def __str__(self) -> str:
        return f"group '{self._label}' of {len(self.ranks)}"

    @property
    def group_name(self) -> str:  # type: ignore[override]  # torch's is a NewType of str
        """The name in torch's registry; kept here, since the registry forgets it before the group ends."""
        return self._name

    def _set_group_desc(self, desc: str) -> None:
        if desc not in UNNAMED:
            self._label = desc

    @property
    def _device_types(self) -> list[torch.device]:
        """Where tensors may be: torch looks at C++ backends only. Saving a checkpoint in the background asks."""
        return [torch.device("cpu")]

    def getBackendName(self) -> str:  # noqa: N802  (torch's name)
        """Return the name under which torch knows the backend."""
        return "mpi4py"

    def tally(self, op: str) -> Tally:
        """Return the figures of `op` on this group."""
        try:
            return self._tallies[op]
        except KeyError:
            return self._tallies.setdefault(op, tally(op, self._label))

    def announce(self, work: Work) -> None:
        """Tell the other ranks that this one waits in `work`.

        Cost: one message to the store.
        """
        if work.sequence:
            self._waiting.set(f"waiting/{self.comm.rank}", f"{work.sequence} {work.op}")

    def absent(self, work: Work) -> str:
        """Return in words which ranks, by their number in the world, do not wait in `work`.

        Cost: one message to the store and its answer.
        """
        peer = work.posted.peer
        if peer == MPI.ANY_SOURCE:
            return "no rank has sent"
        if peer is not None:
            return f"world rank {self.ranks[peer]} has not taken part"
        try:
            seen = self._waiting.multi_get([f"waiting/{rank}" for rank in range(len(self.ranks))])
        except RuntimeError as error:
            return f"who is missing is not known: {error}"
        missing = []
        for rank, (sequence, op) in zip(self.ranks, (each.decode().split() for each in seen), strict=True):
            if int(sequence) < work.sequence:
                missing.append(str(rank))
            elif int(sequence) == work.sequence and op != work.op:
                missing.append(f"{rank} (it waits in {op})")
        return f"missing: world rank {', '.join(missing)}" if missing else "every rank waits in it"

    def shutdown(self) -> None:
        """Free the communicator; once, and nothing after MPI.Finalize. What is still under way stays in memory.

        Cost: none in MPICH; MPI allows it to synchronise the group.
        """
        _abandoned.extend(self.pending)
        self.pending.clear()
        if not MPI.Is_finalized() and self.comm != MPI.COMM_NULL:
            self.comm.Free()


def own_communicator(comm: MPI.Intracomm | None, ranks: list[int], name: str) -> MPI.Intracomm:
    """Return a new communicator over `ranks` of `comm` (default: of the world's group), or over all of it.

    Only the members call it. The tag keeps groups apart that threads make at the same time.

    Raises:
        BackendError: there is no communicator to make it from.

    Cost: an agreement among the members, O(log ranks) messages.
    """
    if comm is None:
        world = dist.group.WORLD
        if not isinstance(world, Group):
            raise BackendError(
                "the mpi4py backend needs a communicator: mpi_ops.process_group.init_process_group(comm), "
                "or pg_options=comm beside a world of another backend"
            )
        comm = world.comm
    if not ranks:
        return comm.Dup()
    members = comm.group.Incl(ranks)
    try:
        return comm.Create_group(members, zlib.crc32(name.encode()) % 32768)
    finally:
        members.Free()
