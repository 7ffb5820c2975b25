#!/bin/bash
# Makes the plugin image for arm64 on an amd64, as root: from the tarball of `make dist`, with
# Debian's packages for arm64, in a Debian of its own. `make image-index` runs it.
#
#   packaging/image-arm64.sh BUILD VERSION     writes to BUILD/image-arm64/ what packaging/image.sh
#                                              writes to BUILD/image/
set -euo pipefail
umask 022

[ "$(id -u)" -eq 0 ] || {
    echo "image-arm64: a Debian of its own is entered by root" >&2
    exit 1
}
build=$(realpath "$1")
version=$2
here=$(cd "$(dirname "$0")" && pwd)
out=$build/image-arm64
root=$out/debian

set_up() {
    local debian
    debian=$("$here/../tests/lib/debian-arm64.sh")
    mkdir -p "$root"
    tar -C "$root" -xf "$debian/root.tar"
    mkdir -p "$root/src"
    mknod -m 666 "$root/dev/null" c 1 3
    "$here/dist.sh" "$build" "$version"
    tar -C "$root/src" --strip-components=1 -xzf "$build/spire-hsm-$version.tar.gz"
}

make_image() {
    chroot "$root" env -i --chdir=/src PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LC_ALL=C \
        PKG_CONFIG_LIBDIR=/usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig \
        EMULATOR=qemu-aarch64-static make -j "$(nproc)" CC=aarch64-linux-gnu-gcc image-now
}

rm -rf "$out"
trap 'rm -rf "$root"' EXIT
set_up
make_image
mv "$root/src/build/image/"{oci,spire-hsm.tar,digest,plugin_checksum,sbom.spdx.json,spire-hsm,spire-hsm-worker.debug} "$out/"
