"""`task_always_eager`: the same task in the caller's own process, without a broker."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.builders import SECRET, an_image, ledger, load, poison, refusal_in, stored_image
from tests.workers import CHECKOUT
from worker.database import Database

# Redis is named where there is none: nothing may go there.
_CALLER = """
import json, sys
from worker.celery import app
app.conf.task_always_eager = True
app.loader.import_default_modules()
task = app.tasks["image.update"]
outcomes = []
for kwargs in json.loads(sys.argv[1]):
    result = task.apply_async(kwargs=kwargs, task_id=f"eager-{len(outcomes)}")
    try:
        outcomes.append(result.get())
    except Exception as error:
        outcomes.append([type(error).__name__, str(error)])
outcomes.append(task(id=1))
print(json.dumps(outcomes))
"""


def test_a_task_that_is_called_eagerly_answers_as_ever(database_url: str) -> None:
    database = Database(database_url)
    load(database, an_image(1), an_image(2))
    poison(database)
    outcomes = call(
        database_url,
        {"id": 1, "name": "new"},
        {"id": 2, "name": "new"},
        {"id": 1, "self": 1},
        {"id": 2, "name": "poison"},
        {"id": 9},
    )
    assert (outcomes[0]["status"], outcomes[0]["image"]["name"]) == (200, "new")
    assert refusal_in(outcomes[1]) == ("ImageNameExists", [("name", "taken")])
    assert refusal_in(outcomes[2]) == ("InvalidParameter", [("self", "unknown_field")])
    assert outcomes[3] == ["InternalError", "内部错误"]
    assert refusal_in(outcomes[4])[0] == "ImageNotFound"
    assert outcomes[5]["image"]["name"] == "new"
    assert SECRET not in json.dumps(outcomes)
    assert stored_image(database, 1)["revision"] == 2
    assert {f"eager-{number}" for number in (0, 1, 2, 4)} < set(ledger(database))
    database.close()


def call(database_url: str, *bodies: dict[str, Any]) -> list[Any]:
    nowhere = "redis://127.0.0.1:1/0"
    settings = {"ARIES_DATABASE_URL": database_url, "ARIES_BROKER_URL": nowhere, "ARIES_RESULT_URL": nowhere}
    settings["ARIES_AUTH"] = "off"
    done = subprocess.run(
        [sys.executable, "-c", _CALLER, json.dumps(bodies)],
        cwd=CHECKOUT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        pytest.fail(done.stderr)
    outcomes: list[Any] = json.loads(done.stdout)
    return outcomes
