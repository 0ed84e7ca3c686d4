"""sshd's settings: in a file that it was asked about before, and read by the daemon that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xenlab.command import Command
from xenlab.errors import CommandFailed, StepFailed
from xenlab.host import Host
from xenlab.resources.base import Difference, Report, Resource
from xenlab.resources.files import File
from xenlab.wholefile import RECEIVE, size_and_digest

RELOAD_SECONDS = 600.0
"""Deadline of having sshd read its files again, in seconds: an emulated host is slow."""

_REFUSED = 45

# sshd writes its pid file anew whenever it reads its files. Status 1: the file, or the folder that
# others come to and go from, was changed since then.
_HAS_READ = """
has_read() { # FILE PIDFILE
    [ -s "$2" ] && kill -0 "$(cat -- "$2")" 2> /dev/null || return 0
    [ -z "$(find "$1" "${1%/*}" -maxdepth 0 -cnewer "$2")" ]
}
pid_file() { sed -n 's/^pidfile //p'; }
"""

_LOOK = """
sshd=$1 config=$2 file=$3 booted=$4
status=0
used=$("$sshd" -T -f "$config" 2>&1) || status=45
printf '%s\n' "$used"
[ "$status" = 0 ] && [ -n "$booted" ] || exit "$status"
has_read "$file" "$(printf '%s\n' "$used" | pid_file)" || echo unread
"""

_TRY = """
sshd=$1 config=$2
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
receive "$folder/candidate" "$3" "$4"
# the first value that sshd reads counts
{ printf 'Include %s\\n' "$folder/candidate"; cat -- "$config"; } > "$folder/config"
"$sshd" -t -f "$folder/config" || exit 45
"""

_WAIT = """
sshd=$1 config=$2 file=$3
pid=$("$sshd" -T -f "$config" | pid_file)
gone=0
for round in $(seq 120); do
    if [ -s "$pid" ]; then
        ! has_read "$file" "$pid" || exit 0
    else
        # none for long: no sshd runs, and the next one reads them as it starts
        gone=$((gone + 1))
        [ "$gone" -lt 20 ] || exit 0
    fi
    sleep 0.5
done
"""


@dataclass(frozen=True)
class SshdSettings(Resource):
    """Settings in a file that sshd includes; sshd accepts them, uses them, and has read them.

    ``reload`` has a daemon that runs read its files again.
    """

    file: File
    reload: Command
    sshd: str = "/usr/sbin/sshd"
    config: str = "/etc/ssh/sshd_config"

    def probe(self, host: Host) -> Difference | None:
        """The diff of the file; else what sshd uses instead, or that it has yet to read it."""
        different = self.file.probe(host)
        if different is not None:
            return different
        values = (self.sshd, self.config, self.file.path, "yes" if host.root == "/" else "")
        result = host.run(Command.script(_HAS_READ + _LOOK, *values), check=False)
        if result.status == _REFUSED:
            said = " / ".join(result.stdout.strip().splitlines()[-3:])
            return Difference(f"sshd refuses its configuration: {said}", hint="sshd -t")
        if not result.ok:
            raise CommandFailed(result)
        used = parse_settings(result.stdout)
        rows = tuple(
            {"setting": name, "sshd uses": used[name], "wanted": wanted}
            for name, wanted in parse_settings(self.file.text()).items()
            if used.get(name, wanted) != wanted
        )
        if rows:
            return Difference(
                f"sshd does not use all of {self.file.path}",
                rows=rows,
                hint=f"the first line counts: does {self.config} include it, and before others?",
            )
        if "unread" in result.stdout.splitlines():
            return Difference(f"have sshd read {self.file.path}")
        return None

    def apply(self, host: Host, report: Report) -> None:
        """Ask sshd about the text, write the file, have it read; raises StepFailed if refused."""
        text = self.file.text().encode()
        values = (self.sshd, self.config, *size_and_digest(text))
        tried = host.run(Command.script(RECEIVE + _TRY, *values), input=text, check=False)
        if tried.status == _REFUSED:
            raise StepFailed(
                f"cannot write {self.file.path}: because sshd refuses it: {tried.stderr.strip()}",
                hint="nothing was changed; sshd -t tells of what was wrong before",
            )
        if not tried.ok:
            raise CommandFailed(tried)
        self.file.apply(host, report)
        if host.root == "/":
            report("having sshd read its settings")
            host.run(self.reload, timeout=RELOAD_SECONDS)
            wait = Command.script(_HAS_READ + _WAIT, self.sshd, self.config, self.file.path)
            host.run(wait, timeout=RELOAD_SECONDS)


def parse_settings(text: str) -> Mapping[str, str]:
    """Settings of sshd_config(5) before the first Match, or of ``sshd -T``: the first one counts.

    Two words for the same mean the same here.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name.lower() == "match":
            break
        if name and not name.startswith("#"):
            value = value.strip().strip('"')
            same = {"prohibit-password": "without-password"}
            found.setdefault(name.lower(), same.get(value, value))
    return found
