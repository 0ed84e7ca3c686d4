# Switch the network over, and back again unless somebody confirms in time.
# $1 folder in which both sides meet   $2 seconds   $3 program   $4 its settings
# $5 the settings of a layout that was confirmed before, if there is such a file
# Runs on its own: no connection, no service and no person has to be there for the way back.
folder=$1 seconds=$2 program=$3 settings=$4 confirmed=$5

say() { # also to whoever is at the console, now that the network may be gone
    echo "$1"
    echo "xenlab: $1" > /dev/console 2> /dev/null || :
}

say "switching the network over"
if ! "$program" start "$settings"; then
    [ ! -e "$confirmed" ] || "$program" start "$confirmed"
    echo failed > "$folder/outcome"
    exit 1
fi
: > "$folder/switched"
while [ "$seconds" -gt 0 ] && [ ! -d "$folder/decided" ]; do
    sleep 1
    seconds=$((seconds - 1))
done
# Whoever makes this folder has decided: a confirmation that comes too late finds it made.
if mkdir "$folder/decided" 2> /dev/null; then
    say "nobody confirmed the new network: going back"
    "$program" stop "$settings"
    [ ! -e "$confirmed" ] || "$program" start "$confirmed"
    say "the former network is back"
    echo "rolled back" > "$folder/outcome"
fi
