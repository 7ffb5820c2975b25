#!/bin/bash
# Makes the files of a release from its commit, in BUILD/release/: `make release` runs it, as root.
#
#   packaging/release.sh BUILD [check]     check: only says whether this commit can be released
#
#     spire-hsm-0.1.0.tar.gz                 the source, from which all below is built
#     spire-hsm_0.1.0-1_amd64.deb, -dbgsym   the Debian package, and its debug information
#     spire-hsm-0.1.0.spdx.json              what the programs are linked with
#     spire-hsm-0.1.0-image.tar              an OCI layout: the image for amd64 and arm64, one digest
#     spire-hsm-0.1.0-image-amd64.tar        the image for `docker load`, beside it its SBOM;
#     spire-hsm-0.1.0-image-arm64.tar        the same for arm64
#     plugin_checksums                       of the program in the package and in the images
#     SHA256SUMS                             of all of these
#
# The same commit and the same Debian packages give the same bytes. Nothing of the working tree
# gets in: the source is packed from the commit and built where there is no git.
set -euo pipefail
umask 022

here=$(cd "$(dirname "$0")" && pwd)
build=$(realpath -m "$1")
cd "$here/.."
out=$build/release
source=$out/parts/source
read -r version _ <packaging/VERSION

refuse() {
    echo "release: $*" >&2
    exit 1
}

entry() { # of the changelog
    awk -v heading="^## ${version//./[.]} [(][0-9-]+[)]\$" \
        '/^## / { inside = 0 } inside; $0 ~ heading { inside = 1 }' packaging/CHANGELOG.md
}

may_be_released() {
    local commit tagged
    commit=$(git rev-parse --verify --quiet 'HEAD^{commit}') || refuse "a release is made in a git clone"
    [ -z "$(git status --porcelain)" ] ||
        refuse "files differ from the commit: $(git status --porcelain | head -n 5 | xargs)"
    [[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] ||
        refuse "packaging/VERSION says $version, which is no release; CONTRIBUTING.md has the steps"
    grep -q '[^ ]' <<<"$(entry)" ||
        refuse "packaging/CHANGELOG.md has no entry \"## $version (YEAR-MONTH-DAY)\""
    [ "$(packaging/version.sh)" = "$version" ] ||
        refuse "this commit is $(packaging/version.sh); $version is the one that writes the number and the entry"
    tagged=$(git rev-parse --verify --quiet "v$version^{commit}" || true)
    [ -z "$tagged" ] || [ "$tagged" = "$commit" ] || refuse "the tag v$version is on $tagged, not on $commit"
}

# The flags and settings of whoever runs this are not those of a release.
there() {
    env -u MAKEFLAGS -u MAKELEVEL -u CC -u CFLAGS -u CPPFLAGS -u LDFLAGS -u SAN -u SOURCE_DATE_EPOCH -u V LC_ALL=C \
        make -C "$source" --no-print-directory -j "$(nproc)" BUILD=build PREFIX=/usr/local "$@"
}

build_all() {
    local target
    mkdir -p "$source"
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
    export SOURCE_DATE_EPOCH # for the archives that are packed here
    packaging/dist.sh "$out/parts" "$version"
    tar -C "$source" --strip-components=1 -xzf "$out/parts/spire-hsm-$version.tar.gz"
    for target in all dist sbom deb-now image-index; do
        there "$target"
    done
}

archive() { # FOLDER FILE: as every archive of ours is packed
    tar --create --format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
        --owner=0 --group=0 --numeric-owner --directory="$1" --file="$2" .
}

collect() {
    local machine folder
    cmp "$out/parts/spire-hsm-$version.tar.gz" "$source/build/spire-hsm-$version.tar.gz"
    cp "$out/parts/spire-hsm-$version.tar.gz" "$source"/build/deb/*.deb "$out"
    cp "$source/build/sbom.spdx.json" "$out/spire-hsm-$version.spdx.json"
    archive "$source/build/image-index/oci" "$out/spire-hsm-$version-image.tar"
    dpkg-deb --fsys-tarfile "$out/spire-hsm_$version-1"_*.deb | tar -x --to-stdout ./usr/libexec/spire-hsm |
        sha256sum | sed "s|-$|package|" >"$out/plugin_checksums"
    for machine in amd64 arm64; do
        folder=$source/build/image
        [ "$machine" = amd64 ] || folder+=-$machine
        cp "$folder/spire-hsm.tar" "$out/spire-hsm-$version-image-$machine.tar"
        cp "$folder/sbom.spdx.json" "$out/spire-hsm-$version-image-$machine.spdx.json"
        echo "$(<"$folder/plugin_checksum")  image for $machine" >>"$out/plugin_checksums"
    done
}

# Each part by its own words.
says_the_version() {
    [ "$("$source/build/spire-hsm" --version)" = "spire-hsm $version" ] || refuse "the program says another version"
    [ "$(dpkg-deb -f "$out/spire-hsm_$version-1"_*.deb Version)" = "$version-1" ] || refuse "the package says another version"
    jq -es --arg version "$version" 'length == 3 and
        all(.[]; any(.packages[]; .name == "spire-hsm" and .versionInfo == $version))' \
        "$out/spire-hsm-$version"*.spdx.json >/dev/null || refuse "an SBOM says another version"
    jq -e --arg name "spire-hsm:$version" '.manifests[0].annotations["org.opencontainers.image.ref.name"] == $name' \
        "$source/build/image-index/oci/index.json" >/dev/null || refuse "the image says another version"
    grep -qx "\\.Os spire-hsm $version" "$source/build/man/spire-hsm.1" || refuse "the manual page says another version"
}

may_be_released
if [ "${2-}" = check ]; then
    echo "release: this commit is $version"
    exit
fi
[ "$(id -u)" -eq 0 ] || refuse "the image for arm64 is built in a Debian of its own, which root enters"
rm -rf "$out"
build_all
collect
says_the_version
rm -rf "$out/parts"
(cd "$out" && sha256sum -- * >"$build/sums" && mv "$build/sums" SHA256SUMS)
echo "release: $out"
