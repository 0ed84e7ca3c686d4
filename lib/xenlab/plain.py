"""What a machine printed, as plain text: it is shown to people, and moves no cursor of theirs."""

from __future__ import annotations

import re

# Sequences of both forms, the one that begins with ESC and the single control character (ECMA-48);
# a string that is not ended is left as text, without what would make it a command.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
# Line ends and tabs are text. The last are those that turn the direction of what follows.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Terminal output as plain lines: no escape sequences; what a line overwrote is gone."""
    text = _SEQUENCES.sub("", text.replace("\r\n", "\n"))
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return _CONTROLS.sub("", "\n".join(lines))
