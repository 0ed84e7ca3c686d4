"""Gentoo's network configuration, net-misc/netifrc: what its files are called and say."""

from __future__ import annotations

import re

from xenlab.quoting import double_quoted

SHARED = "net.lo"
"""The script that every interface's script is a link to."""


def script(interface: str) -> str:
    """The service of an interface."""
    return f"net.{interface}"


def script_path(interface: str) -> str:
    """Where that is a link."""
    return f"/etc/init.d/{script(interface)}"


def settings_path(interface: str) -> str:
    """A file of its own for an interface, which OpenRC reads after /etc/conf.d/net."""
    return f"/etc/conf.d/{script(interface)}"


def settings(interface: str, address: str, gateway: str = "", *, kept: bool = False) -> str:
    """``config_`` and ``routes_`` of an interface; ``kept``: only by hand is it stopped."""
    name = re.sub(r"[^A-Za-z0-9]", "_", interface)
    lines = ["# written by xenlab", f"config_{name}={double_quoted(address)}"]
    if gateway:
        lines.append(f"routes_{name}={double_quoted(f'default via {gateway}')}")
    if kept:
        lines.append('rc_keyword="-stop"')
    return "".join(f"{line}\n" for line in lines)
