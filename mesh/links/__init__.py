"""Framed, multiplexed connections with priorities, and who is connected to whom."""
