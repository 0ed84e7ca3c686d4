"""Whole files: what a connection brings takes a file's place only if all of it has arrived.

Where a connection breaks, a command reads the end of its input as if that were all. So size and
SHA-256 of what is sent go along as arguments, and are compared before anything is replaced.
"""

from __future__ import annotations

import hashlib

NO_PLACE = 71
"""What `FOLLOW` ends with where a path leads to nothing that a file could stand in."""

RECEIVE = """\
receive() { # FILE SIZE SHA256: standard input becomes that file, or there is no such file
    cat > "$1"
    if [ "$(wc -c < "$1") $(sha256sum < "$1")" != "$2 $3  -" ]; then
        # first of all: a closed stderr kills some shells
        rm -f -- "$1"
        echo "not all of $1 has arrived" >&2
        exit 74
    fi
}
"""
"""Shell function for scripts that make a file of their input; see `size_and_digest`."""

FOLLOW = """\
follow() { # PATH: $file is the file that the path stands for
    case $1 in */*) file=$1 ;; *) file=./$1 ;; esac
    if [ -L "$1" ]; then
        file=$(readlink -f -- "$1") || { echo "$1 is a link that leads nowhere" >&2; exit 71; }
    fi
    if [ -e "$file" ] && [ ! -f "$file" ]; then
        echo "$file is no regular file" >&2
        exit 71
    fi
}
"""
"""Shell function that finds out what a path stands for, or ends the script; see `NO_PLACE`."""

PLACE = """\
place() { # NEW FILE MODE OWNER: what is empty stays as it is with the file that is replaced
    [ -z "$4" ] || chown -- "$4" "$1"
    if [ -e "$2" ]; then
        # ACLs and other attributes as well, where cp can (busybox cannot)
        cp --attributes-only --preserve=all --no-preserve="timestamps,links${4:+,ownership}" \\
            -- "$2" "$1" 2>/dev/null \\
            || [ -n "$4" ] || chown -- "$(stat -c %u:%g -- "$2")" "$1"
    elif [ -z "$4" ]; then
        chown -- "$(id -u):$(id -g)" "$1"
    fi
    chmod -- "${3:-$(stat -c %a -- "$2" 2>/dev/null || echo 644)}" "$1"
    # of one file where sync can, else of all
    sync -- "$1" 2>/dev/null || sync
    mv -f -- "$1" "$2"
    sync -- "${2%/*}/" 2>/dev/null || sync
}
"""
"""Shell function that replaces a file, on disk when it ends; a new one is root's, mode 644."""


def size_and_digest(data: bytes) -> tuple[int, str]:
    """What `RECEIVE` compares with."""
    return len(data), hashlib.sha256(data).hexdigest()
