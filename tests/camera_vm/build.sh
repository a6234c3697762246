#!/bin/bash
# build.sh DIR: makes the test's virtual machine in DIR (kernel, initrd, root file system). Once; about two minutes
# on two cores, 1.4 GB. Needs root, Debian 12 and its package servers. What is there already is not made again.
# Exit status 77: apt cannot install what is needed for it.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
VM=$(mkdir -p "$1" && realpath "$1")
KEY=$(cat "$0" "$HERE"/guest/*-init | sha256sum | cut -d' ' -f1)
[ "$(cat "$VM/built" 2>/dev/null)" = "$KEY" ] && exit
rm -rf "$VM"/{built,work} && mkdir -p "$VM/work" && cd "$VM/work"
lap() { echo "[build] $1: $((SECONDS - ${T:-0})) s"; T=$SECONDS; }

# The headers are installed on the host, so that the machine needs no compiler; the kernel itself is only unpacked.
tools=(qemu-system-x86 mmdebstrap e2fsprogs cpio gcc make linux-headers-amd64)
apt-get install -y --no-install-recommends "${tools[@]}" >apt.log 2>&1 ||
    (apt-get update && apt-get install -y --no-install-recommends "${tools[@]}") >apt.log 2>&1 ||
    { tail -5 apt.log >&2; exit 77; }
KV=$(basename "$(readlink -f /usr/src/linux-headers-*-amd64 | sort -V | tail -1)" | sed s/linux-headers-//)
lap "host packages"

apt-get download -qq "linux-image-$KV" v4l2loopback-dkms busybox-static >apt.log 2>&1 || { tail -5 apt.log >&2; exit 77; }
for d in *.deb; do dpkg-deb -x "$d" x; done
make -s -C "/usr/src/linux-headers-$KV" M="$(echo "$PWD"/x/usr/src/v4l2loopback-*)" modules 2>make.log ||
    { cat make.log >&2; exit 1; }
cp x/usr/src/v4l2loopback-*/v4l2loopback.ko "x/lib/modules/$KV/"
lap "kernel and v4l2loopback"

# In a mount namespace of its own: what it mounts goes with it, however it ends.
unshare --mount mmdebstrap --quiet --mode=root --variant=minbase \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include=python3,kmod,v4l-utils,ffmpeg,chromium,fonts-dejavu-core,procps \
    bookworm root $(ls /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null)
lap "root file system"

# Only the modules that are used: the whole tree is 390 MB.
M=root/usr/lib/modules
BOOT="virtio_pci virtio_blk ext4 9p 9pnet_virtio overlay crc32c_generic"
needs() { for m in "$@"; do chroot root modprobe -S "$KV" --show-depends "$m"; done | awk '/^insmod/ && !s[$2]++ {print $2}'; }
mkdir -p $M && rm -rf "$M/$KV" && cp -a "x/lib/modules/$KV" $M/ && chroot root depmod "$KV"
needs $BOOT >boot.list
mkdir -p keep && needs $BOOT v4l2loopback vivid | while read -r f; do cp --parents "$M/${f#*/modules/}" keep/; done
cp $M/"$KV"/modules.{builtin,builtin.modinfo,order} keep/$M/"$KV"/
rm -rf "$M/$KV" && cp -a keep/$M/. $M/ && chroot root depmod "$KV"
mkdir -p root/{work,site,out} && install -m755 "$HERE/guest/vm-init" root/vm-init

# Virtio, 9p and overlay are modules in Debian's kernel: a small initrd loads them.
mkdir -p i/{bin,mods,proc,sys,dev,root} && cp x/bin/busybox i/bin/
n=10; while read -r f; do cp "$M/${f#*/modules/}" "i/mods/$n-$(basename "$f")"; n=$((n + 1)); done <boot.list
install -m755 "$HERE/guest/initrd-init" i/init
(cd i && find . | cpio -o -H newc --quiet) >"$VM/initrd.img"
cp x/boot/vmlinuz-* "$VM/vmlinuz"
rm -rf x keep i ./*.deb
echo "$KEY" >"$VM/built"
lap "modules and initrd"; du -sh "$VM/work/root"
