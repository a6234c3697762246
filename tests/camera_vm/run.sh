#!/bin/bash
# run.sh VM WORK SITE OUT COMMAND...: boots the machine that build.sh made in VM and runs COMMAND in it, with WORK at
# /work and the Python packages SITE at /site, both read-only, and OUT, writable, at /out. Exit status: the command's;
# 125 when it did not come to an end within VM_TIMEOUT seconds (600).
set -euo pipefail
VM=$1 WORK=$(realpath "$2") SITE=$(realpath "$3") OUT=$(realpath "$4"); shift 4
printf '%s\n' "$*" >"$OUT/cmd"; rm -f "$OUT/rc"
share() { echo "local,path=$1,mount_tag=$2,security_model=none,multidevs=remap${3-,readonly=on}"; }
cores=$(nproc); [ "$cores" -le 2 ] || cores=2
# Software emulation: nested virtualisation is rare on build machines. Without FMA, which qemu computes number by number
# (a matte takes 2 s instead of 17), and so without AVX2, with which it is taken for granted.
timeout "${VM_TIMEOUT:-600}" qemu-system-x86_64 -accel "${ACCEL:-tcg,thread=multi,tb-size=512}" -cpu "${CPU:-max,-fma,-avx2}" \
    -smp "${SMP:-$cores}" -m "${MEM:-3G}" -nodefaults -no-user-config -display none -serial stdio -no-reboot -net none \
    -kernel "$VM/vmlinuz" -initrd "$VM/initrd.img" -append "console=ttyS0 quiet panic=-1 mitigations=off" \
    -virtfs "$(share "$VM/work/root" root)" -virtfs "$(share "$WORK" work)" -virtfs "$(share "$SITE" site)" \
    -virtfs "$(share "$OUT" out "")" </dev/null || true
[ -f "$OUT/rc" ] && exit "$(cat "$OUT/rc")"; exit 125
