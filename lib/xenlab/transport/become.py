"""Become: how a login that is not root becomes root, for each command that it gives."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from xenlab.errors import BadInput, Unreachable

# "$e" is the text that a root shell is to run, "$@" are its words. None of these reads more than
# one line of the input, and each byte of that by itself: what follows is the command's own.
_PROGRAMS = {
    "sudo": 'sudo {ask} -p "" -- /bin/sh -c "$e" "$@"',
    "doas": 'doas -n -- /bin/sh -c "$e" "$@"',
    "su": 'su -s /bin/sh -c "$e" -- root "$@"',
}

_ALLOWS = {
    "sudo": "{user} ALL=(ALL) {free}ALL (visudo)",
    "doas": "permit nopass {user} (doas.conf)",
    "su": "auth sufficient pam_wheel.so trust (pam.d/su)",
}
"""The line on the machine by which a login becomes root."""

# Of what the programs say (sudo 1.9, opendoas 6.8, su of util-linux 2.38), in this order: what it
# means, and what to try. None: it is about the password.
_MEANINGS: tuple[tuple[str, tuple[str, str] | None], ...] = (
    (r"\bnot found\b", ("there is no {how}", "install it there, or name another way to root")),
    (
        "must have a tty",
        (
            "sudo wants a terminal there (requiretty)",
            "write Defaults:{user} !requiretty there (visudo)",
        ),
    ),
    (
        "not in the sudoers|not allowed|may not run|Operation not permitted|Permission denied",
        ("{how} does not let {user} run everything as root", "allow it there: {allows}"),
    ),
    ("assword|Sorry|Authenti|Authori[sz]ation|terminal is required", None),
)


@dataclass(frozen=True)
class Become:
    """By which program a login becomes root: sudo, doas or su.

    Its password, if it asks for one, is in an environment variable or in a file's first line.
    """

    how: str
    env: str = ""
    file: str = ""

    @property
    def script(self) -> str:
        """Shell text that runs "$1" as root in /bin/sh, with the words after it; at once as root.

        It holds no single quote, no newline and no ``!``, so that any shell takes it in quotes.
        """
        command = _PROGRAMS[self.how].format(ask="-S" if self.asks else "-n")
        return f'e=$1;shift;[ "$(id -u)" = 0 ]&&exec /bin/sh -c "$e" "$@";exec {command}'

    @property
    def asks(self) -> bool:
        """Whether there is a password to be sent."""
        return bool(self.env or self.file)

    def password(self) -> bytes:
        """The password as a line, b"" where none is named. Raises BadInput where it is not there.

        Only the program on the machine gets it, by its input.
        """
        if not self.asks:
            return b""
        try:
            text = Path(self.file).expanduser().read_text() if self.file else os.environ[self.env]
        except KeyError:
            reason = f"the environment has no {self.env}"
        except (OSError, UnicodeDecodeError) as error:
            reason = f"{self.file} cannot be read: {getattr(error, 'strerror', '') or 'no text'}"
        else:
            return text.partition("\n")[0].encode() + b"\n"
        raise BadInput(
            f"cannot become root by {self.how}: because {reason}",
            hint="correct become_password in the site's file, or put the password there",
        )

    def refusal(self, where: str, user: str, said: str) -> Unreachable:
        """Why ``user`` does not become root, by what the program said."""
        for pattern, meaning in _MEANINGS:
            if re.search(pattern, said):
                reason, hint = meaning or self._about_password()
                break
        else:
            answer = f"said “{said[-200:]}”" if said else "ended without a word"
            reason, hint = f"it {answer}", "try it there by hand"
        words = {"how": self.how, "user": user}
        free = "" if self.asks else "NOPASSWD: "
        words["allows"] = _ALLOWS[self.how].format(user=user, free=free)
        return Unreachable(
            f"cannot become root by {self.how}: because {reason.format(**words)}",
            where=where,
            hint=hint.format(**words),
        )

    def _about_password(self) -> tuple[str, str]:
        if self.asks:
            place = f"${self.env}" if self.env else self.file
            return f"{self.how} does not take the password in {place}", "put the right one there"
        if self.how == "doas":
            return "doas takes a password at a terminal alone", "ask for none: {allows}"
        return "{how} asks for a password", "name it in become_password, or ask for none: {allows}"
