# Start a detached build, or follow the one that runs already; the log comes on standard output.
# $1 source tree   $2 output folder   $3 result   $4 key   $5 output folder to begin with, or nothing
# $6 lines of the log seen   $7, $8 size and SHA-256 of standard input: build.sh
# Status 46: this build failed; 47: it was another one, ask again.
set -eu
work=$2 result=$3 key=$4 seen=$6
mkdir -p "$work" "$result"
[ ! -e "$result/manifest" ] || exit 0
# The lock is held by the build and all it starts, and freed by the kernel however they end:
# nobody starts a second make in this folder, and a build that was lost sight of is found again.
exec 9> "$work/lock"
if flock -n 9; then
    rm -f "$work/status"
    receive "$work/build.sh" "$7" "$8"
    : > "$work/log"
    setsid sh "$work/build.sh" "$1" "$2" "$3" "$4" "$5" > "$work/log" 2>&1 < /dev/null &
    echo "$!" > "$work/pid"
    seen=0
elif ! kill -0 "$(cat "$work/pid")" 2> /dev/null; then
    # somebody configures here, or has just begun
    flock 9
    exit 47
fi
exec 9>&-
tail -n "+$((seen + 1))" -f --pid="$(cat "$work/pid")" "$work/log"
[ ! -e "$result/manifest" ] || exit 0
read -r built status < "$work/status" || exit 46
[ "$built" = "$key" ] && [ "$status" != 0 ] && exit 46
exit 47
