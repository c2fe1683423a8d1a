"""Distributed network embedding: each node of a graph as a vector, computed on MPI ranks that share the rows."""
