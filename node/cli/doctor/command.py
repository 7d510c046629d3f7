"""Runs the checks and prints what they found."""

import os
from argparse import Namespace
from http.client import HTTPException

from node.cli import render
from node.cli.api import URL_DEFAULT, open_url
from node.cli.doctor import clocks, host, network
from node.cli.doctor.finding import Finding, worst
from node.cli.exits import CommandError, Exit
from node.config import Config, ConfigError, join_host_port, load

ASK_S = 2.0


def run(arguments: Namespace) -> int:
    try:
        config = load(arguments.doctor_config, os.environ)
    except ConfigError as error:
        raise CommandError(str(error), Exit.USAGE) from None
    findings = examine(config, arguments.url, arguments.interface)
    verdict = worst(findings)
    if arguments.json:
        checks = [
            {"check": one.check, "verdict": one.verdict, "detail": one.detail, "fix": one.fix} for one in findings
        ]
        render.print_json({"verdict": verdict, "checks": checks})
    else:
        for finding in findings:
            verdict_text = render.status(f"{finding.verdict:<4}")
            told = render.hanging(f"{finding.check}: {render.clean(finding.detail)}", indent="      ")
            print(f"{verdict_text}  {told.lstrip()}")
            if finding.fix:
                print(f"      fix: {finding.fix}")
    return Exit.FAILED if verdict == "fail" else Exit.OK


def examine(config: Config, urls: str | None, interfaces: list[str] | None) -> list[Finding]:
    """All checks, in the order in which a person would look."""
    own = join_host_port(_reachable(config.http.bind), config.http.port)
    own_url = f"http://{own}" if config.http.port else URL_DEFAULT
    asked = [part.strip() for part in (urls or own_url).split(",") if part.strip()]
    dates = {url: _date(url) for url in asked}
    running = config.node.name if dates.get(own_url) or (urls and _date(own_url)) else None
    return [
        *host.check_software(),
        *host.check_rights(config),
        *host.check_disk(config),
        *host.check_limits(config),
        *clocks.check_clock(),
        *clocks.check_skew(dates),
        *network.check_ports(config, running),
        *network.check_multicast(config, interfaces),
    ]


def _date(url: str) -> str | None:
    """When the meshnode at a URL thinks it is; None if none answers there. Its health is asked for, because that needs
    no token."""
    try:
        connection, response = open_url(url, "/healthz", ASK_S)
    except (OSError, HTTPException, CommandError):
        return None
    try:
        is_meshnode = b'"checks"' in response.read(64 * 1024)
        return response.getheader("Date") if is_meshnode else None
    except (OSError, HTTPException):
        return None
    finally:
        response.close()
        connection.close()


def _reachable(bind: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104 - compared, not bound
