"""Waiting until a machine lets us in over ssh."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from xenlab.errors import LabError
from xenlab.lab import tools

_BANNER_SECONDS = 5.0
_PAUSE = 0.3
_LOGIN_SECONDS = 60.0
_TAIL = 15
_REFUSALS = 3
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]+")


def wait_for_ssh(
    port: int,
    login: Sequence[str],
    *,
    seconds: float,
    alive: Callable[[], bool],
    console: Path,
    report: tools.Report,
) -> None:
    """Wait for an ssh banner on loopback, then for `login` (an ssh command line) to succeed.

    Raises LabError after `seconds`, at once if `alive` turns false or our key or the host's is
    refused for good; the message holds the last lines of the serial console.
    """
    started = time.monotonic()
    refusals = 0
    words = "no ssh banner"
    while (waited := time.monotonic() - started) < seconds:
        report(f"waiting for ssh ({waited:.0f} s)", None)
        if not alive():
            raise _failed("the machine ended while it booted", console)
        if not _banner(port):
            time.sleep(_PAUSE)
            continue
        try:
            done = subprocess.run(
                login,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LOGIN_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise tools.missing(login[0]) from None
        except subprocess.TimeoutExpired:
            words = f"no login within {_LOGIN_SECONDS:.0f} s"
            continue
        if done.returncode == 0:
            report("ssh answers", 1.0)
            return
        words = done.stderr.strip() or f"exit status {done.returncode}"
        if "verification failed" in words.lower() or "permission denied" in words.lower():
            # a system that is still coming up may refuse once; it does not refuse three times
            refusals += 1
            if refusals >= _REFUSALS:
                raise _refused(words)
        time.sleep(_PAUSE)
    raise _failed(f"ssh did not answer within {seconds:.0f} s ({words})", console)


def _banner(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_BANNER_SECONDS) as link:
            return link.recv(8).startswith(b"SSH-")
    except OSError:
        # QEMU accepts before the guest listens: a reset or silence both mean "not yet"
        return False


def _refused(words: str) -> LabError:
    if "verification failed" in words.lower():
        shown = _FINGERPRINT.search(words)
        key = f"the host key {shown[0]}" if shown else "the host key"
        return LabError(
            f"ssh is refused: {key} is not a pinned one",
            hint="if the system was installed anew, pin its key; or start over: xenlab lab reset",
        )
    return LabError(
        f"ssh is refused: {words.splitlines()[-1]}",
        hint="the system does not hold the lab's public key; boot the rescue system and look",
    )


def _failed(what: str, console: Path) -> LabError:
    lines = console.read_text(errors="replace").splitlines()[-_TAIL:] if console.exists() else []
    tail = "\nlast lines of the console:\n  " + "\n  ".join(lines) if lines else ""
    return LabError(what + tail, hint=f"the whole console is in {console}")
