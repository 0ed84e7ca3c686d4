# Make a kernel's .config: nothing but what the fragment on standard input asks for.
# $1 source tree   $2 output folder of this kernel   $3 where the finished config is kept
# $4, $5 size and SHA-256 of standard input
set -eu
tree=$1 work=$2 result=$3 out=$2/out
# what a make above us, or the person's shell, has set must not decide what is built
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEFILES ARCH SRCARCH CROSS_COMPILE KBUILD_OUTPUT O V \
    KCONFIG_CONFIG KCONFIG_ALLCONFIG LOCALVERSION KCFLAGS LLVM CC
export LC_ALL=C

mkdir -p "$result" "$out"
exec 9> "$work/lock"
until flock -n 9; do
    # by somebody who compiles it already: that may take long
    [ ! -e "$result/config" ] || exit 0
    sleep 1
done
receive "$work/fragment" "$4" "$5"
make -s -C "$tree" O="$out" tinyconfig
# Never -s: "strict" gives up at the first option that tinyconfig has set otherwise.
(cd "$tree" && scripts/kconfig/merge_config.sh -m -O "$out" "$out/.config" "$work/fragment")
make -s -C "$tree" O="$out" olddefconfig
cp "$out/.config" "$result/config.new"
mv "$result/config.new" "$result/config"
