#!/bin/bash
# The programs for arm64, cross-built in a Debian of its own with Debian's packages, and what of
# them runs under qemu-user on any kernel: the greeting, and those tests that need no second
# process. image.sh tries the plugin with its worker. `make test-arm64` runs both, as root.
. "$(dirname "$0")/../lib/lib.sh" arm64
. "$here/lib/arm64.sh"
arm64_debian
umask 022
root=$scratch/root
tests=(hsm/keys hsm/token hsm/doubts unit/label unit/pubkey unit/frame unit/record unit/hcl)

in_root() {
    chroot "$root" env -i --chdir=/src PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LC_ALL=C "$@"
}

root_is_there() {
    mkdir "$root" && tar -C "$root" -xf "$debian/root.tar" && mkdir -p "$root/src" "$root/tmp" &&
        chmod 1777 "$root/tmp" && mknod -m 666 "$root/dev/null" c 1 3 &&
        mknod -m 666 "$root/dev/urandom" c 1 9 && tar -C "$here/.." --exclude=./build --exclude=./.git -cf - . | tar -C "$root/src" -xf -
}

cross_built() {
    in_root PKG_CONFIG_LIBDIR=/usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig \
        make -C /src -j "$(nproc)" CC=aarch64-linux-gnu-gcc all "${tests[@]/#/build/tests/}"
}

is_of_arm64() {
    readelf -h "$root/src/build/spire-hsm" "$root/src/build/spire-hsm-worker" | grep -c 'Machine: *AArch64' | grep -x 2
}

under_qemu() {
    in_root qemu-aarch64-static "$@"
}

says_the_version() {
    under_qemu /src/build/spire-hsm --version | grep '^spire-hsm '
}

# The line by which SPIRE finds the plugin's socket.
greets() {
    start plugin chroot "$root" env -i KeyManager=KeyManager qemu-aarch64-static /src/build/spire-hsm
    await 30 grep -E '^1\|1\|unix\|/[^|]*\|grpc\|$' "$logs/plugin.log"
}

echo "spire-hsm for arm64"
must "a Debian with a compiler for arm64, and its libraries" root_is_there
must "the programs and some tests are cross-built, without a warning" cross_built
check "the programs are arm64's" is_of_arm64
check "spire-hsm --version" says_the_version
check "it greets as SPIRE's plugins do" greets
check "it ends when it is told to" stop plugin
for test in "${tests[@]}"; do
    check "tests/$test.c passes" under_qemu "/src/build/tests/$test"
done
