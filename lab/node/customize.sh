#!/bin/sh
# The last step of building the node image: mmdebstrap runs it with the root of the new system as its argument.
set -eu
root=$1
here=$(dirname "$0")

cp -R --no-preserve=ownership,mode "$here/overlay/." "$root/"
chmod 0440 "$root/etc/sudoers.d/ops"

# Certificate authorities that this machine trusts besides Debian's, so that nodes reach what it reaches.
find /usr/local/share/ca-certificates -name '*.crt' -exec cp -t "$root/usr/local/share/ca-certificates" {} + 2>/dev/null || true
chroot "$root" update-ca-certificates >/dev/null

chroot "$root" useradd --create-home --shell /bin/bash ops
rm -f "$root"/etc/ssh/ssh_host_*

# What cannot run in a container, and timers that would hold apt's locks while Ansible works.
chroot "$root" systemctl mask --quiet \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    console-getty.service getty.target systemd-networkd.service systemd-remount-fs.service
chroot "$root" systemctl enable --quiet ssh.service
chroot "$root" systemctl set-default --quiet multi-user.target

# Reproducible: nothing that differs from build to build stays.
rm -rf "$root"/var/log/* "$root"/var/cache/ldconfig/aux-cache "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
