"""The exceptions of xenlab: each says what happened, where, and what to try."""

from __future__ import annotations

from typing import Any

from xenlab.command import Result
from xenlab.masking import Secret, mask


class XenlabError(Exception):
    """What happened, where (host, chapter, step) and what to try.

    Keeps its arguments in ``args`` so that it survives pickling.
    """

    def __init__(self, message: str, *, hint: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def hide(self, secrets: tuple[Secret, ...]) -> None:
        """Mask secrets in what the error says."""
        self.message, self.hint = mask(self.message, secrets), mask(self.hint, secrets)
        self.args = tuple(mask(a, secrets) if isinstance(a, str) else a for a in self.args)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\nTry: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{advice}"


def _shortened(command: str) -> str:
    """A long script's first lines; the step's output file holds all of it."""
    lines = command.strip().splitlines()
    rest = len(lines) - 6
    return "\n".join(lines[:6]) + (f"\n… and {rest} lines more" if rest > 0 else "")


def _rebuild(kind: type[XenlabError], args: tuple[Any, ...], state: dict[str, Any]) -> XenlabError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class BadInput(XenlabError):
    """A parameter, a file or a name that the person gave is refused; nothing was touched."""


class NoConnection(XenlabError):
    """No connection to the host was made, so nothing was run there; which kind tells why."""


class ConnectionRefused(NoConnection):
    """The host does not answer, or could not be reached in time.

    Waiting may help: it may still boot.
    """


class Unreachable(NoConnection):
    """The host lets nobody in or runs no commands, or there is none; waiting does not help."""


class HostKeyRefused(NoConnection):
    """The host's key is unknown or differs from the pinned one; waiting does not help."""


class ConnectionLost(XenlabError):
    """The connection broke while a command ran: whether it finished is unknown."""


class CommandError(XenlabError):
    """A command did not do its work; carries its Result. Which kind tells whether it ended."""

    def __init__(self, what: str, result: Result, *, hint: str = "") -> None:
        self.result = result
        message = f"{what}: {_shortened(result.command)}"
        for name, text in (("stdout", result.stdout), ("stderr", result.stderr)):
            tail = mask(text, result.secrets).rstrip().splitlines()[-10:]
            if tail:
                message += f"\nlast lines of {name}:\n  " + "\n  ".join(tail)
        super().__init__(message, hint=hint, where=result.host)


class CommandFailed(CommandError):
    """A command ended with another status than zero."""

    def __init__(self, result: Result, *, hint: str = "") -> None:
        super().__init__(f"command failed with exit status {result.status}", result, hint=hint)


class CommandTimeout(CommandError):
    """A command did not end within its deadline; its processes were ended."""

    def __init__(self, result: Result, seconds: float) -> None:
        hint = "look at the machine's load, then run the step again"
        super().__init__(f"timed out after {seconds:.0f} s", result, hint=hint)


class Overdue(TimeoutError):
    """A command did not end in time; ``out`` and ``err`` are what it had printed by then."""

    def __init__(self, seconds: float, out: bytes = b"", err: bytes = b"") -> None:
        super().__init__(seconds, out, err)
        self.out = out
        self.err = err


class StepFailed(XenlabError):
    """A step could not be applied, or its verification does not hold."""


class MachineBusy(XenlabError):
    """Another run works on the machine: it says whose, from where, and since when."""


class ConsentNeeded(XenlabError):
    """A step would destroy what nobody has consented to lose.

    ``serial`` is that of the device's disk, where a consent to wipe it is wanted; ``made`` is what
    xenlab made and wants a consent by name, as "NAME UUID" each. Where both are empty no consent
    can help.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        where: str = "",
        device: str = "",
        serial: str = "",
        made: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint, where=where)
        self.device = device
        self.serial = serial
        self.made = made


class OutsideStep(XenlabError):
    """A chapter's host was to run a command while no step was under way to record it."""


class ChapterOrder(XenlabError):
    """A chapter was opened before one that it needs."""


class DiskFull(XenlabError):
    """The disk of this machine that holds the run is full: nothing more can be recorded."""


class JournalDamaged(XenlabError):
    """The hash chain of a journal does not hold."""


class LabError(XenlabError):
    """The embedded lab could not be built, started or stopped."""
