#!/bin/bash
# README.md's two commands, `make demo` and `make test`, where nothing is installed but git, make,
# a C compiler and Go: in a fresh Debian of its own, as root. `make test-fresh` runs it; it
# takes as long as both commands and some ten minutes more.
#
#   FRESH_CACHE=1   the programs of others come from this user's cache; else they are built
#                   there as well, as at a user's
#   FRESH_COMMANDS  others than those two, separated by commas
. "$(dirname "$0")/../lib/lib.sh" fresh

root=$scratch/root
go=$(go env GOROOT) || exit 1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spire-hsm
[ "$(id -u)" -eq 0 ] || { echo "fresh.sh makes a root folder with debootstrap: run it as root" >&2; exit 1; }

# Whatever happens, nothing stays mounted: an `rm` of the scratch folder would go through it.
unmount_all() {
    local mount
    while read -r mount; do
        umount -l "$mount"
    done < <(awk -v root="$root" '$2 == root || index($2, root "/") == 1 { print $2 }' /proc/self/mounts | tac)
}
trap 'status=$?; unmount_all; (exit "$status"); finish' EXIT # finish is lib.sh's

debian() {
    debootstrap --variant=minbase --include=git,make,gcc,libc6-dev,ca-certificates,python3 \
        bookworm "$root" >"$logs/debootstrap.log" 2>&1 || { tail -n 20 "$logs/debootstrap.log"; return 1; }
    # where this machine gets its packages from, and by whom
    rm -rf "$root/etc/apt" && cp -r /etc/apt "$root/etc/" && cp -L /etc/resolv.conf "$root/etc/" &&
        cp -L /etc/hosts "$root/etc/" && { [ ! -d /usr/local/share/ca-certificates ] ||
        cp -rT /usr/local/share/ca-certificates "$root/usr/local/share/ca-certificates"; }
}

# Some tests unshare their mounts, for which a root folder must be a mount.
mounts() {
    mount --bind "$root" "$root" && mount --make-private "$root" && mount -t proc proc "$root/proc" &&
        mount --rbind /sys "$root/sys" && mount --make-rslave "$root/sys" &&
        mount --rbind /dev "$root/dev" && mount --make-rslave "$root/dev" &&
        mkdir -p "$root$go" && mount --bind "$go" "$root$go" && mount -o remount,bind,ro "$root$go"
}

shared_cache() {
    [ -n "${FRESH_CACHE-}" ] || return 0
    mkdir -p "$root/root/.cache/spire-hsm" "$root/root/go/pkg/mod" &&
        cp -r "$cache/." "$root/root/.cache/spire-hsm/" &&
        mount --bind "$(go env GOMODCACHE)" "$root/root/go/pkg/mod"
}

# The values of Go's settings that lead to modules, and of proxies; nothing else of ours.
settings() {
    local name
    for name in GOPROXY GONOSUMDB GONOPROXY GOPRIVATE GOSUMDB GOFLAGS GOINSECURE GOTOOLCHAIN; do
        printf '%s=%s\n' "$name" "$(go env "$name")"
    done
    env | grep -iE '^(https?|no)_proxy=|^(SSL_CERT_FILE|SSL_CERT_DIR|PIP_[A-Z_]*|REQUESTS_CA_BUNDLE)='
}

within() { # CMD...
    local -a own
    mapfile -t own < <(settings)
    chroot "$root" env -i "${own[@]}" HOME=/root LC_ALL=C.UTF-8 TERM=dumb \
        PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$go/bin" "$@"
}

clone() {
    git clone -q --no-hardlinks "$here/.." "$root/root/spire-hsm" &&
        within sh -c 'update-ca-certificates; apt-get -q update' >"$logs/apt.log" 2>&1
}

as_readme_has_it() { # COMMAND...
    grep -qF "$*" "$here/../README.md" || { echo "README.md does not say: $*"; return 1; }
    within sh -c 'cd /root/spire-hsm && exec "$@"' sh "$@" >"$logs/${*// /-}.log" 2>&1
    local status=$?
    tail -n 40 "$logs/${*// /-}.log"
    return $status
}

must "a Debian 12 with git, make, gcc and nothing else is made" debian
must "it is a root of its own" mounts
must "the programs of others are there, if that was asked for" shared_cache
must "the repository is cloned there" clone
IFS=, read -r -a commands <<<"${FRESH_COMMANDS:-make demo,make test}"
for command in "${commands[@]}"; do
    # shellcheck disable=SC2086 # words
    check "$command" as_readme_has_it $command
done
