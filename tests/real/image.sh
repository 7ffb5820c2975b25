#!/bin/bash
# The plugin image where it is to run: beside a static server in a root that has no loader,
# no libc, no shell. The image is unpacked as a container runtime would do it, its copier
# run as an init container, and what it copied is all there is besides the host, which is
# the Go tests' (tests/peers/contained), linked statically as SPIRE's images are.
#
#   tests/real/image.sh          the image of this machine
#   tests/real/image.sh arm64    arm64's, out of the index that image_index.sh has made, on an amd64
#                                and as root. Its programs run under qemu-user, the host does not.
. "$(dirname "$0")/../lib/lib.sh" image
. "$here/lib/arm64.sh"

build=$(realpath "${BUILD:-$here/../build}")
machine=${1-$(dpkg --print-architecture)}
image=$build/image
layout=$image/oci
packages=/var/lib/dpkg # where the packages are installed that the image was made from
qemu=""
if [ $# -gt 0 ]; then
    arm64_debian
    image=$build/image-arm64
    layout=$build/image-index/oci
    qemu=$scratch/debian/usr/bin/qemu-aarch64-static
    packages=$scratch/debian/var/lib/dpkg
    mkdir "$scratch/debian"
    tar -C "$scratch/debian" -xf "$debian/root.tar" ./usr/bin/qemu-aarch64-static ./var/lib/dpkg
fi
blobs=$layout/blobs/sha256
tree=/opt/spire-hsm
softhsm=$tree/lib/pkcs11/libsofthsm2.so
rootfs=$scratch/rootfs
volume=$scratch/volume
umask 022
chmod 755 "$scratch"

# Containers of the `restricted` level are not root. Who runs this is, or is made so in a
# namespace of his own, in which there is no other user to become. With such a namespace comes a
# list of its own of what the kernel hands to an interpreter: the machine's stays as it is.
user=()
as_user=()
space=(--mount --pid --fork --kill-child)
if [ "$(id -u)" -ne 0 ] || [ -n "$qemu" ]; then
    space+=(--map-root-user)
else
    user=(--userspec=1000:1000)
    as_user=(setpriv --reuid 1000 --regid 1000 --clear-groups)
fi

# ELF of 64 bits for arm64, in any of two versions of its ABI. P, O, F: the program's first
# argument stays, it is given as an open file, and qemu need not be in the container.
binfmt=':arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
binfmt+=':\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
binfmt+=":$qemu:POF"

hands_programs_to_qemu() {
    # shellcheck disable=SC2016 # the inner shell's variables
    unshare --map-root-user --mount bash -c 'mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc &&
        printf %s "$1" >/proc/sys/fs/binfmt_misc/register' hands "$binfmt"
}
[ -z "$qemu" ] || hands_programs_to_qemu ||
    arm64_skip "this kernel gives no namespace a binfmt_misc of its own (Linux 6.7 and newer do)"

# within ROOT VOLUME:PLACE[:ro]... -- CMD...: as in a container: the root read-only, with
# /proc, two devices, and the volumes.
within() {
    # shellcheck disable=SC2016 # the inner shell's variables
    unshare "${space[@]}" bash -c '
        set -e
        if [ -n "$1" ]; then
            mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
            printf %s "$1" >/proc/sys/fs/binfmt_misc/register
        fi
        root=$2
        shift 2
        mount --bind "$root" "$root"
        mount -o remount,bind,ro "$root"
        mount -t proc proc "$root/proc"
        for device in null urandom; do mount --bind "/dev/$device" "$root/dev/$device"; done
        while [ "$1" != -- ]; do
            IFS=: read -r volume place ro <<<"$1"
            mount --bind "$volume" "$root$place"
            [ -z "$ro" ] || mount -o remount,bind,ro "$root$place"
            shift
        done
        shift
        exec chroot "$@"' within "${qemu:+$binfmt}" "$1" "${@:2}"
}

# A folder as the root of a container, with the places that a runtime makes in it.
make_root() {
    mkdir -p "$1/proc" "$1/dev" "$1/tmp" "$1/run" "$1$tree"
    touch "$1/dev/null" "$1/dev/urandom"
}

# A folder that the container's user may write, as an emptyDir is.
make_volume() {
    mkdir -m 777 "$1"
}

contained() { # CMD...: with the plugin's tree, in a root that has nothing else
    within "$rootfs" "$volume:$tree:ro" "$scratch/tmp:/tmp" "$scratch/run:/run" -- \
        "${user[@]}" "$rootfs" "$@"
}

blobs_are_what_their_names_say() {
    (cd "$blobs" && for blob in *; do echo "$blob  $blob"; done | sha256sum --check)
}

blob() { # jq's path to a descriptor in a file: the file it names
    local digest
    digest=$(jq -er "$1.digest" "$2") && echo "$blobs/${digest#sha256:}"
}

# A layout's one entry is the image, or an index over those of several machines.
find_manifest() {
    manifest=$(blob '.manifests[0]' "$layout/index.json") || return
    [ "$(jq -r .mediaType "$manifest")" != application/vnd.oci.image.index.v1+json ] ||
        manifest=$(blob ".manifests[] | select(.platform.architecture == \"$machine\")" "$manifest")
}

unpack() {
    find_manifest &&
        config=$(blob .config "$manifest") && layer=$(blob '.layers[0]' "$manifest") &&
        [ "$(jq '.layers | length' "$manifest")" -eq 1 ] &&
        [ "sha256:$(gzip -dc "$layer" | sha256sum | cut -d ' ' -f 1)" = \
            "$(jq -r '.rootfs.diff_ids[0]' "$config")" ] &&
        [ "$(jq -r .architecture "$config")" = "$machine" ] &&
        mkdir "$scratch/unpacked" && tar -C "$scratch/unpacked" -xzf "$layer" &&
        make_root "$scratch/unpacked"
}

docker_reads_the_same() { # what docker load follows instead of the OCI index
    tar -xOf "$image/spire-hsm.tar" ./manifest.json |
        jq -e --arg config "${config#"$layout/"}" --arg layer "${layer#"$layout/"}" \
            '.[0].Config == $config and .[0].Layers == [$layer]'
}

copy_as_an_init_container() {
    local command
    mapfile -t command < <(jq -r '.config | (.Entrypoint + .Cmd)[]' "$config")
    echo "${command[@]}"
    make_volume "$volume" &&
        within "$scratch/unpacked" "$volume:/install" -- "${user[@]}" "$scratch/unpacked" "${command[@]}"
}

copied_whole() {
    diff -r "$scratch/unpacked$tree" "$volume" &&
        [ -z "$(find "$volume" -mindepth 1 ! -type l -perm /022)" ] &&
        [ "$(sha256sum <"$volume/bin/spire-hsm" | cut -d ' ' -f 1)" = "$(<"$image/plugin_checksum")" ]
}

files_are_root_s() {
    tar --numeric-owner -tvzf "$layer" | awk '$2 != "0/0" { print; wrong = 1 } END { exit wrong || NR < 20 }'
}

front_knows_its_worker() { # stripped itself, and built with the digest of that worker
    readelf -S "$volume/bin/spire-hsm" "$volume/bin/spire-hsm-worker" | not grep -E '\.(symtab|debug_info)' &&
        grep -q "$(sha256sum <"$volume/bin/spire-hsm-worker" | cut -d ' ' -f 1)" "$volume/bin/spire-hsm"
}

nothing_from_outside() { # no program names a loader or library folder but the tree's
    local program
    for program in spire-hsm spire-hsm-worker softhsm2-util; do
        [[ $(patchelf --print-interpreter "$volume/bin/$program") == "$tree"/lib/ld-* ]] &&
            [ "$(patchelf --print-rpath "$volume/bin/$program")" = "$tree/lib" ] &&
            readelf -d "$volume/bin/$program" | grep -q RPATH || return 1
    done
}

sbom_is_complete() {
    local sbom=$scratch/unpacked/usr/share/doc/spire-hsm/sbom.spdx.json
    (cd "$scratch/unpacked" && find . -type f ! -path "./${sbom#"$scratch/unpacked/"}" \
        ! -path './dev/*' -exec sha256sum {} +) | sort >"$scratch/files"
    jq -r '.files[] | "\(.checksums[] | select(.algorithm == "SHA256").checksumValue)  \(.fileName)"' \
        "$sbom" | sort | diff - "$scratch/files" &&
        jq -r '.packages[] | select(.supplier == "Organization: Debian") |
            "\(.name):\(.externalRefs[0].referenceLocator | capture("arch=(?<its>[^&]*)").its) \(.versionInfo)"' \
            "$sbom" >"$scratch/packages" &&
        [ -s "$scratch/packages" ] && not grep -v ":$machine " "$scratch/packages" &&
        cut -d ' ' -f 1 "$scratch/packages" |
        xargs dpkg-query --admindir="$packages" -W -f '${Package}:${Architecture} ${Version}\n' |
            diff "$scratch/packages" -
}

host_build() {
    CGO_ENABLED=0 go -C "$here/peers" test -c -o "$rootfs/host" ./contained &&
        not ldd "$rootfs/host"
}

host_runs() { # TEST
    local log=$logs/$1.log
    contained /host -test.v -test.run "^$1\$" >"$log" 2>&1
    grep '^--- PASS' "$log" || { cat "$log"; return 1; }
}

version_is_the_image_s() {
    local version
    version=$(contained $tree/bin/spire-hsm --version)
    echo "$version"
    [ "${version#spire-hsm }" = "$(jq -r '.config.Labels["org.opencontainers.image.version"]' "$config")" ]
}

# p11-kit's server talks to processes of its own user only. No function: what is started in the
# background must be the program, or its end is not the program's.
# A token on another machine, as far as the plugin can see: a socket that leads to it.
network_token() {
    export SOFTHSM2_CONF=$scratch/softhsm2.conf
    make_volume "$scratch/tokens"
    printf 'directories.tokendir = %s\nobjectstore.backend = file\n' "$scratch/tokens" >"$SOFTHSM2_CONF"
    "${as_user[@]}" softhsm2-util --init-token --free --label far --pin 1234 --so-pin 5678 &&
        start p11-kit "${as_user[@]}" p11-kit server -f -n "$scratch/run/p11.sock" \
            --provider /usr/lib/softhsm/libsofthsm2.so pkcs11:token=far &&
        await 30 listens "$scratch/run/p11.sock"
}

network_token_fits() {
    cat >"$scratch/run/plugin_data" <<-'END'
	module = "p11-kit-client.so"
	token = "pkcs11:token=far"
	pin = "1234"
	key_identifier_value = "far away"
	END
    P11_KIT_SERVER_ADDRESS=unix:path=/run/p11.sock contained $tree/bin/spire-hsm check \
        --trust-domain example.org --config /run/plugin_data
}

if [ -z "$qemu" ]; then
    must "the image is made from what was built, without docker" \
        make -C "$here/.." --no-print-directory BUILD="$build" image-now
fi
must "every blob of the OCI layout has the hash that is its name" blobs_are_what_their_names_say
must "it is unpacked through index, manifest and configuration, its one layer as announced" unpack
check "docker's manifest in the tar names the same configuration and layer" docker_reads_the_same
must "its default command, as an init container's, copies the tree into a shared volume" \
    copy_as_an_init_container
check "the copy is whole, nobody but its owner can write to it, plugin_checksum fits" copied_whole
check "all its files are root's" files_are_root_s
check "spire-hsm is stripped and has the SHA-256 of the worker beside it" front_knows_its_worker
check "its programs name loader and libraries in $tree alone, by RPATH" nothing_from_outside

check "its SBOM names every file in it, by hash, and the installed version of its package" \
    sbom_is_complete

make_root "$rootfs"
make_volume "$scratch/tmp"
make_volume "$scratch/run"
export SPIRE_HSM=$tree/bin/spire-hsm SOFTHSM2_MODULE=$softhsm PATH=$tree/bin:$PATH
check "spire-hsm starts in a root with nothing but /proc, /dev/null, /dev/urandom, /tmp" \
    version_is_the_image_s
must "a host is built as a static program" host_build
check "the host loads it, makes keys in SoftHSM and verifies their signatures" \
    host_runs TestKeysAreMadeAndTheirSignaturesVerified
check "keys are found again after a restart" host_runs TestKeysAreFoundAfterARestart
check "killed workers are replaced, by the same program, without a failed call" \
    host_runs TestKilledWorkersAreReplaced
must "a token is served on a socket by p11-kit" network_token
check "that token passes every check through p11-kit-client.so" network_token_fits
