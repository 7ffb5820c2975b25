#!/bin/bash
# Prints what a product of ours is made of: SPDX 2.3 as JSON, from what ldd and dpkg say.
#
#   packaging/sbom.sh VERSION PROGRAM          the program and its PROGRAM-worker, and the
#                                              packages they are linked with
#   packaging/sbom.sh VERSION PROGRAM FILES    the image: FILES has a line for each file in
#                                              it, "package<TAB>path in it<TAB>path here"
#
# A file of the image is GENERATED_FROM its package and not contained in it: SPDX has
# that for packages of which every file was looked at. The same program with the same
# packages gives the same text.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/owner.sh"

version=$1
program=$2
files=${3-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sum() { # sha1 or sha256 of a file
    "$1sum" <"$2" | cut -d ' ' -f 1
}

linked() {
    local library
    for library in $(libraries "$program" "$program-worker"); do
        owner "$library"
    done
}

architecture=$(architecture)
# The worker has a libcrypto and a jansson inside.
static=$(for library in libcrypto.a libjansson.a; do
    owner "$("${CC:-gcc}" -print-file-name="$library")"
done | LC_ALL=C sort -u)

contained() {
    local package path from
    while IFS=$'\t' read -r package path from; do
        printf '%s\t%s\t%s\t%s\n' "$package" "$path" "$(sum sha1 "$from")" "$(sum sha256 "$from")"
    done <"$files"
}

: >"$work/files"
if [ -n "$files" ]; then
    contained | LC_ALL=C sort >"$work/files"
    { cut -f 1 "$work/files" | grep -vx spire-hsm; echo "$static"; } | sort -u >"$work/names"
else
    { linked; echo "$static"; } | sort -u >"$work/names"
fi
mapfile -t names <"$work/names"
# shellcheck disable=SC2016 # dpkg's variables
dpkg-query -W -f '${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n' \
    "${names[@]/%/:$architecture}" >"$work/packages"

jq -n --arg version "$version" --arg sha256 "$(sum sha256 "$program")" \
    --arg worker "$(sum sha256 "$program-worker")" --arg static "$static" \
    --argjson made "$("$here/version.sh" --epoch)" --arg distro "$(. /etc/os-release && echo "$ID-$VERSION_ID")" \
    --arg fingerprint "$(cat "$work/packages" "$work/files" | sha256sum | cut -c 1-16)" \
    --rawfile packages "$work/packages" --rawfile files "$work/files" '
    def rows: split("\n") | map(select(. != "") | split("\t"));
    def id: gsub("[^A-Za-z0-9.-]"; "-");
    def package_id: "SPDXRef-Package-" + id;
    def file_id: "SPDXRef-File-" + (ltrimstr("/") | id);
    def relation($from; $type; $to):
        {spdxElementId: $from, relationshipType: $type, relatedSpdxElement: $to};
    def described: {downloadLocation: "NOASSERTION", filesAnalyzed: false, copyrightText: "NOASSERTION"};
    ($static | split("\n")) as $inside | ("spire-hsm" | package_id) as $ours | "SPDXRef-Image" as $image |
    ($packages | rows) as $packages | ($files | rows) as $files | ($files != []) as $is_image |
    {
        spdxVersion: "SPDX-2.3", dataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT",
        name: (if $is_image then "spire-hsm image \($version)" else "spire-hsm \($version)" end),
        documentNamespace: "https://spdx.org/spdxdocs/spire-hsm-\($version | @uri)-\($sha256[:16])-\($fingerprint)",
        creationInfo: {created: ($made | todate), creators: ["Tool: spire-hsm-sbom-\($version)"]},
        packages: ([
            described + {
                SPDXID: $ours, name: "spire-hsm", versionInfo: $version,
                licenseConcluded: "Apache-2.0", licenseDeclared: "Apache-2.0",
                primaryPackagePurpose: "APPLICATION",
                checksums: [{algorithm: "SHA256", checksumValue: $sha256}],
                comment: "the checksum is of spire-hsm; of spire-hsm-worker it is \($worker)"
            }
        ] + (if $is_image then [
            described + {
                SPDXID: $image, name: "spire-hsm-image", versionInfo: $version,
                licenseConcluded: "NOASSERTION", licenseDeclared: "NOASSERTION",
                primaryPackagePurpose: "CONTAINER"
            }
        ] else [] end) + ($packages | map(. as [$name, $its, $arch, $source, $source_version] |
            described + {
                SPDXID: ($name | package_id), name: $name, versionInfo: $its,
                supplier: "Organization: Debian",
                sourceInfo: "built from the source package \($source) \($source_version)",
                licenseConcluded: "NOASSERTION", licenseDeclared: "NOASSERTION",
                comment: "its licences: /usr/share/doc/\($name)/copyright",
                externalRefs: [{
                    referenceCategory: "PACKAGE-MANAGER", referenceType: "purl",
                    referenceLocator: "pkg:deb/debian/\($name | @uri)@\($its | @uri)?arch=\($arch)&distro=\($distro)"
                }]
            }))),
        files: ($files | map(. as [$name, $path, $sha1, $sha256] | {
            SPDXID: ($path | file_id), fileName: ".\($path)",
            checksums: [{algorithm: "SHA1", checksumValue: $sha1}, {algorithm: "SHA256", checksumValue: $sha256}],
            licenseConcluded: "NOASSERTION", licenseInfoInFiles: ["NOASSERTION"], copyrightText: "NOASSERTION"
        })),
        relationships: (
            ($inside | map(relation($ours; "STATIC_LINK"; package_id))) +
            if $is_image then
                [relation("SPDXRef-DOCUMENT"; "DESCRIBES"; $image), relation($image; "CONTAINS"; $ours)] +
                ($packages | map(select(.[0] | IN($inside[]) | not) | relation($image; "CONTAINS"; .[0] | package_id))) +
                ($files | map(relation(.[1] | file_id; "GENERATED_FROM"; .[0] | package_id)))
            else
                [relation("SPDXRef-DOCUMENT"; "DESCRIBES"; $ours)] +
                ($packages | map(select(.[0] | IN($inside[]) | not) | relation($ours; "DYNAMIC_LINK"; .[0] | package_id)))
            end)
    } | if $is_image then . else del(.files) end'
