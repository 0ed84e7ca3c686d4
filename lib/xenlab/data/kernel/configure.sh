# Make a kernel's .config: nothing but what the fragment on standard input asks for.
# $1 source tree   $2 output folder of this kernel   $3 where the finished config is kept
# $4, $5 size and SHA-256 of standard input
set -eu
tree=$1 work=$2 result=$3
# what a make above us, or the person's shell, has set must not decide what is built
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEFILES ARCH SRCARCH CROSS_COMPILE KBUILD_OUTPUT O V \
    KCONFIG_CONFIG KCONFIG_ALLCONFIG LOCALVERSION KCFLAGS LLVM CC
export LC_ALL=C

mkdir -p "$result" "$work"
exec 9> "$work/lock"
flock 9
receive "$work/fragment" "$4" "$5"
make -s -C "$tree" O="$work" tinyconfig
# Never -s: "strict" gives up at the first option that tinyconfig has set otherwise.
(cd "$tree" && scripts/kconfig/merge_config.sh -m -O "$work" "$work/.config" "$work/fragment")
make -s -C "$tree" O="$work" olddefconfig
cp "$work/.config" "$result/config.new"
mv "$result/config.new" "$result/config"
