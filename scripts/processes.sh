# Sourced: commands one after the other, with the kernels compiled beside them, all of which end
# with the script.
set -m # each command gets a process group of its own, and so an interrupt it can hear
child='' compiler=''

end() { # PROCESS [SIGNAL]: interrupt it and wait for its end, at most a minute
    [ -n "$1" ] && kill "-${2:-INT}" "$1" 2>/dev/null || return 0
    for _ in {1..60}; do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 1
    done
    kill -KILL -- "-$1" 2>/dev/null || :
}

# Waited for, not run in the foreground: only then is a signal heard while the command runs.
run() {
    "$@" </dev/null &
    child=$!
    local status=0
    wait "$child" || status=$?
    child=
    return "$status"
}

# FILE: both kernels of a site are compiled with what the processors have left. A chapter that comes
# to its kernel meanwhile follows that build, and says what is wrong where it fails.
compile_kernels() {
    nice -n 19 .venv/bin/xenlab lab kernels -f "$1" </dev/null &>/dev/null &
    compiler=$!
    disown "$compiler"
}

# SIGTERM: whoever was started in the background himself hands an ignored SIGINT down.
end_compiler() { end "$compiler" TERM; }
