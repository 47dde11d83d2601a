"""Both READMEs against the code: the table of settings, and the same examples in both."""

import re
from pathlib import Path
from typing import Any

import pytest

from worker.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"

readmes = pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=lambda file: file.name)


def rows(readme: Path, first_cell: str) -> list[list[str]]:
    """The cells of every table row whose first cell, without its backquotes, matches `first_cell`."""
    lines = [line.strip("| ").split(" | ") for line in readme.read_text().splitlines() if line.startswith("| `")]
    return [cells for cells in lines if re.fullmatch(first_cell, cells[0].strip("`"))]


def written(default: Any) -> str:
    return f"`{default:g}`" if isinstance(default, int | float) else f"`{default}`" if default else "–"


@readmes
def test_the_settings_table_has_every_setting_with_its_default(readme: Path) -> None:
    expected = [[f"`{PREFIX}{name.upper()}`", written(field.default)] for name, field in Settings.model_fields.items()]
    found = rows(readme, f"{PREFIX}[A-Z_]+")
    assert [cells[:2] for cells in found] == expected
    assert all(cells[2].strip() for cells in found)


def test_both_have_the_same_python_examples() -> None:
    english, chinese = (re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL) for file in (ENGLISH, CHINESE))
    assert english
    assert english == chinese
