"""The command `aries-images`, run as a process of its own, and what it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.service import Service
from tests.workers import CHECKOUT


def command(service: Service, *words: str | Path, lang: str = "C.UTF-8", **others: Any) -> subprocess.Popen[str]:
    environment = os.environ | {
        "ARIES_BROKER_URL": service.broker_url, "ARIES_RESULT_URL": service.result_url, "LC_ALL": lang,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "aries_images", *map(str, words)],
        cwd=CHECKOUT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **others,
    )  # fmt: skip


def ran(service: Service, *words: str | Path, lang: str = "C.UTF-8") -> tuple[int, str, str]:
    with command(service, *words, lang=lang) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def lines_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
