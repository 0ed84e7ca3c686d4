"""This machine's system as a root of its own, which a test may change: shell text."""

SYSTEM_COPY = """
    mount -t tmpfs -o mode=755 none "$1"
    mkdir "$1/own" "$1/work" "$1/root"
    mount -t overlay -o "lowerdir=/,upperdir=$1/own,workdir=$1/work" none "$1/root"
    root=$1/root
    mount -t proc none "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs none "$root/tmp"
    mount -t tmpfs none "$root/run"
"""
"""Mounts a copy below the folder "$1", in a mount namespace that is the caller's; sets ``root``."""
