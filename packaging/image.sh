#!/bin/bash
# Makes the plugin image, without docker and without being root, for the machine that CC makes
# programs for. `make image` runs it.
#
#   packaging/image.sh BUILD TREE VERSION     writes below BUILD/image/
#
#     oci/              an OCI image layout, one image, tag spire-hsm:VERSION
#     spire-hsm.tar     the same with docker's manifest.json: docker load, ctr images import
#     digest            the manifest's, as a registry names it: sha256:...
#     plugin_checksum   of /opt/spire-hsm/bin/spire-hsm, for server.conf
#     sbom.spdx.json    every file in it, and the Debian package it came from
#     spire-hsm, spire-hsm-worker.debug
#                       the programs with their debug information (same build ids)
#
# What is in the image:
#
#     /opt/spire-hsm                      TREE, complete in itself: nothing outside is looked at
#         bin/spire-hsm                   the plugin
#         bin/spire-hsm-worker            the process in which it runs the PKCS#11 module
#         bin/softhsm2-util               makes a SoftHSM token; it wants to be told the module:
#                                         --module /opt/spire-hsm/lib/pkcs11/libsofthsm2.so
#         lib/ld-linux-*.so.*             the loader that all three name as theirs
#         lib/*.so*                       their libraries
#         lib/pkcs11/libsofthsm2.so       module = "libsofthsm2.so" finds them here
#         lib/pkcs11/p11-kit-client.so    a token behind `p11-kit server`'s socket, which
#                                         P11_KIT_SERVER_ADDRESS=unix:path=... names
#     /bin/busybox                        static; `cp` and `sh` for an init container
#     /install                            empty; the shared volume is mounted here
#     /usr/share/doc/*/copyright          licences of all of this
#     /usr/share/doc/spire-hsm/           sbom.spdx.json
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
. "$here/owner.sh"
. "$here/oci.sh"
out=$build/image
root=$out/root
blobs=$out/oci/blobs/sha256
SOURCE_DATE_EPOCH=$("$here/version.sh" --epoch)
export SOURCE_DATE_EPOCH
architecture=$(architecture)
softhsm=/usr/lib/softhsm/libsofthsm2.so
p11_client=$(pkg-config --variable=p11_module_path p11-kit-1)/p11-kit-client.so

# put PACKAGE FILE TARGET [MODE]: a file into the image; it stands in the list of files.
put() {
    install -D -m "${4-644}" "$2" "$root$3"
    printf '%s\t%s\t%s\n' "$1" "$3" "$root$3" >>"$out/files"
}

take() { # FILE TARGET [MODE]: a Debian package's
    put "$(owner "$1")" "$@"
}

stage_tree() {
    local loader library
    loader=$(patchelf --print-interpreter "$build/spire-hsm")
    put spire-hsm "$out/spire-hsm" "$tree/bin/spire-hsm" 755
    "${OBJCOPY:-objcopy}" --strip-all "$root$tree/bin/spire-hsm"
    # as it is: its digest stands in spire-hsm
    put spire-hsm "$out/spire-hsm-worker" "$tree/bin/spire-hsm-worker" 755
    take "$(command -v softhsm2-util)" "$tree/bin/softhsm2-util" 755
    patchelf --set-interpreter "$tree/lib/${loader##*/}" --force-rpath \
        --set-rpath "$tree/lib" "$root$tree/bin/softhsm2-util"
    take "$loader" "$tree/lib/${loader##*/}" 755
    for library in $(libraries "$build/spire-hsm" "$build/spire-hsm-worker" "$(command -v softhsm2-util)" "$softhsm" "$p11_client"); do
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
    cut -f 1 "$out/files" | grep -vx spire-hsm | sort -u | while IFS= read -r package; do
        put "$package" "/usr/share/doc/$package/copyright" "/usr/share/doc/$package/copyright"
    done
    put spire-hsm "$here/../LICENSE" /usr/share/doc/spire-hsm/copyright
    "$here/sbom.sh" "$version" "$root$tree/bin/spire-hsm" "$out/files" >"$out/sbom.spdx.json"
    install -m 644 "$out/sbom.spdx.json" "$root/usr/share/doc/spire-hsm/"
}

write_image() {
    local diff layer config manifest
    pack "$root" >"$out/layer.tar"
    diff=$(sha256sum <"$out/layer.tar" | cut -d ' ' -f 1)
    layer=$(gzip -9 -n <"$out/layer.tar" | add_blob)
    rm "$out/layer.tar"
    config=$(jq -n --arg diff "sha256:$diff" --arg tree "$tree" --argjson made "$SOURCE_DATE_EPOCH" \
        --arg architecture "$architecture" --arg version "$version" '{
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
    } + if $architecture == "arm64" then {variant: "v8"} else {} end' | add_blob)
    manifest=$(jq -n --argjson config "$(descriptor config.v1+json "$config")" \
        --argjson layer "$(descriptor layer.v1.tar+gzip "$layer")" '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: $config, layers: [$layer]
    }' | add_blob)
    descriptor manifest.v1+json "$manifest" | write_layout
    jq -n --arg config "blobs/sha256/$config" --arg layer "blobs/sha256/$layer" --arg name "spire-hsm:$tag" \
        '[{Config: $config, RepoTags: [$name], Layers: [$layer]}]' >"$out/oci/manifest.json"
    pack "$out/oci" >"$out/spire-hsm.tar"
}

rm -rf "$root" "$out/oci" "$out/files" "$out/digest"
mkdir -p "$root" "$blobs"
stage_tree
stage_rest
write_image
sha256sum <"$root$tree/bin/spire-hsm" | cut -d ' ' -f 1 >"$out/plugin_checksum"
echo "image: spire-hsm:$tag $(<"$out/digest"), $(du -k "$out/spire-hsm.tar" | cut -f 1) KiB"
