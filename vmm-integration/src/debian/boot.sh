# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Boots the installation in a folder as a container: systemd is the first process of a PID namespace, with a control
# group and a network of its own. Runs as the first process of all these namespaces.
# Arguments: the installation, which stays as it is; a folder for what changes.
set -e
base=$1
work=$2
mount --make-rprivate /
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" overlay "$work/root"
cd "$work/root"
mount -t proc proc proc
# What the kernel has for all of the machine is not the container's to set. systemd runs no udev then.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs dev
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
mkdir -p .host
pivot_root . .host
umount --lazy /.host
rmdir /.host
exec env -i container=test PATH=/usr/sbin:/usr/bin /sbin/init
