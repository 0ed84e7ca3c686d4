"""A guest whose /usr is swapped boots, whatever moment the swap was cut off at (chapter 15)."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenlab.errors import XenlabError
from xenlab.host import Host
from xenlab.resources.shared_usr import UsrSwapped
from xenlab.transport.local import Local

HOST = Host(Local())
OWN = "root=/dev/xvda1 ro console=hvc0"
TOLD = f"{OWN} init=/.xenlab/init xenlab.usr=10.66.0.1:/mnt/share/usr/0123456789ab"
TRIED = ("/sbin/init", "/etc/init", "/bin/init", "/bin/sh")
"""What a kernel tries that is told of no first process (init/main.c)."""

# dom0 takes a static program; here it stands for the same words. /proc is there already, and what
# would come from the share is a folder.
BUSYBOX = """#!/tools/sh
applet=$1
shift
case "$applet $*" in
    "mount -t proc "* | "umount /proc") exit 0 ;;
    "mount -t nfs "*) set -- -o bind /share /usr ;;
    "sh "*) exec /tools/sh "$@" ;;
esac
exec "/tools/$applet" "$@"
"""

BOOT = """
mount -o ro "$1" "$2"
mount -t proc proc "$2/proc"
mount --bind "$3" "$2/proc/cmdline"
shift 3
exec chroot "$@"
"""


class CutOff(Local):
    """Ends at a call of ``guest``, in the shell itself or in a part of it."""

    def __init__(self, calls: Path, at: int) -> None:
        super().__init__("cut off")
        self._guest = (
            "cut() { kill -TERM $$; exit 99; }; "
            f'guest() {{ echo >> "{calls}"; [ $(wc -l < "{calls}") != {at} ] || cut; '
        )

    def execute(
        self,
        text: str,
        *,
        input: bytes = b"",
        timeout: float,
        on_output: Callable[[str, bytes], None] | None = None,
        stop: threading.Event | None = None,
        mark: str = "",
        look: bool = False,
    ) -> tuple[int, bytes, bytes]:
        """Like `Local`, until then."""
        cut = text.replace("guest() { ", self._guest)
        return super().execute(
            cut, input=input, timeout=timeout, on_output=on_output, stop=stop, mark=mark
        )


def silent(what: str, done: float | None = None) -> None:
    """A report that nobody reads."""


def run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def carried(root: Path, *programs: str) -> None:
    """Programs of this machine with their libraries, where no swap of /usr takes them away."""
    for name in programs:
        program = shutil.which(name)
        assert program is not None
        shutil.copy(program, root / "tools" / name)
        for library in re.findall(r"(/\S+) \(0x", run("ldd", program)):
            (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library[1:])


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A guest's root on a block device, in a merged layout."""
    root = tmp_path / "root"
    for folder in ("tools", "proc", "etc", "usr/sbin", "usr/bin", "share/sbin"):
        (root / folder).mkdir(parents=True)
    for link in ("bin", "sbin"):
        (root / link).symlink_to(f"usr/{link}")
    carried(root, "sh", "mount", "mkdir", "cat", "echo", "sleep")
    for usr, name in (("usr", "own"), ("share", "shared")):
        init = root / usr / "sbin/init"
        init.write_text(f"#!/tools/sh\necho '{name}'\n")
        init.chmod(0o755)
    image = tmp_path / "disk.img"
    run("mkfs.ext4", "-q", "-F", "-d", root, image, "64M")
    name = run("losetup", "--find", "--show", image)
    yield name
    run("losetup", "--detach", name)


def boot(device: str, folder: Path, cmdline: str) -> str:
    """What the first process prints that a kernel told so starts from the device."""
    place, told = folder / "place", folder / "cmdline"
    place.mkdir(exist_ok=True)
    told.write_text(f"{cmdline}\n")
    asked = re.findall(r"init=(\S+)", cmdline)
    tried = 'for first; do [ -x "$first" ] && exec "$first"; done; echo "no working init found"'
    words = ["sh", device, place, told, place, "/tools/sh", "-c", tried, "sh", *(asked or TRIED)]
    return run("unshare", "--mount", "sh", "-euc", BOOT, *words)


def swap(device: str, folder: Path, shared: bool) -> UsrSwapped:
    busybox = folder / "busybox"
    busybox.write_text(BUSYBOX)
    return UsrSwapped("booted", device, shared, str(busybox), records=str(folder / "records"))


def cut_off(resource: UsrSwapped, folder: Path, at: int) -> bool:
    """Whether it was cut off at this call of ``guest``, or came to its end before."""
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    try:
        resource.apply(Host(CutOff(calls, at)), silent)
    except XenlabError:
        assert calls.read_text()
        return True
    return False


@pytest.mark.parametrize("shared", [True, False])
def test_a_guest_boots_from_its_own_usr_wherever_the_swap_was_cut_off(
    device: str, tmp_path: Path, shared: bool
) -> None:
    aside, back = (swap(device, tmp_path, way) for way in (True, False))
    assert boot(device, tmp_path, OWN) == "own"
    if not shared:
        aside.apply(HOST, silent)
    at = 1
    # from call to call: each attempt begins where the one before was cut off
    while cut_off(aside if shared else back, tmp_path, at):
        assert boot(device, tmp_path, OWN) == "own", f"cut off at call {at}"
        at += 1
    assert at > 3
    assert boot(device, tmp_path, OWN) == "own"


def test_a_kernel_that_was_told_takes_the_share_s(device: str, tmp_path: Path) -> None:
    swap(device, tmp_path, True).apply(HOST, silent)
    assert boot(device, tmp_path, TOLD) == "shared"
