"""Finding peers: hints only. What discovery says is dialled; who is there is decided by the handshake."""
