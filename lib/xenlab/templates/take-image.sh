# Take an image of a root file system: archive, checksum and record, each whole or not there.
# $1 image   $2 "bind" (a mounted root) or "device"   $3 that root or device   $4 what shaped it
# $5, $6 size and SHA-256 of standard input: patterns of what is left out.
# $7 the file in the root that says which stage it was unpacked from.   $8 a login in a URL (regex)
# Runs in a mount namespace of its own (unshare): whatever ends it ends its mounts.
set -eu
image=$1 way=$2 source=$3 base=$4 stage=$7 login=$8
export LC_ALL=C

scratch=$(mktemp -d /run/xenlab-image-XXXXXX)
root=$scratch/root own=$scratch/own
trap 'cd /; umount -- "$root" 2> /dev/null || :
    rm -rf -- "$own" "$scratch/leave-out" "$scratch/names" "$scratch/copy" "$scratch/digest" \
        "$scratch/failed" "$scratch/said"
    rmdir -- "$root" "$scratch"; rm -f -- "$image.new"' EXIT
trap 'exit 143' HUP INT TERM
mkdir "$root" "$own" "$own/etc" "$own/dev"
receive "$scratch/leave-out" "$5" "$6"

# A bind mount that is not recursive shows the root below everything that is mounted on it: the
# static device nodes under /dev, and /proc, /sys and the share as the empty folders they are.
if [ "$way" = bind ]; then
    for part in usr var etc home; do
        [ ! -d "$source/$part" ] \
            || [ "$(stat -c %d -- "$source/$part")" = "$(stat -c %d -- "$source")" ] || exit 47
    done
    mount --bind -- "$source" "$root"
    mount -o remount,bind,ro -- "$root"
else
    mount -o ro -- "$source" "$root"
fi
mkdir -p -- "${image%/*}"
[ "$(stat -c %d -- "${image%/*}")" != "$(stat -c %d -- "$root")" ] || exit 46

# Log files go, their folders stay: a daemon that finds no folder does not start.
cd -- "$root"
find ./var/log -xdev ! -type d >> "$scratch/leave-out" 2> /dev/null || :

# Nor does any private key, wherever a service keeps its own; where a name has wildcards, it is meant
# as it stands.
grep -rlsI -e '-----BEGIN [A-Z ]*PRIVATE KEY' ./etc ./home ./opt ./root ./srv ./usr/local ./var/lib \
    | sed 's/[][*?\\]/\\&/g' >> "$scratch/leave-out" || :

# Nor does a login in a URL, as of a mirror or a proxy: a copy without it takes the file's place,
# unless the file is left out.
grep -rlsIE -e "$login" ./etc > "$scratch/names" || :
tar --create --file - --acls --anchored --exclude-from "$scratch/leave-out" \
    --verbatim-files-from --files-from "$scratch/names" \
    | tar --extract --file - --acls --preserve-permissions --directory "$own"
find "$own/etc" -type f -exec sed -Ei "s#$login#://#g" {} +
sed 's/[][*?\\]/\\&/g' "$scratch/names" >> "$scratch/leave-out"

# What every machine has with content of its own. An empty machine-id is filled in at the first
# boot; the hosts file names no machine; the kernel opens /dev/console before any devtmpfs is there.
: > "$own/etc/machine-id"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$own/etc/hosts"

# The accounts with nobody's password: their owner and mode are kept, an empty field is none.
for file in passwd group shadow gshadow; do
    [ -f "etc/$file" ] || continue
    cp -p -- "etc/$file" "$own/etc/$file"
    awk -F: -v OFS=: '/^[^+-]/ && $2 != "x" { $2 = $2 ~ /^!/ ? "!" : "*" } { print }' \
        "etc/$file" > "$own/etc/$file"
done
for node in console:5:1:600 null:1:3:666; do
    IFS=: read -r name major minor mode << END
$node
END
    [ ! -c "dev/$name" ] || continue
    mknod -m "$mode" "$own/dev/$name" c "$major" "$minor"
done
(cd -- "$own" && find etc dev ! -type d -print0) > "$scratch/names"

# --anchored comes first: it rules the patterns after it. Status 1 says that a file changed while
# it was read, as log files and databases of a running system do. The checksum is made on the way.
mkfifo -- "$scratch/copy"
sha256sum < "$scratch/copy" > "$scratch/digest" &
{
    status=0
    tar --create --file - --use-compress-program "zstd -q -1 -T0" --format=posix \
        --one-file-system --sparse --numeric-owner --acls --xattrs --xattrs-include='*' \
        --transform='flags=rSH;s,^\(etc\|dev\)/,./\1/,' --checkpoint=4000 \
        --anchored --exclude-from "$scratch/leave-out" . \
        --directory "$own" --null --files-from "$scratch/names" || status=$?
    [ "$status" -le 1 ] || : > "$scratch/failed"
} | tee -- "$scratch/copy" > "$image.new" 2> "$scratch/said" || : > "$scratch/failed"
wait "$!"
[ ! -e "$scratch/failed" ] || { cat -- "$scratch/said" >&2; exit 48; }

# The record comes last; without it there is no image.
read -r digest rest < "$scratch/digest"
packages=$(sha256sum < "$root/var/lib/dpkg/status" 2> /dev/null) || packages=
sync -- "$image.new"
stage=$(cat -- "$root/$stage" 2> /dev/null) || stage=
rm -f -- "$image.info"
printf '%s  %s\n' "$digest" "${image##*/}" > "$image.sha256.new"
sync -- "$image.sha256.new"
mv -f -- "$image.sha256.new" "$image.sha256"
mv -f -- "$image.new" "$image"
sync -- "${image%/*}"
{
    printf 'base=%s\nstage=%s\nway=%s\nsha256=%s\n' "$base" "$stage" "$way" "$digest"
    stat --printf 'bytes=%s\nmodified=%.9Y\n' -- "$image"
    printf 'packages=%s\ntaken=%s\n' "${packages%% *}" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
} > "$image.info.new"
sync -- "$image.info.new"
mv -f -- "$image.info.new" "$image.info"
sync -- "${image%/*}"
