#!/bin/bash
# Puts SoftHSM2, a PKCS#11 token in software, into the folder given, unless this machine has it where testkit looks (see
# testkit/softhsm.py). Needs no root: Debian's packages are fetched and checked by apt, with state and cache of its own,
# and unpacked.
set -eu -o pipefail

folder=$(realpath -m "$1")
mkdir -p "$folder"

if command -v softhsm2-util >/dev/null; then
    for module in "${BYOK_TEST_SOFTHSM_MODULE:-/nonexistent}" /usr/lib/softhsm/libsofthsm2.so \
        /usr/lib/*/softhsm/libsofthsm2.so /usr/lib64/pkcs11/libsofthsm2.so /usr/local/lib/softhsm/libsofthsm2.so; do
        if [ -e "$module" ]; then
            exit 0
        fi
    done
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    echo "setup: SoftHSM2 is missing and cannot be fetched here; install it (softhsm2, softhsm), or name its module by BYOK_TEST_SOFTHSM_MODULE" >&2
    exit 1
fi

echo "setup: fetching SoftHSM2, which this machine has not"
work=$(mktemp -d "$folder/apt.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/packages"
# As root, apt would fetch as a user who cannot write here.
apt=(apt-get -qq -o "Dir::State=$work/state" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root -o Acquire::Retries=2)
"${apt[@]}" update
(cd "$work/packages" && "${apt[@]}" download libsofthsm2 softhsm2)
for package in "$work"/packages/*.deb; do
    dpkg -x "$package" "$folder/debian"
done
