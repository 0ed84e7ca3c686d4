#!/.xenlab/busybox sh
# Written by xenlab, chapter 15: the first process. Mounts /usr from where the kernel's command line
# says (xenlab.usr=SERVER:PATH), then becomes the real init, which lies in there. A kernel that was
# not told finds this as /etc/init: then /usr is the guest's own, which was set aside.
busybox=/.xenlab/busybox
$busybox mount -t proc proc /proc
from=
for word in $($busybox cat /proc/cmdline); do
    case $word in xenlab.usr=*) from=${word#xenlab.usr=} ;; esac
done
if ! [ -d /usr ]; then
    $busybox mount -o remount,rw /
    $busybox mkdir /usr
    $busybox mount -o remount,ro /
fi
if [ -z "$from" ] && [ -d /usr.old ]; then
    $busybox mount -o bind /usr.old /usr
fi
tries=0
until [ -z "$from" ] || $busybox mount -t nfs -o ro,vers=4.2,hard "$from" /usr; do
    tries=$((tries + 1))
    $busybox echo "xenlab: /usr cannot be mounted from $from yet ($tries)"
    $busybox sleep 2
done
$busybox umount /proc
exec /sbin/init "$@"
