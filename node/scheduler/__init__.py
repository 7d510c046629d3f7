"""Which node executes which branch: `policy` decides (pure), `dispatcher` carries it out on the leader."""
