# Switch the network over, and back again unless somebody confirms in time.
# $1 folder in which both sides meet   $2 seconds   $3 program   $4 its settings
# Runs on its own: no connection, no service and no person has to be there for the way back.
folder=$1 seconds=$2 program=$3 settings=$4
if ! "$program" start "$settings"; then
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
    echo "nobody confirmed: going back"
    "$program" stop "$settings"
    echo "rolled back" > "$folder/outcome"
fi
