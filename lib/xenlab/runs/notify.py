"""People are told how a run goes: that it ended, failed, or waits for one of them."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from email.message import EmailMessage
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xenlab.chapter.recorder import declared_secrets
from xenlab.chapter.step import REFUSED, WOULD_CHANGE
from xenlab.errors import BadInput
from xenlab.masking import LEAST, Secret, clean, mask
from xenlab.runs.folder import ChapterState, StepState
from xenlab.runs.progress import totals
from xenlab.site.schema import Notified, Parameters

if TYPE_CHECKING:
    from xenlab.runs.execute import Outcome

SECONDS = 60.0
"""How long an address may take, and how long the end of a run waits for those that do."""

SBIN = "/usr/sbin:/usr/lib"
"""Where sendmail(8) is, beside the user's own PATH."""


@dataclass(frozen=True)
class Notice:
    """What people are told; ``event`` is "ended", "failed", "waits" or "drift"."""

    event: str
    title: str
    text: str


@dataclass(frozen=True)
class Address:
    """Who is told: a URL that Apprise knows, a mail address, or a command of a shell.

    A URL holds tokens: it is never shown, nor what is in it.
    """

    text: str = field(repr=False)

    @property
    def name(self) -> str:
        """It as a person may read it."""
        scheme, is_url, _ = self.text.partition("://")
        return f"{scheme}://•••" if is_url else mask(self.text, self.secrets)

    @property
    def is_url(self) -> bool:
        """Whether Apprise is to know it."""
        return bool(re.match(r"[a-z0-9]+://", self.text, re.IGNORECASE))

    @property
    def is_mail(self) -> bool:
        """Whether it is an address that this machine's sendmail(8) takes."""
        return bool(re.fullmatch(r"[^\s@/'\"]+@[A-Za-z0-9.-]+", self.text))

    @cached_property
    def secrets(self) -> tuple[Secret, ...]:
        """All that may be a token in a URL, be it one that a command names."""
        _, is_there, rest = self.text.partition("://")
        parts = re.split(r"[/:@?&=#\s'\"]+", rest)
        found = (Secret(part) for part in parts if len(part) >= LEAST)
        return (Secret(self.text), *found) if is_there else ()

    def require(self) -> None:
        """Raise BadInput where it can reach nobody from here."""
        if self.is_url:
            _apprise(self)
        elif self.is_mail and not _sendmail():
            raise BadInput(
                f"cannot notify {self.name}: because this machine has no sendmail",
                hint="install a mail server's sendmail, or use a mailto:// URL",
            )

    def send(self, notice: Notice) -> str:
        """Tell it; return "" or, in one line without secrets, why it was not told."""
        plain = Notice(notice.event, clean(notice.title), clean(notice.text))
        try:
            return mask(clean(self._send(plain)), self.secrets).strip()
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            return mask(str(error), self.secrets)

    def _send(self, notice: Notice) -> str:
        if self.is_url:
            return _by_apprise(self, notice)
        words, given = ["/bin/sh", "-c", self.text], f"{notice.text}\n".encode()
        if self.is_mail:
            words, given = [_sendmail(), "-i", "--", self.text], _mail(self.text, notice)
        told = {"XENLAB_EVENT": notice.event, "XENLAB_TITLE": notice.title}
        done = subprocess.run(
            words,
            input=given,
            env={**os.environ, **told},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        ended = f"it ended with status {done.returncode}"
        return "" if not done.returncode else ": ".join([ended, *said[-1:]])


class Notifier(AbstractContextManager["Notifier"]):
    """Tells all addresses; one that cannot be told is said, and nothing else comes of it.

    At the end of the block those that are still being told are waited for. ``complain`` takes a
    line for a person.
    """

    def __init__(self, addresses: Sequence[Address], complain: Callable[[str], None]) -> None:
        self._addresses = addresses
        self._complain = complain
        self._telling: list[tuple[Address, threading.Thread]] = []

    def tell(self, notice: Notice) -> None:
        """Tell every address, without waiting for any."""
        for address in self._addresses:
            thread = threading.Thread(target=self._tell, args=(address, notice), daemon=True)
            self._telling.append((address, thread))
            thread.start()

    def __exit__(self, *error: object) -> None:
        deadline = time.monotonic() + SECONDS
        for address, thread in self._telling:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._failed(address, f"it has not answered within {SECONDS:.0f} s")

    def _tell(self, address: Address, notice: Notice) -> None:
        if why := address.send(notice):
            self._failed(address, why)

    def _failed(self, address: Address, why: str) -> None:
        self._complain(f"cannot notify {address.name}: because {why}; the run goes its way")


def asked(site: str, record: Mapping[str, Any]) -> Notice:
    """What is told where a step waits for a person, by its record."""
    said = f"{record.get('message', '')}\n{record.get('title', '')}, {record.get('host', '')}"
    return Notice("waits", f"{site}: waits for you", said)


def ended(site: str, outcome: Outcome, *, check: bool) -> Notice | None:
    """What is told of a run that is over; None of a check that found no drift."""
    name = outcome.folder.name
    if outcome.status:
        what = "check" if check else "run"
        said = f"{outcome.problem or 'not all chapters are done'}\n"
        said += f"take it up again: xenlab run --resume {name}"
        return Notice("failed", f"{site}: {what} failed", said)
    drift = drifted(outcome.chapters)
    if not check:
        said = "; ".join(part for part in totals(outcome.chapters) if part)
        return Notice("ended", f"{site}: run ended", f"{said}\nrun folder: {name}")
    if not drift:
        return None
    lines = "\n".join(map(drift_line, drift))
    some = f"{len(drift)} step{'s' * (len(drift) > 1)}"
    said = f"{lines}\nto bring it back: xenlab run; what was found: xenlab show {name}"
    return Notice("drift", f"{site}: drift in {some}", said)


def drifted(chapters: Sequence[ChapterState]) -> list[StepState]:
    """The steps of a check that would change something."""
    return [s for c in chapters for s in c.steps if s.status in (WOULD_CHANGE, REFUSED)]


def drift_line(step: StepState) -> str:
    """A step that differs, and how, in one line."""
    found = (step.record.get("difference") or {}).items()
    # several states without names are counted: only a name says whose the difference is
    said = (
        (f"{label}: " if label.strip("0123456789") else "") + difference["summary"]
        for label, difference in found
    )
    return f"{step.title}: {'; '.join(said)}"


def addresses(site: Parameters, given: Sequence[str]) -> list[Address]:
    """Who is told of a site's runs: those that it names, and the given ones.

    What a step runs finds none of them in its environment from here on. Raises BadInput for one
    that can reach nobody.
    """
    texts = [text for each in site.notify for text in _texts(each)]
    found = [Address(text) for text in dict.fromkeys((*texts, *given))]
    for address in found:
        address.require()
    masked = {each.env for each in site.masked if each not in site.notify}
    for name, value in list(os.environ.items()):
        if value in {each.text for each in found if each.is_url} and name not in masked:
            del os.environ[name]
    return found


def _texts(named: Notified) -> list[str]:
    if named.mail or named.command:
        return [named.mail or named.command]
    return [secret.value for secret in declared_secrets([named])]


def _apprise(address: Address) -> Any:
    """What sends to a URL; raises BadInput where Apprise is not there, or does not know it."""
    try:
        import apprise
    except ImportError:
        raise BadInput(
            f"cannot notify {address.name}: because Apprise is not installed",
            hint=".venv/bin/pip install apprise",
        ) from None
    _silence()
    sender = apprise.Apprise()
    if not sender.add(address.text):
        raise BadInput(
            f"cannot notify {address.name}: because Apprise knows no such URL",
            hint="write it as Apprise's pages on services have it",
        )
    return sender


def _by_apprise(address: Address, notice: Notice) -> str:
    import apprise

    kinds = {"failed": "failure", "waits": "warning", "drift": "warning", "ended": "success"}
    sender = _apprise(address)
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as log:
        sent = sender.notify(
            body=notice.text,
            title=notice.title,
            notify_type=apprise.NotifyType(kinds[notice.event]),
            # what a machine has said is no markup anywhere
            body_format=apprise.NotifyFormat.TEXT,
        )
        said = log.getvalue().strip().splitlines()
    return "" if sent else (said[-1] if said else "it was not taken")


def _silence() -> None:
    """Keep what Apprise logs, with parts of a URL in it, off the terminal."""
    logger = logging.getLogger("apprise")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.propagate = False


def _sendmail() -> str:
    places = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
    return shutil.which("sendmail", path=places) or ""


def _mail(to: str, notice: Notice) -> bytes:
    message = EmailMessage()
    message["To"] = to
    message["Subject"] = " ".join(notice.title.split())
    message.set_content(notice.text)
    return message.as_bytes()
