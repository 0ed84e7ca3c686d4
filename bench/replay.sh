#!/bin/sh
# The commands of one recorded run, in the same order, over OpenSSH. Written by bench/lab.py.
#
#   plain.sh SSH_CONFIG        the lab's; the lab has an empty disk and runs its rescue system
#
# A measurement and no way to install a machine: host keys are new in each run, and taken as they
# come. What xenlab works out in Python (differences, records, checksums) is not done here.
set -eu
hosts=
lab=$1
here=$(cd -- "$(dirname -- "$0")" && pwd)
out=$here/out values=$here/out/values.sed lane=main patience=1200
mkdir -p -- "$out"
: > "$here/times"
: > "$values"
control=$(mktemp -d /tmp/xl.XXXXXX)
trap leave EXIT
trap 'exit 130' INT TERM HUP

cat > "$here/ssh_config" <<END
Host *
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    BatchMode yes
    ConnectTimeout 20
    ServerAliveInterval 5
    ServerAliveCountMax 6
    ControlMaster auto
    ControlPath $control/%C
    ControlPersist yes
    Include "$lab"
END

close() { # HOST: end the connection, the next command makes a new one
    ssh -F "$here/ssh_config" -O exit "$1" 2> /dev/null || :
}

leave() {
    for host in $hosts; do close "$host"; done
    rm -rf -- "$control"
}

execute() { # HOST TEXT
    if [ "$1" = controller ]; then /bin/sh -c "$2"; else ssh -F "$here/ssh_config" "$1" -- "$2"; fi
}

answers() { # HOST: wait until it can be logged in to
    late=$(($(date +%s) + patience))
    until ssh -F "$here/ssh_config" "$1" true < /dev/null 2> "$out/$lane.err"; do
        [ "$(date +%s)" -lt "$late" ] || stop "$1 does not answer"
        sleep 1
    done
}

mask() { # what differs from run to run, as in bench/replay.py
    LC_ALL=C sed -E 's/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}/U/g; s/[0-9]+/N/g'
}

digest() { # FILE
    sha256sum < "$1" | cut -d ' ' -f 1
}

stop() { # MESSAGE
    printf '\n%s\n' "$1" >&2
    tail -n 20 -- "$out/$lane.err" >&2
    exit 1
}

# Run standard input as shell text on a host and demand an exit status ("any" is any).
# -i FILE its input   -o FILE its output   -s put the new disk's values in the place of the old
# -u until the status is that, and with -m FILE the masked output is this; -c close in between
run() { # [OPTION…] HOST STATUS
    input=/dev/null output=$out/$lane.out renew='' wait='' masked='' again=''
    OPTIND=1
    while getopts i:o:sum:c option; do
        case $option in
        i) input=$here/blobs/$OPTARG ;;
        o) output=$out/$OPTARG ;;
        s) renew=yes ;;
        u) wait=yes ;;
        m) masked=$here/blobs/$OPTARG ;;
        c) again=yes ;;
        *) exit 64 ;;
        esac
    done
    shift $((OPTIND - 1))
    text=$(cat)
    if [ -n "$renew" ]; then
        text=$(printf '%s\n' "$text" | sed -f "$values")
        sed -f "$values" -- "$input" > "$out/$lane.in"
        # what a command says of its own input
        text=$(printf '%s\n' "$text" | sed "s/$(digest "$input")/$(digest "$out/$lane.in")/g")
        input=$out/$lane.in
    fi
    [ -z "$wait" ] || late=$(($(date +%s) + patience))
    while :; do
        status=0
        execute "$1" "$text" < "$input" > "$output" 2> "$out/$lane.err" || status=$?
        if [ "$2" = any ] || [ "$status" = "$2" ]; then
            if [ -z "$masked" ] || mask < "$output" | cmp -s - "$masked"; then return 0; fi
        fi
        if [ -z "$wait" ] || [ "$(date +%s)" -ge "$late" ]; then
            stop "exit status $status, recorded was $2, of this command on $1:
$text"
        fi
        [ -z "$again" ] || close "$1"
        sleep 1
    done
}

learn() { # OUTPUT NUMBER OLD: the value that stands in the place of a recorded one
    new=$(grep -aoE '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}' "$out/$1" \
        | sed -n "$2p")
    [ -n "$new" ] || stop "there is no value in $out/$1 that could stand for $3"
    echo "s/$3/$new/g" >> "$values"
}

pin() { # OUTPUT HOST: let the lab know the installed system's own host key, as xenlab does
    known=$(ssh -F "$lab" -G "$2" | sed -n 's/^userknownhostsfile //p')
    place=$(ssh -F "$lab" -G "$2" | awk '{ is[$1] = $2 }
        END { print is["port"] == 22 ? is["hostname"] : "[" is["hostname"] "]:" is["port"] }')
    printf '%s %s\n' "$place" "$(cat -- "$out/$1")" >> "$known"
}

upload() { # HOST FILE PATH
    scp -q -F "$here/ssh_config" -- "$2" "$1:$3" < /dev/null 2> "$out/$lane.err" \
        || stop "$2 could not be copied to $1:$3"
}

together() { # PROCESS…: wait for the lanes that run side by side
    failed=''
    for lane_process; do wait "$lane_process" || failed=yes; done
    [ -z "$failed" ] || exit 1
}

chapter() { # NAME: the time at which it begins
    echo "$1 $(date +%s.%N)" >> "$here/times"
    echo "$1" >&2
}
