"""What can go wrong around a rank's program."""


class LaunchError(Exception):
    """A run that cannot start or go on; the sentence says what is in the way and what would help."""

    exit_code = 1


class CheckpointError(LaunchError):
    """No whole checkpoint where one is needed; the sentence names file and array."""

    exit_code = 5
