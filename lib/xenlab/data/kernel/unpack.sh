# Unpack a source archive once: the tree is there whole or not at all.
# $1 archive   $2 folder of the tree
set -eu
archive=$1 tree=$2
shelf=${tree%/*}
mkdir -p "$shelf"
exec 9> "$shelf/.lock"
flock 9
if [ ! -e "$tree/Makefile" ]; then
    rm -rf "$tree.new"
    trap 'rm -rf "$tree.new"' EXIT
    mkdir "$tree.new"
    tar --strip-components=1 --no-same-owner -xf "$archive" -C "$tree.new"
    [ -e "$tree.new/Kconfig" ]
    rm -rf "$tree"
    mv "$tree.new" "$tree"
fi
ln -sfn "${tree##*/}" "$shelf/linux"
