"""Executes rituals in worker processes. Import `node.executor.executor`; this file stays empty, because every worker
imports it at its start."""
