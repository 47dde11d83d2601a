"""HTTP to a Flower, as a program speaks it."""

from base64 import b64encode
from contextlib import closing
from http.client import HTTPConnection


def ask(port: int, path: str, login: tuple[str, str] | None = None, method: str = "GET") -> tuple[int, str]:
    """The status and the body that Flower answers with; `login` is a user and a password."""
    headers = {"Authorization": f"Basic {b64encode(':'.join(login).encode()).decode()}"} if login else {}
    with closing(HTTPConnection("127.0.0.1", port, timeout=15)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
