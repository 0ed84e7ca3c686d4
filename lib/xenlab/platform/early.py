"""Who starts what before a file system is mounted: a script for each init system.

Howto: „/usr sharing“. ``$1`` is where the file system belongs; a line of the output is who started
something, a tab, and the path of a program.
"""

SYSTEMD = r"""
mount=$(systemd-escape --path --suffix=mount -- "$1")
before=$(systemctl list-dependencies --after --all --plain --no-legend -- "$mount" \
    | tr -d ' ' | grep '\.service$' | sort -u)
echo "PID 1	/sbin/init"
echo "$mount	/usr/bin/mount"
echo "$mount	/usr/sbin/mount.nfs4"
# unquoted: one name a word
systemctl show -p Id,InactiveExitTimestampMonotonic,ExecCondition,ExecStartPre,ExecStart \
    -- $before | awk '
    BEGIN { RS = ""; FS = "\n" }
    {
        name = started = ""; count = 0
        for (i = 1; i <= NF; i++) {
            value = $i; sub(/^[^=]*=/, "", value)
            if ($i ~ /^Id=/) name = value
            else if ($i ~ /^InactiveExitTimestampMonotonic=/) started = value
            else if (match(value, /path=[^ ;]*/))
                path[++count] = substr(value, RSTART + 5, RLENGTH - 5)
        }
        if (started + 0 > 0) for (i = 1; i <= count; i++) print name "\t" path[i]
    }'
"""
"""The units that are ordered before the mount and were started, with what they execute."""

OPENRC = r"""
PATH=$PATH:/lib/rc/bin:/usr/libexec/rc/bin
echo "PID 1	/sbin/init"
for program in mount mount.nfs4; do
    echo "netmount	$(command -v "$program")"
done
set --
for service in $(
    ls -A /etc/runlevels/sysinit /etc/runlevels/boot | grep -v ':$'
    rc-depend --type ineed,iuse,iafter netmount
); do
    [ -e "/etc/init.d/$service" ] && [ -e "/run/openrc/started/$service" ] || continue
    set -- "$@" "/etc/init.d/$service"
done
# every word of a script that is a program's name: more than it starts, but none less
ls -A $(printf %s "$PATH" | tr : ' ') 2> /dev/null | awk '
    FNR == NR { program[$0]; next }
    /^[ \t]*#/ { next }
    {
        service = FILENAME; sub(/.*\//, "", service)
        count = split($0, words, /[^A-Za-z0-9_\/.+-]+/)
        for (i = 1; i <= count; i++)
            if ((words[i] in program || words[i] ~ /^\//) && !seen[service, words[i]]++)
                print service "\t" words[i]
    }' - "$@" \
    | while read -r service word; do
        # what the shell does itself has no path
        program=$(command -v -- "$word") || continue
        case $program in /*) [ ! -f "$program" ] || printf '%s\t%s\n' "$service" "$program" ;; esac
    done
"""
"""The scripts that are started before netmount, with the programs that they name."""
