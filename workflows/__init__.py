"""Studies composed from configuration, Parsl and the three kinds of run."""
