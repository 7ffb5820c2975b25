#!/bin/bash
# Installs what is missing on a Debian 12 that has git, make, a C compiler and Go.
#
#   tests/lib/deps.sh [GROUP...]      build run tutorial test check image deb; all when none is named
#                                 llvm, arm64 and k8s are only installed when they are named
#
# Says what is missing and what for, asks apt for that alone, and does nothing at all
# when everything is there. As another user than root it goes through sudo.
set -euo pipefail

declare -A packages=(
    [build]="libgrpc-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler
             libp11-kit-dev libjansson-dev libssl-dev pkg-config"
    [run]="softhsm2 opensc openssl curl jq procps"
    [tutorial]="python3-venv"
    [test]="libcmocka-dev p11-kit postgresql nginx prometheus
            libnss3 libnss3-tools swtpm dbus tpm2-abrmd libtss2-tcti-swtpm0 libtss2-tcti-tabrmd0
            tpm2-tools libtpm2-pkcs11-1 libtpm2-pkcs11-tools"
    [check]="clang-format"
    [image]="softhsm2 p11-kit-modules busybox-static patchelf jq"
    [llvm]="clang libclang-rt-dev"
    [arm64]="debootstrap skopeo"
    [deb]="build-essential debhelper fakeroot lintian man-db mandoc bsdextrautils systemd debootstrap"
    [k8s]="containerd runc containernetworking-plugins etcd-server haproxy debootstrap"
)
declare -A purpose=(
    [build]="to compile spire-hsm"
    [run]="for the demo: a software token, and tools to look at it"
    [tutorial]="for the aws client, where there is none"
    [test]="for the tests"
    [check]="to check the source"
    [image]="for the plugin image: what goes into it, and tools to make it"
    [llvm]="to fuzz with libFuzzer"
    [arm64]="to build for arm64, in a Debian of its own, and to read the image for both machines"
    [deb]="for the Debian package: tools to make and to check it"
    [k8s]="for the test on Kubernetes: what pods and their control plane run on"
)

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt() {
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || {
            echo "deps: not root and no sudo; as root: apt-get install --no-install-recommends$missing" >&2
            exit 1
        }
        sudo=(sudo)
    fi
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@"
}

[ $# -gt 0 ] || set -- build run tutorial test check image deb
missing=""
for group in "$@"; do
    [ -n "${packages[$group]-}" ] || { echo "deps: no group \"$group\"" >&2; exit 2; }
    command -v dpkg-query >/dev/null || {
        echo "deps: not a Debian; ${purpose[$group]} have the like of:" ${packages[$group]} >&2
        continue
    }
    lacking=""
    for package in ${packages[$group]}; do
        installed "$package" || lacking+=" $package"
    done
    [ -z "$lacking" ] || echo "deps: ${purpose[$group]}, apt installs$lacking" >&2
    missing+=$lacking
done

if [ -n "$missing" ]; then
    apt update
    # shellcheck disable=SC2086 # a list of names
    apt install -y --no-install-recommends $missing >&2
fi
