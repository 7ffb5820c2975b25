# shellcheck shell=bash
# For scripts that need another machine, arm64, on an amd64. To be sourced after lib.sh.
#
#   arm64_debian        sets $debian to the folder whose root.tar has compiler, libraries and qemu,
#                       as tests/lib/debian-arm64.sh says; or ends the script, saying what it skips
#   arm64_skip REASON   ends it so

arm64_skip() {
    echo "  skip  all of arm64: $1"
    exit 0
}

arm64_debian() {
    [ "$(id -u)" -eq 0 ] || {
        echo "a root of its own is entered by root"
        exit 1
    }
    if ! "$here/lib/deps.sh" arm64 || ! debian=$("$here/lib/debian-arm64.sh"); then
        arm64_skip "a Debian with a compiler for it and qemu is not to be had; why, stands above"
    fi
}
