"""Real daemons as real processes, with real failures."""
