#!/bin/bash
# Makes the Debian package, from the tarball of `make dist`, in BUILD/deb/.
#
#   packaging/deb.sh BUILD VERSION
#
# SemVer's 0.1.0-dev.7 is Debian's 0.1.0~dev.7-1, which sorts before 0.1.0 as it should.
set -euo pipefail
umask 022

build=$(realpath "$1")
version=$2
here=$(cd "$(dirname "$0")" && pwd)
stage=$build/deb
source=$stage/spire-hsm-$version
SOURCE_DATE_EPOCH=$("$here/version.sh" --epoch)
export SOURCE_DATE_EPOCH

"$here/dist.sh" "$build" "$version"
rm -rf "$stage"
mkdir -p "$stage"
tar -C "$stage" -xzf "$build/spire-hsm-$version.tar.gz"
cp -r "$source/packaging/debian" "$source/debian"
cat >"$source/debian/changelog" <<END
spire-hsm (${version/-/\~}-1) unstable; urgency=medium

  * What changed stands in changelog.gz beside this file.

 -- $(sed -n 's/^Maintainer: //p' "$source/debian/control")  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
END
(cd "$source" && dpkg-buildpackage --build=binary --no-sign >"$stage/log" 2>&1) || {
    tail -n 40 "$stage/log" >&2
    exit 1
}
rm -rf "$source"
echo "deb: $(echo "$stage"/spire-hsm_*.deb)"
