"""Runs: the daemon. The only package that sees both `mesh` and `consensus`."""

__version__ = "0.1.0"
