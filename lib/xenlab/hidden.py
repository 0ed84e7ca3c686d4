"""What must never be recorded: the secrets that xenlab can know of, or was told of by reference."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from xenlab.errors import BadInput
from xenlab.masking import LEAST, Secret

PARTS = ("PASSWORD", "PASSWD", "PASSPHRASE", "TOKEN", "SECRET")
"""A variable of the environment whose name has one of these in it holds a secret."""

WORDS = {
    "APIKEY", "BEARER", "COOKIE", "CREDENTIAL", "CREDENTIALS", "CREDS", "KENNWORT", "PASS",
    "PASSCODE", "PASSWORT", "PAT", "PSK", "PW", "PWD", "SSHPASS",
}  # fmt: skip
"""So does one that has one of these as a word of its name, unless its value is a path."""

_ENDINGS = ("PASS", "PWD", "APIKEY")
_NO_PASSWORDS = {"ASKPASS", "BYPASS", "COMPASS", "ENCOMPASS", "OVERPASS", "UNDERPASS"}
_SECRET_KEYS = {"ACCESS", "API", "AUTH", "ENCRYPTION", "MASTER", "PRIVATE", "SESSION"}

MOST_BYTES = 64 * 1024
"""How large a file may be that holds a secret."""

_CREDENTIALS = re.compile(r'://[^\s/:@"<>]*:([^\s/"<>]+)@')
# curl and others take a proxy without a scheme
_BARE_PROXY = re.compile(r"[^\s/:@]*:([^\s/]+)@")


class Reference(Protocol):
    """Where a secret is found: a variable of the environment, or a file (`~` is the home)."""

    env: str
    file: str


def known(
    identity: str,
    references: Iterable[Reference] = (),
    environment: Mapping[str, str] = os.environ,
) -> tuple[Secret, ...]:
    """The secrets of this environment, of a private key's file, and those that are referred to.

    Raises BadInput as `declared` does.
    """
    values = {secret.value for secret in declared(references, environment)}
    for name, value in environment.items():
        values.update(_CREDENTIALS.findall(value))
        if name.upper().endswith("_PROXY") and (bare := _BARE_PROXY.match(value)):
            values.add(bare[1])
        if _is_secret(name.upper(), value):
            values.add(value)
    values |= {urllib.parse.unquote(value) for value in values}
    values = {value for value in values if len(value) >= LEAST}
    values.update(_lines(identity))
    return tuple(Secret(value) for value in sorted(values, key=len, reverse=True))


def declared(
    references: Iterable[Reference], environment: Mapping[str, str] = os.environ
) -> tuple[Secret, ...]:
    """The secrets that are referred to, a file's line by line if it has several.

    Raises BadInput where one cannot be read, so that none is recorded for want of its value.
    """
    return tuple(
        Secret(value)
        for reference in references
        for value in (
            _of_variable(reference.env, environment) if reference.env else _of_file(reference.file)
        )
    )


def _of_variable(name: str, environment: Mapping[str, str]) -> list[str]:
    value = environment.get(name, "")
    if not value:
        raise BadInput(
            f"the secret in ${name} cannot be masked: the environment has no such variable",
            hint=f"export {name}, or take it out of `secrets`",
        )
    return _parts(value, f"${name}")


def _of_file(path: str) -> list[str]:
    place = Path(path).expanduser()
    try:
        with place.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BadInput(
            f"the secret in {path} cannot be masked: {reason}",
            hint="correct its path, or take it out of `secrets`",
        ) from None
    if len(data) > MOST_BYTES:
        raise BadInput(
            f"the secret in {path} cannot be masked: the file has more than {MOST_BYTES} bytes",
            hint="name the file that holds the secret alone",
        )
    return _parts(text, path)


def _parts(value: str, where: str) -> list[str]:
    lines = [line.strip() for line in value.splitlines() if line.strip()]
    long = [line for line in lines if len(line) >= LEAST and not line.startswith("-----")]
    if not long:
        raise BadInput(
            f"the secret in {where} cannot be masked: it has less than {LEAST} characters, which "
            "would blot out half of each output",
            hint="take a longer one, or take it out of `secrets`",
        )
    return long


def _is_secret(name: str, value: str) -> bool:
    if any(part in name for part in PARTS):
        return True
    words = [word for word in re.split(r"[^A-Z0-9]+", name) if word]
    if name in ("PWD", "OLDPWD") or _is_path(value) or not words:
        return False
    last = words[-1]
    if WORDS.intersection(words) or last == "AUTH":
        return True
    if last.endswith(_ENDINGS) and last not in _NO_PASSWORDS:
        return True
    if last == "KEY" and _SECRET_KEYS.intersection(words) and " " not in value:
        return True
    # Keys of a keyboard, public keys and names of keys are none.
    is_key = last in ("KEY", "KEYS") and not {"PUBLIC", "PUB"} & set(words)
    return is_key and any(digit in value for digit in "0123456789") and " " not in value


def _is_path(value: str) -> bool:
    """A path; one of 64 secrets in base64 begins with a slash as well."""
    if value.startswith(("~", "./")):
        return True
    return value.startswith("/") and Path("/", value.split("/")[1]).exists()


def _lines(identity: str) -> Iterator[str]:
    if not identity:
        return
    try:
        lines = Path(identity).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    yield from (line for line in lines if len(line) >= LEAST and not line.startswith("-----"))
