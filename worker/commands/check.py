"""`check`: everything that an update needs, one line each, and what to do about what is wrong."""

import functools
import json
import logging
import sys
import threading
import time

import click
from rich.console import Console
from rich.text import Text
from sqlalchemy.exc import DBAPIError

from worker.commands.doctor import CHECKS, OF_REDIS, Check, Finding, Level, broken, token
from worker.intake import LEASING_SCHEMES
from worker.settings import PREFIX, Settings, load_settings

#: Seconds that a check may take.
_LIMIT = 6.0
_MARKS = {Level.FINE: ("✓", "green"), Level.LOOK: ("!", "yellow"), Level.BROKEN: ("✗", "red")}
#: What is wrong where a check can't be made at all.
_VARIABLES = {"broker": "BROKER_URL", "results": "RESULT_URL", "database": "DATABASE_URL"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--token", "sent", envvar=f"{PREFIX}TOKEN", help="A token to check too. Default: ARIES_TOKEN.")
def check(*, as_json: bool, sent: str | None) -> None:
    """Look at servers, settings, workers and queue; it changes nothing and takes seconds.

    Exit code 0: all is well. 1: requests are answered, but something is to be seen to (!). 2: they are not (✗).
    """
    settings = load_settings()
    logging.getLogger("celery").setLevel(logging.ERROR)
    checks: dict[str, Check] = {**CHECKS, "token": functools.partial(token, sent=sent)}
    if not settings.broker_url.startswith(LEASING_SCHEMES):
        checks = {name: made for name, made in checks.items() if name not in OF_REDIS}
    findings = examine(checks, settings)
    for name, finding in findings.items():
        if as_json:
            click.echo(_json(name, finding))
        else:
            _show(name, finding)
    sys.exit(int(max(finding.level for finding in findings.values())))


def examine(checks: dict[str, Check], settings: Settings, limit: float = _LIMIT) -> dict[str, Finding]:
    """What each check finds, all made at once; one that fails, or hangs, costs the others nothing."""
    findings: dict[str, Finding] = {}

    def run(name: str, made: Check) -> None:
        try:
            findings[name] = made(settings)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is wrong
            findings[name] = broken(_words(error), _advice(name))

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in checks.items()]
    for thread in threads:
        thread.start()
    until = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    found = dict(findings)
    return {name: found.get(name) or broken(f"no answer within {limit:g} s", _advice(name)) for name in checks}


def _words(error: Exception) -> str:
    """An error in one line."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(f"can't be looked at: {cause or type(error).__name__}".split())


def _advice(name: str) -> str:
    if name in _VARIABLES:
        return f"start it, or set {PREFIX}{_VARIABLES[name]}"
    return "see to the servers first"


def _json(name: str, finding: Finding) -> str:
    status = finding.level.name.lower()
    return json.dumps({"check": name, "status": status, "says": finding.says, "do": finding.do}, ensure_ascii=False)


def _show(name: str, finding: Finding) -> None:
    mark, colour = _MARKS[finding.level]
    line = Text.assemble(
        (mark, colour), f" {name:22} {finding.says}", (f" → {finding.do}" if finding.do else "", "bold")
    )
    Console(markup=False, emoji=False, highlight=False, soft_wrap=True).print(line)
