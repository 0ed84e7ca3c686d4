"""A guest's /usr from the share, both ways, and what a boot needs before it is there."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from textwrap import indent

from xenlab.command import Command
from xenlab.errors import StepFailed
from xenlab.host import Host, size_and_digest
from xenlab.resources.archive import UNPACK_SECONDS, UNTAR
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.files import packaged
from xenlab.resources.guest import InGuestRoot

# What a boot needs before a file system is mounted, worked out from services and libraries.
#
# Howto: „/usr sharing“: „Zudem hängt der Spass davon ab, welche dieser Systemtools beim Booten des
# Systems bis nach dem Mounten des NFS-Shares benötigt werden.“

LOOK_SECONDS = 600.0

# Each program's real path, and the libraries that the loader would load with it; asked once for a
# program that many start.
_LOOK = """
{
    printf '%s\\n' "$found" | cut -f 2 | sort -u | while IFS= read -r program; do
        [ -e "$program" ] || continue
        real=$(readlink -f -- "$program")
        libraries=$(ldd "$real" 2> /dev/null \\
            | sed -n 's|.*[[:space:]]\\(/[^ ]*\\) (0x.*|\\1|p' \\
            | xargs -r readlink -f -- | sort -u | tr '\\n' ' ')
        printf 'program\\t%s\\t%s\\t%s\\n' "$program" "$real" "$libraries"
    done
    printf '%s\\n' "$found" | sort -u | sed 's/^/unit\\t/'
} | awk '
    BEGIN { FS = OFS = "\\t" }
    $1 == "program" { found[$2] = $3 FS $4 }
    $1 == "unit" && $3 in found { print $2, $3, found[$3] }
'
"""


@dataclass(frozen=True)
class Needed:
    """A program that the boot needs: who starts it, its path, where that leads, its libraries."""

    unit: str
    program: str
    path: str
    libraries: tuple[str, ...] = field(default=())

    @property
    def in_usr(self) -> bool:
        """Whether it, or a library of it, lies in /usr."""
        return any(path.startswith("/usr/") for path in (self.path, *self.libraries))


def needed_before(host: Host, path: str, started: str) -> list[Needed]:
    """What a guest's boot needs before ``path`` is mounted; raises CommandFailed.

    ``started`` is a script whose ``$1`` is the path, and whose output has a line for each program
    that was started before: who did it, a tab, the program's path.
    """
    script = f"found=$(\n{started}\n){_LOOK}"
    return parse(host.run(Command.script(script, path), timeout=LOOK_SECONDS).stdout)


def parse(text: str) -> list[Needed]:
    """The lines of the look: unit, program, real path, libraries, separated by tabs."""
    found = []
    for line in text.splitlines():
        words = line.split("\t")
        if len(words) == 4:
            found.append(Needed(words[0], words[1], words[2], tuple(words[3].split())))
    return found


# A guest's /usr from the share, mounted before its first process (howto: „/usr sharing“).
#
# The howto moves /usr aside and puts a link to the share in its place; the first process then
# starts from /bin, mounts the share, and finds /usr. Where /bin itself is a link into /usr nothing
# starts, not even ``ln``. There the kernel configures the network by itself, and a static program,
# the first to run, mounts /usr and hands over to the real init.
#
# A guest may be started at any moment that the swap was cut off at: by dom0's boot, or by a chapter
# that wants it to run. So what mounts is there before /usr goes, also as /etc/init, which a kernel
# tries that finds no /sbin/init; without words from the kernel it takes the guest's own /usr.

BUSYBOX = "/usr/bin/busybox"
_NO_IMAGE = 45
SWAP_SECONDS = 300.0


def generation(host: Host, image: str) -> str:
    """A name for the /usr that an image holds: the beginning of its checksum, "" without image."""
    return (host.read(f"{image}.sha256") or "")[:12]


@dataclass(frozen=True)
class UsrOnShare(Resource):
    """The /usr of an image, whole, in a folder of its own on the share.

    Each image has its own folder, so that a guest keeps the one it runs from.
    """

    image: str
    folder: str

    def probe(self, host: Host) -> Difference | None:
        """Whether the folder of this image is missing or not whole."""
        name = generation(host, self.image)
        if name and host.test(Command.argv("test", "-e", f"{self.folder}/{name}.complete")):
            return None
        return Difference(f"put the image's /usr on the share, as {self.folder}/{name or '…'}")

    def commands(self) -> tuple[Command, ...]:
        """Unpack what the image has of it (the howto's rsync), and move it to its place.

        The folder is called after the image's checksum.
        """
        script = f"""
            image=$1 folder=$2
            generation=$(head -c 12 -- "$image.sha256" 2> /dev/null) || :
            [ -n "$generation" ] || exit {_NO_IMAGE}
            mkdir -p -- "$folder"
            rm -rf -- "$folder/$generation" "$folder/$generation.new"
            mkdir -- "$folder/$generation.new"
            {UNTAR} -C "$folder/$generation.new" -I 'zstd -d' -xpf "$image" ./usr
            mv -- "$folder/$generation.new/usr" "$folder/$generation"
            rmdir -- "$folder/$generation.new"
            sync -f -- "$folder"
            : > "$folder/$generation.complete"
            sync -- "$folder"
        """
        typed = f"""
            generation=$(cut -c 1-12 {{image}}.sha256)
            mkdir -p {{folder}}/$generation.new
            {UNTAR} -C {{folder}}/$generation.new -I zstd -xpf {{image}} ./usr
            mv {{folder}}/$generation.new/usr {{folder}}/$generation
        """
        none = (
            f"cannot put /usr on the share: because there is no image {self.image}",
            "run chapter 06_imaging",
        )
        command = Command.script(script, self.image, self.folder).within(UNPACK_SECONDS)
        command = command.typed_as(typed, image=self.image, folder=self.folder)
        return (command.refusing({_NO_IMAGE: none}),)

    def recorded(self) -> tuple[Command, ...]:
        """That it is complete."""
        text = ': > {folder}/"$(cut -c 1-12 {image}.sha256)".complete'
        return (Command.sh(text, folder=self.folder, image=self.image),)


@dataclass(frozen=True)
class UsrSwapped(InGuestRoot):
    """A guest's own /usr set aside, and what mounts the other one; or, not ``shared``, back again.

    Refused while a domain runs from the partition. The guest's own is kept as /usr.old.
    """

    shared: bool
    busybox: str = BUSYBOX

    def probe(self, host: Host) -> Difference | None:
        """What dom0's record of this file system says."""
        uuid, record = self.recorded_now(host, "usr")
        aside = bool(uuid) and record == f"{self._record(uuid)}\n"
        if aside == self.shared and (self.shared or not record):
            return None
        verb = "set aside the own /usr of" if self.shared else "put back the own /usr of"
        return Difference(f"{verb} {self.name}")

    def commands(self) -> tuple[Command, ...]:
        """Set it aside, beside it what mounts the other one; or back again."""
        first = packaged("templates", "usr-init.sh")
        root = self.root
        if not self.shared:
            text = "rmdir {r}/usr\nmv {r}/usr.old {r}/usr\nrm -r {r}/.xenlab {r}/etc/init"
            back = Command.sh(text, r=root).scripted_as(
                f"if [ -d {{r}}/usr.old ]; then\n{indent(text, '    ')}\nfi", r=root
            )
            return self.while_mounted(back, no_links=("etc", ".xenlab", "usr", "usr.old"))
        return self.while_mounted(
            Command.sh("mkdir {r}/.xenlab\ncp {b} {r}/.xenlab/busybox", b=self.busybox, r=root),
            Command.file(f"{root}/.xenlab/init", first, 0o755),
            Command.sh("ln -s /.xenlab/init {r}/etc/init", r=root),
            Command.sh("mv {r}/usr {r}/usr.old\nmkdir {r}/usr", r=root),
            no_links=("etc", "etc/init", ".xenlab", "usr", "usr.old"),
        )

    def recorded(self) -> tuple[Command, ...]:
        """In which file system the guest's own /usr was set aside."""
        path = f"{self.folder}/usr"
        if not self.shared:
            return (Command.argv("rm", "-f", path),)
        text = 'echo "usr.old $(blkid -p -s UUID -o value {device})" > {path}'
        return (Command.sh(text, device=self.device, path=path),)

    def apply(self, host: Host, report: Report) -> None:
        """Swap it while the guest is down; can be cut off anywhere and done again."""
        report("swapping /usr")
        first = packaged("templates", "usr-init.sh").encode()
        if self.shared:
            sent = (self.busybox, self._record(""), *map(str, size_and_digest(first)))
            self.in_namespace(host, _SET_ASIDE, *sent, input=first, timeout=SWAP_SECONDS)
        else:
            self.in_namespace(host, _PUT_BACK, timeout=SWAP_SECONDS)

    def _record(self, uuid: str) -> str:
        return f"usr.old {uuid}"


def begun(host: Host, name: str, device: str, formerly: str = "") -> bool:
    """Whether a guest's own /usr is set aside, or on its way there or back."""
    guest = UsrSwapped(name, device, shared=True, formerly=formerly)
    return bool(guest.recorded_now(host, "usr")[1])


_SET_ASIDE = """
busybox=$1 record=$2
receive "$scratch/init" "$3" "$4"
echo swapping | note usr
enter
guest folder 755 /.xenlab
guest write /.xenlab/busybox 755 < "$busybox"
guest write /.xenlab/init 755 < "$scratch/init"
guest link /etc/init /.xenlab/init
case "$(guest look /usr.old)" in
    none)
        case "$(guest look /usr)" in folder | empty) ;; *) exit 56 ;; esac
        guest move /usr /usr.old
        ;;
    folder | empty) ;;
    *) exit 56 ;;
esac
guest folder 755 /usr
leave
printf '%s%s\\n' "$record" "$(uuid)" | note usr
"""

_PUT_BACK = """
enter
if [ "$(guest look /usr.old)" != none ]; then
    echo swapping | note usr
    usr_back
elif [ "$(guest look /usr)" != folder ]; then
    exit 49
fi
[ "$(guest look /etc/init)" != link ] || guest remove /etc/init
guest remove /.xenlab
leave
rm -f -- "$records/usr"
sync -- "$records"
"""


def layout(host: Host) -> str:
    """``split`` where /bin is a folder of its own, ``merged`` where it is a link into /usr.

    A system that is not there yet counts as merged.
    """
    result = host.run("readlink -f /bin", check=False)
    return "split" if result.ok and result.stdout.strip() == "/bin" else "merged"


def own_usr_mib(host: Host) -> int | None:
    """MiB of the /usr that a guest has set aside, None where it has not."""
    result = host.look("[ -d /usr.old ] || exit 44; du -sxm /usr.old", absent=(44,), timeout=600)
    return None if result is None else int(result.stdout.split()[0])


# The howto's own way to a shared /usr: the guest's moved aside, a link to the share in its place.
#
# Howto: „/usr sharing“ („mv /usr /usr.old; ln -s /mnt/share/usr /usr“). It takes a split layout, in
# which /bin and /lib are folders of their own: the boot starts from these, mounts the share, and
# finds /usr. What it needs of /usr before that is copied to them („cp /usr/bin/{find,xargs}
# …/bin“).


def needed_files(guest: Host, share: str, started: str) -> list[str]:
    """The files in /usr, programs and libraries, that a boot needs before ``share`` is mounted.

    ``started`` is as `needed_before` wants it.
    """
    return in_usr(needed_before(guest, share, started))


def in_usr(needed: Sequence[Needed]) -> list[str]:
    """Programs by the names under which they are started, libraries by where these lead."""
    paths = {path for one in needed for path in (one.program, *one.libraries)}
    return sorted(path for path in paths if path.startswith("/usr/"))


def reported(guest: str, paths: Iterable[str]) -> list[str]:
    """Paths that a guest says lie in its /usr, each once; raises StepFailed where one does not."""
    found = set()
    for path in paths:
        plain = posixpath.normpath(path)
        if ".." in path.split("/") or not plain.startswith("/usr/") or not path.isprintable():
            raise StepFailed(
                f"cannot take {path!r} from {guest}: because it is no path in /usr",
                hint=f"look what {guest} starts at its boot: chapter 15's first table",
                where=guest,
            )
        found.add(plain)
    return sorted(found)


@dataclass(frozen=True)
class UsrLinked(InGuestRoot):
    """A guest's /usr is a link to ``target``; its own is kept as /usr.old.

    ``needed`` asks the guest, while it runs from its own /usr, for the files that its boot needs;
    the answer is kept, as a guest that is cut off half-way cannot be asked again. ``stopped`` is
    the state in which the guest is down. Refused for a guest whose /bin lies in /usr.
    """

    target: str
    needed: Callable[[], Sequence[str]]
    stopped: Resource

    def probe(self, host: Host) -> Difference | None:
        """What dom0's record of this file system says."""
        uuid, record = self.recorded_now(host, "usr")
        if uuid and record == f"{self._record}{uuid}\n":
            return None
        return Difference(f"make /usr of {self.name} a link to {self.target}")

    def refusal(self, host: Host) -> str:
        """None: it shuts the guest down itself."""
        return ""

    def commands(self) -> tuple[Command, ...]:
        """The howto's own lines, while the guest is down."""
        text = """
            cp -p {root}/usr/bin/PROGRAM {root}/bin  # each that the boot needs before the share
            mv {root}/usr {root}/usr.old
            ln -s {target} {root}/usr
        """
        link = Command.sh(text, root=self.root, target=self.target)
        return (*self.stopped.commands(), *self.while_mounted(link))

    def apply(self, host: Host, report: Report) -> None:
        """Ask what the boot needs, shut the guest down, copy that, and make the link."""
        if self.stopped.probe(host) is not None:
            report("looking what the boot needs of /usr")
            text = "".join(f"{path}\n" for path in reported(self.name, self.needed()))
            host.write(f"{self.folder}/usr.needed", text)
            self.stopped.apply(host, report)
            self.stopped.verify(host)
        report("making /usr a link to the share")
        self.in_namespace(host, _LINK, self.target, self._record, timeout=SWAP_SECONDS)

    @property
    def _record(self) -> str:
        return f"linked {self.target} "


# What is copied is looked for while the guest's own /usr is in its place: a link in it may lead
# through /etc and back.
_LINK = """
target=$1 record=$2
enter
[ "$(guest look /bin)" != link ] || exit 50
[ -e "$records/usr.needed" ] || exit 51
echo swapping | note usr
[ "$(guest look /usr.old)" = none ] || usr_back
case "$(guest look /usr)" in
    folder)
        guest bring < "$records/usr.needed"
        guest link /usr.old "$target"
        guest exchange /usr /usr.old
        ;;
    *) exit 56 ;;
esac
leave
printf '%s%s\\n' "$record" "$(uuid)" | note usr
"""
