"""What can be wrong with data, a store or a fit."""


class AnalysisError(Exception):
    """Something the analysis cannot take as it stands."""

    exit_code = 2


class DataError(AnalysisError):
    """Observations that no law can be fitted to; the sentence names file, row, column and value."""


class StoreError(AnalysisError):
    """A metrics file that is damaged, not ours, or cannot be written."""

    exit_code = 5


class NotConvergedError(AnalysisError):
    """A fit that did not reach a minimum; the sentence says how far from one it stopped."""

    exit_code = 6
