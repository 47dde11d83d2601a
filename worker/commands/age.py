"""How the commands are told a length of time: `90s`, `15m`, `1h`, `7d`."""

import re
from datetime import timedelta
from typing import Any

import click

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Age(click.ParamType[timedelta]):
    """A number and a unit."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        read = re.fullmatch(r"(\d{1,6})([smhd])", str(value), re.ASCII)
        if read is None:
            self.fail("it must be a number and one of s, m, h, d: 90s, 15m, 1h, 7d", param, ctx)
        return timedelta(**{_UNITS[read[2]]: int(read[1])})
