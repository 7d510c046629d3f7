"""Remembers: one LMDB environment, canonical MessagePack, typed tables. Imports nothing of the other packages."""
