#!/bin/sh
# ip(8) for a kernel that has no bonds: what it calls a bond is a device of the first card alone
# (macvlan); the cards of the bond stand in a file. FOLDER holds that file and the real program.
ip=FOLDER/real cards=FOLDER/cards
bond() { "$ip" -o link show type macvlan | sed 's/^[0-9]*: \([^@:]*\).*/\1/'; }

case $* in
"link add dev "*" type bond") exec "$ip" link add link eth0 name "$4" type macvlan mode passthru ;;
"link set dev "*" type bond "*) ;;
"link set dev eth"*" master bond0")
    echo "$4" >> "$cards"
    exec "$ip" link set dev "$4" up
    ;;
"-o link show dev eth"*)
    grep -qx "$5" "$cards" || exec "$ip" "$@"
    "$ip" "$@" | sed "s/ qdisc / master $(bond)&/"
    ;;
"-details -json address show")
    members=$(sed "s/.*/s|\"ifname\":\"&\",|\&\"master\":\"$(bond)\",|/" "$cards")
    kind='"info_kind":"bond","info_data":{"mode":"active-backup"}'
    "$ip" "$@" | sed -e "s/\"info_kind\":\"macvlan\",\"info_data\":{[^}]*}/$kind/" -e "$members"
    ;;
*) exec "$ip" "$@" ;;
esac
