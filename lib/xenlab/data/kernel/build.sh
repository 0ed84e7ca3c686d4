# Compile a kernel into one image and keep it, or leave nothing. Runs detached: see follow.sh.
# $1 source tree   $2 output folder of this kernel   $3 where the result is kept
# $4 the key of what is built
set -eu
tree=$1 work=$2 result=$3 key=$4
trap 'echo "$key $?" > "$work/status"' EXIT
trap 'exit 143' HUP INT TERM
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEFILES ARCH SRCARCH CROSS_COMPILE KBUILD_OUTPUT O V \
    KCONFIG_CONFIG KCONFIG_ALLCONFIG LOCALVERSION KCFLAGS LLVM CC
export LC_ALL=C
# The same sources, options and compiler give the same image, bit by bit; the Makefile has the time
# that it has in the archive.
KBUILD_BUILD_TIMESTAMP=$(date -u -r "$tree/Makefile")
export KBUILD_BUILD_TIMESTAMP KBUILD_BUILD_USER=xenlab KBUILD_BUILD_HOST=xenlab KBUILD_BUILD_VERSION=1

begin=$(date +%s)
cp "$result/config" "$work/.config"
make -C "$tree" O="$work" -j"$(nproc)" bzImage
seconds=$(($(date +%s) - begin))

image=$work/arch/x86/boot/bzImage
release=$(cat "$work/include/config/kernel.release")
# The image must carry the very config it was asked for (CONFIG_IKCONFIG) …
"$tree/scripts/extract-ikconfig" "$image" | cmp - "$result/config"
# … and Xen must find the notes of a PV kernel in it, that of a PVH kernel (0x12) among them.
readelf -nW "$work/vmlinux" > "$work/notes"
notes=$(grep -c '^  Xen ' "$work/notes")
[ "$notes" -ge 10 ]
grep -q 0x00000012 "$work/notes"

cp "$image" "$result/vmlinuz"
cp "$work/modules.builtin" "$work/modules.builtin.modinfo" "$result/"
{
    echo "release $release"
    for file in vmlinuz config; do
        echo "$file $(sha256sum < "$result/$file" | cut -d' ' -f1)"
    done
    echo "bytes $(stat -c %s "$result/vmlinuz")"
    echo "notes $notes"
    echo "seconds $seconds"
} > "$result/manifest.new"
sync "$result" "$result"/*
# Whoever finds a manifest finds a whole kernel.
mv "$result/manifest.new" "$result/manifest"
