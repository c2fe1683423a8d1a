"""HDF5 metrics, one file an attempt: the `isoflop-metrics/1` schema, its writer and its reader."""
