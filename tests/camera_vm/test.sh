#!/bin/bash
# test.sh: rtbg on real (virtual) devices, see README.md. Exit status 0: passed, or skipped with the reason.
# Environment: RTBG_CAMERA_VM=0 skips; DIR keeps the virtual machine (default below), PYTHON has rtbg[demo] and pip.
# Prints what failed and how long it took; every check is in DIR/out/checks.log.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd); ROOT=$(cd "$HERE/../.." && pwd)
DIR=${DIR:-/var/tmp/rtbg-camera-vm}; PYTHON=${PYTHON:-python3}
skipped() { echo "skipped: $*"; exit 0; }
lap() { echo "[test] $1: $((SECONDS - ${T:-0})) s"; T=$SECONDS; }
quietly() { "$@" >"$DIR/quiet.log" 2>&1 || { rc=$?; tail -20 "$DIR/quiet.log" >&2; return $rc; }; }

[ "${RTBG_CAMERA_VM:-1}" != 0 ] || skipped "RTBG_CAMERA_VM=0"
[ "$(uname -m)" = x86_64 ] || skipped "the virtual machine is for x86_64"
[ "$(id -u)" = 0 ] || skipped "building the virtual machine needs root"
grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release && command -v apt-get >/dev/null || skipped "needs Debian 12 and its apt"
mkdir -p "$DIR"
[ "$(df --output=avail -BM "$DIR" | tail -1 | tr -dc 0-9)" -ge 4000 ] || skipped "needs 4 GB of disk in $DIR (DIR=...)"
[ "$(awk '/MemAvailable/ {print int($2 / 1000)}' /proc/meminfo)" -ge 4500 ] || skipped "needs 4.5 GB of free memory"

"$HERE/build.sh" "$DIR/vm" || { [ $? = 77 ] && skipped "apt cannot install what builds the virtual machine"; exit 1; }
lap "virtual machine"

# What pip would install for a user of the machine's Python 3.11, and rtbg itself as it is here.
DEPENDENCIES=$("$PYTHON" - "$ROOT/setup.cfg" <<'P'
import configparser, sys
config = configparser.ConfigParser()
config.read(sys.argv[1])
print(config["options"]["install_requires"].strip())
P
)
PIP=("$PYTHON" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore)
GUEST=(--python-version 3.11 --implementation cp --only-binary=:all: --platform manylinux2014_x86_64)
for n in 17 24 26 27 28 31 34 35; do GUEST+=(--platform manylinux_2_${n}_x86_64); done
if [ "$(cat "$DIR/dependencies" 2>/dev/null)" != "$DEPENDENCIES" ]; then
    rm -rf "$DIR/site"
    mapfile -t wanted <<<"$DEPENDENCIES"
    quietly "${PIP[@]}" "${GUEST[@]}" --target "$DIR/site" "${wanted[@]}"
    echo "$DEPENDENCIES" >"$DIR/dependencies"
fi
rm -rf "$DIR"/{source,work,out} "$DIR"/site/{rtbg,engines,rtbg-*.dist-info,bin}
mkdir -p "$DIR"/{source,work,out}
cp -r "$ROOT"/{rtbg,engines,setup.cfg,pyproject.toml,README.md,LICENSE} "$DIR/source/"
quietly "${PIP[@]}" --no-deps --target "$DIR/site" "$DIR/source"
lap "packages"

cp -r "$HERE/guest" "$DIR/work/"
(cd "$DIR/source" && PYTHONPATH=$PWD "$PYTHON" "$HERE/clip.py" "$DIR/work")
lap "clip"

# All of it within a quarter of an hour.
export VM_TIMEOUT=${VM_TIMEOUT:-$((900 - SECONDS))}
rc=0; "$HERE/run.sh" "$DIR/vm" "$DIR/work" "$DIR/site" "$DIR/out" "python3 guest/checks.py $*" |
    tee "$DIR/out/checks.log" | sed -u '/] PASS /d; /sysrq:/d; /reboot:/d' || rc=$?
lap "checks"
[ $rc != 0 ] || { echo "passed, $SECONDS s in all"; exit; }
(cd "$DIR/out" && tail -n 12 checks.log [!c]*.log 2>/dev/null) || true  # chromium.log says nothing that helps
echo "FAILED ($rc), $SECONDS s in all: logs are in $DIR/out"
exit $rc
