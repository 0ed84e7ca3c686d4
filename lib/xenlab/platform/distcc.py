"""distcc: other machines compile what this one is too slow for (distcc(1), distccd(1)).

Howto: „distcc (mein PC ist schneller als mein Server)“.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.resources.base import Resource
from xenlab.resources.condition import Condition
from xenlab.resources.files import File

HOSTS = "/etc/distcc/hosts"
PORT = 3632
JOBS = 4


@dataclass(frozen=True)
class Helper:
    """A machine on which distccd runs, and how many compilations it takes at a time."""

    host: str
    port: int = PORT
    jobs: int = JOBS

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.jobs}"


def parse_helper(text: str) -> Helper:
    """HOST, HOST:PORT, HOST/JOBS or HOST:PORT/JOBS, as `xenlab.names.DistccHost` allows them."""
    place, _, jobs = text.partition("/")
    host, _, port = place.partition(":")
    return Helper(host, int(port or PORT), int(jobs or JOBS))


def asked(helpers: Sequence[Helper]) -> Resource:
    """distcc asks these machines."""
    text = "".join(f"{helper}\n" for helper in helpers)
    return File(HOSTS, f"# written by xenlab, chapter 02\n{text}")


def answers(helper: Helper) -> Resource:
    """The condition that a server can be reached."""
    script = """
        exec timeout 20 bash -c ': < "/dev/tcp/$1/$2"' bash "$1" "$2"
    """
    return Condition(
        Command.script(script, helper.host, str(helper.port)),
        f"no distccd answers on {helper.host}, port {helper.port}",
        "start it there, for this machine alone: distccd --daemon --allow ADDRESS; or take it out "
        "of portage: distcc",
    )
