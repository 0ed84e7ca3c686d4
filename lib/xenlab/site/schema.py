"""What a site asks for: the schema of a parameters file, and refusals in one clear sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
    model_validator,
)

from xenlab.cache import DEFAULT_RELEASE, Release
from xenlab.errors import BadInput
from xenlab.site import loader
from xenlab.site.loader import format_validation_errors
from xenlab.site.references import BecomeBy, BecomePassword, Notified, SecretReference
from xenlab.site.rules import LOGINS, cross_field_errors
from xenlab.site.types import (
    BackupStamp,
    CompilerFlags,
    DevicePath,
    DistccHost,
    DnsDomain,
    DomainName,
    Fingerprint,
    FurtherAddress,
    Gateway,
    Gateway6,
    Given,
    GuestDiskName,
    HostName,
    Interface,
    IpAddress,
    IpWithPrefix,
    KernelChecksums,
    KernelOptions,
    KernelSource,
    KernelWords,
    KeyPin,
    LabName,
    MacAddress,
    MadeThing,
    Mib,
    MountPath,
    OptionalDevice,
    OptionalDomainName,
    OptionalInterface,
    OptionalIpAddress,
    OptionalPath,
    PackageKeywords,
    PackageMirror,
    PackageProxy,
    PackageUse,
    PartitionName,
    PlainName,
    Port,
    RepositoryName,
    Seconds,
    Service,
    SharePath,
    SparePath,
    SshHost,
    SshWord,
    StageChecksums,
    StagePath,
    SyncUri,
    SystemId,
    TargetPath,
    Text,
    Uplink,
    UseFlag,
    VolumeGroupName,
    XenOptions,
    XlOptions,
)

MOST_PROBLEMS = 20
"""How many problems of a file are listed."""

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class Ssh(BaseModel):
    """How to reach the machine. What is empty (port: 0) comes from ssh_config or is the default."""

    model_config = _STRICT

    host: SshHost
    config: OptionalPath = ""
    port: Port = Field(0, description="the port of its sshd", examples=[2222])
    user: SshWord = Field(
        "", description="who logs in: root, or one who becomes root", examples=["root"]
    )
    identity: OptionalPath = Field(
        "", description="the private key to log in with", examples=["~/.ssh/id_ed25519"]
    )
    known_hosts: OptionalPath = Field(
        "", description="where its host key is pinned", examples=["~/.ssh/known_hosts"]
    )
    rescue_address: OptionalIpAddress = Field(
        "",
        description="where the rescue system answers, if it has another address than `host`",
        examples=["192.0.2.200"],
    )
    patience_seconds: int = Field(
        180, ge=0, le=86400, description="how long a machine that does not answer is waited for"
    )
    become: BecomeBy = ""
    become_password: BecomePassword = None


class GuestSsh(BaseModel):
    """What differs for the guests. What is empty (port: 0) is as for dom0."""

    model_config = _STRICT

    port: Port = Field(0, description="the port of its sshd", examples=[22])
    user: SshWord = Field(
        "", description="who logs in, and is or becomes root there", examples=["root"]
    )
    identity: OptionalPath = Field(
        "", description="the private key to log in with", examples=["~/.ssh/castle"]
    )
    become: BecomeBy = ""
    become_password: BecomePassword = None


class Dom0Ssh(GuestSsh):
    """What differs once the machine runs from its disk. What is empty (port: 0) is as in `ssh`."""

    host: SshWord = Field("", description="its name, address or alias", examples=["192.0.2.10"])


class GuestDisk(BaseModel):
    """A further disk of a guest: a block device or an image file of dom0, which stays as it is."""

    model_config = _STRICT

    path: TargetPath = Field(
        description="where dom0 has it", examples=["/dev/disk/by-id/ata-EXAMPLE_4TB_0001"]
    )
    name: GuestDiskName = Field(description="what the guest calls it", examples=["xvdb"])
    readonly: bool = Field(False, description="whether the guest may not write to it")


class GuestNic(BaseModel):
    """A further network interface of a guest; what it is for the guest's own files say."""

    model_config = _STRICT

    mac: MacAddress = Field(description="its address", examples=["00:16:3e:00:01:01"])
    bridge: OptionalInterface = Field(
        "", description="which bridge of dom0 it is a port of, if not `bridge`", examples=["xenbr2"]
    )


class Domain(BaseModel):
    """One guest: its memory in MiB, and the partition (named as the guest) that is its root."""

    model_config = _STRICT

    name: DomainName = Field(description="what the domain and its host are called")
    memory_mib: Mib = Field(description="its memory")
    mac: MacAddress = Field(description="the address of its interface on dom0's bridge")
    address: IpWithPrefix = Field(description="its address in the network of dom0")
    formerly: OptionalDomainName = Field(
        "",
        description="what it was called when it was made: the same guest under a new name, as long "
        "as this stays here",
        examples=["mail"],
    )
    like: OptionalDomainName = Field(
        "",
        description="the guest that its root is a copy of, once, where it is not made from the "
        "image; that one has to be down for it",
        examples=["mail"],
    )
    keep: list[SparePath] = Field(
        [],
        description="files and folders of its root that stay when it is made anew from the image",
        examples=[["/home", "/srv"]],
    )
    partition: PartitionName = Field(
        default_factory=lambda data: str(data.get("formerly") or data["name"]),
        validate_default=True,
        description="the partition that is its root",
        examples=["web"],
    )
    vcpus: int = Field(
        1, ge=1, le=64, description="its processors, at most as many as the machine has"
    )
    maxmem_mib: Mib = Field(
        default_factory=lambda data: int(data["memory_mib"]),
        validate_default=True,
        description="up to which memory `xl mem-set` may let it grow while it runs",
        examples=[4096],
    )
    type: Literal["", "auto", "pv", "pvh"] = Field(
        "", description="how it is virtualised, if not as `guest_type` says", examples=["pvh"]
    )
    extra: XlOptions = Field(
        {},
        description="further keys of its file, as xl.cfg(5) explains them",
        examples=[{"cpu_weight": 512, "cpus": ["1", "2-3"]}],
    )
    disks: list[GuestDisk] = Field(
        [],
        description="further disks, which dom0 has",
        examples=[[{"path": "/dev/disk/by-id/ata-EXAMPLE_4TB_0001", "name": "xvdb"}]],
    )
    nics: list[GuestNic] = Field(
        [],
        description="further network interfaces",
        examples=[[{"mac": "00:16:3e:00:01:01", "bridge": "xenbr2"}]],
    )

    @property
    def record(self) -> str:
        """What dom0's records of it are called, and its swap space: as it was made."""
        return self.formerly or self.name


class LanGuest(BaseModel):
    """A guest's second interface, in the internal LAN."""

    model_config = _STRICT

    name: DomainName = Field(description="which guest")
    mac: MacAddress = Field(description="the address of this interface")
    address: IpWithPrefix = Field(description="the guest's address in the internal LAN")


class Portage(BaseModel):
    """How a site with Portage builds its packages: the same in every domain (make.conf(5))."""

    model_config = _STRICT

    cflags: CompilerFlags = "-O2 -pipe"
    use: list[UseFlag] = Field([], examples=[["-X", "-gtk"]])
    package_use: list[PackageUse] = Field([], examples=[["sys-apps/less pcre"]])
    accept_keywords: list[PackageKeywords] = Field([], examples=[["app-emulation/xen ~amd64"]])
    distcc: list[DistccHost] = Field([], examples=[["192.0.2.10/8"]])
    sync: dict[RepositoryName, SyncUri] = Field(
        {}, examples=[{"gentoo": "rsync://mirror.example.org/gentoo-portage"}]
    )


class GuestExport(BaseModel):
    """A folder that a guest exports itself, over NFS, to the internal LAN."""

    model_config = _STRICT

    name: DomainName = Field(description="which guest")
    path: MountPath = Field(description="the folder that it exports")


class Backups(BaseModel):
    """The guests that chapter 18 saves, where in dom0, and for how long."""

    model_config = _STRICT

    guests: list[DomainName] = Field([], examples=[["mail"]])
    folder: TargetPath = "/var/lib/xenlab/backups"
    keep: int = Field(3, ge=1, le=1000)
    max_age_days: int = Field(7, ge=1, le=1000)
    restore: dict[DomainName, BackupStamp] = Field({}, examples=[{"mail": "20260301T020000Z"}])


class RedfishService(BaseModel):
    """The machine's management controller, where it speaks Redfish: what is no secret of it."""

    model_config = _STRICT

    system: SystemId = "1"
    boot: Literal["pxe", "cdrom", "usb", "http"] = "pxe"
    ca: OptionalPath = Field("", examples=["~/.config/castle/bmc.pem"])
    pin: KeyPin = Field("", examples=["sha256//r/mIkG3eEpVdm+u/ko/cwxzOMo1bk4TyHIlByibiA5E="])
    plain: bool = False


class Bond(BaseModel):
    """Several network cards as one uplink: the machine stays reachable when one of them fails."""

    model_config = _STRICT

    members: list[Uplink] = Field([], examples=[["52:54:00:12:34:57"]])
    mode: Literal["active-backup", "802.3ad", "balance-xor"] = "active-backup"


class Parameters(BaseModel):
    """A site as ``parameters/lab.yaml`` explains it key by key.

    What is one site's own has no default: a file must state it. A chapter knows only what its
    parameters cell declares (`part`); the use of anything else raises BadInput, which names it.
    Sizes are MiB. Paths and names keep the form in which they were written (``~`` included).
    """

    model_config = _STRICT

    site: PlainName
    ssh: Ssh
    dom0_ssh: Dom0Ssh = Field(Dom0Ssh(), examples=[{"port": 2222}])
    guest_ssh: GuestSsh = Field(GuestSsh(), examples=[{"user": "root"}])
    secrets: list[SecretReference] = Field(
        [], examples=[[{"env": "MIRROR_LOGIN"}, {"file": "~/.config/castle/vault"}]]
    )
    notify: list[Notified] = Field(
        [], examples=[[{"env": "CASTLE_NOTIFY"}, {"mail": "admin@example.org"}]]
    )
    platform: Literal["debian", "gentoo", "gentoo-2006"]
    power: Literal["lab", "ipmi", "redfish", "manual"] = "manual"
    lab: LabName = "lab"
    ipmi_boot: Literal["pxe", "cdrom", "usb"] = "pxe"
    ipmi_efiboot: bool = False
    redfish: RedfishService = RedfishService()
    firmware: Literal["bios", "uefi"] = "bios"

    disk: DevicePath
    mirror: OptionalDevice = Field("", examples=["/dev/disk/by-id/nvme-EXAMPLE_1TB_S4X0NE0009"])
    may_wipe: list[Given] = []
    may_destroy: list[MadeThing] = Field(
        [], examples=[["domu1 2f0c1b9e-0d7e-4a3b-9f51-3f6f2f3c7a10"]]
    )
    boot_mib: Mib
    dom0_swap_mib: Mib
    dom0_root_mib: Mib
    share_mib: Mib
    guest_disks: Literal["partition", "file", "lvm"] = "partition"
    volume_group: VolumeGroupName = "xenlab"
    domu_root_mib: Mib
    domu_swap_mib: Mib

    release: Release = DEFAULT_RELEASE
    stage: StagePath = Field("", validate_default=True, examples=["~/stage3-amd64-openrc.tar.xz"])
    stage_checksums: StageChecksums = Field(
        "", validate_default=True, examples=["~/stage3-amd64-openrc.tar.xz.sha256"]
    )
    share: SharePath = "/mnt/share"
    package_proxy: PackageProxy = ""
    apt_mirror: PackageMirror = Field("", examples=["http://mirror.example.org/debian"])
    apt_security_mirror: PackageMirror = Field(
        "", examples=["http://mirror.example.org/debian-security"]
    )
    apt_folder: OptionalPath = Field("", examples=["~/castle-packages"])
    portage: Portage = Portage()

    kernel: Literal["build", "distribution"] = "build"
    kernel_source: KernelSource = Field("", validate_default=True, examples=["~/linux-6.12.tar.xz"])
    kernel_checksums: KernelChecksums = Field(
        "", validate_default=True, examples=["~/linux-6.12.tar.xz.sha256"]
    )
    checksum_keyring: OptionalPath = Field("", examples=["~/gentoo-release.gpg"])
    checksum_signers: list[Fingerprint] = Field(
        [], examples=[["13EBBDBEDE7A12775DFDB1BABB572E0E2D182910"]]
    )
    build_on: Literal["controller", "target"] = "controller"
    screen: bool = False
    kernel_options: KernelOptions = Field([], examples=[["CONFIG_E1000E=y"]])

    dom0_mem_mib: Mib
    xen_options: XenOptions = ""
    dom0_options: KernelWords = ""

    hostname: HostName
    domain: DnsDomain
    software: list[Text]
    services: list[Service]
    unwanted: list[Text] = Field([], examples=[["exim4-daemon-light"]])

    imaging: Literal["bind", "rescue"] = "bind"
    image: TargetPath = "/mnt/share/images/base.tar.zst"
    image_from: OptionalPath = Field("", examples=["~/castle1/base.tar.zst"])
    image_exclude: list[SparePath] = Field([], examples=[["/usr/lib/gcc"]])

    uplink: Uplink
    uplink_bond: Bond = Bond()
    uplink_vlan: int = Field(0, ge=0, le=4094)
    bridge: Interface = "xenbr0"
    dom0_ip_on_bridge: bool = False
    address: IpWithPrefix
    gateway: Gateway
    addresses: list[FurtherAddress] = Field([], examples=[["192.0.2.12/24", "2001:db8::10/64"]])
    gateway6: Gateway6 = Field("", examples=["fe80::1"])
    nameserver: IpAddress
    rollback_seconds: Seconds = 120

    guest_type: Literal["auto", "pv", "pvh"] = "auto"
    domu_options: KernelWords = ""
    domains: list[Domain] = Field(min_length=1)
    restart: list[DomainName] = Field([], examples=[["domu1"]])
    updates: list[DomainName] = Field([], examples=[["dom0", "domu1"]])

    backups: Backups = Backups()

    # What a site selects: nothing, where it does not say.
    autostart: list[DomainName] = []
    # Names and a network of dom0's own: they leave the machine nowhere.
    lan_bridge: Interface = "xenbr1"
    lan_interface: Interface = "veth1"
    lan_address: IpWithPrefix = "10.66.0.1/24"
    lan_guests: list[LanGuest] = []
    shared_packages: list[Text] = []
    shared_usr: list[DomainName] = []
    guest_exports: list[GuestExport] = []

    @model_validator(mode="after")
    def _holds_together(self) -> Parameters:
        problems = cross_field_errors(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def knows(self, *names: str) -> bool:
        """Whether all these parameters have a value here; a chapter has those it declares."""
        return self.__dict__.keys() >= set(names)

    _numbers: dict[str, int] = PrivateAttr(default_factory=dict)

    @property
    def numbers(self) -> dict[str, int]:
        """The numbers that the partitions have on the disk, by name; of a new one, none."""
        return self._numbers

    _mirror_numbers: dict[str, int] = PrivateAttr(default_factory=dict)

    @property
    def mirror_numbers(self) -> dict[str, int]:
        """The same on the second disk."""
        return self._mirror_numbers

    def numbered(self, numbers: Mapping[str, int], second: Mapping[str, int] = {}) -> Parameters:
        """The same site on a disk, and a second one, whose partitions have these numbers."""
        site = self.model_copy()
        site._numbers, site._mirror_numbers = dict(numbers), dict(second)
        return site

    @property
    def masked(self) -> tuple[SecretReference, ...]:
        """Where all secrets are found that the site names, passwords and URLs included."""
        logins = (getattr(self, key) for key in LOGINS if self.knows(key))
        passwords = (login.become_password for login in logins)
        told = self.notify if self.knows("notify") else ()
        urls = (each for each in told if each.env or each.file)
        return (*self.secrets, *(each for each in passwords if each), *urls)

    if not TYPE_CHECKING:  # mypy would take any misspelt attribute for one of these

        def __getattr__(self, name: str) -> object:
            """Called for what has no value: refuse a parameter that a chapter does not declare."""
            if name not in type(self).model_fields:
                return super().__getattr__(name)
            raise BadInput(
                f"cannot use the parameter {name}: because this chapter does not declare it",
                hint=f"add {name} to the chapter's parameters cell",
            )


def part(
    values: Mapping[str, object], source: str, names: Iterable[str] | None = None
) -> Parameters:
    """A site of which only these parameters are known; the rules that compare others wait.

    ``names`` says which, those of ``values`` otherwise: what has no value is the schema's default.
    Raises BadInput.
    """
    known = Parameters.model_fields
    wanted = [name for name in known if name in (values if names is None else {*values, *names})]
    fields: dict[str, Any] = {name: (known[name].annotation, known[name]) for name in wanted}
    model: type[BaseModel] = create_model("Part", __config__=_STRICT, **fields)
    try:
        given = model.model_validate(dict(values))
    except ValidationError as error:
        raise _refused(format_validation_errors(error, Parameters, {}), source) from None
    site = Parameters.model_construct(given.model_fields_set, **dict(given))
    for name in known.keys() - fields:
        # model_construct gives it the default, which is not what the site says
        site.__dict__.pop(name, None)
    problems = cross_field_errors(site)
    if problems:
        raise _refused(problems, source)
    return site


def validate(
    values: Mapping[str, object],
    source: str,
    origins: Mapping[loader.Place, loader.Origin] | None = None,
) -> Parameters:
    """The parameters that a mapping holds.

    Raises BadInput with a sentence for each problem; ``origins`` adds the line to it.
    """
    try:
        return Parameters.model_validate(dict(values))
    except ValidationError as error:
        raise _refused(format_validation_errors(error, Parameters, origins or {}), source) from None


def _refused(problems: Sequence[str], source: str) -> BadInput:
    text = problems[0]
    if len(problems) > 1:
        head = f"{len(problems)} parameters cannot be accepted:"
        rest = ["…"] if len(problems) > MOST_PROBLEMS else []
        text = "\n  ".join([head, *problems[:MOST_PROBLEMS], *rest])
    return BadInput(text, where=source)


def load(path: str | Path, overrides: Mapping[str, object] | None = None) -> Parameters:
    """The parameters of a YAML file, some replaced by ``overrides``; raises BadInput."""
    file = loader.read(Path(path))
    changed = dict(overrides or {})
    origins = {at: origin for at, origin in file.origins.items() if at and at[0] not in changed}
    return validate(file.values | changed, str(path), origins)


def from_notebook(
    namespace: Mapping[str, object], source: str = "this notebook's parameters"
) -> Parameters:
    """The parameters among a notebook's variables; all others have no value (`part`).

    A site's file that papermill was given is that whole site: what it leaves out is the schema's
    default, never what the cell says of the lab. Variables of the person's own are ignored, unless
    one looks like a misspelt parameter. Where the executed cells are known, only what the
    parameters cell declares is a parameter. Raises BadInput, also where another cell has changed
    the value since.
    """
    known = Parameters.model_fields
    cells: Any = namespace.get("In", ())
    said = loader.said_by_cells(cells)
    names = [name for name in known if name in namespace and (not said or name in said)]
    loader.refuse_changed({name: namespace[name] for name in names}, said, source)
    injected = loader.injected(cells)
    given = [name for name in names if name in injected] if "site" in injected else names
    values = {name: namespace[name] for name in given}
    for name, value in namespace.items():
        if name in known or name.startswith("_") or (said and name not in said):
            continue
        if isinstance(value, str | int | float | bool | list | dict):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if near:
                values[name] = value
    return part(values, source, names)


def for_chapter(site: Parameters, names: Iterable[str]) -> dict[str, Any]:
    """The parameters of these names as plain YAML types: what a chapter is given."""
    everything = site.model_dump(mode="json")
    return {name: everything[name] for name in names}
