"""Node.js for tests: the packages that tests/node/package-lock.json names, installed once in a checkout."""

import fcntl
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Programs that lie in this folder, or are run in it, find the packages.
FOLDER = Path(__file__).parent / "node"
#: Where the packages are, for a link in another folder.
PACKAGES = FOLDER / "node_modules"
_LOCK = FOLDER / "package-lock.json"
#: Written last, with the digest of the lock: an installation that broke off, or is of another lock, is done again.
_STAMP = PACKAGES / ".installed"
#: Seconds that an installation may take; it took 12 on two cores.
_SECONDS = 100


class NodeMissingError(Exception):
    """There is no Node.js, or its packages can't be had."""


@dataclass(frozen=True)
class Node:
    """An installed Node.js, with the packages."""

    program: str

    def run(self, *words: str | Path, cwd: Path = FOLDER, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `node`; whether that went well is for the test to say."""
        command = [self.program, *words]
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, timeout=60, **options)


def installed() -> Node:
    """Node.js, once it has its packages."""
    npm, node = _program("npm"), _program("node")
    with _LOCK.open("rb") as lock:
        # Other test processes wait here for the one that installs.
        fcntl.flock(lock, fcntl.LOCK_EX)
        digest = hashlib.sha256(lock.read()).hexdigest()
        if not _STAMP.exists() or _STAMP.read_text() != digest:
            _install(npm)
            _STAMP.write_text(digest)
    return Node(node)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NodeMissingError(f"there is no {name} on the PATH")
    return found


def _install(npm: str) -> None:
    try:
        subprocess.run([npm, "ci"], cwd=FOLDER, check=True, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.CalledProcessError as error:
        raise NodeMissingError(f"npm ci: {error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise NodeMissingError(f"npm ci took more than {_SECONDS} s") from error
