"""Image: a tar archive of a root file system that any machine can be made from.

Howto: „Imaging“; tar(1), file capabilities in capabilities(7).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from xenlab.command import CONTROLLER, SAID, Command
from xenlab.errors import BadInput, CommandFailed, StepFailed
from xenlab.host import RECEIVE, Host, size_and_digest
from xenlab.resources.archive import RECORD, has_checksum, read_checksum, require_checksum, send
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.files import packaged

TAKE_SECONDS = 3600.0
"""Deadline of taking or reading an image, in seconds: an emulated host packs 10 MB a second."""

_LOGIN = r"""://([^/"<>[:space:]]*:[^/"<>[:space:]]+|[^/:@"<>[:space:]]{16,})@"""
"""A login in a URL, for grep -E and sed -E: a user alone where it is as long as a token."""

_CAPABILITY = "security.capability"
_REASONS = {
    46: (
        "it would lie on the very file system it is taken of: the share is not mounted",
        "mount the share (chapter 01)",
    ),
    47: (
        "a folder of the root is a file system of its own and would be missing in it",
        "move what is in that folder to the root's own file system",
    ),
    48: (f"tar failed: {SAID}", "free space on the share, then run the step again"),
}


@dataclass(frozen=True)
class Image(Resource):
    """An archive of a root file system; ``.sha256`` (sha256sum format) and ``.info`` beside it.

    ``base`` names what was asked of the root, and the root itself says by its checksum which stage
    it was unpacked from; an image of another base or stage is taken anew. What becomes of the
    machine afterwards does not matter: the image is what it was.
    ``device`` empty: the running root ``source`` is archived through a bind mount. ``without``:
    further paths that are left out, with the wildcards of tar(1).
    """

    path: str
    base: str
    source: str = "/"
    device: str = ""
    without: tuple[str, ...] = ()

    def probe(self, host: Host) -> Difference | None:
        """Whether a finished image is there: its record, its checksum and its size agree.

        The image is read whole only where somebody has touched it since (its time differs).
        """
        reason = self._missing(self._seen(host))
        return Difference(f"take the image {self.path}: {reason}") if reason else None

    def _seen(self, host: Host) -> dict[str, str]:
        """What the record says, and what is there now; of an unfinished image the stage alone."""
        script = """
            sed 's/^/stage_now=/' "${2%/}/$3" 2> /dev/null || :
            cat -- "$1.info" 2> /dev/null || exit 44
            cut -c 1-64 < "$1.sha256" | sed 's/^/listed=/'
            stat --printf 'bytes_now=%s\\nmodified_now=%.9Y\\n' -- "$1"
            modified=$(stat -c %.9Y -- "$1")
            grep -qx "modified=$modified" "$1.info" && exit 0
            sha256sum < "$1" | cut -c 1-64 | sed 's/^/sha256_now=/'
        """
        command = Command.script(script, self.path, self.source, RECORD)
        result = host.run(command, check=False, timeout=TAKE_SECONDS)
        seen = parse_record(result.stdout)
        return seen if result.ok else {"stage_now": seen.get("stage_now", "")}

    def commands(self) -> tuple[Command, ...]:
        """Mount the root where nothing is mounted over it, archive it, write the checksum."""
        what = "-o ro {device}" if self.device else "--bind {source}"
        wanted = (line for line in self._left_out().splitlines() if line and line[0] != "#")
        leave_out = "".join(f"{line}\n" for line in wanted)
        text = f"""
            rm -rf /run/own
            mkdir -p /run/image /run/own/etc /run/own/dev {{folder}}
            mount {what} /run/image
            cd /run/image
            find ./var/log -xdev ! -type d >> /run/leave-out
            grep -rlsI -e '-----BEGIN [A-Z ]*PRIVATE KEY' \\
                ./etc ./home ./opt ./root ./srv ./usr/local ./var/lib >> /run/leave-out || :
            # a file with a login in a URL is replaced by a copy without it
            grep -rlsIE {{login}} ./etc > /run/names || :
            tar -cf - --anchored -X /run/leave-out -T /run/names | tar -xpf - -C /run/own
            find /run/own/etc -type f -exec sed -Ei s#{{login}}#://#g {{}} +
            cat /run/names >> /run/leave-out
            # what every machine has with content of its own, and accounts with nobody's password
            : > /run/own/etc/machine-id
            printf '127.0.0.1\\tlocalhost\\n::1\\tlocalhost\\n' > /run/own/etc/hosts
            for file in passwd group shadow gshadow; do
                cp -p etc/$file /run/own/etc
                awk -F: -v OFS=: '$2 != "x" {{ $2 = $2 ~ /^!/ ? "!" : "*" }} {{ print }}' \\
                    etc/$file > /run/own/etc/$file
            done
            [ -c dev/console ] || mknod -m 600 /run/own/dev/console c 5 1
            [ -c dev/null ] || mknod -m 666 /run/own/dev/null c 1 3
            (cd /run/own && find etc dev ! -type d) > /run/names
            # status 1 says that a file changed while it was read
            tar -cf {{path}} -I 'zstd -1 -T0' --format=posix --one-file-system --sparse \\
                --numeric-owner --acls --xattrs --xattrs-include='*' \\
                --transform='flags=rSH;s,^\\(etc\\|dev\\)/,./\\1/,' \\
                --anchored --exclude-from /run/leave-out . \\
                -C /run/own --verbatim-files-from -T /run/names || [ $? = 1 ]
            cd /
            umount /run/image
            sha256sum {{path}} > {{path}}.sha256
        """
        values = {"device": self.device, "source": self.source, "path": self.path}
        values |= {"folder": self.path.rpartition("/")[0], "login": _LOGIN}
        return Command.file("/run/leave-out", leave_out), Command.sh(text, **values)

    def recorded(self) -> tuple[Command, ...]:
        """What it was made of, its checksum, its size and time."""
        text = """
            {
                printf 'base=%s\\nstage=%s\\n' {base} "$(cat {stage} 2> /dev/null)"
                sed -n 's/^\\([0-9a-f]*\\) .*/sha256=\\1/p' {path}.sha256
                stat --printf 'bytes=%s\\nmodified=%.9Y\\n' {path}
            } > {path}.info
        """
        stage = f"{self.source.rstrip('/')}/{RECORD}"
        return (Command.sh(text, base=self.base, stage=stage, path=self.path),)

    def apply(self, host: Host, report: Report) -> None:
        """Archive the root and write checksum and record; raises StepFailed with the reason."""
        report(f"packing {self.device or self.source}")
        way, source = ("device", self.device) if self.device else ("bind", self.source)
        patterns = self._left_out().encode()
        command = Command.script(
            'exec unshare --mount --propagation private -- /bin/sh -c "$@"',
            RECEIVE + packaged("templates", "take-image.sh"),
            "take-image",
            self.path,
            way,
            source,
            self.base,
            *size_and_digest(patterns),
            RECORD,
            _LOGIN,
        )
        what = f"cannot take the image {self.path}: because "
        refusals = {status: (what + why, hint) for status, (why, hint) in _REASONS.items()}
        command = command.refusing(refusals).given(patterns).within(TAKE_SECONDS)
        host.change(command)

    def _left_out(self) -> str:
        """The patterns of what is left out, for tar's --exclude-from but for the comments."""
        return packaged("templates", "leave-out.txt") + "".join(f".{p}\n" for p in self.without)

    def _missing(self, record: Mapping[str, str]) -> str:
        if "base" not in record:
            return "there is none"
        if record.get("base") != self.base:
            return "the one there was taken of another base"
        if record.get("stage", "") != record.get("stage_now", ""):
            return "the one there was taken of another stage"
        if record.get("sha256") != record.get("listed"):
            return "its checksum file belongs to another one"
        if record.get("bytes") != record.get("bytes_now"):
            return "it has not the recorded size"
        if record.get("sha256_now", record["sha256"]) != record["sha256"]:
            return "it has not the recorded checksum"
        return ""


_KEPT = ("base", "stage", "way", "sha256", "packages", "taken")
"""What the record of an image that was brought says as the one where it was taken."""


@dataclass(frozen=True)
class GivenImage(Image):
    """An image that was taken of another root of this base and stage, and is brought here.

    ``local`` is that file on the controller; its checksum and record lie beside it.
    """

    local: str = field(kw_only=True)

    def probe(self, host: Host) -> Difference | None:
        """As for one that is taken; raises BadInput if the controller's is not what is wanted."""
        seen = self._seen(host)
        reason = self._missing(seen)
        if not reason:
            return None
        record = self._offered()
        for key, wanted in ("base", self.base), ("stage", seen.get("stage_now", "")):
            # a root that is still to be made has no stage
            if wanted not in ("", record.get(key)):
                raise BadInput(
                    f"cannot take {self._local()}: because it was taken of another {key}",
                    hint="name an image of a machine with this stage, software, services and "
                    "image_exclude in image_from, or leave that out",
                )
        require_checksum(self._local(), record["sha256"])
        return Difference(f"bring the image {self.path}: {reason}")

    def commands(self) -> tuple[Command, ...]:
        """Copy it from this machine, compare its checksum."""
        copy = Command.sh("scp {local} dom0:{path}", local=self._local(), path=self.path)
        line = f"{self._offered()['sha256']}  {self.path}"
        check = Command.sh("echo {line} | sha256sum --check", line=line)
        folder = Command.argv("mkdir", "-p", self.path.rpartition("/")[0])
        return folder, copy.at(CONTROLLER), check

    def recorded(self) -> tuple[Command, ...]:
        """Its checksum, and last its record, with its size and time here."""
        record = self._offered()
        listed = f"{record['sha256']}  {PurePosixPath(self.path).name}\n"
        lines = "".join(f"{key}={record[key]}\n" for key in _KEPT if key in record)
        here = "stat --printf 'bytes=%s\\nmodified=%.9Y\\n' {path} >> {path}.info"
        return (
            Command.file(f"{self.path}.sha256", listed),
            Command.file(f"{self.path}.info", lines),
            Command.sh(here, path=self.path),
        )

    def apply(self, host: Host, report: Report) -> None:
        """Upload it, compare its checksum there, write the record last; raises StepFailed."""
        record = self._offered()
        require_checksum(self._local(), record["sha256"])
        script = """
            mkdir -p -- "${1%/*}"
            [ "$(stat -c %d -- "${1%/*}")" != "$(stat -c %d -- "$2")" ] || exit 46
            rm -f -- "$1.info"
        """
        what = f"cannot bring the image {self.path}: because "
        why, hint = _REASONS[46]
        begin = Command.script(script, self.path, self.source)
        host.change(begin.refusing({46: (what + why, hint)}))
        send(host, self._local(), self.path, report)
        report("checking the image")
        if not has_checksum(host, self.path, record["sha256"]):
            raise StepFailed(f"{what}it has a wrong checksum there", hint=_REASONS[48][1])
        for command in self.recorded():
            host.change(command)

    def _offered(self) -> dict[str, str]:
        """The record beside the controller's file; raises BadInput where that is of another one."""
        path = self._local()
        try:
            record = parse_record(Path(f"{path}.info").read_text(errors="replace"))
        except OSError as error:
            raise BadInput(
                f"cannot read the record {path}.info: because {error.strerror}",
                hint="copy it from where the image was taken, or leave image_from out",
            ) from None
        if record.get("sha256") != read_checksum(f"{path}.sha256", self.local):
            raise BadInput(
                f"cannot take {path}: because its record belongs to another one",
                hint="copy .sha256 and .info from where the image was taken",
            )
        return record

    def _local(self) -> Path:
        return Path(self.local).expanduser()


def parse_record(text: str) -> dict[str, str]:
    """Lines of ``key=value`` as a dict; other lines are passed over."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value for key, sign, value in pairs if sign}


@dataclass(frozen=True)
class Member:
    """One entry of an archive: type and permissions as ls(1) writes them, name, xattrs."""

    mode: str
    size: str
    name: str
    xattrs: tuple[str, ...] = ()


_LINE = re.compile(
    r"(?P<mode>[-a-zA-Z]{10})[.+* ]? +\S+/\S+ +(?P<size>\d+(?:,\d+)?) +"
    r"\d{4}-\d\d-\d\d \d\d:\d\d (?P<name>.*)"
)


def parse_listing(text: str) -> list[Member]:
    """The members in the output of ``tar --list --verbose --verbose --xattrs``.

    A name is as tar escapes it; what a link points at is cut off.
    """
    members: list[Member] = []
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found:
            name, mode = found["name"], found["mode"]
            if mode[0] in "lh":
                name = re.split(r" -> | link to ", name, maxsplit=1)[0]
            members.append(Member(mode, found["size"], name))
        elif members and line.startswith("  x:"):
            last = members[-1]
            members[-1] = replace(last, xattrs=(*last.xattrs, line.split(maxsplit=2)[2]))
    return members


_UNPROVEN = {
    44: "there is no image with its checksum beside it",
    45: "there is no proof of it that holds",
    46: "it is another one than was proven",
}


# The archive is unpacked once, and read twice: what it lists, and what in its /etc is secret. Its
# checksum and the capabilities are read beside that.
_READ = """
    export LC_ALL=C
    echo "digest:"
    cut -c 1-64 < "$1.sha256" | sed 's/^/sha256=/'
    scratch=$(mktemp -d)
    trap 'rm -rf -- "$scratch"' EXIT
    mkfifo -- "$scratch/again"
    tar --extract --directory "$scratch" --file "$scratch/again" ./etc & unpacking=$!
    (cd -- "${1%/*}" && sha256sum --check --status -- "${1##*/}.sha256") & checking=$!
    cd -- "$2"
    find . -xdev -type f -print0 | xargs -0 -r getcap -- > "$scratch/capabilities" & asking=$!
    echo "archive:"
    zstd -qdc -- "$1" | tee -- "$scratch/again" \\
        | tar --list --verbose --verbose --xattrs --xattrs-include='*' --numeric-owner \\
            --quoting-style=escape --file - || damaged=yes
    wait "$unpacking" || damaged=yes
    wait "$asking" || exit 45
    wait "$checking" || exit 44
    [ -z "${damaged:-}" ]
    cd -- "$scratch"
    echo "accounts:"
    cat etc/passwd etc/group etc/shadow etc/gshadow 2> /dev/null \\
        | awk -F: '/^[^+-]/ && $2 !~ /^[x*!]+$/ { print $1 }'
    echo "logins:"
    grep -rlsIE -e "$3" ./etc || :
    echo "capabilities:"
    cat capabilities
"""


@dataclass(frozen=True)
class ImageProof(Resource):
    """Proof that an image holds what a root needs, and nothing that belongs to one machine.

    The proof is kept beside the image (``.proof``) and names the image's checksum: a proof of
    another image is none. ``source`` is where the image was taken of; its file capabilities are
    compared with those in the archive.
    """

    image: str
    source: str = "/"
    empty: tuple[str, ...] = ("./proc/", "./sys/", "./run/")

    def probe(self, host: Host) -> Difference | None:
        """Whether the image that is there, and no other, was proven.

        It is read whole only where it is not as its record says (its time differs).
        """
        script = """
            [ -s "$1" ] && read -r digest rest 2> /dev/null < "$1.sha256" || exit 44
            grep -qsx "sha256=$digest" "$1.proof" || exit 45
            grep -qsx "sha256=$digest" "$1.info" \\
                && grep -qx "modified=$(stat -c %.9Y -- "$1")" "$1.info" \\
                || [ "$(sha256sum < "$1")" = "$digest  -" ] || exit 46
        """
        command = Command.script(script, self.image)
        result = host.run(command, check=False, timeout=TAKE_SECONDS)
        if result.ok:
            return None
        reason = _UNPROVEN.get(result.status, "nobody can say yet what is in it")
        return Difference(f"prove what is in {self.image}: {reason}")

    def commands(self) -> tuple[Command, ...]:
        """Compare the checksum, list what is in it, and with which capabilities."""
        text = """
            sha256sum --check {image}.sha256
            tar -I zstd --xattrs --xattrs-include='*' -tvvf {image}
        """
        command = Command.sh(text, image=self.image)
        return (command.scripted_as("sha256sum --check {image}.sha256", image=self.image),)

    def recorded(self) -> tuple[Command, ...]:
        """The checksum of the image that was proven."""
        text = "sed -n 's/^\\([0-9a-f]*\\) .*/sha256=\\1/p' {image}.sha256 > {image}.proof"
        return (Command.sh(text, image=self.image),)

    def apply(self, host: Host, report: Report) -> None:
        """Check the checksum, read the whole archive, compare; raises StepFailed if it fails."""
        report("reading the image")
        command = Command.script(_READ, self.image, self.source, _LOGIN)
        result = replace(host, quiet=True).run(command, check=False, timeout=TAKE_SECONDS)
        if result.status == 44:
            raise StepFailed(
                f"cannot prove {self.image}: because it does not match its checksum file",
                hint="remove it, then run chapter 06_imaging",
            )
        if result.status == 45:
            raise StepFailed(
                f"cannot prove {self.image}: because getcap does not run on this machine",
                hint="install libcap2-bin",
            )
        if not result.ok:
            raise CommandFailed(replace(result, out=result.out[-2000:]))
        parts = re.split(r"^\w+:\n", result.stdout, maxsplit=5, flags=re.MULTILINE)
        _, digest, listing, accounts, logins, capabilities = parts
        members = parse_listing(listing)
        files = [re.split(r" (?=cap_|=)", line)[0] for line in capabilities.splitlines()]
        rows = statements(members, files, self.empty)
        for statement, found in ("nobody's password", accounts), ("no login in a URL", logins):
            rows.append(_row(statement, not found, found.replace("\n", " ") or "none"))
        wrong = [row for row in rows if row["holds"] != "yes"]
        if wrong:
            what = "; ".join(f"{row['statement']}: {row['seen']}" for row in wrong)
            raise StepFailed(
                f"cannot prove {self.image}: because it is no generic image: {what}",
                hint="name what is not to be in it in image_exclude, and have it taken anew",
            )
        self._round_trip(host)
        rows.append(_row("file capabilities survive packing and unpacking", True, "tried"))
        text = digest + "".join(f"{row['statement']}\t{row['seen']}\n" for row in rows)
        host.write(f"{self.image}.proof", text)

    def _round_trip(self, host: Host) -> None:
        script = """
            umask 077
            scratch=$(mktemp -d -- "$1/var/tmp/xenlab-proof-XXXXXX")
            trap 'rm -rf -- "$scratch"' EXIT
            mkdir "$scratch/in" "$scratch/out"
            cp -- /bin/true "$scratch/in/probe"
            setcap cap_net_raw+ep "$scratch/in/probe" || exit 44
            tar -C "$scratch/in" --create --xattrs --xattrs-include='*' . \\
                | tar -C "$scratch/out" --extract --preserve-permissions --xattrs \\
                    --xattrs-include='*'
            getcap "$scratch/out/probe" | grep -q cap_net_raw || exit 45
        """
        refusals = {
            44: (
                f"cannot pack file capabilities: because the running kernel keeps none: {SAID}",
                "build the kernel with CONFIG_EXT4_FS_SECURITY=y",
            ),
            45: (
                "cannot pack file capabilities: because tar loses them",
                "install GNU tar, built with extended attributes",
            ),
        }
        command = Command.script(script, self.source.rstrip("/"))
        host.change(command.refusing(refusals))


_PRIVATE = (
    ("no host keys of sshd", re.compile(r"\./etc/ssh/ssh_host_.*")),
    ("no processes under ./proc", re.compile(r"\./proc/.+")),
    ("no devices under ./sys", re.compile(r"\./sys/.+")),
    ("no hostname", re.compile(r"\./etc/hostname")),
    ("nobody's SSH keys", re.compile(r"\./(root|home/.*)/\.ssh/.+")),
    ("no keys of services", re.compile(r"\./etc/(ssl/private|letsencrypt|wireguard)/.+")),
    (
        "no logins at mirrors or networks",
        re.compile(
            r"\./etc/(apt/auth\.conf(\.d/.+)?|ppp/.+-secrets|wpa_supplicant/.+\.conf"
            r"|NetworkManager/system-connections/.+)"
        ),
    ),
    ("nobody's files", re.compile(r"\./(home/[^/]+|var/mail|var/spool/cron/crontabs)/.+")),
    ("no history of root", re.compile(r"\./root/\.\w*history")),
    ("no random seed", re.compile(r"\./var/lib/systemd/random-seed")),
    ("no downloaded packages", re.compile(r"\./var/cache/apt/archives/.*\.deb")),
    ("no kernel of dom0 or of guests", re.compile(r"\./(boot|xenboot)/.+")),
)


def statements(
    members: list[Member], with_capabilities: list[str], empty: tuple[str, ...]
) -> list[dict[str, str]]:
    """What a generic image must hold and must not, each with whether it holds and what was seen."""
    by_name = {member.name: member for member in members}
    rows = [_row("entries", len(members) > 0, str(len(members)))]
    for name in ("./dev/console", "./dev/null"):
        node = by_name.get(name)
        seen = f"{node.mode} {node.size}" if node else "missing"
        rows.append(_row(f"device node {name}", node is not None and node.mode[0] == "c", seen))
    for name in empty:
        inside = sum(1 for other in by_name if other.startswith(name) and other != name)
        there = name in by_name
        seen = f"{inside} entries" if there else "missing"
        rows.append(_row(f"mount point {name} is there, and empty", there and not inside, seen))
    machine = by_name.get("./etc/machine-id")
    rows.append(_row("an empty ./etc/machine-id", machine is not None and machine.size == "0",
                     f"{machine.size} bytes" if machine else "missing"))  # fmt: skip
    for statement, pattern in _PRIVATE:
        found = [name for name in by_name if pattern.fullmatch(name)]
        rows.append(_row(statement, not found, ", ".join(found[:3]) or "none"))
    lost = [
        name
        for name in with_capabilities
        if name in by_name and _CAPABILITY not in by_name[name].xattrs
    ]
    packed = [name for name in with_capabilities if name in by_name]
    seen = ", ".join(lost or packed) or "none in the root"
    rows.append(_row("file capabilities", not lost, seen))
    return rows


def _row(statement: str, holds: bool, seen: str) -> dict[str, str]:
    return {"statement": statement, "holds": "yes" if holds else "no", "seen": seen}
