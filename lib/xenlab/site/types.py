"""What the texts in a parameters file may look like: names, addresses, paths; one type each."""

from __future__ import annotations

import difflib
import ipaddress
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from xenlab.cache import LINUX, USUAL_CACHE, cache_root, kernel_source_of, stage_of

Check = Callable[[str], str]
Parsed = TypeVar("Parsed")


MOST_CHARACTERS = 4096
"""How long a text may be; the longest that a machine takes are paths and command lines."""

MOST_SHOWN = 80
"""How much of a value stands in a message."""


def cut(text: str) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"


def quoted(value: object) -> str:
    """A value for a message as Python writes it, cut where it is long."""
    return cut(repr(value[:MOST_SHOWN] if isinstance(value, str) else value))


def one_line(text: str) -> str:
    """The text, refused where it holds a line break, or what is not seen but changes what is."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"must have at most {MOST_CHARACTERS} characters, not {len(text)}")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            raise ValueError(
                f"must be one line without control or invisible characters, not {quoted(text)}"
            )
    return text


def given(text: str) -> str:
    """Text that is not empty or blank."""
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def pattern(expression: str, wanted: str) -> Check:
    """A check that the whole text matches a regular expression; ``wanted`` says it in words."""
    compiled = re.compile(expression, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"must be {wanted}, not {quoted(text)}")
        return text

    # the reference of all parameters says by it what is allowed
    check.__doc__ = wanted
    return check


def matching(expression: str, wanted: str) -> AfterValidator:
    """What makes a type of texts that match; ``wanted`` says it in words."""
    return AfterValidator(pattern(expression, wanted))


def target_path(text: str) -> str:
    """An absolute, plain path on the target: no .., no doubled or closing slash."""
    if not text.startswith("/"):
        raise ValueError(f"must be an absolute path, not {quoted(text)}")
    plain = posixpath.normpath("/" + text.lstrip("/"))
    if plain != text:
        raise ValueError(f"must be a plain path: write {quoted(plain)}, not {quoted(text)}")
    return text


def controller_path(text: str) -> str:
    """A path on the controller that begins with / or ~/.

    A notebook's own folder must not matter. What is said to lie in the usual cache is looked for
    in the cache that the environment names.
    """
    if not text.startswith(("/", "~/")):
        raise ValueError(f"must begin with / or ~/, not {quoted(text)}")
    if text.startswith(USUAL_CACHE) and cache_root() != Path(USUAL_CACHE).expanduser():
        return str(cache_root() / text.removeprefix(USUAL_CACHE))
    return text


def optional_path(text: str) -> str:
    """A path on the controller, or nothing."""
    return controller_path(text) if text else text


def stage_of_release(text: str, info: ValidationInfo) -> str:
    """Debian's, of the site's `release`, where it is empty."""
    if text or "release" not in info.data:
        return text
    if info.data.get("platform") not in (None, "debian"):
        raise ValueError("must not be empty: xenlab makes Debian's alone")
    return controller_path(stage_of(info.data["release"]))


def checksums_of_stage(text: str, info: ValidationInfo) -> str:
    """FILE.sha256 beside the `stage`, where it is empty."""
    return text or (f"{info.data['stage']}.sha256" if info.data.get("stage") else "")


def source_of_release(text: str, info: ValidationInfo) -> str:
    """Debian's, of the site's `release`, where it is empty."""
    if text or "release" not in info.data:
        return text
    return controller_path(kernel_source_of(info.data["release"]))


def checksums_of_source(text: str, info: ValidationInfo) -> str:
    """FILE.sha256 beside a release's own `kernel_source`, where it is empty."""
    source = str(info.data.get("kernel_source", ""))
    own = (controller_path(kernel_source_of(name)) for name in LINUX)
    return text or (f"{source}.sha256" if source in own else "")


def mac_address(text: str) -> str:
    """A unicast MAC address, such as 00:16:3e:66:01:01.

    fe:ff:ff:ff:ff:ff is what Xen gives to dom0's side of each vif.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ValueError(f"must be a MAC address such as 00:16:3e:66:01:01, not {quoted(text)}")
    if int(text[:2], 16) & 1:
        raise ValueError(f"must be a unicast MAC address (first byte even), not {quoted(text)}")
    if text.lower() in ("00:00:00:00:00:00", "fe:ff:ff:ff:ff:ff"):
        raise ValueError(f"must be a MAC address that a guest can have, not {quoted(text)}")
    return text


AUTO = "auto"
"""The uplink that is whichever network card has the default route."""


def uplink(text: str) -> str:
    """A network interface's name, its MAC address such as 52:54:00:12:34:56, or auto."""
    if ":" in text:
        return mac_address(text)
    words = "a network interface's name (letters, digits, . _ -; at most 15), its MAC address, or "
    return _no_kernel_s(pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", words + AUTO)(text))


def _no_kernel_s(name: str) -> str:
    """A name that the kernel has not by itself, as lo, all and default."""
    if name in ("lo", "all", "default"):
        raise ValueError(f"must not be {name}, which the kernel has by itself")
    return name


def _parsed(text: str, form: str, parse: Callable[[str], Parsed], wanted: str) -> Parsed:
    """What is read of an address that has no more than this form, as no zone (fe80::1%eth0)."""
    try:
        if not re.fullmatch(form, text):
            raise ValueError
        return parse(text)
    except ValueError:
        raise ValueError(f"must be {wanted}, not {quoted(text)}") from None


def ip_address(text: str) -> str:
    """An IPv4 address without a prefix, such as 10.0.2.2."""
    _parsed(text, "[0-9.]+", ipaddress.IPv4Address, "an IPv4 address such as 10.0.2.2")
    return text


def gateway(text: str) -> str:
    """The IPv4 address of a machine, without a prefix, such as 10.0.2.2."""
    return _of_a_machine(ip_address(text))


def _of_a_machine(text: str) -> str:
    address = ipaddress.ip_address(text)
    if address.is_multicast or address.is_reserved or text[:2] == "0.":
        raise ValueError(f"must be an address that a machine can have, not {quoted(text)}")
    return text


def optional_ip_address(text: str) -> str:
    """An IPv4 address, or nothing."""
    return ip_address(text) if text else text


LEAST_PREFIX = 8
"""The prefix of the largest network that anybody has, 10.0.0.0/8."""


def ip_with_prefix(text: str) -> str:
    """An IPv4 address of a machine with its prefix, such as 10.0.2.15/24."""
    wanted = "an IPv4 address with its prefix, such as 10.0.2.15/24"
    interface = _parsed(text, "[0-9.]+/[0-9]+", ipaddress.IPv4Interface, wanted)
    network = interface.network
    _of_a_machine(str(interface.ip))
    if network.prefixlen < LEAST_PREFIX:
        raise ValueError(f"must have a prefix of at least {LEAST_PREFIX}, not {quoted(text)}")
    if network.prefixlen < 31 and interface.ip in (
        network.network_address,
        network.broadcast_address,
    ):
        raise ValueError(
            f"must be the address of a machine, not of the whole network: {quoted(text)}"
        )
    return text


def further_address(text: str) -> str:
    """An IPv4 or IPv6 address of a machine with its prefix, such as 2001:db8::10/64."""
    if ":" not in text:
        return ip_with_prefix(text)
    wanted = "an address with its prefix, such as 2001:db8::10/64"
    address = _parsed(text, "[0-9a-fA-F:.]+/[0-9]+", ipaddress.IPv6Interface, wanted).ip
    if address.is_link_local:
        raise ValueError(f"must be an address that other machines can reach, not {quoted(text)}")
    _of_a_machine(str(address))
    return text


def gateway6(text: str) -> str:
    """An IPv6 address without a prefix, such as fe80::1; auto; or nothing."""
    if text in ("", AUTO):
        return text
    wanted = "an IPv6 address such as fe80::1, auto, or nothing"
    _parsed(text, "[0-9a-fA-F:.]+", ipaddress.IPv6Address, wanted)
    return _of_a_machine(text)


_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"

Text = Annotated[str, AfterValidator(one_line)]
Given = Annotated[Text, AfterValidator(given)]
HostName = Annotated[
    Text,
    matching(_LABEL, "a host name (letters, digits and inner hyphens, at most 63; RFC 1123)"),
]
DomainName = Annotated[
    HostName,
    matching(r".*\D.*", "a name that xl does not take for an id (not digits only)"),
]
BackupStamp = Annotated[
    Text, matching(r"\d{8}T\d{6}Z", "a backup's name as step 18.1 shows it (20260301T020000Z)")
]
OptionalDomainName = Annotated[
    Text,
    matching(
        rf"({_LABEL})?",
        "a name that a guest can have (letters, digits and inner hyphens), or nothing",
    ),
]
DnsDomain = Annotated[
    Text,
    matching(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*", "a DNS domain such as lab.internal"),
]
PartitionName = Annotated[
    Text,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,15}",
        "a partition name (letters, digits, . _ -; at most 16, as it is the ext4 label too)",
    ),
]
MadeThing = Annotated[
    Text,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,15} [A-Za-z0-9-]{4,}",
        "a name with the UUID of its file system, as a refused step says it; a name alone "
        "would hold for whatever is there later",
    ),
]
Interface = Annotated[
    Text,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}",
        "a network interface's name (letters, digits, . _ -; at most 15)",
    ),
    AfterValidator(_no_kernel_s),
]
OptionalInterface = Annotated[
    Text,
    matching(
        r"([A-Za-z0-9][A-Za-z0-9._-]{0,14})?",
        "a network interface's name (letters, digits, . _ -; at most 15), or nothing",
    ),
]
PlainName = Annotated[
    Text,
    matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "a plain name (letters, digits, . _ -)"),
]
LabName = Annotated[
    Text,
    matching(
        r"[a-z0-9]([a-z0-9-]{0,11}[a-z0-9])?",
        "a lab's name (lower case letters, digits and inner hyphens, at most 13)",
    ),
]
SshWord = Annotated[
    Text,
    # as narrow as the transport: a ProxyCommand and a script have it as it is
    matching(
        r"(?!-)[^\s'\"`$\\;&<>|(){}*?!#~]*",
        "one word that does not begin with a hyphen, without characters of a shell",
    ),
]
SshHost = Annotated[SshWord, AfterValidator(given)]
Service = Annotated[
    Text,
    matching(r"[A-Za-z0-9_][A-Za-z0-9:_.@-]*", "the name of a service"),
]
KernelOption = Annotated[
    Text,
    matching(
        r"CONFIG_[A-Za-z0-9_]+=(y|n|-?[0-9]+|0x[0-9a-fA-F]+|\"[^\"\\]*\")",
        "CONFIG_NAME= with y, n, a number or a quoted text (there are no modules)",
    ),
]
_GENTOO_PACKAGE = r"[A-Za-z0-9_][A-Za-z0-9+_.-]*/[A-Za-z0-9_][A-Za-z0-9+_-]*"
_USE_FLAG = r"-?[A-Za-z0-9][A-Za-z0-9+_@-]*"
UseFlag = Annotated[Text, matching(_USE_FLAG, "a USE flag, or one after a hyphen to switch it off")]
PackageUse = Annotated[
    Text,
    matching(rf"{_GENTOO_PACKAGE}( {_USE_FLAG})+", "a package and its USE flags, category/name …"),
]
PackageKeywords = Annotated[
    Text,
    matching(
        rf"{_GENTOO_PACKAGE}( (~?[a-z0-9-]+|~?\*|\*\*))+",
        "a package and the keywords to accept, category/name ~amd64 …",
    ),
]
_HOST = r"[A-Za-z0-9][A-Za-z0-9.-]*"


def distcc_host(text: str) -> str:
    """A distcc server: HOST, HOST:PORT, HOST/JOBS or HOST:PORT/JOBS (distcc(1))."""
    check = pattern(
        rf"{_HOST}(:[1-9][0-9]{{0,4}})?(/[1-9][0-9]{{0,2}})?",
        "a distcc server as HOST, HOST:PORT, HOST/JOBS or HOST:PORT/JOBS",
    )
    port = check(text).partition("/")[0].partition(":")[2]
    if int(port or 1) > 65535:
        raise ValueError(f"names port {port}, and there are 65535")
    return text


DistccHost = Annotated[Text, AfterValidator(distcc_host)]
RepositoryName = Annotated[
    Text,
    matching(
        r"(?!DEFAULT$)[A-Za-z0-9_][A-Za-z0-9_-]*",
        "the name of a Portage repository (letters, digits, _ -), not DEFAULT",
    ),
]
SystemId = Annotated[
    Text, matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", "how a Redfish service calls a system, such as 1")
]
KeyPin = Annotated[
    str,
    matching(r"(sha256//[A-Za-z0-9+/]{43}=)?", "sha256//… as curl(1) has it for --pinnedpubkey"),
]
SyncUri = Annotated[
    Text,
    matching(
        rf"((rsync|https)://{_HOST}(:[0-9]+)?|ssh://([a-z_][a-z0-9_-]*@)?{_HOST}(:[0-9]+)?|file://)"
        r"/[^\s%?@]+",
        "rsync://HOST/PATH or, for git, https://HOST/PATH, ssh://HOST/PATH or file:///PATH, "
        "with nothing secret in it",
    ),
]
PackageProxy = Annotated[
    Text,
    matching(
        rf"(http://{_HOST}(:[0-9]{{1,5}})?)?",
        "a proxy as http://HOST:PORT, with no login in it, or nothing",
    ),
]
PackageMirror = Annotated[
    Text,
    matching(
        rf"(https?://{_HOST}(:[0-9]{{1,5}})?(/[A-Za-z0-9._~+-]+)*/?)?",
        "a mirror as http://HOST/PATH or https://HOST/PATH, with no login in it, or nothing",
    ),
]
CompilerFlags = Annotated[
    Text,
    matching(r"[A-Za-z0-9 =+,._/-]*", "a compiler's flags (nothing to be quoted)"),
]
TargetPath = Annotated[Text, AfterValidator(target_path)]
DevicePath = Annotated[
    TargetPath,
    matching(
        r"/dev(/[A-Za-z0-9._:+@=,-]+)+",
        "the path of a disk, such as /dev/sda or one below /dev/disk/by-id",
    ),
]
OptionalDevice = Annotated[
    Text,
    matching(
        r"(/dev(/(?!\.\.?(/|$))[A-Za-z0-9._:+@=,-]+)+)?",
        "the path of a disk, such as /dev/sdb or one below /dev/disk/by-id, or nothing",
    ),
]
VolumeGroupName = Annotated[
    Text,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}",
        "the name of a volume group (letters, digits, . _ -)",
    ),
]
GuestDiskName = Annotated[
    Text, matching(r"xvd[b-z]", "a disk as a guest has it, such as xvdb; xvda are root and swap")
]
# What is exported is mounted, and stands in fstab(5), exports(5), units, and on the command line of
# a guest's kernel, which knows no way to write a blank.
MountPath = Annotated[
    TargetPath,
    matching(
        r"(/[A-Za-z0-9._+@-]+)+",
        "a path of letters, digits and . _ + @ - (it stands on kernels' command lines)",
    ),
]
SYSTEM_FOLDERS = (
    *("/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/mnt", "/opt"),
    *("/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var"),
)
"""The folders of a root, which what is mounted there would hide."""

MADE_AT_BOOT = ("/dev/", "/proc/", "/run/", "/sys/", "/tmp/")
"""Those below which nothing outlives a boot."""

NEEDED_TO_BOOT = ("/", "/*", "/bin", "/etc", "/lib", "/lib64", "/sbin", "/usr", "/var")
"""What a root without which boots nothing."""


def _apart(path: str) -> str:
    """A folder that the system itself has not, nor one below /dev, /proc, /run, /sys or /tmp."""
    if path in SYSTEM_FOLDERS:
        raise ValueError(f"must not be {path}, which the system itself has")
    if path.startswith(MADE_AT_BOOT):
        raise ValueError(f"must not be {path}: nothing there outlives a boot")
    return path


def _to_spare(path: str) -> str:
    """A path without which, or with an older one, a guest boots."""
    if path in NEEDED_TO_BOOT:
        raise ValueError(f"must not be {path}: no guest boots without the image's own")
    return path


SharePath = Annotated[MountPath, AfterValidator(_apart)]
SparePath = Annotated[TargetPath, AfterValidator(_to_spare)]
# Xen passes 1024 characters on to a kernel (MAX_GUEST_CMDLINE), of which chapters take some. What a
# shell, GRUB or the kernel's own reader would take for quoting is in no option that a boot needs.
CommandLine = Annotated[
    Text,
    matching(
        r"(?=.{0,700}$)([A-Za-z0-9._,:;=/@%+~^!*#\[\]-]+( +|$))*",
        "words of a command line (at most 700 characters, no quotes, none of $`\\|&<>())",
    ),
]


def _without(word: str, why: str) -> AfterValidator:
    """What makes a type of command lines on which xenlab alone says a word."""

    def check(text: str) -> str:
        for said in text.split():
            if said.partition("=")[0] == word:
                raise ValueError(f"must not have {cut(said)}: {why}")
        return text

    check.__doc__ = f"without {word}=: {why}"
    return AfterValidator(check)


XenOptions = Annotated[CommandLine, _without("dom0_mem", "say dom0_mem_mib")]
KernelWords = Annotated[CommandLine, _without("root", "xenlab names the root itself")]


def _each_once(options: list[str]) -> list[str]:
    """An option with one value, however often."""
    names = [option.partition("=")[0] for option in dict.fromkeys(options)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"must not give {cut(name)} two values")
    return options


KernelOptions = Annotated[list[KernelOption], AfterValidator(_each_once)]
OptionalPath = Annotated[Text, AfterValidator(optional_path)]
StagePath = Annotated[OptionalPath, AfterValidator(stage_of_release)]
StageChecksums = Annotated[OptionalPath, AfterValidator(checksums_of_stage)]
KernelSource = Annotated[OptionalPath, AfterValidator(source_of_release)]
KernelChecksums = Annotated[OptionalPath, AfterValidator(checksums_of_source)]
Fingerprint = Annotated[
    Text,
    matching(
        r"([0-9A-Fa-f] ?){39}[0-9A-Fa-f]|[0-9A-Fa-f]{64}",
        "the fingerprint of an OpenPGP key, all 40 (or 64) digits of it",
    ),
]
MacAddress = Annotated[Text, AfterValidator(mac_address)]
Uplink = Annotated[Text, AfterValidator(uplink)]
IpAddress = Annotated[Text, AfterValidator(ip_address)]
Gateway = Annotated[Text, AfterValidator(gateway)]
OptionalIpAddress = Annotated[Text, AfterValidator(optional_ip_address)]
IpWithPrefix = Annotated[Text, AfterValidator(ip_with_prefix)]
FurtherAddress = Annotated[Text, AfterValidator(further_address)]
Gateway6 = Annotated[Text, AfterValidator(gateway6)]
Mib = Annotated[int, Field(gt=0, le=1 << 33)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[int, Field(ge=10, le=3600)]

# Further keys of a guest's file.

XL_WRITTEN = dict.fromkeys(["disk", "kernel", "name", "on_crash", "on_poweroff", "on_reboot"], "")
XL_WRITTEN |= {
    "builder": "type",
    "cmdline": "domu_options",
    "extra": "domu_options",
    "maxmem": "maxmem_mib",
    "memory": "memory_mib",
    "ramdisk": "kernel",
    "root": "domu_options",
    "type": "type",
    "vcpus": "vcpus",
    "vif": "mac and bridge",
}
"""The keys of xl.cfg(5) that xenlab writes, each with what a site says instead."""


@cache
def xl_keys() -> frozenset[str]:
    """The keys that xl.cfg(5) documents (``xenlab/data/xl.cfg.keys``)."""
    text = files("xenlab").joinpath("data", "xl.cfg.keys").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))


def xl_options(options: object) -> object:
    """Keys of xl.cfg(5) that xenlab does not write, with texts of ASCII or numbers from 0 on."""
    if isinstance(options, dict):
        problems = [each for key, value in options.items() for each in _xl_problem(key, value)]
        if problems:
            raise ValueError("\n".join(problems))
    return options


def _xl_problem(key: object, value: object) -> Iterator[str]:
    if key in XL_WRITTEN:
        instead = XL_WRITTEN[str(key)]
        advice = f"; say {instead}" if instead else ""
        yield f"must not have {key}, which xenlab writes itself{advice}"
    elif key not in xl_keys():
        near = difflib.get_close_matches(str(key), sorted(xl_keys() - {*XL_WRITTEN}), n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        yield f"has {quoted(key)}, which is no key of xl.cfg(5){advice}"
    elif isinstance(value, bool):
        yield f"must have 1 or 0 as {key}, not {value}: xl knows neither true nor false"
    elif isinstance(value, int) and value < 0:
        yield f"must have the text {str(value)!r} as {key}: xl reads no number below 0"
    elif not (isinstance(value, int) or _plain(value)):
        wanted = "plain ASCII text, a whole number or a list of such texts"
        yield f"must have {wanted} as {key}, not {quoted(value)}"


def _plain(value: object) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(each, str) and re.fullmatch("[ -~]*", each) for each in texts)


XlOptions = Annotated[dict[str, str | int | list[str]], BeforeValidator(xl_options)]

PACKAGE_NAMES: dict[str, Check] = {
    "debian": pattern(
        r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.]",
        "the name of a Debian package (lower case letters, digits, + - .)",
    ),
    "gentoo": pattern(_GENTOO_PACKAGE, "a Gentoo package as category/name"),
}
