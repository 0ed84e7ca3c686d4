#!/bin/sh
# xenlab-bridge start|stop [SETTINGS]: the network of dom0 as xend's network-bridge made it.
#
#   eth0 -- vif0.0 -|                 eth0 is dom0's end of a veth pair, with the real MAC address
#                   |- xenbr0 - peth0 peth0 is the physical interface under its new name
#   guests' vifN.0 -|                 xenbr0 has no address: it glues, no more
#
# With ADDRESS_ON=bridge: eth0 is a port of xenbr0, and dom0's address is on xenbr0.
# With VLAN=100: all this is done with vlan100, that VLAN's interface on CARD.
# With BOND=bond0: all this is done with that bond of CARDS, or with its VLAN.
# With ACCEPT_RA=2 (or 0): dom0 takes what routers advertise of IPv6 (or does not).
# "start" may be repeated; where it fails it undoes what it did. Addresses and routes move along.
set -eu
verb=$1
. "${2:-/etc/default/xenlab-bridge}"
physical=p$UPLINK
# The highest MAC address there is: a bridge takes the lowest of its ports for its own.
dumb=fe:ff:ff:ff:ff:ff
remembered=864000000 # hundredths of a second: 100 days
addresses= routes= routes6=

exists() { ip link show dev "$1" > /dev/null 2>&1; }
has_master() { ip -o link show dev "$1" | grep -q " master $2 "; }
mac_of() { ip -o link show dev "$1" | sed -n 's|.* link/ether \([0-9a-f:]*\).*|\1|p'; }
burnt_in_mac_of() {
    # a VLAN has its card's, a bond that of its first one
    [ -z "${VLAN:-}" ] || { mac_of "$CARD"; return; }
    [ -z "${BOND:-}" ] || set -- "${CARDS%% *}"
    ip -o link show dev "$1" | sed -n 's|.* permaddr \([0-9a-f:]*\).*|\1|p'
}

# An interface that is up gets an IPv6 address by itself, its own or one that a router advertises,
# unless it is told not to before.
no_own_address() {
    [ -d /proc/sys/net/ipv6 ] || return 0
    ip link set dev "$1" addrgenmode none
    echo 0 > "/proc/sys/net/ipv6/conf/$1/accept_ra"
    # what a router has advertised stays without its address
    ip -6 route flush dev "$1" || :
}
own_address() {
    [ -d /proc/sys/net/ipv6 ] || return 0
    ip link set dev "$1" addrgenmode eui64
    accept_ra "$1" 1
}
accept_ra() { # INTERFACE VALUE: the settings' own counts first
    [ ! -d /proc/sys/net/ipv6 ] \
        || echo "${ACCEPT_RA:-$2}" > "/proc/sys/net/ipv6/conf/$1/accept_ra"
}

# Addresses of IPv6 with the time that they are valid for. They were dom0's before: nobody is asked
# again whether they are somebody else's. Routes that a router advertises it will advertise again.
# What was found first counts: an interface that comes up may have an address of a router's by then.
remember() {
    [ -z "$addresses" ] || return 0
    found=$(
        ip -o -4 address show dev "$1" scope global \
            | sed -n 's/.* inet \([^ ]*\) \(brd [^ ]*\)\{0,1\}.*/\1 \2/p'
        ip -o -6 address show dev "$1" scope global | sed -n '/ temporary /d
            s/.* inet6 \([^ ]*\) .* \(valid_lft [a-z0-9]* preferred_lft [a-z0-9]*\).*/\1 nodad \2/
            s/\([0-9]\)sec/\1/g; / nodad valid_lft /p'
    )
    [ -n "$found" ] || return 0
    addresses=$found
    routes=$(routes_of -4 "$1")
    routes6=$(routes_of -6 "$1")
}
routes_of() {
    ip "$1" route show dev "$2" 2> /dev/null | grep -Ev ' proto (kernel|ra) ' \
        | sed 's/ linkdown//; s/ dead//' || :
}

put() {
    printf '%s\n' "$addresses" | while read -r address more; do
        # unquoted: "brd 192.0.2.255" is two words
        [ -z "$address" ] || ip address replace "$address" $more dev "$1"
    done
    printf '%s\n' "$routes" | while read -r route; do
        [ -z "$route" ] || ip -4 route replace $route dev "$1"
    done
    printf '%s\n' "$routes6" | while read -r route; do
        [ -z "$route" ] || ip -6 route replace $route dev "$1"
    done
}

make_bridge() {
    exists "$BRIDGE" || ip link add dev "$BRIDGE" address "$1" type bridge
    # A bridge takes packets for its own MAC address itself: dom0's must not stay on it.
    ip link set dev "$BRIDGE" address "$1"
    # A guest may be silent for long. Once the bridge forgets where it is, frames for it go out at
    # every port, and who hears them may answer: QEMU's user network refuses the connection.
    ip link set dev "$BRIDGE" type bridge stp_state 0 forward_delay 0 ageing_time "$remembered"
}

drop_bridge() {
    if exists "$BRIDGE" && [ -z "$(ip -o link show master "$BRIDGE")" ]; then
        ip link delete dev "$BRIDGE"
    fi
}

build_pair() {
    if ! exists "$physical"; then
        remember "$UPLINK"
        ip link set dev "$UPLINK" down
        ip link set dev "$UPLINK" name "$physical"
    fi
    ip address flush dev "$physical"
    mac=$(mac_of "$physical")
    [ "$mac" != "$dumb" ] || mac=$(burnt_in_mac_of "$physical")
    # Both MAC addresses are given here, or udev would choose them a moment later.
    exists "$UPLINK" \
        || ip link add dev "$UPLINK" address "$mac" type veth peer name "$VIF" address "$dumb"
    make_bridge "$dumb"
    no_own_address "$BRIDGE"
    ip address flush dev "$BRIDGE"
    for port in "$physical" "$VIF"; do
        no_own_address "$port"
        # With dom0's own MAC address on the physical port the bridge would drop its packets.
        ip link set dev "$port" address "$dumb" arp off
        ip link set dev "$port" master "$BRIDGE"
        ip link set dev "$port" up
    done
    ip link set dev "$BRIDGE" up
    [ -z "${ACCEPT_RA:-}" ] || accept_ra "$UPLINK" 1
    ip link set dev "$UPLINK" up
    put "$UPLINK"
}

undo_pair() {
    exists "$physical" || return 0
    mac=$(burnt_in_mac_of "$physical")
    if exists "$UPLINK"; then
        remember "$UPLINK"
        mac=$(mac_of "$UPLINK")
        ip link delete dev "$UPLINK"
    fi
    ip link set dev "$physical" nomaster
    ip link set dev "$physical" down
    [ "$(mac_of "$physical")" != "$dumb" ] || ip link set dev "$physical" address "$mac"
    ip link set dev "$physical" arp on
    own_address "$physical"
    ip link set dev "$physical" name "$UPLINK"
}

build_flat() {
    remember "$UPLINK"
    exists "$BRIDGE" && remember "$BRIDGE"
    make_bridge "$(mac_of "$UPLINK")"
    own_address "$BRIDGE"
    no_own_address "$UPLINK"
    ip address flush dev "$UPLINK"
    ip link set dev "$UPLINK" master "$BRIDGE"
    ip link set dev "$UPLINK" up
    ip link set dev "$BRIDGE" up
    put "$BRIDGE"
}

undo_flat() {
    exists "$physical" && return 0
    exists "$BRIDGE" || return 0
    remember "$BRIDGE"
    no_own_address "$BRIDGE"
    ip address flush dev "$BRIDGE"
    has_master "$UPLINK" "$BRIDGE" || return 0
    ip link set dev "$UPLINK" nomaster
    own_address "$UPLINK"
}

plain() {
    set +e
    undo_pair
    undo_flat
    drop_bridge
    ip link set dev "$UPLINK" up
    put "$UPLINK"
}

case $verb in
start)
    # unquoted: each card is a word
    [ -z "${BOND:-}" ] || "${0%/*}/xenlab-bond" "$BOND" "$MODE" $CARDS
    tries=0
    until exists "${CARD:-$UPLINK}" || exists "$physical"; do
        tries=$((tries + 1))
        [ "$tries" -le 150 ] || { echo "there is no interface ${CARD:-$UPLINK}" >&2; exit 1; }
        sleep 0.2
    done
    if [ -n "${VLAN:-}" ]; then
        no_own_address "$CARD"
        ip link set dev "$CARD" up
        exists "$UPLINK" || exists "$physical" \
            || ip link add link "$CARD" name "$UPLINK" type vlan id "$VLAN"
    fi
    trap 'echo "the bridge could not be made; the plain network comes back" >&2; plain' EXIT
    if [ "$ADDRESS_ON" = bridge ]; then
        undo_pair
        build_flat
    else
        undo_flat
        build_pair
    fi
    trap - EXIT
    ;;
stop) plain ;;
*) echo "usage: xenlab-bridge start|stop [SETTINGS]" >&2; exit 64 ;;
esac
