"""`scripts/torture`: real daemons under faults for some minutes, then the judgement.

Exit codes: 0 no violation, 1 a violation or something undecided or unexpected, 2 wrong usage, 130 Ctrl-C.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.torture.faults import HANDS, plan
from tests.torture.report import Settings, text_of
from tests.torture.torture import torture


def main() -> int:
    arguments = parse()
    kinds = tuple(arguments.faults.split(",")) if arguments.faults else ()
    settings = Settings(
        duration_s=arguments.minutes * 60,
        seed=random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed,
        nodes=arguments.nodes,
        every_s=arguments.every,
        kinds=kinds,
    )
    if arguments.plan:
        for planned in plan(settings.seed, settings.duration_s, settings.every_s, settings.nodes, kinds or list(HANDS)):
            print(planned)
        return 0
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="meshnode-torture-"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends everything, as Ctrl-C does
    tell(f"seed {settings.seed}; logs and data in {folder}")
    try:
        report = torture(settings, folder, tell, with_network=not arguments.loopback)
    except KeyboardInterrupt:
        tell(f"stopped; nothing is left running, the logs are in {folder}")
        return 130
    print(json.dumps(report.to_json(), indent=2) if arguments.json else text_of(report))
    if not report.is_good:
        tell(f"logs, data and history.txt are kept in {folder}; the same plan again: --seed {settings.seed}")
        return 1
    if arguments.keep is None:
        shutil.rmtree(folder)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/torture",
        description="Starts real daemons in network namespaces and lets clients write, read, cancel, list and watch "
        "while nodes are killed, stopped, paused, cut off one way or both, lose packets, get slow links, jumping "
        "clocks and a full disk. Afterwards everything heals, and what the clients saw is judged: linearizable "
        "histories, indexes that never go back, events without gap or repeat, every accepted session ended, equal "
        "tables.",
        epilog="Needs root for namespaces and the small disk; otherwise it runs on loopback without those faults, and "
        "says so. Exit codes: 0 good, 1 violation, 2 usage, 130 Ctrl-C.",
    )
    parser.add_argument("--minutes", type=positive, default=1.0, metavar="N", help="how long (default %(default)g)")
    parser.add_argument(
        "--seed", type=int, metavar="S", help="of the plan; the same seed plans the same (default: new)"
    )
    parser.add_argument("--nodes", type=int, choices=(1, 3, 5, 7), default=3, help="how many (default %(default)s)")
    parser.add_argument(
        "--every", type=positive, default=20.0, metavar="N", help="seconds a fault (default %(default)g)"
    )
    parser.add_argument("--faults", metavar="A,B", help=f"only these of: {', '.join(HANDS)}")
    parser.add_argument("--loopback", action="store_true", help="without namespaces, as without root")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and data here in any case")
    parser.add_argument("--plan", action="store_true", help="print the plan and do nothing")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    arguments = parser.parse_args()
    unknown = set((arguments.faults or "").split(",")) - {"", *HANDS}
    if unknown:
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}; there are {', '.join(HANDS)}")
    return arguments


def positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
