"""What pip would install from a lock, copied out of the environments of this machine: in a second, without a network.

That the lock's versions and hashes are those of requirements.lock, which pip itself installs, is another test's part.
"""

import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXPECTED = ["install", "--no-cache-dir", "--no-deps", "--only-binary=:all:", "--require-hashes"]


def pins(lock: Path) -> list[Requirement]:
    """What a lock names, as far as it is for this Python."""
    lines = [line.partition(" \\")[0] for line in lock.read_text().splitlines() if line[:1].isalnum()]
    return [pin for pin in map(Requirement, lines) if pin.marker is None or pin.marker.evaluate()]


def install(distribution: Distribution, environment: Path) -> None:
    """Copy the files of a package into a virtual environment, and have its commands run there."""
    [site] = environment.glob("lib/python*/site-packages")
    for file in distribution.files or []:
        there, here = Path(str(file.locate())), site / file
        if not there.exists():
            continue
        here.parent.mkdir(parents=True, exist_ok=True)
        content = there.read_bytes()
        if here.parent.resolve() == environment / "bin" and content.startswith(b"#!"):
            content = f"#!{environment}/bin/python\n".encode() + content.split(b"\n", 1)[1]
        here.write_bytes(content)
        here.chmod(there.stat().st_mode)


def main(python: str, *words: str, source: list[str]) -> None:
    """`pip --python=… install … --requirement=…`, with packages from the folders in `source`."""
    *expected, lock = words
    assert expected == EXPECTED, words
    here = {(canonicalize_name(each.name), each.version): each for each in distributions(path=source)}
    for pin in pins(Path(lock.partition("=")[2])):
        [specifier] = pin.specifier
        install(here[canonicalize_name(pin.name), specifier.version], Path(python.partition("=")[2]).parents[1])


if __name__ == "__main__":
    main(*sys.argv[2:], source=sys.argv[1].split(":"))
