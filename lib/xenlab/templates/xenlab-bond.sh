#!/bin/sh
# xenlab-bond NAME MODE CARD…: a bond of these network cards, which are taken from what they did.
# It may be repeated: a bond that has cards already keeps its mode, and the name that it has by now.
set -eu
name=$1 mode=$2
shift 2
exists() { ip link show dev "$1" > /dev/null 2>&1; }
bond_of() { ip -o link show dev "$1" | sed -n 's/.* master \([^ ]*\) .*/\1/p'; }
mac_of() { ip -o link show dev "$1" | sed -n 's|.* link/ether \([0-9a-f:]*\).*|\1|p'; }

cards= bond= tries=0
for card do
    until exists "$card" || [ "$tries" -gt 150 ]; do
        tries=$((tries + 1))
        sleep 0.2
    done
    # a card that is broken is what the others are for
    exists "$card" || { echo "there is no interface $card" >&2; continue; }
    cards="$cards $card"
    [ -n "$bond" ] || bond=$(bond_of "$card")
done
[ -n "$cards" ]
if [ -z "$bond" ]; then
    bond=$name
    # the driver may make a bond0 of another mode by itself, as it is loaded at the latest
    exists "$bond" || ip link add dev "$bond" type bond || exists "$bond"
    ip link set dev "$bond" down
    ip link set dev "$bond" type bond mode "$mode" miimon 100
    if [ "$mode" = 802.3ad ]; then
        # The switch must not take two machines for one: as the bridge's port the bond gets a MAC
        # address that others have as well.
        set -- $cards
        ip link set dev "$bond" type bond ad_actor_system "$(mac_of "$1")"
    fi
fi
for card in $cards; do
    [ -z "$(bond_of "$card")" ] || continue
    ip address flush dev "$card"
    ip link set dev "$card" down
    ip link set dev "$card" master "$bond"
done
ip link set dev "$bond" up
