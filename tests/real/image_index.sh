#!/bin/bash
# The image for both machines: one index over amd64's and arm64's, read by a tool that is not ours
# and made twice. `make test-arm64` runs it, as root; what is in arm64's image, image.sh tries.
. "$(dirname "$0")/../lib/lib.sh" image-index
. "$here/lib/arm64.sh"
arm64_debian

source=$(realpath "$here/..")
build=$source/build
layout=$build/image-index/oci
elsewhere=$scratch/another/folder
machines=(amd64 arm64)
declare -A image=([amd64]=$build/image [arm64]=$build/image-arm64)
declare -A elf=([amd64]='Advanced Micro Devices X86-64' [arm64]=AArch64)

blobs_are_what_their_names_say() {
    (cd "$layout/blobs/sha256" && for blob in *; do echo "$blob  $blob"; done | sha256sum --check)
}

is_one_index() {
    jq -c '.manifests[]' "$layout/index.json"
    jq -e --arg digest "$(<"$build/image-index/digest")" '.manifests | length == 1 and .[0].digest == $digest
        and .[0].mediaType == "application/vnd.oci.image.index.v1+json"' "$layout/index.json"
}

names_both_machines() {
    local index
    index=$layout/blobs/sha256/$(jq -r '.manifests[0].digest | ltrimstr("sha256:")' "$layout/index.json")
    jq -c '.manifests[].platform' "$index"
    jq -e '[.manifests[].platform] == [{architecture: "amd64", os: "linux"},
        {architecture: "arm64", os: "linux", variant: "v8"}]' "$index"
}

skopeo_copies_it_whole() {
    skopeo --insecure-policy copy --quiet --all "oci:$layout" "oci:$scratch/whole:all" &&
        jq -r '.manifests[0].digest' "$scratch/whole/index.json" | diff - "$build/image-index/digest" &&
        diff -r "$layout/blobs" "$scratch/whole/blobs"
}

skopeo_finds() { # MACHINE
    local copy=$scratch/$1
    skopeo --insecure-policy --override-arch "$1" copy --quiet "oci:$layout" "oci:$copy:one" &&
        jq -r '.manifests[0].digest' "$copy/index.json" | diff - "${image[$1]}/digest" &&
        skopeo inspect --config "oci:$copy:one" | jq -e --arg machine "$1" '.architecture == $machine'
}

# Programs, loader and libraries; a configuration's word is not enough.
all_are_of() { # MACHINE
    local layer
    layer=$(jq -r '.layers[0].digest' "$scratch/$1/blobs/sha256/$(cut -d : -f 2 "${image[$1]}/digest")")
    mkdir "$scratch/$1.tree" && tar -C "$scratch/$1.tree" -xzf "$scratch/$1/blobs/sha256/${layer#sha256:}" &&
        find "$scratch/$1.tree" -type f \( -path '*/bin/*' -o -path '*/lib/*' \) >"$scratch/$1.files" &&
        [ "$(grep -c . "$scratch/$1.files")" -gt 20 ] &&
        xargs readelf -h <"$scratch/$1.files" | sed -n 's/^ *Machine: *//p' | sort | uniq -c | tee "$scratch/$1.machines" &&
        [ "$(sed 's/^ *[0-9]* //' "$scratch/$1.machines")" = "${elf[$1]}" ]
}

# The checksum of server.conf is that of one machine's program.
checksum_is_of() { # MACHINE
    sha256sum <"$scratch/$1.tree/opt/spire-hsm/bin/spire-hsm" | cut -d ' ' -f 1 | diff - "${image[$1]}/plugin_checksum"
}

# The build folder's name is a part of what generated sources are called.
make_in() { # FOLDER TARGET
    make -C "$1" --no-print-directory BUILD=build -j "$(nproc)" "$2"
}

makes_it_elsewhere() {
    local tarball
    tarball=$(make_in "$source" dist | sed -n 's/^dist: //p') &&
        mkdir -p "$elsewhere" && tar -C "$elsewhere" --strip-components=1 -xzf "$tarball" &&
        (umask 077 && TZ=Asia/Tokyo LC_ALL=C.UTF-8 make_in "$elsewhere" image-index)
}

same() { # FILE below the build folder
    cmp "$build/$1" "$elsewhere/build/$1"
}

must "the image is made for both machines" make_in "$source" image-index
check "every blob of the OCI layout has the hash that is its name" blobs_are_what_their_names_say
check "its one entry is an index, by the digest that make says" is_one_index
check "the index names linux/amd64 and linux/arm64/v8" names_both_machines
check "skopeo copies index and images without a change" skopeo_copies_it_whole
for machine in "${machines[@]}"; do
    check "skopeo, asked for $machine, takes the image that is $machine's" skopeo_finds "$machine"
    check "in it programs, loader and libraries are $machine's" all_are_of "$machine"
    check "its plugin_checksum is that of its spire-hsm" checksum_is_of "$machine"
done
check "the two have each a checksum of their own" not cmp "${image[amd64]}/plugin_checksum" "${image[arm64]}/plugin_checksum"
must "it is made again from the tarball, in another folder" makes_it_elsewhere
check "amd64's image has the same digest" same image/digest
check "arm64's has, too" same image-arm64/digest
check "so has the index" same image-index/digest
