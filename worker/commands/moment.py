"""How the commands are told a moment: as a time, or as an age."""

from datetime import UTC, datetime
from typing import Any

import click

from worker.commands.age import Age


class Moment(click.ParamType[datetime]):
    """`2026-11-24`, `2026-11-24T10:30:00Z`, or how long ago: `90s`, `7d`. Without a zone it is UTC."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        if str(value)[-1:] in ("s", "m", "h", "d"):
            return datetime.now(UTC) - Age().convert(value, param, ctx)
        try:
            read = datetime.fromisoformat(value)
        except ValueError:
            self.fail("it must be a time such as 2026-11-24T10:30:00Z, or an age such as 7d", param, ctx)
        return read if read.tzinfo else read.replace(tzinfo=UTC)
