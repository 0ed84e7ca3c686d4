#!/bin/sh
# Make a Debian root directory one that Portage works in: run on the controller, as root.
#   prepare.sh ROOT FOLDER     FOLDER holds the ebuild repository, and stage/provided.txt
set -eu
root=$1 folder=$2

chroot "$root" groupadd --system --gid 250 portage
chroot "$root" useradd --system --uid 250 --gid portage --no-create-home \
    --home-dir /var/lib/portage/home --shell /bin/false portage

ln -s tar "$root/usr/bin/gtar"
for tool in gcc g++ cpp; do
    ln -s "$tool" "$root/usr/bin/x86_64-pc-linux-gnu-$tool"
done
for tool in ar as ld nm objcopy objdump ranlib readelf size strip; do
    ln -s "x86_64-linux-gnu-$tool" "$root/usr/bin/x86_64-pc-linux-gnu-$tool"
done
# distcc puts its own folder before the compiler's, and its server runs what is named in there
for tool in gcc g++; do
    ln -s ../../bin/distcc "$root/usr/lib/distcc/x86_64-pc-linux-gnu-$tool"
done
ln -s x86_64-linux-gnu-pkg-config "$root/usr/bin/x86_64-pc-linux-gnu-pkg-config"

# the versions that dpkg knows, without what only Debian counts; a comparison needs no more
mkdir -p "$root/etc/portage/profile" "$root/etc/portage/repos.conf" "$root/usr/share/portage/config"
grep -v '^#' "$folder/stage/provided.txt" | while read -r name package; do
    version=$(chroot "$root" dpkg-query -W -f '${Version}' "$package" 2> /dev/null) || continue
    [ -n "$version" ] || continue
    version=$(printf '%s\n' "$version" | sed -E 's/^[0-9]+://; s/^([0-9]+(\.[0-9]+)*).*/\1/')
    printf '%s-%s\n' "$name" "$version"
done > "$root/etc/portage/profile/package.provided"

# the tree: a working copy where Portage looks, and what `emerge --sync` pulls from
tree=/var/db/repos/xenlab upstream=/var/lib/xenlab/repository.git
mkdir -p "$root/var/db/repos" "$root/var/db/pkg" "$root/var/lib/xenlab"
cp -r "$folder/repository" "$root/tmp/repository"
# the sources of its packages lie where this root directory has its Debian packages from
cat "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*.list 2> /dev/null \
    | sed -E 's/ \[[^]]*\]//' \
    | awk '$1 == "deb" && $3 !~ /security/ && !seen[$2]++ { sub("/*$", "", $2); print "debian " $2 }' \
    > "$root/tmp/repository/profiles/thirdpartymirrors"
[ -s "$root/tmp/repository/profiles/thirdpartymirrors" ]
chroot "$root" sh -eu -c '
    export HOME=/root GIT_AUTHOR_NAME=xenlab GIT_AUTHOR_EMAIL=xenlab@localhost
    export GIT_COMMITTER_NAME=xenlab GIT_COMMITTER_EMAIL=xenlab@localhost
    cd /tmp/repository
    git init -q -b main
    git add .
    git commit -q -m "Packages of the lab"
    git clone -q --bare . "$2"
    git clone -q --depth 1 "file://$2" "$1"
' sh "$tree" "$upstream"
rm -r "$root/tmp/repository"
cat > "$root/etc/portage/repos.conf/stage.conf" <<END
[DEFAULT]
main-repo = xenlab

[xenlab]
location = $tree
sync-type = git
sync-uri = file://$upstream
# a tree that is not Gentoo's is not signed by Gentoo
sync-rsync-verify-metamanifest = no
END
rm -f "$root/usr/share/portage/config/repos.conf"
: > "$root/usr/share/portage/config/repos.conf"
ln -s "../..$tree/profiles/base" "$root/etc/portage/make.profile"

# distfiles and binpkgs are where Portage looks for them today; its own user writes them
for store in distfiles binpkgs; do
    install -d -o 250 -g 250 -m 2775 "$root/var/cache/$store"
done

# what stands in for Gentoo's own scripts, in the form that these have
for script in nfs-kernel-server nfs-common rpcbind; do
    rm -f "$root"/etc/runlevels/*/"$script" "$root/etc/init.d/$script"
done
# a /usr that comes over the network is needed until the machine is off
sed -i 's#^\([[:space:]]*\)/|/proc|#\1/|/usr|/proc|#' "$root/etc/init.d/umountnfs.sh"
grep -q '/|/usr|/proc|' "$root/etc/init.d/umountnfs.sh"
mkdir -p "$root/usr/lib/xenlab"
for script in xen xendomains syslog-ng; do
    mv "$root/etc/init.d/$script" "$root/usr/lib/xenlab/$script"
done
for script in net.lo netmount nfs syslog-ng xen xendomains; do
    install -m 755 "$folder/stage/$script" "$root/etc/init.d/$script"
done
chroot "$root" rc-update --quiet add net.lo boot
chroot "$root" rc-update --quiet add netmount default

# Debian's scripts read their settings where Gentoo's would
mkdir -p "$root/etc/conf.d"
mv "$root/etc/default/xendomains" "$root/etc/conf.d/xendomains"
ln -s ../conf.d/xendomains "$root/etc/default/xendomains"
printf 'XENCONSOLED_OPTS=""\n' > "$root/etc/conf.d/xenconsoled"
cat >> "$root/etc/default/xen" <<'END'

. /etc/conf.d/xenconsoled
XENCONSOLED_ARGS=$XENCONSOLED_OPTS
END

# Gentoo's GRUB has one file of settings
rm -f "$root"/etc/default/grub.d/*.cfg

# Debian's sysvinit enters two of the three runlevels of a boot
sed -i '/^si::sysinit:/a rc::bootwait:/sbin/openrc boot' "$root/etc/inittab"

# the lab's machine has no screen, and Xen gives dom0 this console
sed -i '/^[1-6]:.*getty/s/^/#/' "$root/etc/inittab"
echo 'h0:2345:respawn:/sbin/agetty -L 115200 hvc0 linux' >> "$root/etc/inittab"
