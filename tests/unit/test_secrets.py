"""No secret is in the repository."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: A private key, and a token: the beginnings of their lines.
SECRETS = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE" + rb" KEY|\beyJ[\w-]{10,}\." + rb"eyJ[\w-]{10,}")


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)  # noqa: S607
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]


def test_no_private_key_and_no_token_is_committed() -> None:
    files = [file for file in committed() if file.is_file()]
    assert len(files) > 50
    assert [str(file) for file in files if SECRETS.search(file.read_bytes())] == []


def test_it_would_be_found() -> None:
    assert SECRETS.search(b"x\n-----BEGIN EC PRIVATE " + b"KEY-----")
    assert SECRETS.search(b'"eyJhbGciOiJFZERTQSJ9.' + b'eyJzdWIiOiJvcmRlcnMifQ.x"')
