#!/bin/bash
# Installs the package into a clean Debian, uses it there with that Debian's PostgreSQL, upgrades it while PostgreSQL
# archives, removes and purges it. Needs root; leaves nothing behind.
#
# usage: packaging/test-deb.sh bookworm|trixie PREVIOUS.deb PACKAGE.deb
#
# The root has namespaces of its own: no network, and no process survives. Trixie is booted, so that the units run as on a
# host; bookworm has no systemd, as in a container.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=$1 previous=$2 package=$3
case $suite in
    bookworm) major=15 ;;
    trixie) major=17 ;;
esac
archive=$(packaging/clean-root.sh "$suite")
work=$(mktemp -d /var/tmp/walkeep-root.XXXXXX)
root=$work/root
systemd=
clean_up() {
    [ -z "$systemd" ] || { kill -KILL "$systemd" 2>/dev/null && wait "$systemd" 2>/dev/null; } || true
    if mountpoint -q "$work/cgroup"; then
        # The kernel takes a moment to see that it is empty.
        for _ in $(seq 50); do
            find "$work/cgroup/walkeep-$$" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.1
        done
        umount "$work/cgroup"
    fi
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT
mkdir "$root"
tar -x -f "$archive" -C "$root"
cp "$previous" "$root/previous.deb"
cp "$package" "$root/package.deb"
cp packaging/test-installed.sh "$root/test-installed.sh"
environment=(/usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TZ=UTC)
namespaces=(unshare --mount --pid --net --ipc --uts --fork --kill-child)
test=(bash /test-installed.sh "$major")

if [ "$suite" = bookworm ]; then
    # shellcheck disable=SC2016  # expanded by the inner shell
    "${namespaces[@]}" sh -ec '
        mount -t proc proc "$1/proc"
        mount --rbind /dev "$1/dev"
        mount -t tmpfs tmpfs "$1/dev/shm"
        root=$1
        shift
        exec chroot "$root" "$@"
    ' sh "$root" "${environment[@]}" "${test[@]}"
    exit
fi

mkdir "$work/cgroup"
mount -t cgroup2 none "$work/cgroup"
mkdir "$work/cgroup/walkeep-$$"
# shellcheck disable=SC2016  # expanded by the inner shells
sh -ec '
    cgroup=$1 root=$2
    shift 2
    echo $$ >"$cgroup/cgroup.procs"
    exec "$@" --cgroup sh -ec "
        cd \"\$1\"
        mount --bind . .
        cd \"\$1\"
        mount -t proc proc proc
        mount -t sysfs -o ro sysfs sys
        mount -t cgroup2 none sys/fs/cgroup
        for directory in dev run tmp; do mount -t tmpfs tmpfs \$directory; done
        for device in null zero full random urandom tty; do
            mknod -m 666 dev/\$device c \$((0x\$(stat -c %t /dev/\$device))) \$((0x\$(stat -c %T /dev/\$device)))
        done
        mkdir dev/shm dev/pts
        mount -t tmpfs tmpfs dev/shm
        mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
        ln -s pts/ptmx dev/ptmx
        # What systemd mounts for a unit must be below the real root, not below that of a chroot.
        pivot_root . mnt
        exec chroot . sh -ec \"
            umount -l /mnt
            exec /usr/bin/env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system
        \"
    " sh "$root"
' sh "$work/cgroup/walkeep-$$" "$root" "${namespaces[@]}" >"$work/boot" 2>&1 &
systemd=$!
first=
for _ in $(seq 600); do
    first=$(pgrep -P "$systemd" || true)
    if [ -n "$first" ] && [ -S "/proc/$first/root/run/systemd/private" ]; then break; fi
    kill -0 "$systemd" 2>/dev/null || { cat "$work/boot" >&2; exit 1; }
    sleep 0.1
done
inside=(nsenter --target "$first" --all --root --wd "${environment[@]}")
# Not everything can start without devices and a network, and nothing of that is needed.
"${inside[@]}" systemctl is-system-running --wait >/dev/null || true
"${inside[@]}" "${test[@]}"
