"""Whole nodes in one process on a virtual clock."""
