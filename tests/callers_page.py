"""docs/callers.md in parts: what its tests take out of it, as it stands."""

import json
import re
from typing import Any

from tests.workers import CHECKOUT

_TEXT = (CHECKOUT / "docs" / "callers.md").read_text()
_SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", _TEXT, re.DOTALL | re.MULTILINE))


def blocks(section: str, language: str) -> list[str]:
    """The code in `language` of the section with that heading."""
    return re.findall(rf"^```{language}\n(.*?)^```$", _SECTIONS[section], re.DOTALL | re.MULTILINE)


def documents(section: str) -> list[Any]:
    """The JSON documents of a section."""
    return [json.loads(block) for block in blocks(section, "json")]


def table(section: str) -> dict[str, str]:
    """The rows of a section's table of two columns, without its head."""
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", _SECTIONS[section], re.MULTILINE)
    return dict(rows[2:])
