"""What Flower does unless its command line says otherwise: it takes a login, and shows why a request was refused.

Flower reads it because it is in the folder that Flower is started in, and lets it overrule the variables `FLOWER_…`;
so those for the address and the login are looked at here.
"""

import os
import secrets
from pathlib import Path
from typing import Any


def kept_login(file: Path) -> str:
    """`user:password` out of `file`; made up the first time, and nobody else's to read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        file.touch(0o600, exist_ok=False)
    except FileExistsError:
        return file.read_text().strip()
    login = f"aries:{secrets.token_urlsafe(12)}"
    file.write_text(login + "\n")
    return login


def with_cause(task: Any) -> Any:
    """A task with a fault has no result; its exception is shown in that column."""
    if task.state == "FAILURE":
        task.result = task.exception
    return task


address = os.environ.get("FLOWER_ADDRESS", "127.0.0.1")
_login_file = os.environ.get("FLOWER_LOGIN_FILE") or Path(__file__).parents[1] / "var" / "flower" / "login"
basic_auth = os.environ.get("FLOWER_BASIC_AUTH") or kept_login(Path(_login_file))
read_only = True
tasks_columns = "uuid,state,result,kwargs,received,runtime,worker"
format_task = with_cause
