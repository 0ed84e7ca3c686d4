#!/bin/sh
# xenlab-lan make|remove|join|leave [SETTINGS]: the LAN that never leaves this machine.
#
#   veth1 -- vif0.1 -|                 veth1 is dom0's interface, with dom0's address in the LAN
#                    |- xenbr1         xenbr1 has no uplink and no address: it glues, no more
#   guests' vifN.1  -|
#
# "make" and "join" may be repeated. In 2006 a driver made the pair and xend the bridge: "make". That
# dom0's end was missing in the bridge was the bug that the howto mends: "join".
set -eu
verb=$1
. "${2:-/etc/default/xenlab-lan}"
# The highest MAC address there is: a bridge takes the lowest of its ports for its own.
dumb=fe:ff:ff:ff:ff:ff

exists() { ip link show dev "$1" > /dev/null 2>&1; }

# An interface that is up gives itself an IPv6 address unless it is told not to before.
no_own_address() {
    [ -d /proc/sys/net/ipv6 ] || return 0
    ip link set dev "$1" addrgenmode none
    echo 0 > "/proc/sys/net/ipv6/conf/$1/accept_ra"
}

case $verb in
make)
    exists "$BRIDGE" || ip link add dev "$BRIDGE" type bridge stp_state 0 forward_delay 0
    no_own_address "$BRIDGE"
    ip link set dev "$BRIDGE" up
    exists "$VIF" || ip link add dev "$INTERFACE" type veth peer name "$VIF" address "$dumb"
    no_own_address "$VIF"
    # nothing is passed on between this LAN and any other
    echo 0 > "/proc/sys/net/ipv4/conf/$INTERFACE/forwarding"
    ;;
remove)
    ! exists "$INTERFACE" || ip link delete dev "$INTERFACE"
    ! exists "$BRIDGE" || ip link delete dev "$BRIDGE"
    ;;
join)
    ip link set dev "$VIF" up
    ip link set dev "$VIF" master "$BRIDGE"
    ;;
leave)
    ip link set dev "$VIF" nomaster
    ip link set dev "$VIF" down
    ;;
*) echo "usage: xenlab-lan make|remove|join|leave [SETTINGS]" >&2; exit 64 ;;
esac
