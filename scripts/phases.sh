# Sourced: long things, each said when it begins, while it goes on and when it ends, and written down
# for the next time (lib/xenlab/cache.py reads the same file).
began=${XENLAB_BEGAN:-$(date +%s)}
record=${XENLAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/xenlab}/phases.jsonl
figures=lib/xenlab/data/expected-seconds.json

say() { # WORDS…: a line with the time since the start
    local seconds=$(($(date +%s) - began))
    printf '%d:%02d  %s\n' $((seconds / 60)) $((seconds % 60)) "$*"
}

expected() { # WHAT: the seconds that it took here last, else on another machine
    local from to found
    found=$(sed -n "s/^ *\"$1\": \([0-9]*\),*$/\1/p" "$figures")
    while read -r from to; do
        found=$((to - from))
    done < <(sed -n "s/^{\"what\": \"$1\", \"began\": \([0-9]*\)[0-9.]*, \"ended\": \([0-9]*\).*/\1 \2/p" \
        "$record" 2>/dev/null)
    echo "$found"
}

phase() { # WHAT COMMAND…: run it; one line of what it prints each ten seconds, the last ones if it fails
    local what=$1 from status=0
    shift
    from=$(date +%s)
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    say "$what: about $(expected "$what") s"
    note "{\"what\": \"$what\", \"began\": $from}"
    "$@" 2>&1 </dev/null | tee "$log" | each_ten_seconds || status=$?
    if [ "$status" = 0 ]; then
        note "{\"what\": \"$what\", \"began\": $from, \"ended\": $(date +%s)}"
        say "$what: done"
    else
        tail -n 20 "$log" >&2
        say "$what: failed" >&2
    fi
    rm -f "$log"
    return "$status"
}

each_ten_seconds() {
    local line last=$SECONDS
    while IFS= read -r line; do
        if ((SECONDS - last >= 10)); then
            say "  ${line:0:80}"
            last=$SECONDS
        fi
    done
}

# A cache that cannot be written to is no reason to stop.
note() { { mkdir -p "${record%/*}" && echo "$1" >> "$record"; } 2>/dev/null || :; }
