"""What a Dockerfile says, done without an engine: each stage is a folder, and bubblewrap runs what is in it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from tests.workers import CHECKOUT
from worker.embedded import ServerFailedError, end_child, start_child

#: Where an engine mounts them.
SECRETS = "/run/secrets"
#: What stands in for the base image: this machine's programs, and the Python that runs the tests.
_LINKS = ("bin", "lib", "lib32", "lib64", "sbin")
_ETC = ("group", "hosts", "ld.so.cache", "localtime", "nsswitch.conf", "passwd", "resolv.conf", "ssl")
_PYTHON = Path(sys.base_prefix)
#: Where packages come from (packages.py).
_ENVIRONMENTS = [path.resolve() for path in (Path(sys.prefix), CHECKOUT / ".venv-flower") if path.exists()]
_BASE = ("/usr", _PYTHON, *_ENVIRONMENTS)
_FROM = re.compile(r"--from=(\S+)")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Stage:
    """A stage of a build, or the image that it ends in."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": f"/base:{_PATH}"})
    folder: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def words(self, *, writable: bool) -> list[str | Path]:
        """What to put before a command that is to run in it."""
        uid, _, gid = self.user.partition(":")
        names: list[str | Path] = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1"]
        names += ["--die-with-parent", "--cap-drop", "ALL", "--uid", uid, "--gid", gid]
        names += ["--bind" if writable else "--ro-bind", self.root, "/"]
        names += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108  # inside
        for path in _BASE:
            names += ["--ro-bind", path, path]
        return ["bwrap", *names, "--chdir", self.folder, "--clearenv"]


def _setenv(environment: Mapping[str, str]) -> list[str]:
    return [word for pair in environment.items() for word in ("--setenv", *pair)]


# --- building ---


def steps(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Its instructions, each with what follows it."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for step in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = step.partition(" ")
        yield name, " ".join(rest.split()) if name != "RUN" else rest


def build(dockerfile: Path, folder: Path, target: str = "") -> Stage:
    """Do what `dockerfile` says, in `folder`, up to the stage `target`, or to its end.

    Raises:
        ServerFailedError: there is no bubblewrap.
    """
    if shutil.which("bwrap") is None:
        raise ServerFailedError("no bubblewrap: the package bubblewrap is not installed")
    stages: dict[str, Stage] = {}
    for name, base, own in _needed(_stages(steps(dockerfile.read_text())), target):
        stage = stages[name] = _begin(folder / (name or "image"), stages.get(base))
        for step, rest in own:
            _STEPS[step](stage, rest, stages)
    return stages[target]


#: Its name (empty for the last one), the name of what it begins with, and its steps.
_Stage = tuple[str, str, list[tuple[str, str]]]


def _stages(steps_: Iterator[tuple[str, str]]) -> list[_Stage]:
    stages: list[_Stage] = []
    for step, rest in steps_:
        if step == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append((name, base, []))
        elif stages:
            stages[-1][2].append((step, rest))
    return stages


def _needed(stages: list[_Stage], target: str) -> list[_Stage]:
    """The stage `target` and those that it is made from, in their order."""
    wanted = {target}
    for name, base, own in reversed(stages):
        if name in wanted:
            wanted |= {base, *(origin[1] for _, rest in own if (origin := _FROM.search(rest)))}
    return [stage for stage in stages if stage[0] in wanted]


def _begin(root: Path, base: Stage | None) -> Stage:
    if base is None:
        _lay_out(root)
        return Stage(root)
    shutil.copytree(base.root, root, symlinks=True, copy_function=os.link)
    return replace(base, root=root, environment=dict(base.environment), labels={})


def _lay_out(root: Path) -> None:
    """The base image."""
    for name in ("base", "etc", SECRETS.lstrip("/")):
        (root / name).mkdir(parents=True)
    for name in _LINKS:
        if (Path("/") / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for name in _ETC:
        there = Path("/etc") / name
        if there.is_dir():
            shutil.copytree(there, root / "etc" / name, symlinks=True)
        elif there.exists():
            shutil.copy(there, root / "etc" / name)
    (root / "base" / "python").symlink_to(_PYTHON / "bin" / "python3")
    source = ":".join(str(site) for path in _ENVIRONMENTS for site in path.glob("lib/python*/site-packages"))
    pip = root / "base" / "pip"
    pip.write_text(f'#!/bin/sh\nexec {_ENVIRONMENTS[0]}/bin/python /base/packages.py {source} "$@"\n')
    pip.chmod(0o755)
    shutil.copy(CHECKOUT / "tests" / "packages.py", root / "base")


def _run(stage: Stage, rest: str, _: object) -> None:
    words = [*stage.words(writable=True), *_setenv(stage.environment), "/bin/sh", "-c", rest]
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"RUN {rest}\n{done.stdout}"


def _copy(stage: Stage, rest: str, stages: Mapping[str, Stage]) -> None:
    *sources, target = [word for word in rest.split() if not word.startswith("--")]
    origin = _FROM.search(rest)
    root = stages[origin[1]].root if origin else CHECKOUT
    into = stage.root / (PurePosixPath(stage.folder) / target).relative_to("/")
    for pattern in sources:
        found = sorted(root.glob(pattern.lstrip("/")))
        assert found, f"COPY {rest}: there is no {pattern}"
        for source in found:
            if source.is_dir():
                shutil.copytree(source, into, symlinks=True, ignore=None if origin else _ignored, dirs_exist_ok=True)
            elif not _is_ignored(source):
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, into)


def _environment(stage: Stage, rest: str, _: object) -> None:
    for word in shlex.split(rest):
        name, _, value = word.partition("=")
        stage.environment[name] = re.sub(r"\$(\w+)", lambda match: stage.environment[match[1]], value)


def _folder(stage: Stage, rest: str, _: object) -> None:
    stage.folder = rest
    (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)


def _user(stage: Stage, rest: str, _: object) -> None:
    stage.user = rest


def _command(stage: Stage, rest: str, _: object) -> None:
    stage.command = [str(word) for word in shlex.split(rest.strip("[]").replace(",", " "))]


def _labels(stage: Stage, rest: str, _: object) -> None:
    stage.labels |= dict(word.split("=", 1) for word in shlex.split(rest))


_STEPS: dict[str, Any] = {
    "RUN": _run,
    "COPY": _copy,
    "ENV": _environment,
    "WORKDIR": _folder,
    "USER": _user,
    "CMD": _command,
    "LABEL": _labels,
}


def _is_ignored(file: Path) -> bool:
    """Whether .dockerignore keeps it out: the last line that fits it, or a folder that it is in, counts."""
    path = PurePosixPath(file.relative_to(CHECKOUT))
    is_out = False
    for line in (CHECKOUT / ".dockerignore").read_text().splitlines():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if (
            line
            and not line.startswith("#")
            and any(re.fullmatch(pattern, str(each)) for each in (path, *path.parents))
        ):
            is_out = not line.startswith("!")
    return is_out


def _ignored(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (file := Path(folder) / name).is_file() and _is_ignored(file)]


# --- running ---


@dataclass(frozen=True)
class Container:
    """A command that runs in an image of which it can write nothing, with no rights and as process 1."""

    process: Any
    log: Path

    def stop(self, number: int) -> int:
        """Send process 1 a signal and wait until it has ended; its exit code."""
        [first] = psutil.Process(self.process.pid).children()
        first.send_signal(number)
        code: int = self.process.wait(60)
        return code


def container_words(
    image: Stage, environment: Mapping[str, str], secrets: Iterable[Path], *command: str
) -> list[str | Path]:
    """The command line of a container, which finds the files `secrets` in /run/secrets."""
    words = [*image.words(writable=False), "--tmpfs", SECRETS]
    for file in secrets:
        words += ["--ro-bind", file, f"{SECRETS}/{file.name}"]
    words += ["--remount-ro", SECRETS, *_setenv(image.environment | dict(environment))]
    return [*words, *(command or image.command)]


@contextmanager
def running_container(words: list[str | Path], log: Path) -> Iterator[Container]:
    """A container, until the end of the block; what it logged is printed then."""
    with log.open("wb") as output:
        child = start_child(words, death=9, stdout=output, stderr=output)
    try:
        yield Container(child, log)
    finally:
        if child.poll() is None:
            end_child(child, 9)
        print(f"--- log of {words[-1]}", log.read_text(errors="replace"), sep="\n")  # noqa: T201  # pytest's to show
