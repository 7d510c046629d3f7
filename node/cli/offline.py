"""What `meshnode restore` and `meshnode recover` share: the configuration, and a data directory without a daemon."""

import os
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

from node.cli.exits import CommandError, Exit
from node.config import Config, ConfigError, load


def configured(arguments: Namespace) -> Config:
    """From `--config`, before or after the command."""
    path: Path | None = arguments.offline_config or arguments.config
    if path is None:
        raise CommandError(
            "which node? --config FILE is missing", Exit.USAGE, f"meshnode --config FILE {arguments.command} ..."
        )
    try:
        return load(path, os.environ)
    except ConfigError as error:
        raise CommandError(str(error), Exit.USAGE) from None


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)
