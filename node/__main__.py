"""`python -m node` is the `meshnode` command, also from a bare checkout."""

import sys

from node.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
