"""What a kernel is to be able to do: the howto's list as options, and what a .config made of it.

Kconfig fragments in ``xenlab/data/kernel`` hold the lists; a line that begins with ``##`` opens a
group and quotes the howto's statement (headings „Domain0-Kernel“ and „DomainU-Kernel“).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files as package_files

from xenlab.errors import BadInput

DOM0, DOMU = "dom0", "domU"
OWN_GROUP = "(kernel_options of this site)"

_SET = re.compile(r"CONFIG_(\w+)=(.+)")
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")


@dataclass(frozen=True)
class Option:
    """A kernel option that is asked for, and the statement it stands for.

    ``wanted`` is as a .config writes it (``y``, a number, a quoted text), ``n`` for not set.
    """

    statement: str
    symbol: str
    wanted: str

    @property
    def line(self) -> str:
        """The option as a line of a fragment or .config."""
        if self.wanted == "n":
            return f"# CONFIG_{self.symbol} is not set"
        return f"CONFIG_{self.symbol}={self.wanted}"


def parse_fragment(text: str) -> list[Option]:
    """The options of a fragment, each with the statement of the group it stands in.

    Raises BadInput for a line that is neither an option nor a comment.
    """
    found = []
    statement = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        option = _option(line)
        if line.startswith("## "):
            statement = line[3:]
        elif option is not None:
            found.append(Option(statement, *option))
        elif line and not line.startswith("#"):
            raise BadInput(f"line {number} of the fragment is no kernel option: {line!r}")
    return found


def parse_config(text: str) -> dict[str, str]:
    """The symbols of a .config that are set, with their values."""
    found = (_option(line) for line in text.splitlines())
    return {symbol: value for symbol, value in filter(None, found) if value != "n"}


def options(flavour: str, own: Iterable[str] = ()) -> list[Option]:
    """All options of a kernel, ``dom0`` or ``domU``; ``own`` are lines ``CONFIG_NAME=value``.

    A symbol that is named twice counts as it is named last: a site's own option wins.
    """
    found: dict[str, Option] = {}
    for name in ("common", flavour.lower()):
        for option in parse_fragment(_data(f"{name}.fragment")):
            found.pop(option.symbol, None)
            found[option.symbol] = option
    for line in own:
        symbol, _, value = line.removeprefix("CONFIG_").partition("=")
        found.pop(symbol, None)
        found[symbol] = Option(OWN_GROUP, symbol, value)
    return list(found.values())


def fragment(wanted: Iterable[Option]) -> str:
    """The options as one fragment for Linux' ``merge_config.sh``."""
    return "".join(f"{option.line}\n" for option in wanted)


def honoured(wanted: Iterable[Option], config: Mapping[str, str]) -> list[dict[str, str]]:
    """A row an option: the howto's statement, symbol, wanted, found in the .config, whether ok.

    Kconfig drops an option without a word if something it depends on is missing; a fragment is
    never proof, the finished .config is.
    """
    rows = []
    for option in wanted:
        found = config.get(option.symbol, "n")
        rows.append(
            {
                "howto": option.statement,
                "symbol": option.symbol,
                "wanted": option.wanted,
                "found": found,
                "ok": "yes" if found == option.wanted else "no",
            }
        )
    return rows


def script(name: str) -> str:
    """The text of one of the shell scripts that configure and build kernels."""
    return _data(f"{name}.sh")


def _option(line: str) -> tuple[str, str] | None:
    unset = _UNSET.fullmatch(line.strip())
    if unset:
        return unset[1], "n"
    found = _SET.fullmatch(line.strip())
    return (found[1], found[2]) if found else None


def _data(name: str) -> str:
    return package_files("xenlab").joinpath("data", "kernel", name).read_text(encoding="utf-8")
