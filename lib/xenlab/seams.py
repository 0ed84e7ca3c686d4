"""The seams of a site: the few questions to which distributions and machines answer differently."""

from __future__ import annotations

from functools import cached_property

from xenlab.parameters import Parameters
from xenlab.platform.bootloader import BootLoader, bootloader
from xenlab.platform.interfaces import Interfaces, interfaces
from xenlab.platform.packages import Packages, packages
from xenlab.platform.power import Power, power
from xenlab.platform.services import Services, services
from xenlab.platform.toolstack import Toolstack, toolstack


class Seams:
    """A site's answers; a chapter asks them, never which distribution it works on."""

    def __init__(self, site: Parameters) -> None:
        self.site = site

    @cached_property
    def packages(self) -> Packages:
        """The site's way of installing software."""
        return packages(self.site)

    @cached_property
    def services(self) -> Services:
        """The site's way of keeping services."""
        return services(self.site.platform)

    @cached_property
    def interfaces(self) -> Interfaces:
        """The site's way of giving interfaces their addresses."""
        return interfaces(self.site.platform)

    @cached_property
    def bootloader(self) -> BootLoader:
        """The site's way of booting the hypervisor."""
        return bootloader(self.site.platform)

    @cached_property
    def toolstack(self) -> Toolstack:
        """The site's way of starting, watching and stopping domains."""
        return toolstack(self.site.platform)

    @cached_property
    def power(self) -> Power:
        """The site's way of making the machine boot another medium."""
        return power(self.site)
