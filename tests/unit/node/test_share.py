"""When a node is no parent."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from node.share import Share
from storage.space import Space


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("", {}),
        ("disk_full", {"space": Space.FULL}),
        ("disk_hangs", {"is_stalled": True}),
        ("draining", {"drains": True}),
    ],
)
def test_a_node_that_could_do_nothing_for_a_leaf_takes_none(reason: str, fields: dict[str, Any]) -> None:
    group = SimpleNamespace(
        status=lambda: SimpleNamespace(is_quarantined=False, is_removed=False),
        is_stalled=lambda for_s: fields.get("is_stalled", False),
    )
    share = SimpleNamespace(
        group=group,
        has_left=lambda: False,
        is_draining=lambda: fields.get("drains", False),
        _disk=SimpleNamespace(space=fields.get("space", Space.LOW)),
        _lonely_since=None,
    )
    assert Share._takes_no_leaf(cast(Share, share)) == reason
