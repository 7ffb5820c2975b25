#!/bin/bash
# Makes the plugin image, without docker and without being root. `make image` runs it.
#
#   packaging/image.sh BUILD TREE VERSION     writes below BUILD/image/
#
#     oci/              an OCI image layout, one image, tag spire-hsm:VERSION
#     spire-hsm.tar     the same with docker's manifest.json: docker load, ctr images import
#     digest            the manifest's, as a registry names it: sha256:...
#     plugin_checksum   of /opt/spire-hsm/bin/spire-hsm, for server.conf
#     spire-hsm         that program with its debug information (same build id)
#
# What is in the image:
#
#     /opt/spire-hsm                      TREE, complete in itself: nothing outside is looked at
#         bin/spire-hsm                   the plugin
#         bin/softhsm2-util               makes a SoftHSM token; it wants to be told the module:
#                                         --module /opt/spire-hsm/lib/pkcs11/libsofthsm2.so
#         lib/ld-linux-x86-64.so.2        the loader that both name as theirs
#         lib/*.so*                       their libraries
#         lib/pkcs11/libsofthsm2.so       module = "libsofthsm2.so" finds them here
#         lib/pkcs11/p11-kit-client.so    a token behind `p11-kit server`'s socket, which
#                                         P11_KIT_SERVER_ADDRESS=unix:path=... names
#     /bin/busybox                        static; `cp` and `sh` for an init container
#     /install                            empty; the shared volume is mounted here
#     /usr/share/doc/*/copyright          licences of all of this
#
# How it is used: SPIRE's own images are FROM scratch, with a static server and neither a
# loader nor a libc. The image is run as an init container, as any user:
#
#     image: spire-hsm:VERSION            # no command: it copies TREE to /install
#     volumeMounts: [{name: spire-hsm, mountPath: /install}]
#
# which is busybox's `cp -R /opt/spire-hsm/. /install/`, and the server's container mounts
# the same emptyDir, read-only, at /opt/spire-hsm exactly: the loader's path is written
# into the program. server.conf then says plugin_cmd = "/opt/spire-hsm/bin/spire-hsm".
# The copier is static because scratch has no cp, and because a volume mounted at
# /opt/spire-hsm would hide our own loader. The server's container needs what containers
# always have, /proc, /dev/null and /dev/urandom, and a /tmp that can be written.
# Entrypoint is /bin/busybox, user 1000:1000 as SPIRE's. For another job in the same
# image: command: [/bin/busybox, sh, -c, "..."].
#
# The same commit and the same Debian packages give the same bytes: times are the
# commit's, names are sorted, and owners are root's.
set -euo pipefail
umask 022

build=$(realpath "$1")
tree=$2
version=$3
here=$(cd "$(dirname "$0")" && pwd)
out=$build/image
root=$out/root
blobs=$out/oci/blobs/sha256
SOURCE_DATE_EPOCH=$("$here/version.sh" --epoch)
export SOURCE_DATE_EPOCH
softhsm=/usr/lib/softhsm/libsofthsm2.so
p11_client=$(pkg-config --variable=p11_module_path p11-kit-1)/p11-kit-client.so
owners=() # packages that files were taken from

# Which package brought a file; dpkg knows it by its path before or after the merge of /usr.
owner() {
    local real found
    real=$(realpath "$1")
    found=$(dpkg-query -S "$1" "$real" "/usr$real" "${real#/usr}" 2>/dev/null || true)
    [ -n "$found" ] || {
        echo "image: no package owns $1" >&2
        return 1
    }
    echo "${found%%[:,]*}"
}

# take FILE TARGET [MODE]: a file of a package.
take() {
    owners+=("$(owner "$1")")
    install -D -m "${3-644}" "$1" "$root$2"
}

libraries() { # of programs and libraries: path of each
    ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | LC_ALL=C sort -u
}

stage_tree() {
    local loader library
    loader=$(patchelf --print-interpreter "$build/spire-hsm")
    install -d "$root$tree/bin"
    strip -o "$root$tree/bin/spire-hsm" "$out/spire-hsm"
    chmod 755 "$root$tree/bin/spire-hsm"
    take "$(command -v softhsm2-util)" "$tree/bin/softhsm2-util" 755
    patchelf --set-interpreter "$tree/lib/${loader##*/}" --force-rpath \
        --set-rpath "$tree/lib" "$root$tree/bin/softhsm2-util"
    take "$loader" "$tree/lib/${loader##*/}" 755
    for library in $(libraries "$build/spire-hsm" "$(command -v softhsm2-util)" "$softhsm" "$p11_client"); do
        case $library in */"${loader##*/}") continue ;; esac
        take "$library" "$tree/lib/${library##*/}"
    done
    take "$softhsm" "$tree/lib/pkcs11/libsofthsm2.so"
    take "$p11_client" "$tree/lib/pkcs11/p11-kit-client.so"
}

stage_rest() {
    local package
    take /bin/busybox /bin/busybox 755
    install -d "$root/install"
    for package in $(printf '%s\n' "${owners[@]}" | sort -u); do
        install -D -m 644 "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/copyright"
    done
    install -D -m 644 "$here/../LICENSE" "$root/usr/share/doc/spire-hsm/copyright"
}

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

write_image() {
    local diff layer config manifest
    diff=$(pack "$root" | tee >(gzip -9 -n | add_blob >"$out/layer") | sha256sum | cut -d ' ' -f 1)
    until [ -s "$out/layer" ]; do sleep 0.05; done
    layer=$(<"$out/layer")
    config=$(jq -n --arg diff "sha256:$diff" --arg tree "$tree" --argjson made "$SOURCE_DATE_EPOCH" \
        --arg architecture "$(dpkg --print-architecture)" --arg version "$version" '{
        created: ($made | todate), architecture: $architecture, os: "linux",
        config: {
            User: "1000:1000", WorkingDir: "/",
            Env: ["PATH=\($tree)/bin:/bin"],
            Entrypoint: ["/bin/busybox"], Cmd: ["cp", "-R", "\($tree)/.", "/install/"],
            Labels: {
                "org.opencontainers.image.title": "spire-hsm",
                "org.opencontainers.image.description":
                    "SPIRE plugin that keeps signing keys in a PKCS#11 token",
                "org.opencontainers.image.version": $version
            }
        },
        rootfs: {type: "layers", diff_ids: [$diff]},
        history: [{created: ($made | todate), created_by: "packaging/image.sh"}]
    }' | add_blob)
    manifest=$(jq -n --argjson config "$(descriptor config.v1+json "$config")" \
        --argjson layer "$(descriptor layer.v1.tar+gzip "$layer")" '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: $config, layers: [$layer]
    }' | add_blob)
    echo '{"imageLayoutVersion": "1.0.0"}' >"$out/oci/oci-layout"
    descriptor manifest.v1+json "$manifest" | jq --arg version "$version" --arg name "spire-hsm:$tag" '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
        manifests: [. + {annotations: {
            "io.containerd.image.name": "docker.io/library/\($name)",
            "org.opencontainers.image.ref.name": $name
        }}]
    }' >"$out/oci/index.json"
    jq -n --arg config "blobs/sha256/$config" --arg layer "blobs/sha256/$layer" --arg name "spire-hsm:$tag" \
        '[{Config: $config, RepoTags: [$name], Layers: [$layer]}]' >"$out/oci/manifest.json"
    pack "$out/oci" >"$out/spire-hsm.tar"
    echo "sha256:$manifest" >"$out/digest"
}

tag=${version//+/_} # a tag has no room for SemVer's plus
rm -rf "$root" "$out/oci" "$out/layer" "$out/digest"
mkdir -p "$root" "$blobs"
stage_tree
stage_rest
write_image
sha256sum <"$root$tree/bin/spire-hsm" | cut -d ' ' -f 1 >"$out/plugin_checksum"
echo "image: spire-hsm:$tag $(<"$out/digest"), $(du -k "$out/spire-hsm.tar" | cut -f 1) KiB"
