"""Every rule in `planted` is taken away once, and a seed must notice: the one that is known to, or else another."""

import itertools
import re

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.planting import Planted

OTHERS = range(150)
"""Where to look when the worlds have changed since the seed was noted."""


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.rule}, {planted.removed}")
def test_what_is_taken_away_is_noticed(planted: Planted) -> None:
    found = planted.find(itertools.chain([planted.seed], OTHERS))
    assert found is not None, f"nobody notices: no more {planted.removed}"
    assert re.search(planted.caught_by, found[1]), found[1]
