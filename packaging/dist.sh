#!/bin/bash
# Packs the source as BUILD/spire-hsm-VERSION.tar.gz: what git tracks, or in an unpacked
# tarball of ours everything but BUILD. packaging/VERSION in it says all of VERSION and the
# time of the commit. The same commit gives the same bytes.
set -euo pipefail
umask 022

build=$(realpath "$1")
version=$2
cd "$(dirname "$0")/.."
made=$(packaging/version.sh --epoch)
name=spire-hsm-$version
stage=$build/dist

list() {
    if git ls-files --error-unmatch packaging/VERSION >/dev/null 2>&1; then
        git ls-files -z
    else
        find . -path ./build -prune -o -samefile "$build" -prune -o ! -type d -print0
    fi
}

rm -rf "$stage"
mkdir -p "$stage/$name"
list | tar --create --null --files-from=- | tar --extract --directory="$stage/$name"
echo "$version $made" >"$stage/$name/packaging/VERSION"
tar --create --format=ustar --sort=name --mtime="@$made" --mode=u=rwX,go=rX \
    --owner=0 --group=0 --numeric-owner --directory="$stage" "$name" |
    gzip -9 -n >"$build/$name.tar.gz"
rm -rf "$stage"
echo "dist: $build/$name.tar.gz"
