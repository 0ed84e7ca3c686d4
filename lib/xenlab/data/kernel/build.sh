# Compile a kernel into one image and keep it, or leave nothing. Runs detached: see follow.sh.
# $1 source tree   $2 output folder of this kernel   $3 where the result is kept
# $4 the key of what is built   $5 output folder of the kernel that this one begins with, or nothing
set -eu
tree=$1 work=$2 result=$3 key=$4 first=$5 out=$2/out
trap 'echo "$key $?" > "$work/status"' EXIT
trap 'exit 143' HUP INT TERM
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEFILES ARCH SRCARCH CROSS_COMPILE KBUILD_OUTPUT O V \
    KCONFIG_CONFIG KCONFIG_ALLCONFIG LOCALVERSION KCFLAGS LLVM CC
export LC_ALL=C
# The same sources, options and compiler give the same image, bit by bit; the Makefile has the time
# that it has in the archive.
KBUILD_BUILD_TIMESTAMP=$(date -u -r "$tree/Makefile")
export KBUILD_BUILD_TIMESTAMP KBUILD_BUILD_USER=xenlab KBUILD_BUILD_HOST=xenlab KBUILD_BUILD_VERSION=1

# Take over what the first kernel's build has compiled, if that came to its end, with this compiler,
# and nobody builds there now: make then compiles what an option that differs reaches.
copied() {
    [ -e "$first/lock" ] && (
        flock -n 8 && read -r _ status < "$first/status" && [ "$status" = 0 ] &&
            grep -qF "$(gcc --version | head -n 1)" "$first/out/include/config/auto.conf" &&
            cp -a "$first/out" "$out" &&
            # objtool's records name its folder: made anew, it would have all else made anew
            find "$out/tools" -name '.*.cmd' -exec sed -i "s|$first/out/|$out/|g" {} + &&
            echo "begins with what was compiled in $first"
    ) 8< "$first/lock"
}

begin=$(date +%s)
if [ -n "$first" ]; then
    # anew each time: nothing is left of a copy or build that was killed
    rm -rf "$out"
    copied || rm -rf "$out"
fi
mkdir -p "$out"
cp "$result/config" "$out/.config"
make -C "$tree" O="$out" -j"$(nproc)" bzImage
seconds=$(($(date +%s) - begin))

image=$out/arch/x86/boot/bzImage
release=$(cat "$out/include/config/kernel.release")
# The image must carry the very config it was asked for (CONFIG_IKCONFIG) …
"$tree/scripts/extract-ikconfig" "$image" | cmp - "$result/config"
# … and Xen must find the notes of a PV kernel in it, that of a PVH kernel (0x12) among them.
readelf -nW "$out/vmlinux" > "$work/notes"
notes=$(grep -c '^  Xen ' "$work/notes")
[ "$notes" -ge 10 ]
grep -q 0x00000012 "$work/notes"

cp "$image" "$result/vmlinuz"
cp "$out/modules.builtin" "$out/modules.builtin.modinfo" "$result/"
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
# Whoever finds status 0 finds all that was compiled, after a power cut as well.
[ -n "$first" ] || sync -f "$out"
