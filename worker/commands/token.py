"""`keys` and `token`: a key pair of one's own, and tokens made with it; for a desk, and for tests."""

import json
from datetime import timedelta
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aries_images.signing import AUDIENCE, SCOPE, SigningKey
from worker.commands.age import Age
from worker.settings import PREFIX

#: The private key, and the document that ARIES_JWT_KEYS is to name.
PRIVATE, PUBLIC = "private.pem", "jwks.json"
FOLDER = Path("var/keys")


def make_keys(folder: Path) -> None:
    """Make an Ed25519 key pair in `folder`, unless there is one."""
    private = folder / PRIVATE
    folder.mkdir(parents=True, exist_ok=True)
    if not private.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        private.touch(mode=0o600)
        private.write_bytes(pem)
    jwks = {"keys": [SigningKey(private.read_bytes(), "nobody").public_jwk]}
    (folder / PUBLIC).write_text(json.dumps(jwks, indent=2) + "\n")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER)
def keys(folder: Path) -> None:
    """Make a key pair in FOLDER (var/keys), for development: private.pem, and jwks.json for ARIES_JWT_KEYS."""
    make_keys(folder)
    click.echo(f"{PREFIX}JWT_KEYS={folder / PUBLIC}")


@click.command()
@click.option("--sub", required=True, help="The caller's name.")
@click.option("--scope", default=SCOPE, show_default=True, help="What the token allows; separated by spaces.")
@click.option("--ttl", type=Age(), default="1h", show_default=True, help="How long it is good for: 90s, 15m, 1h, 7d.")
@click.option("--image", "images", type=int, multiple=True, help="Only for this image; may be given again.")
@click.option("--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=FOLDER / PRIVATE)
@click.option("--audience", default=AUDIENCE, show_default=True)
@click.option("--issuer", default="", help="What the worker's ARIES_JWT_ISSUER asks for.")
def token(  # noqa: PLR0913 - what a token says
    *, sub: str, scope: str, ttl: timedelta, images: tuple[int, ...], key: Path, audience: str, issuer: str
) -> None:
    """Print a token made with a private key (var/keys/private.pem), for development."""
    signing = SigningKey(key.read_bytes(), sub, issuer=issuer, audience=audience)
    claims = {"images": list(images)} if images else {}
    click.echo(signing.token(ttl.total_seconds(), scope=scope, **claims))
