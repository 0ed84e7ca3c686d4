# Unpack a source archive once: the tree is there whole or not at all.
# $1 archive   $2 folder of the tree
# $3 sha256sum or sha512sum   $4 what it must say of the archive   $5 where the SHA-256 is noted
# Status 45: what was read has another checksum.
set -eu
archive=$1 tree=$2 program=$3 wanted=$4 note=$5
shelf=${tree%/*}
mkdir -p "$shelf" "${note%/*}"
exec 9> "$shelf/.lock"
flock 9
if [ ! -e "$tree/Makefile" ]; then
    rm -rf "$tree.new"
    trap 'rm -rf "$tree.new"' EXIT
    mkdir "$tree.new" "$tree.new/tree"
    state=$(stat -L -c '%d %i %s %.9Y %.9Z' -- "$archive")
    # what is unpacked is what was looked at, whatever happens to the archive meanwhile
    cp -- "$archive" "$tree.new/archive"
    found=$("$program" < "$tree.new/archive")
    [ "${found%% *}" = "$wanted" ] || exit 45
    # the tree has its name by the content
    digest=$(sha256sum < "$tree.new/archive")
    digest=${digest%% *}
    case $tree in *-"$(printf %.8s "$digest")") ;; *) exit 45 ;; esac
    tar --strip-components=1 --no-same-owner -xf "$tree.new/archive" -C "$tree.new/tree"
    [ -e "$tree.new/tree/Kconfig" ]
    # whoever finds the tree takes it for whole, after a power cut as well
    rm "$tree.new/archive"
    sync -f "$tree.new"
    rm -rf "$tree"
    mv "$tree.new/tree" "$tree"
    printf '%s %s\n' "$digest" "$state" > "$note.new"
    mv "$note.new" "$note"
fi
ln -sfn "${tree##*/}" "$shelf/linux"
