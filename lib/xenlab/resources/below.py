"""Files below a root that nobody trusts: ``below.py ROOT VERB WORDS…``.

dom0's python3 runs this text, which `xenlab.resources.guest` sends. Any name below ROOT
may be a trap: a link to anywhere, a device node, a pipe, a folder where a file belongs. So the
process makes ROOT its own root, where every link ends inside, absolute or with ``..``; it never
opens anything but a regular file or a folder; and it replaces a name instead of writing to what
bears it. From then on it loads and executes nothing: no module, no shared library, no program, and
it looks up no user's name, which would load one.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

# an emulated dom0 takes a second to start Python, and as long again for modules that are not needed
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypedDict

    Fill = Callable[[int], None]
    Rename = Callable[[str, str], None]

    class Listed(TypedDict):
        """A file, or a link where ``target`` is not empty."""

        path: str
        mode: int
        target: str
        text: str


REFUSED = 53
"""What it ends with where something in the root is not what it must be; stderr says what."""

NOT_EMPTY = 1
PORTION = 1 << 20
MOST = 1 << 20
"""How large a file may be that dom0 reads: a guest's can have any size and take no space."""
OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def look(path: str, followed: str = "") -> None:
    """Say what a name is: none, link, file, empty (a folder), folder, or other.

    ``followed``: what it leads to, which is none where it leads nowhere.
    """
    try:
        mode = os.stat(path).st_mode if followed else os.lstat(path).st_mode
    except OSError:
        print("none")
        return
    if stat.S_ISDIR(mode):
        with os.scandir(path) as entries:
            print("folder" if any(entries) else "empty")
    else:
        print({stat.S_IFLNK: "link", stat.S_IFREG: "file"}.get(stat.S_IFMT(mode), "other"))


def empty() -> None:
    """End with status 0 where the root holds nothing but what mkfs makes."""
    for name in os.listdir("/"):
        if name != "lost+found" or not stat.S_ISDIR(os.lstat(name).st_mode):
            sys.exit(NOT_EMPTY)


def read(path: str) -> None:
    """Print a regular file, unless it is too large for one that a person edits."""
    source = _regular(path)
    try:
        if os.fstat(source).st_size > MOST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        _copy(source, sys.stdout.fileno())
    finally:
        os.close(source)


def find(*paths: str) -> None:
    """Print those that are there, one a line, as tar reads them below the root.

    None may lie below a link: dom0's tar would follow that one out of the root.
    """
    for path in paths:
        above = os.path.dirname(path)
        if os.path.realpath(above) != above:
            raise OSError(errno.ELOOP, "it lies below a link", path)
        if os.path.lexists(path):
            print(f".{path}")


def write(path: str, mode: str) -> None:
    """Make standard input a file of root's in the place of whatever bears the name."""
    os.umask(0o022)

    def fill(file: int) -> None:
        _copy(sys.stdin.fileno(), file)
        os.fchmod(file, int(mode, 8))

    _replace(path, fill)


def rewrite(path: str) -> None:
    """Standard input becomes the content of a regular file, which keeps its mode and owner."""
    place = os.path.realpath(path)
    old = _regular(place)

    def fill(file: int) -> None:
        _copy(sys.stdin.fileno(), file)
        _dress(file, old)

    _replace(place, fill)
    os.close(old)


def files(*listed: Listed) -> None:
    """Files and links as a JSON list says; what is above each is a folder, or becomes one."""
    for one in listed:
        path = one["path"]
        above = path.split("/")[1:-1]
        for depth in range(len(above)):
            folder("755", "/" + "/".join(above[: depth + 1]))
        if one["target"]:
            link(path, one["target"])
        else:
            _replace(path, _text(one["text"], one["mode"]))


def folder(mode: str, *paths: str) -> None:
    """Make those that are missing; whatever bears such a name and is no folder makes room."""
    for path in paths:
        if os.path.lexists(path):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                continue
            os.unlink(path)
        os.mkdir(path)
        os.chmod(path, int(mode, 8))
        _sync(os.path.dirname(path))


def link(path: str, target: str) -> None:
    """A symbolic link in the place of whatever bears the name, but for a folder."""
    new = _beside(path)
    os.symlink(target, new)
    _into_place(new, path)


def move(old: str, new: str) -> None:
    """Rename, where nothing bears the new name."""
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new)
    _sync(os.path.dirname(old))
    _sync(os.path.dirname(new))


def exchange(one: str, other: str, *, rename: Rename) -> None:
    """Let two names change places at once, so that neither is missing at any moment."""
    rename(one, other)
    _sync(os.path.dirname(one))
    _sync(os.path.dirname(other))


def remove(*paths: str) -> None:
    """Whatever bears these names; with a star at its end, all names that begin like it."""
    for path in paths:
        above, name = os.path.split(path)
        if name.endswith("*"):
            names = [each for each in os.listdir(above) if each.startswith(name[:-1])]
        else:
            names = [name]
        for each in names:
            _gone(os.path.join(above, each))
        _sync(above)


def bring() -> None:
    """Copy files of /usr, one a line of stdin, one level up, with the links to them beside them.

    What stands there already stays. A library is loaded by a shorter name, which is a link to it.
    """
    for path in sys.stdin.read().splitlines():
        above = os.path.dirname(path)
        if not path.startswith("/usr/") or not os.path.exists(path):
            print(f"{path} is not in the guest's own /usr")
            continue
        real, into = os.path.realpath(path), above[len("/usr") :] or "/"
        os.makedirs(into, exist_ok=True)
        for name in os.listdir(above):
            one, copy = os.path.join(above, name), os.path.join(into, name)
            if os.path.realpath(one) == real and not os.path.lexists(copy):
                _duplicate(one, copy)


def _listed() -> list[Listed]:
    import json

    listed: list[Listed] = json.load(sys.stdin)
    return listed


def _exchanging() -> Rename:
    """renameat2(2) with RENAME_EXCHANGE, for which Python has no name of its own."""
    import ctypes

    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    here, flag = -100, 2

    def rename(one: str, other: str) -> None:
        if renameat2(here, os.fsencode(one), here, os.fsencode(other), flag):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), one)

    return rename


def _duplicate(path: str, copy: str) -> None:
    source = _regular(path)

    def fill(file: int) -> None:
        _copy(source, file)
        _dress(file, source)

    _replace(copy, fill)
    os.close(source)


def _text(text: str, mode: int) -> Fill:
    def fill(file: int) -> None:
        rest = memoryview(text.encode())
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fchmod(file, mode)

    return fill


def _dress(file: int, like: int) -> None:
    """Owner, attributes and mode of another file; last the mode, which chown(2) may change."""
    now = os.fstat(like)
    os.fchown(file, now.st_uid, now.st_gid)
    for name in os.listxattr(like):
        os.setxattr(file, name, os.getxattr(like, name))
    os.fchmod(file, stat.S_IMODE(now.st_mode))


def _regular(path: str) -> int:
    """A regular file, open; a link to one as well, as all links end below the root."""
    file = os.open(path, OPEN)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is no regular file", path)
    return file


def _replace(path: str, fill: Fill) -> None:
    """A file that is whole and on disk before it gets its name."""
    new = _beside(path)
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        fill(file)
        os.fsync(file)
    except BaseException:
        os.unlink(new)
        raise
    finally:
        os.close(file)
    _into_place(new, path)


def _into_place(new: str, path: str) -> None:
    try:
        os.replace(new, path)
    except OSError as error:
        os.unlink(new)
        raise OSError(error.errno, error.strerror, path) from None
    _sync(os.path.dirname(path))


def _beside(path: str) -> str:
    """A name that nobody can have foreseen, where the file belongs."""
    return os.path.join(os.path.dirname(path), f".xenlab-{os.urandom(8).hex()}")


def _copy(source: int, file: int) -> None:
    while piece := os.read(source, PORTION):
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(file, rest) :]


def _gone(path: str) -> None:
    if not os.path.lexists(path):
        return
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    for name in os.listdir(path):
        _gone(os.path.join(path, name))
    os.rmdir(path)


def _sync(path: str) -> None:
    place = os.open(path or "/", OPEN | os.O_DIRECTORY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


VERBS: dict[str, Callable[..., None]] = {
    verb.__name__: verb
    for verb in (
        *(look, empty, read, find, write, rewrite, files, folder),
        *(link, move, exchange, remove, bring),
    )
}


def main(root: str, verb: str, *words: str) -> None:
    """Go below the root for good, then do what the verb says."""
    listed = _listed() if verb == "files" else ()
    given = {"rename": _exchanging()} if verb == "exchange" else {}
    # a module that is first needed below would be the guest's
    sys.meta_path.clear()
    os.chroot(root)
    os.chdir("/")
    try:
        VERBS[verb](*words, *listed, **given)
    except (OSError, RecursionError) as error:
        why = getattr(error, "strerror", None) or "it goes too deep"
        where = getattr(error, "filename", None) or " ".join(words)
        named = ascii(where)[1:-1]
        print(f"cannot {verb} {named} below the guest's root: because {why}", file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main(*sys.argv[1:])
