#!/bin/bash
# Joins plugin images, one for each machine, to one OCI image layout. `make image-index` runs it.
#
#   packaging/image-index.sh BUILD VERSION IMAGE...     IMAGE: a folder packaging/image.sh wrote
#
# Writes below BUILD/image-index/
#
#     oci/       an OCI image layout, tag spire-hsm:VERSION, whose one entry is an index
#     digest     the index's, as a registry names it: sha256:...
#
# The index names the images by their own digests, with the machine that each says it is for.
# A layout whose entries are the images themselves has no digest that stands for all of them,
# and a tool that copies a tag finds more than one.
set -euo pipefail
umask 022

out=$(realpath "$1")/image-index
# shellcheck disable=SC2034 # oci.sh reads it
version=$2
images=("${@:3}")
here=$(cd "$(dirname "$0")" && pwd)
blobs=$out/oci/blobs/sha256
. "$here/oci.sh"

# A configuration says itself which machine it is for.
platform() { # LAYOUT MANIFEST
    local config
    config=$(jq -r '.config.digest' "$1/blobs/${2/://}")
    jq '{architecture, os, variant} | del(.[] | nulls)' "$1/blobs/${config/://}"
}

entry() { # LAYOUT: the descriptor of its image, for the index
    local manifest
    manifest=$(jq -r '.manifests[0].digest' "$1/index.json")
    descriptor manifest.v1+json "${manifest#sha256:}" |
        jq --argjson platform "$(platform "$1" "$manifest")" '. + {platform: $platform}'
}

rm -rf "$out"
mkdir -p "$blobs"
for image in "${images[@]}"; do
    cp "$image/oci/blobs/sha256/"* "$blobs/"
    entry "$image/oci" >>"$out/entries"
done
index=$(jq -s '{
    schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: sort_by(.platform.architecture)
}' "$out/entries" | add_blob)
descriptor index.v1+json "$index" | write_layout
rm "$out/entries"
echo "image index: spire-hsm:$tag $(<"$out/digest"), for" \
    "$(jq -r '[.manifests[].platform | "\(.os)/\(.architecture)"] | join(" and ")' "$blobs/$index")"
