"""distcc: other machines compile what this one is too slow for (distcc(1), distccd(1)).

Howto: „distcc (mein PC ist schneller als mein Server)“.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.host import Host
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


def hosts(helpers: Sequence[Helper]) -> File:
    """distcc asks these machines."""
    text = "".join(f"{helper}\n" for helper in helpers)
    return File(HOSTS, f"# written by xenlab, chapter 02\n{text}")


def silent(host: Host, helpers: Sequence[Helper]) -> list[str]:
    """Those that a machine cannot reach now, as HOST:PORT."""
    script = """
        timeout 20 bash -c ': < "/dev/tcp/$1/$2"' bash "$1" "$2"
    """
    return [
        f"{helper.host}:{helper.port}"
        for helper in helpers
        if not host.test(Command.script(script, helper.host, str(helper.port)), timeout=60)
    ]
