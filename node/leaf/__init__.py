"""A Leaf: executes rituals, hangs on one Core or Edge node, and holds nothing but what it has not delivered yet."""
