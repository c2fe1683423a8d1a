"""What can be wrong with a graph; one sentence each."""


class GraphError(Exception):
    """A graph that cannot be embedded as it stands: the sentence names file, line or array, and what is allowed."""

    exit_code = 2
