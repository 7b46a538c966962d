#!/usr/bin/env bash
# Runs a command on a machine that has Slurm's programs: installs Debian's packages where they are missing and it may,
# and purges afterwards what it installed (KEEP_SLURM=1: leaves it). Where it may not, it prints a note and runs the command,
# whose Slurm tests are then skipped with the reason.
# Usage: tests/slurm/with_slurm.sh COMMAND …
set -uo pipefail
packages=(slurmctld slurmd slurm-client munge)
policy=/usr/sbin/policy-rc.d

has_slurm() {
    command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged
} >/dev/null

install() {
    local before
    before=$(mktemp)
    dpkg-query -W -f '${Package}\n' | sort >"$before"
    # Packages would start their services, whose place is taken by the tests' own.
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made_policy=1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -o DPkg::Lock::Timeout=120 -qq -y --no-install-recommends "${packages[@]}" >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -o DPkg::Lock::Timeout=120 -qq -y --no-install-recommends "${packages[@]}" >/dev/null; }
    mapfile -t installed < <(dpkg-query -W -f '${Package}\n' | sort | comm -13 "$before" -)
    rm -f "$before"
    [ -n "${made_policy:-}" ] && rm -f "$policy"
    has_slurm
}

purge() {
    if [ "${#installed[@]}" != 0 ] && [ -z "${KEEP_SLURM:-}" ]; then
        echo "slurm: removing what was installed for the tests (KEEP_SLURM=1 keeps it): ${installed[*]}"
        apt-get purge -o DPkg::Lock::Timeout=120 -qq -y "${installed[@]}" >/dev/null 2>&1
        rm -rf "${new_folders[@]}" # what the purge leaves, such as munge's key
    fi
}

installed=()
new_folders=()
for folder in /etc/munge /etc/slurm /var/lib/munge /var/log/munge /var/log/slurm /var/lib/slurm; do
    [ -e "$folder" ] || new_folders+=("$folder")
done
trap purge EXIT
if has_slurm; then
    :
elif [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "slurm: the tests of the job scripts on a real Slurm are skipped: installing it needs root and apt-get" >&2
else
    echo "slurm: installing ${packages[*]}"
    install || echo "slurm: could not be installed; the tests of the job scripts on a real Slurm are skipped" >&2
fi
"$@"
