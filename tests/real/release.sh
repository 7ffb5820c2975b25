#!/bin/bash
# The last release, or RELEASE_COMMIT, made as its commit says and tried: `make test-release` runs
# it, as root; a quarter of an hour. All files twice, in other folders, must be the same bytes. Then
# the package in a bare Debian 12 with a real spire-server: installed, upgraded to this commit's
# beneath the running server, brought back, purged; the token and the server's files stay.
. "$(dirname "$0")/../lib/lib.sh" release

[ "$(id -u)" -eq 0 ] || { echo "packages are installed by root, so this test is root's"; exit 1; }
commit=${RELEASE_COMMIT:-$("$here/../packaging/version.sh" --release 2>"$scratch/why")} || {
    echo "  skip  the last release: $(<"$scratch/why")"
    exit 0
}
. "$here/lib/chroot.sh"
spire=$("$here/lib/spire.sh") || exit 1
port=$(free_port)
umask 022

unmounted() {
    umount "$debian/proc" 2>/dev/null
    return 0
}
trap 'status=$?; [ -z "${pids[server]-}" ] || stop server >/dev/null; unmounted; (exit $status); finish' EXIT # finish is lib.sh's

## Its files

made_in() { # FOLDER
    git clone -q "$here/.." "$1" && git -C "$1" checkout -q "$commit" &&
        make -C "$1" --no-print-directory release
}

# With flags and settings that are nothing to a release.
made_elsewhere() {
    (umask 077 && CFLAGS=-O0 TZ=Asia/Tokyo LC_ALL=C.UTF-8 made_in "$scratch/another/place")
}

same_bytes() {
    diff -r "$scratch/one/build/release" "$scratch/another/place/build/release"
}

sums_are_right() {
    (cd "$files" && sha256sum -c SHA256SUMS && [ "$(wc -l <SHA256SUMS)" = "$(find . -type f ! -name SHA256SUMS | wc -l)" ])
}

newer_package() {
    make -C "$here/.." --no-print-directory BUILD=build deb-now && newer=$(echo "$here"/../build/deb/spire-hsm_*.deb) &&
        dpkg --compare-versions "$(dpkg-deb -f "$newer" Version)" ge "$(dpkg-deb -f "$older" Version)"
}

## There

installed_there() {
    in_chroot apt-get -q update && in_chroot apt-get -qy --no-install-recommends install "/${older##*/}" softhsm2 &&
        says_version "$older"
}

says_version() { # DEB
    local wanted
    wanted=$(dpkg-deb -f "$1" Version) && wanted=${wanted%-1}
    [ "$(in_chroot spire-hsm --version)" = "spire-hsm ${wanted/\~/-}" ]
}

set_up_there() {
    mount -t proc proc "$debian/proc" && cp "$spire/spire-server" "$debian/usr/bin/" &&
        mkdir -p "$debian"/etc/spire "$debian"/var/lib/spire "$debian"/var/cache/spire "$debian"/run/spire &&
        (umask 077 && echo 1234 >"$debian/etc/spire/hsm-pin") &&
        in_chroot softhsm2-util --init-token --free --label spire --pin 1234 --so-pin 5678 &&
        in_chroot sh -c 'zcat -f /usr/share/doc/spire-hsm/examples/server.conf* >/etc/spire/server.conf'
}

server_there() {
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/tmp CONFIGURATION_DIRECTORY=/etc/spire STATE_DIRECTORY=/var/lib/spire \
        CACHE_DIRECTORY=/var/cache/spire RUNTIME_DIRECTORY=/run/spire SPIRE_HSM=/usr/libexec/spire-hsm \
        SPIRE_HSM_SHA256="$(sha256sum <"$debian/usr/libexec/spire-hsm" | cut -d ' ' -f 1)" \
        chroot "$debian" spire-server run -expandEnv -config /etc/spire/server.conf -serverPort "$port"
}

server() {
    in_chroot spire-server "$@" -socketPath /run/spire/server.sock
}

healthy_or_gone() {
    server healthcheck >/dev/null 2>&1 || ! running server
}

server_starts() {
    start server server_there
    await 30 healthy_or_gone
    server healthcheck || { cat "$logs/server.log"; return 1; }
}

authorities() {
    local kind
    for kind in x509 jwt; do
        server localauthority $kind show -output json | jq -er .active.authority_id || return 1
    done
}

mints() {
    server jwt mint -spiffeID spiffe://example.org/x -audience mys3 | grep -q '^ey'
}

noted() {
    authorities >"$scratch/authorities"
}

same_authorities() {
    authorities | diff "$scratch/authorities" - && mints
}

replaced_by() { # DEB
    in_chroot dpkg -i "/${1##*/}" && says_version "$1" && mints
}

server_restarts() {
    stop server && server_starts && same_authorities
}

data() {
    (cd "$debian" && find etc/spire var/lib/spire var/lib/softhsm var/cache/spire -type f -exec sha256sum {} + | sort -k 2)
}

purged() {
    data >"$scratch/before" && grep tokens "$scratch/before" && grep hsm-id.keys "$scratch/before" &&
        in_chroot apt-get -qy purge spire-hsm && chroot_package_is_gone && data | diff "$scratch/before" -
}

must "the release is made" made_in "$scratch/one"
files=$scratch/one/build/release
older=$(echo "$files"/spire-hsm_*.deb)
check "SHA256SUMS is right, and has all files" sums_are_right
must "it is made in another place, with other flags and settings" made_elsewhere
check "both are the same bytes" same_bytes
must "this commit's package is made, and is newer" newer_package

must "a bare Debian 12 is made" chroot_make "$older" "$newer"
must "the release's package is installed there with apt" installed_there
must "a token, a server's configuration from the package's example" set_up_there
must "spire-server starts" server_starts
must "its authorities are noted" noted
check "dpkg -i of the newer package beneath it: it mints" replaced_by "$newer"
check "after a restart the authorities are the same" server_restarts
check "dpkg -i of the release's package beneath it: it mints" replaced_by "$older"
check "after a restart the authorities are the same" server_restarts
must "the server stops" stop server
check "the package is purged without a trace; the token and the server's files are untouched" purged
