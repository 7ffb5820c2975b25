#!/bin/bash
# The same commit gives the same bytes: the tarball twice; from it, in another folder with
# another umask, time zone and locale, the program, the plugin image and the tarball itself, built
# in a folder outside the source.
. "$(dirname "$0")/../lib/lib.sh" reproducible

source=$(realpath "$here/..")
elsewhere=$scratch/another/folder/altogether
built=$scratch/built

quiet_make() { # FOLDER TARGET...
    make -C "$1" --no-print-directory -j2 BUILD=build "${@:2}"
}

dist() { # the tarball's path
    (umask "$1" && quiet_make "$source" dist) >"$logs/dist-$1.log" && sed -n 's/^dist: //p' "$logs/dist-$1.log"
}

dist_twice() {
    local first
    first=$(dist 022) && cp "$first" "$scratch/first.tar.gz" && tarball=$(dist 077) &&
        cmp "$scratch/first.tar.gz" "$tarball"
}

build_elsewhere() {
    mkdir -p "$elsewhere"
    tar -C "$elsewhere" --strip-components=1 -xzf "$tarball" &&
        (umask 077 && TZ=Asia/Tokyo LC_ALL=C.UTF-8 quiet_make "$elsewhere" BUILD="$built" image-now dist)
}

same() { # FILE below build/
    sha256sum "$source/build/$1" "$built/$1"
    cmp "$source/build/$1" "$built/$1"
}

version_is_the_same() {
    local here_it_is there_it_is
    here_it_is=$("$source/build/spire-hsm" --version) && there_it_is=$("$built/spire-hsm" --version)
    printf '%s\n' "$here_it_is" "$there_it_is"
    [ "$here_it_is" = "$there_it_is" ] &&
        grep -qE '^spire-hsm [0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$' <<<"$here_it_is"
}

must "the plugin and its image are built here" quiet_make "$source" image-now
must "the tarball has the same bytes twice" dist_twice
must "the tarball builds in another folder, where there is no git" build_elsewhere
check "both programs say the same version, a SemVer" version_is_the_same
check "the programs are the same, byte for byte" same spire-hsm
check "their workers are, too" same spire-hsm-worker
check "the images have the same digest" same image/digest
check "the tarball packs itself again" same "${tarball##*/}"
