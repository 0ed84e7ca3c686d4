"""Login shells: how a command gets past whatever shell an account has, and what that prints first.

sshd hands the text of a command to the account's login shell: sh, bash, csh, tcsh, fish. So the
text holds only what all of these take alike. Each line is a word of its own, since csh takes no
newline inside quotes; within a word a backslash, a single quote and csh's ``!`` stand outside the
quotes. All that this shell does is to become /bin/sh, which puts the lines together again.

bash reads ~/.bashrc for such commands, csh ~/.cshrc: what these print comes before anything of the
command's own. So /bin/sh prints a token first, on both streams.
"""

from __future__ import annotations

import re
import secrets

_HELD = 65536
"""Bytes of what a login shell printed that are kept, for a message."""

# Nothing of it stays behind: no variable, no argument, no other IFS. A process is found by its mark
# among its arguments as well, since this shell only exports it.
_ENTER = (
    "echo {token}.>&2;echo {token};umask 022;{export}i=$IFS;IFS=${{i#??}};"
    'eval "IFS=\\$i;unset i;set --;$*"'
)


class Entry:
    """One command's way through the login shell."""

    def __init__(self) -> None:
        token = secrets.token_hex(8)
        self._token = token
        # A shell that shows what it runs prints the token too, but no end of the line after it.
        self._ends = {"stdout": f"{token}\n".encode(), "stderr": f"{token}.\n".encode()}
        self._held = {"stdout": b"", "stderr": b""}

    def text(self, command: str, mark: str = "") -> str:
        """What has /bin/sh run the command, under umask 022, whichever shell reads this."""
        export = 'export "$1";shift;' if mark else ""
        enter = _ENTER.format(token=self._token, export=export)
        marked = (f"XENLAB_STEP={mark}",) if mark else ()
        words = ("/bin/sh", *marked, *command.split("\n"))
        return f"exec /bin/sh -c '{enter}' " + " ".join(map(_word, words))

    def own(self, stream: str, piece: bytes) -> bytes:
        """What of a piece of output the command itself has printed."""
        if stream not in self._held:
            return piece
        held = self._held[stream] + piece
        _, found, rest = held.partition(self._ends[stream])
        if not found:
            self._held[stream] = held[-_HELD:]
            return b""
        del self._held[stream]
        return rest

    @property
    def passed(self) -> bool:
        """Whether /bin/sh was reached."""
        return "stdout" not in self._held

    @property
    def said(self) -> str:
        """What came instead, in one line."""
        words = b" ".join(self._held.values()).decode("utf-8", "replace").split()
        return " ".join(words)


def _word(text: str) -> str:
    return "'" + re.sub(r"['\\!]", r"'\\\g<0>'", text) + "'"
