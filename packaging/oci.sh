# shellcheck shell=bash disable=SC2154
# An OCI image layout, written file by file. To be sourced; $out is the folder that gets oci/ and
# digest, $blobs is oci/blobs/sha256 in it, $version is ours, and SOURCE_DATE_EPOCH the time of
# all files.

tag=${version//+/_} # a tag has no room for SemVer's plus

pack() { # FOLDER: a tar of what is in it, the same for the same files
    tar --create --format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
        --owner=0 --group=0 --numeric-owner --directory="$1" .
}

add_blob() { # stdin; prints the hash under which it now is a blob
    local hash
    cat >"$out/blob"
    hash=$(sha256sum <"$out/blob" | cut -d ' ' -f 1)
    mv "$out/blob" "$blobs/$hash"
    echo "$hash"
}

descriptor() { # MEDIA-TYPE HASH
    jq -n --arg type "$1" --arg hash "$2" --argjson size "$(stat -c %s "$blobs/$2")" \
        '{mediaType: "application/vnd.oci.image.\($type)", digest: "sha256:\($hash)", size: $size}'
}

# The layout's one entry, from its descriptor on stdin: the image, or the index of several.
write_layout() {
    echo '{"imageLayoutVersion": "1.0.0"}' >"$out/oci/oci-layout"
    jq --arg version "$version" --arg name "spire-hsm:$tag" '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
        manifests: [. + {annotations: {
            "io.containerd.image.name": "docker.io/library/\($name)",
            "org.opencontainers.image.ref.name": $name
        }}]
    }' >"$out/oci/index.json"
    jq -r '.manifests[0].digest' "$out/oci/index.json" >"$out/digest"
}
