"""Runs that are broken on purpose."""

SLOW_S = 6.0
"""How long a rank that is slow takes over what it is slow in."""
