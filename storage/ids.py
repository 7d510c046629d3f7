"""The distinct types of identifiers. An id is never an address: every machine may change its address at once."""

from typing import NewType

NodeId = NewType("NodeId", str)
"""Derived from a node's Ed25519 public key: 26 lower-case base32 characters (see `mesh.identity`)."""

InstanceId = NewType("InstanceId", str)
"""Made anew at every start of a daemon (16 hex digits): tells a restart from a cloned data directory."""

MeshId = NewType("MeshId", str)
"""Made once, when a mesh is founded (32 hex digits)."""

SessionId = NewType("SessionId", str)
"""A UUID in its canonical text form, chosen by whoever submits."""

BranchId = NewType("BranchId", str)
"""A UUID derived from session id and branch index, so that it needs no agreement."""
