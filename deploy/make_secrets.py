"""Passwords for deploy/compose.yaml, made up once: `python3 deploy/make_secrets.py` writes deploy/secrets/.

Needs nothing but Python. Each file with a password is for its owner alone; users.acl has hashes only.
"""

import hashlib
import re
import secrets
import sys
from pathlib import Path

DEPLOY = Path(__file__).parent
#: Users of Redis that also need the database.
WITH_DATABASE = ("worker", "operator")


def users(template: str) -> dict[str, str]:
    """A password for each user of Redis in users.acl."""
    return {name.lower(): secrets.token_urlsafe(24) for name in re.findall(r"#([A-Z]+)", template)}


def access_list(template: str, passwords: dict[str, str]) -> str:
    """users.acl with the hashes of the passwords."""
    for name, password in passwords.items():
        template = template.replace(f"#{name.upper()} ", f"#{hashlib.sha256(password.encode()).hexdigest()} ")
    return template


def environments(passwords: dict[str, str]) -> dict[str, dict[str, str]]:
    """What each service of the compose file is told, by the name of its file."""
    database, watcher = secrets.token_urlsafe(24), secrets.token_urlsafe(12)
    told = {
        user: {
            "ARIES_BROKER_URL": f"redis://{user}:{password}@redis:6379/0",
            "ARIES_RESULT_URL": f"redis://{user}:{password}@redis:6379/1",
        }
        for user, password in passwords.items()
    }
    for user in WITH_DATABASE:
        told[user]["ARIES_DATABASE_URL"] = f"postgresql://aries:{database}@postgres/aries"
    told["flower"]["FLOWER_BASIC_AUTH"] = f"aries:{watcher}"
    told["redis"] = {"OPERATOR_PASSWORD": passwords["operator"]}
    told["postgres"] = {"POSTGRES_USER": "aries", "POSTGRES_DB": "aries", "POSTGRES_PASSWORD": database}
    told["grafana"] = {"GF_SECURITY_ADMIN_USER": "aries", "GF_SECURITY_ADMIN_PASSWORD": secrets.token_urlsafe(12)}
    return told


def write(folder: Path) -> None:
    """Make up everything anew, in `folder`."""
    template = (DEPLOY / "redis" / "users.acl").read_text()
    passwords = users(template)
    (folder / "users.acl").write_text(access_list(template, passwords))
    for name, variables in environments(passwords).items():
        file = folder / f"{name}.env"
        file.touch(mode=0o600)
        file.write_text("".join(f"{variable}={value}\n" for variable, value in variables.items()))


def main(folder: Path = DEPLOY / "secrets") -> None:
    """Write them, unless they are there: servers keep the passwords that they were started with first."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if (folder / "users.acl").exists():
        sys.exit(f"{folder}/users.acl is there already; nothing was written.")
    write(folder)
    print(f"{folder}: passwords for every service. Put your jwks.json there too: docs/deployment.md.")  # noqa: T201


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
