"""The machine runs Xen, with dom0's own kernel and the options that were asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference

TOOLSTACK_SECONDS = 600.0
"""How long Xen's services may take after a boot until `xl` answers."""

_PROBE = """
    [ "$(cat /sys/hypervisor/type 2> /dev/null)" = xen ] || exit 44
    uname -r
    cat /proc/cmdline
    grep -qs control_d /proc/xen/capabilities && echo dom0 || echo
    xl info 2> /dev/null | sed -n 's/^xen_commandline *: *//p'
"""


@dataclass(frozen=True)
class XenState:
    """What a machine says that it runs. ``commandline`` is Xen's, "" while `xl` does not answer."""

    release: str
    kernel_words: tuple[str, ...]
    dom0: bool
    commandline: str


def xen_state(host: Host) -> XenState | None:
    """What the machine runs, None where that is not Xen (map.md: is_xen, is_dom0)."""
    result = host.inside("/").run(Command.script(_PROBE), check=False)
    if result.status == 44:
        return None
    if not result.ok:
        raise CommandFailed(result)
    return parse_state(result.stdout)


def parse_state(text: str) -> XenState:
    """The answer of the probe's command."""
    release, kernel, dom0, *rest = [*text.splitlines(), "", "", ""]
    return XenState(release, tuple(kernel.split()), dom0 == "dom0", rest[0])


def compare(
    state: XenState | None, release: str, xen_words: list[str], dom0_words: list[str]
) -> Difference | None:
    """How that differs from a kernel release and the words of both command lines."""
    if state is None:
        return Difference("boot the disk: GRUB, Xen, dom0")
    rows = []

    def row(what: str, now: str, wanted: str) -> None:
        rows.append({"what": what, "now": now, "wanted": wanted})

    if not state.dom0:
        row("privileged domain", "no", "yes")
    if state.release != release:
        row("kernel", state.release, release)
    lost = [word for word in dom0_words if word not in state.kernel_words]
    if lost:
        row("kernel's options", " ".join(state.kernel_words), " ".join(lost))
    found = state.commandline.split()
    lost = [word for word in xen_words if word not in found]
    if lost:
        row("Xen's options", state.commandline, " ".join(lost))
    if not rows:
        return None
    return Difference("boot the disk again: what runs is not what is asked for", rows=tuple(rows))


def wait_for_toolstack(host: Host) -> None:
    """Wait until Xen's services answer after a boot.

    Raises StepFailed at once where the machine does not run Xen, or past the deadline.
    """
    deadline = time.monotonic() + TOOLSTACK_SECONDS
    while True:
        state = xen_state(host)
        if state is None:
            raise StepFailed(
                "the machine came up without Xen: its kernel was booted directly",
                hint="look at GRUB's menu on the console",
            )
        if state.dom0 and state.commandline:
            return
        if time.monotonic() > deadline:
            raise StepFailed(
                "Xen runs, but its toolstack (xl) does not answer",
                hint="look whether xenstored runs, and at xl info",
            )
        time.sleep(2)
