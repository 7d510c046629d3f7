"""The replicated domain: rows, commands, events, and the pure function that turns commands into rows and events."""
