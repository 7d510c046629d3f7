"""What a store says of itself, and the format of everything in it."""

from typing import Final

import msgspec

FORMAT: Final = 1
"""Of everything this product keeps in an environment. Raised when an older version would misread or destroy data, with
a step in the migrations of whoever opens it (`storage.migration`)."""

META_TABLE: Final = "_meta"
META_KEY: Final = b"store"


class MetaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Written when the environment is made; only its format changes, when it is migrated."""

    application: str
    format: int
    engine: str
    software: str
    """The version that made it."""
    created_at_ms: int
