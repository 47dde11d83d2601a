"""The locks hold versions and hashes; where the packages come from is for each machine to say."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = [*ROOT.glob("*.lock"), ROOT / "tests" / "node" / "package-lock.json"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_host(lock: Path) -> None:
    text = lock.read_text()
    assert "sha" in text
    assert "://" not in text
