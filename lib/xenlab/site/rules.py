"""Whether the parameters of a site go together."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from xenlab.command import CONTROLLER, MACHINE
from xenlab.site.disk_plan import (
    ARRAYS,
    DOM0_PARTITIONS,
    ESP,
    GUESTS,
    GUESTS_FOLDER,
    SWAP_FOLDER,
    files_for_disks,
    mirrored,
    partition_names,
    volumes_for_disks,
)
from xenlab.site.types import AUTO, PACKAGE_NAMES, cut
from xenlab.site.uplink import UPLINK_RULES, on_link

if TYPE_CHECKING:
    from xenlab.site.schema import Parameters

NO_VOLUME = re.compile(
    r"^(snapshot|pvmove)|\.swap$"
    r"|_([cirt]meta|[crtv]data|cvol|[ciw]?c?orig|vorigin|mimage|rimage|mlog|pmspare)"
)
"""Names that lvm(8) keeps for itself, and those of swap spaces."""

DOM0_NAMES = ("dom0", "domain-0", "domain0")
"""What the lab, Xen's tools and people call dom0."""

LOOPBACK_NAMES = ("localhost", "ip6-localhost", "ip6-loopback", "ip6-allnodes", "ip6-allrouters")
"""The names that every domain's /etc/hosts gives away already."""

LEAST = {
    "boot_mib": (64, "/boot holds GRUB, Xen and two kernels"),
    "dom0_root_mib": (1024, "the stage and what chapters 02 to 05 install would not fit"),
    "share_mib": (1024, "the share holds the stage, the image and the kernel sources"),
    "domu_root_mib": (768, "the image of dom0's root would not fit"),
    "dom0_mem_mib": (256, "dom0 does not boot with less"),
}
"""The least of some sizes in MiB, and why."""

LEAST_MEMORY = 64
"""The least memory of a guest in MiB."""

MOST_PARTITIONS = 128
"""How many partitions the table of a GPT disk holds, as sfdisk makes it."""

LEAST_FOR_INITRDS = 256
"""The least of boot_mib where the kernels are the distribution's."""

APT_SOURCES = ("apt_mirror", "apt_security_mirror", "apt_folder")
"""The parameters that say where Debian's packages come from."""

PACKAGE_LISTS = ("software", "shared_packages", "unwanted")
"""The parameters that name packages, in the form of the site's platform."""


Rule = Callable[["Parameters"], Iterator[str]]


def lan_device(site: Parameters, name: str) -> str:
    """What a guest calls its interface in the internal LAN: the last one that it has."""
    return next(f"eth{1 + len(each.nics)}" for each in site.domains if each.name == name)


def _twice(site: Parameters) -> Iterator[str]:
    """Domains that share what each must have for itself."""
    machines: dict[str, str] = {}
    if site.knows("gateway"):
        machines[site.gateway] = "the gateway"
    if site.knows("address"):
        machines[_bare(site.address)] = "dom0"
    # a name is no address: it stands here and meets none
    if site.knows("ssh"):
        machines |= dict.fromkeys((site.ssh.host, site.ssh.rescue_address), "the target")
    if site.knows("dom0_ssh"):
        machines[site.dom0_ssh.host] = "the target"
    if site.knows("addresses"):
        machines |= {_bare(each).lower(): "dom0" for each in site.addresses}
    taken: dict[str, dict[str, str]] = {
        "name": _reserved(site),
        "MAC": dict.fromkeys(_uplink_cards(site), "the uplink"),
        "partition": dict.fromkeys((*DOM0_PARTITIONS, ESP), "dom0"),
        "address": machines,
    }
    for number, domain in enumerate(site.domains, start=1):
        own = {
            "name": domain.name,
            "MAC": domain.mac,
            "partition": domain.partition,
            "address": _bare(domain.address),
        }
        me = f"domain {number} ({domain.name})"
        things = [(what, value, me) for what, value in own.items()]
        things += [("MAC", nic.mac, f"{me}, nics[{n}]") for n, nic in enumerate(domain.nics)]
        for what, value, me in things:
            owner = taken[what].setdefault(value.lower(), me)
            if owner != me:
                yield f"{owner} and {me} have the same {what}: {value}"


def _formerly(site: Parameters) -> Iterator[str]:
    """A guest under a new name, whose former name another one has."""
    names = {domain.name: domain.name for domain in site.domains}
    for domain in site.domains:
        if domain.formerly:
            owner = names.setdefault(domain.formerly, domain.name)
            if owner != domain.name or domain.formerly == domain.name:
                yield f"{domain.name} was formerly {domain.formerly}, which is {owner}'s name"


def _like(site: Parameters) -> Iterator[str]:
    """A guest that is to be a copy of none."""
    for domain in site.domains:
        if domain.like and domain.like not in {d.name for d in site.domains} - {domain.name}:
            yield f"{domain.name} is to be like {domain.like}, which is no other domain"
        if domain.like and domain.keep:
            yield f"{domain.name} is to be like {domain.like}: no copy is made anew, take out keep"


def _uplink_cards(site: Parameters) -> list[str]:
    """The uplink's network cards as the site says them, as far as it is known."""
    cards = [site.uplink] if site.knows("uplink") else []
    cards += site.uplink_bond.members if site.knows("uplink_bond") else []
    return [card.lower() for card in cards]


def _lies_on(path: str, disk: str) -> bool:
    return re.fullmatch(rf"{re.escape(disk)}((-part|p)?\d+)?", path) is not None


def _further_disks(site: Parameters) -> Iterator[str]:
    """Disks of guests that are dom0's, or that two would write to."""
    writers: dict[str, str] = {}
    readers: dict[str, str] = {}
    folders = [GUESTS_FOLDER, SWAP_FOLDER, *([ARRAYS] if mirrored(site) else [])]
    own = [site.disk] if site.knows("disk") else []
    own += [site.mirror] if mirrored(site) else []
    if site.knows("guest_disks", "volume_group") and volumes_for_disks(site):
        folders.append(f"/dev/{site.volume_group}")
    for domain in site.domains:
        names = Counter(disk.name for disk in domain.disks)
        yield from (
            f"{domain.name} has two disks {name}" for name, times in names.items() if times > 1
        )
        for disk in domain.disks:
            for mine in (each for each in own if _lies_on(disk.path, each)):
                yield f"{disk.path} cannot be a disk of {domain.name}: it lies on disk {mine}"
            if str(PurePosixPath(disk.path).parent) in folders:
                yield f"{disk.path} cannot be a disk of {domain.name}: it is a guest's own"
            others = readers if not disk.readonly else {}
            owner = writers.get(disk.path) or others.get(disk.path)
            if owner:
                yield f"{owner} and {domain.name} cannot both have {disk.path}: one writes to it"
            (readers if disk.readonly else writers)[disk.path] = domain.name


def _no_partition(site: Parameters) -> Iterator[str]:
    """A guest whose disk would be called as the partition that it lies on, or as no volume can."""
    for domain in site.domains if site.guest_disks != "partition" else ():
        if domain.partition == GUESTS:
            what = "disk files" if files_for_disks(site) else "volumes"
            yield f"{domain.name} cannot have the partition {GUESTS}: the {what} are there"
        if volumes_for_disks(site) and NO_VOLUME.search(domain.partition):
            yield f"{domain.name} cannot have the volume {domain.partition}: such names are kept"


def _growing(site: Parameters) -> Iterator[str]:
    """Guests that would begin with more memory than they may have."""
    for number, domain in enumerate(site.domains):
        if domain.maxmem_mib < domain.memory_mib:
            yield (
                f"domains[{number}].maxmem_mib must be at least {domain.memory_mib}, its "
                f"memory_mib, not {domain.maxmem_mib}"
            )


def _reached_by_dom0(site: Parameters) -> Iterator[str]:
    """A gateway that dom0 cannot reach."""
    yield from _outside(site.gateway, "dom0", site.address)
    if site.gateway == _bare(site.address):
        yield f"gateway and address are the same: {site.gateway}"


def _further_addresses(site: Parameters) -> Iterator[str]:
    """Further addresses of dom0 that it has already, or that cannot be."""
    taken = {ipaddress.ip_address(_bare(site.address)): "address"}
    taken[ipaddress.ip_address(site.gateway)] = "gateway"
    if site.gateway6 not in ("", AUTO):
        taken[ipaddress.ip_address(site.gateway6)] = "gateway6"
    for number, text in enumerate(site.addresses):
        me = f"addresses[{number}]"
        owner = taken.setdefault(ipaddress.ip_address(_bare(text)), me)
        if owner != me:
            yield f"{owner} and {me} are the same: {_bare(text)}"


def _gateway6(site: Parameters) -> Iterator[str]:
    """A gateway of IPv6 that dom0 cannot reach."""
    if site.gateway6 in ("", AUTO):
        return
    gateway = ipaddress.IPv6Address(site.gateway6)
    found = [ipaddress.IPv6Interface(each) for each in site.addresses if ":" in each]
    if not found:
        yield f"gateway6 {site.gateway6} is for an IPv6 address: name one in addresses"
    elif not gateway.is_link_local and not any(
        gateway in each.network or each.network.prefixlen == 128 for each in found
    ):
        networks = ", ".join(str(each) for each in found)
        yield f"gateway6 {site.gateway6} is in the network of no address of dom0: {networks}"


def _reached_by_guests(site: Parameters) -> Iterator[str]:
    """A gateway that a guest cannot reach."""
    for domain in site.domains:
        yield from _outside(site.gateway, domain.name, domain.address)


def _outside(gateway: str, name: str, address: str) -> Iterator[str]:
    network = ipaddress.IPv4Interface(address).network
    if network.prefixlen < 31 and gateway in map(str, (network[0], network[-1])):
        yield f"gateway {gateway} is no machine in the network {network}"
    # no gateway is in a network of one: /32 says that it is on the same wire all the same
    if on_link(address, gateway) and not address.endswith("/32"):
        yield f"gateway {gateway} is not in the network of {name}: {address}"


def _one_table(site: Parameters) -> Iterator[str]:
    """More partitions than a table holds."""
    count = len(partition_names(site))
    if count > MOST_PARTITIONS:
        yield f"a disk has at most {MOST_PARTITIONS} partitions, not {count}: use guest_disks: file"


def _names_of_dom0(site: Parameters) -> Iterator[str]:
    """A name of dom0 that /etc/hosts gives away already."""
    if site.hostname.lower() in LOOPBACK_NAMES:
        yield f"hostname must not be {site.hostname}, the loopback interface's"


def _share(site: Parameters) -> Iterator[str]:
    """A share where the guests' files are."""
    for folder in (SWAP_FOLDER, GUESTS_FOLDER):
        if PurePosixPath(site.share).is_relative_to(folder):
            yield f"share must not lie in {folder}, where the guests' files are: {site.share}"


def _lan_apart(site: Parameters) -> Iterator[str]:
    """An internal LAN that is not one."""
    lan = ipaddress.IPv4Interface(site.lan_address).network
    more = site.addresses if site.knows("addresses") else []
    for address in (site.address, *(each for each in more if ":" not in each)):
        outside = ipaddress.IPv4Interface(address).network
        if lan.overlaps(outside):
            yield f"the internal LAN {lan} must not overlap the network of dom0, {outside}"


def _lan_guests(site: Parameters) -> Iterator[str]:
    """Guests of the internal LAN with an address or a MAC that is not theirs."""
    lan = ipaddress.IPv4Interface(site.lan_address).network
    taken = {_bare(site.lan_address): "dom0"} | {d.mac.lower(): d.name for d in site.domains}
    taken |= {nic.mac.lower(): d.name for d in site.domains for nic in d.nics}
    for number, guest in enumerate(site.lan_guests, start=1):
        me = f"lan_guests {number} ({guest.name})"
        if ipaddress.IPv4Interface(guest.address).network != lan:
            yield f"{me}: {guest.address} is not in the internal LAN {lan}"
        for value in (_bare(guest.address), guest.mac.lower()):
            owner = taken.setdefault(value, me)
            if owner != me:
                yield f"{owner} and {me} both have {value}"


def _selected(site: Parameters, key: str) -> list[str]:
    """The guests that a parameter names; none where nobody knows it."""
    entries = getattr(site, key) if site.knows(key) else []
    return [entry if isinstance(entry, str) else entry.name for entry in entries]


def _selections(site: Parameters) -> Iterator[str]:
    """Guests that are selected for something and do not exist, or are named twice."""
    known = [d.name for d in site.domains]
    unknown: dict[str, list[str]] = {}
    for key in ("restart", "updates", "autostart", "lan_guests", "shared_usr", "guest_exports"):
        others = DOM0_NAMES[:1] if key == "updates" else ()
        for name, times in Counter(_selected(site, key)).items():
            if name not in (*known, *others):
                unknown.setdefault(name, []).append(key)
            if times > 1:
                yield f"{key} names {name} twice"
    for name, keys in unknown.items():
        *first, last = keys
        who = f"{', '.join(first)} and {last} name" if first else f"{last} names"
        yield f"{who} {name}, which is no domain; there are {cut(', '.join(known))}"


def _usr_over_the_lan(site: Parameters) -> Iterator[str]:
    """Guests that cannot reach the /usr on the share."""
    for name in site.shared_usr:
        if name not in _selected(site, "lan_guests"):
            yield f"shared_usr names {name}, which is not in the internal LAN (lan_guests)"


def _backups(site: Parameters) -> Iterator[str]:
    """Backups of guests that do not exist, and those that every guest could read."""
    known = [domain.name for domain in site.domains]
    for key in ("guests", "restore"):
        for name in getattr(site.backups, key):
            if name not in known:
                yield f"backups: {key} names {name}, which is no domain"
    if PurePosixPath(site.backups.folder).is_relative_to(site.share):
        yield (
            f"backups: {cut(site.backups.folder)} is on dom0's share, where every guest in the "
            "internal LAN could read the others' keys and passwords"
        )


def _exports(site: Parameters) -> Iterator[str]:
    """Guests that cannot serve what they are to export."""
    for export in site.guest_exports:
        if export.name not in _selected(site, "lan_guests"):
            yield f"guest_exports names {export.name}, which is not in lan_guests"
        if export.name in site.shared_usr:
            yield f"guest_exports names {export.name}, which installs nothing: shared_usr names it"
        if PurePosixPath(export.path).is_relative_to(site.share):
            yield f"guest_exports: {cut(export.path)} is dom0's share, which only dom0 can export"


def _packages(site: Parameters) -> Iterator[str]:
    """Packages whose names are not of the platform's form."""
    check = PACKAGE_NAMES[site.platform.partition("-")[0]]
    for key in PACKAGE_LISTS:
        for number, package in enumerate(getattr(site, key) if site.knows(key) else ()):
            try:
                check(package)
            except ValueError as error:
                yield f"{key}[{number}] {error}"


def _unwanted(site: Parameters) -> Iterator[str]:
    """Packages that are wanted and unwanted at once."""
    wanted = [
        p for key in ("software", "shared_packages") if site.knows(key) for p in getattr(site, key)
    ]
    for package in sorted({*site.unwanted} & {*wanted}):
        yield f"{cut(package)} is unwanted, and yet in software or shared_packages"


def _redfish(site: Parameters) -> Iterator[str]:
    """What a management controller cannot do."""
    if site.redfish.boot == "http" and site.firmware != "uefi":
        yield "redfish: boot: http needs firmware: uefi, which fetches over HTTP"
    if site.redfish.plain and (site.redfish.ca or site.redfish.pin):
        yield "redfish: plain: true is without a certificate: leave out ca and pin"


def _no_portage(site: Parameters) -> Iterator[str]:
    """Portage's settings where there is no Portage."""
    if site.platform == "debian" and any(site.portage.model_dump(exclude={"cflags"}).values()):
        yield "portage: only its cflags can be given on platform debian, which has no Portage"


def _no_apt(site: Parameters) -> Iterator[str]:
    """Sources of Debian's packages where there are none, or more than one that is to be alone."""
    given = [key for key in APT_SOURCES if site.knows(key) and getattr(site, key)]
    if given and site.platform != "debian":
        yield f"{given[0]} is for platform debian: {site.platform} has no apt"
    if "apt_folder" in given and len(given) > 1:
        yield f"apt_folder is the only source of packages: leave out {' and '.join(given[:-1])}"


def _no_uefi(site: Parameters) -> Iterator[str]:
    """UEFI in 2006."""
    if site.firmware == "uefi" and site.platform == "gentoo-2006":
        yield "firmware must be bios on platform gentoo-2006: its GRUB knows no UEFI"


def _no_usr_before_modules(site: Parameters) -> Iterator[str]:
    """A guest whose network driver is a module in the /usr that comes over the network."""
    if not builds_kernel(site):
        for name in site.shared_usr:
            yield f"shared_usr names {name}, which needs kernel: build: modules lie in /usr"


def _no_other_modules(site: Parameters) -> Iterator[str]:
    """An image that holds the modules of another machine's kernel, maybe of another version."""
    if site.image_from and not builds_kernel(site):
        yield "image_from needs kernel: build: the distribution's kernel has modules in the image"


def _no_room_for_initrds(site: Parameters) -> Iterator[str]:
    """A /boot in which no second initrd has room."""
    if not builds_kernel(site) and site.boot_mib < LEAST_FOR_INITRDS:
        yield (
            f"boot_mib must be at least {LEAST_FOR_INITRDS}, not {site.boot_mib}: with kernel: "
            "distribution /boot holds an initrd for each kernel, and the next one while it is made"
        )


def _debian_alone(site: Parameters) -> Iterator[str]:
    """What nobody does, or writes files for, on another distribution."""
    other = site.platform
    if other == "debian":
        return
    if site.knows("guest_disks") and volumes_for_disks(site):
        yield f"guest_disks: lvm is for platform debian: nobody writes {other}'s files for it"
    if site.knows("kernel") and not builds_kernel(site):
        yield f"kernel: distribution is for platform debian: build one on platform {other}"


def _mirror(site: Parameters) -> Iterator[str]:
    """A second disk that is the first one, or whose arrays nobody would assemble."""
    if not mirrored(site):
        return
    if site.mirror == site.disk:
        yield f"mirror must be another disk than disk, {site.disk}"
    if site.knows("kernel") and builds_kernel(site):
        yield "mirror needs kernel: distribution, whose initrd assembles the arrays"


def _no_further_addresses(site: Parameters) -> Iterator[str]:
    """Addresses that nobody writes into the files of 2006."""
    if site.platform == "gentoo-2006" and (site.addresses or site.gateway6):
        yield "addresses and gateway6 must be left out on platform gentoo-2006"


def _sizes(site: Parameters) -> Iterator[str]:
    """Sizes with which nothing of today boots; what is only written out was smaller."""
    if site.platform == "gentoo-2006":
        return
    for key, (least, reason) in LEAST.items():
        if site.knows(key) and getattr(site, key) < least:
            yield f"{key} must be at least {least}, not {getattr(site, key)}: {reason}"
    for number, domain in enumerate(site.domains if site.knows("domains") else ()):
        if domain.memory_mib < LEAST_MEMORY:
            yield (
                f"domains[{number}].memory_mib must be at least {LEAST_MEMORY}, not "
                f"{domain.memory_mib}: kernel and init do not start with less"
            )


LOGINS = ("ssh", "dom0_ssh", "guest_ssh")
"""The parameters that say who logs in."""


def _no_way_to_root(site: Parameters) -> Iterator[str]:
    """Passwords that nothing asks for."""
    for key in filter(site.knows, LOGINS):
        login = getattr(site, key)
        how = login.become or site.ssh.become
        if login.become_password and how not in ("sudo", "su"):
            reason = "doas wants a terminal" if how else f"{key}.become says nothing"
            yield f"{key}.become_password goes with become: sudo or su: {reason}"


RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("domains",), _twice),
    (("domains",), _formerly),
    (("domains",), _like),
    (("domains",), _growing),
    (("domains",), _further_disks),
    (("domains", "guest_disks"), _no_partition),
    (("gateway", "address"), _reached_by_dom0),
    (("gateway", "domains"), _reached_by_guests),
    (("domains", "guest_disks"), _one_table),
    (("hostname",), _names_of_dom0),
    (("share",), _share),
    (("address", "gateway", "addresses", "gateway6"), _further_addresses),
    (("addresses", "gateway6"), _gateway6),
    *UPLINK_RULES,
    (("lan_address", "address"), _lan_apart),
    (("lan_address", "lan_guests", "domains"), _lan_guests),
    (("domains",), _selections),
    (("shared_usr", "lan_guests"), _usr_over_the_lan),
    (("guest_exports", "lan_guests", "shared_usr", "share"), _exports),
    (("backups", "domains", "share"), _backups),
    (("platform",), _packages),
    (("unwanted",), _unwanted),
    (("platform", "portage"), _no_portage),
    (("platform",), _no_apt),
    (("redfish", "firmware"), _redfish),
    (("platform", "firmware"), _no_uefi),
    (("platform",), _debian_alone),
    (("shared_usr", "kernel"), _no_usr_before_modules),
    (("image_from", "kernel"), _no_other_modules),
    (("boot_mib", "kernel"), _no_room_for_initrds),
    (("disk", "mirror"), _mirror),
    (("platform", "addresses", "gateway6"), _no_further_addresses),
    (("platform",), _sizes),
    (("ssh",), _no_way_to_root),
)
"""Each rule with the parameters that it compares."""


def cross_field_errors(site: Parameters) -> list[str]:
    """A sentence for each pair of parameters that exclude each other, of those that are known."""
    found = (each for names, rule in RULES if site.knows(*names) for each in rule(site))
    return list(dict.fromkeys(found))


def _reserved(site: Parameters) -> dict[str, str]:
    """Names by which a guest's steps would act on another machine, and whose they are."""
    found = {site.site.lower(): "the site"} if site.knows("site") else {}
    if site.knows("ssh"):
        found[site.ssh.host.lower()] = "the target"
    if site.knows("dom0_ssh") and site.dom0_ssh.host:
        found[site.dom0_ssh.host.lower()] = "the target"
    found |= dict.fromkeys(LOOPBACK_NAMES, "the loopback interface")
    found |= {CONTROLLER: "the controller", MACHINE: "the machine that becomes dom0"}
    found |= dict.fromkeys(DOM0_NAMES, "dom0")
    return found | ({site.hostname.lower(): "dom0"} if site.knows("hostname") else {})


def _bare(address: str) -> str:
    return address.partition("/")[0]


def builds_kernel(site: Parameters) -> bool:
    """Whether both kernels are compiled for the site; else they are the distribution's one."""
    return site.kernel == "build"


def guest_types(site: Parameters) -> dict[str, str]:
    """How each guest is to be virtualised, by its name: auto, pv or pvh."""
    return {domain.name: domain.type or site.guest_type for domain in site.domains}
