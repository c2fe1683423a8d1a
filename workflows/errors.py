"""What a user can get wrong in a study: one sentence each, and the exit code that goes with it."""


class ConfigError(Exception):
    """A study that cannot be taken as it stands: the sentence names file, line, key, value and what is allowed."""

    exit_code = 2


class RefusedError(Exception):
    """The request is understood and refused, since it would lose or mix up something."""

    exit_code = 3
