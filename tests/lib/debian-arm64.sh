#!/bin/bash
# Prints the folder that holds root.tar, a Debian 12 of this machine's own kind with a compiler
# for arm64, qemu-user, and arm64's libraries and SoftHSM. On the machine itself SoftHSM could
# not be there for both. Made once with debootstrap and apt (some minutes, 300 MB), as root.
. "$(dirname "$0")/cache.sh" debian-arm64 12

tools=(crossbuild-essential-arm64 qemu-user-static pkg-config protobuf-compiler protobuf-c-compiler patchelf jq)
parts=(libgrpc-dev libprotobuf-c-dev libp11-kit-dev libjansson-dev libssl-dev libcmocka-dev softhsm2
    p11-kit-modules busybox-static)

complete() {
    tar --list --file="$1/root.tar" --occurrence=1 ./usr/local/bin/softhsm2-util >/dev/null 2>&1
}

# There may be nothing here that makes the kernel hand arm64's programs to qemu. Debian's own
# stays where it is, as the image takes it from there.
by_way_of_qemu() {
    printf '%s\n' '#!/bin/sh' "exec qemu-aarch64-static $2 \"\$@\"" >"$1"
    chmod 755 "$1"
}

installed_there() {
    local root=$1
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" &&
        cp -r /etc/apt/. "$root/etc/apt/" && cp /etc/resolv.conf "$root/etc/" &&
        chroot "$root" dpkg --add-architecture arm64 && chroot "$root" apt-get -q update &&
        DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qy --no-install-recommends install \
            "${tools[@]}" "${parts[@]/%/:arm64}"
}

build() {
    local work=$1 root=$1/root
    say "making a Debian $version with what arm64 needs in $home"
    installed_there "$root" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        return 1
    }
    by_way_of_qemu "$root/usr/local/bin/softhsm2-util" /usr/bin/softhsm2-util
    mkdir "$work/bin"
    tar -C "$root" --sort=name --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
        --exclude='./dev/*' -cf "$work/bin/root.tar" .
}

provide "" no-debian-of-the-PATH
