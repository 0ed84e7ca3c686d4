"""xenlab: a Xen howto that runs, step by step, over SSH. What a chapter's cells use is here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "chapter.chapter": ("way_to",),
    "chapter.notebook": ("open_chapter",),
    "chapters.action": ("configurations_written", "found_domains"),
    "chapters.configuration": ("bridge_made", "interfaces"),
    "chapters.disk": (
        *("file_systems", "first_partition", "kernel_mounts", "mounts", "partitioned"),
        "swap_files",
    ),
    "chapters.figures": ("nic_layouts",),
    "chapters.ingredients": ("Fits",),
    "chapters.kernel": ("kernel_build",),
    "command": ("Command",),
    "host": ("Host",),
    "resources.base": (
        *("All", "Check", "Condition", "Difference", "Once", "OnHost", "PathsExist"),
        *("Programs", "Report", "Resource", "text_difference"),
    ),
    "resources.disk": (
        *("BIOS_BOOT", "LINUX_BOOT", "LINUX_SWAP", "REST"),
        *("Filesystem", "Partition", "PartitionTable"),
    ),
    "resources.files": (
        *("Absent", "Directory", "File", "KernelSetting", "Line", "Relocated", "Symlink"),
    ),
    "resources.guest": ("GuestRoot",),
    "resources.kernel": ("KernelBuilt", "KernelConfigured"),
    "resources.network": ("LanDevices", "VifAttached"),
    "resources.shared_usr": ("UsrOnShare",),
    "resources.ssh_access": (
        *("AuthorizedKeys", "GuestAnswers", "HostKeyPinned", "HostKeysDiffer", "OwnKeyPinned"),
        *("SshHostKeys", "SshdSettings"),
    ),
    "site.rules": ("device",),
}
_HOME = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """A name of a chapter's cells, imported once it is asked for: the command line needs few."""
    if name not in _HOME:
        raise AttributeError(f"module 'xenlab' has no attribute {name!r}")
    return getattr(import_module(f"xenlab.{_HOME[name]}"), name)
