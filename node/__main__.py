"""`python -m node` is the `meshnode` command."""

import sys

from node.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
