"""The daemon as far as it knows only commands of version 1: `python -m tests.system.first_version --config FILE`.

It says so as the first version did, by a `software` without a label, registers without what came later, and stops when
it meets any of it.
"""

import sys

from consensus.state import versions

versions.COMMAND_VERSION = 1  # type: ignore[misc]

# Only now what takes this name from that module:
from node import wiring  # noqa: E402
from node.cli.main import main  # noqa: E402

wiring.labels = lambda config: {}  # type: ignore[attr-defined]
wiring.ritual_limits = lambda registry: {}  # type: ignore[attr-defined]

if __name__ == "__main__":
    sys.exit(main())
