"""A terminal as a reader of the handbook has it: blocks are pasted into it one after the other, in one folder."""

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from tests.workers import until
from worker.embedded import start_child

#: Seconds that a block may take, and that a command may take until it is up, or has ended after Ctrl-C.
_PATIENCE = 60.0
# What a block leaves behind in its shell is there for the next one, which gets a shell of its own: so each has its own
# exit code and output.
_KEPT = """
. {state}
trap '{{ export -p; declare -f; printf "cd %q\n" "$PWD"; }} >{state}' EXIT
set -aeo pipefail
"""


class Running:
    """A command that stays up, and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait until the command and all that it started have ended."""
        with suppress(ProcessLookupError):  # it was ended on the page
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            until(lambda: self.process.poll() is not None, _PATIENCE)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


class Terminal:
    """A shell whose variables, functions and folder last from block to block."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, notes: Path) -> None:
        """Open it in `folder`; `notes` is a folder for what has to be remembered."""
        self._folder, self._environment, self._notes = folder, dict(environment), notes
        self._state = notes / "state"
        self._state.touch()
        self._running: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # one that does not end keeps none of the others up
            for running in self._running:
                stack.callback(running.interrupt)

    def _shell(self, commands: str) -> list[str]:
        return ["/bin/bash", "-c", _KEPT.format(state=shlex.quote(str(self._state))) + commands]

    def run(self, commands: str, exit_code: int = 0) -> str:
        """What the commands print; they must end with `exit_code`, at the first one that fails."""
        log = self._notes / "output"
        with log.open("wb") as output:
            process = start_child(
                self._shell(commands),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed = log.read_text(errors="replace")
        assert process.returncode == exit_code, (
            f"exit code {process.returncode}, not {exit_code}:\n{commands}\n{printed}"
        )
        return printed

    def keep_up(self, command: str, words: str) -> str:
        """Start a command that stays up, wait until it has printed `words`, and return all that it has printed."""
        log = self._notes / f"{len(self._running)}.log"
        with log.open("wb") as output:
            process = start_child(
                self._shell(command), cwd=self._folder, env=self._environment, stdout=output, stderr=output
            )
        running = Running(process, log)
        self._running.append(running)
        with suppress(AssertionError):  # what it has printed instead is worth more
            until(lambda: words in running.printed or process.poll() is not None, _PATIENCE)
        assert words in running.printed, f"it is not up:\n{command}\n{running.printed}"
        return running.printed
