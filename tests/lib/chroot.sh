# shellcheck shell=bash disable=SC2154
# A Debian 12 of its own below $scratch, for packages. Sourced after lib.sh, by root:
#
#   chroot_make DEB...    with these files in its top folder, packages from where this machine has
#                         them, and nothing else (150 MB)
#   in_chroot CMD...      runs CMD there, with nothing of this environment that matters

debian=$scratch/debian

chroot_make() {
    debootstrap --variant=minbase --include=ca-certificates bookworm "$debian" &&
        cp "$@" "$debian/" && mkdir -p "$debian/etc/apt" &&
        cp -r /etc/apt/. "$debian/etc/apt/" && cp /etc/resolv.conf "$debian/etc/"
}

in_chroot() {
    env -u SOFTHSM2_CONF TMPDIR=/tmp DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$debian" "$@"
}

# Nothing but what a user made, and documents of others, has our name.
chroot_package_is_gone() {
    [ -z "$(find "$debian/usr" "$debian/etc" -path "$debian/etc/spire" -prune -o -name '*spire-hsm*' -print)" ]
}
