"""Real daemons under a schedule of faults, while clients write, read and watch; what they saw is judged afterwards."""
