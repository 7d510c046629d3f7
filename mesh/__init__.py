"""Exchanges: who is out there, may they come in, and frames to and from them."""
