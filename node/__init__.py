"""Runs: the daemon. The only package that sees both `mesh` and `consensus`."""
