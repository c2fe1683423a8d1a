"""What can go wrong between a study and a scheduler: one sentence each, and the exit code that goes with it."""


class SlurmError(Exception):
    """The common parent."""

    exit_code = 1


class SiteError(SlurmError):
    """A site that does not exist or whose file is wrong; the message names file and key."""

    exit_code = 2


class SpecError(SlurmError):
    """A job that cannot be described as asked; the message names the field, what it held and what is allowed."""

    exit_code = 2


class RefusedError(SlurmError):
    """The scheduler, or a check before it, does not take the job as it stands."""

    exit_code = 3


class UnreachableError(SlurmError):
    """The scheduler did not answer, or not in its own words."""

    exit_code = 4
