"""Ids as a person types them: a beginning is enough."""

import uuid

from node.cli.api import Api
from node.cli.exits import CommandError, Exit

PREFIX_ROWS = 200
"""A shortened id is looked for among so many of the newest sessions."""


def full_id(api: Api, text: str) -> str:
    """A session id from its beginning, as a person types it. Raises CommandError if it fits none or several."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        pass
    rows = api.read("/v1/sessions", {"limit": PREFIX_ROWS})["sessions"]
    found = [row["id"] for row in rows if text and row["id"].startswith(text.lower())]
    if len(found) == 1:
        return str(found[0])
    if found:
        raise CommandError(f"{len(found)} sessions begin with {text!r}", Exit.NOT_FOUND, "give more of the id")
    raise CommandError(f"no session begins with {text!r}", Exit.NOT_FOUND, "see meshnode session list")
