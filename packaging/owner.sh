# shellcheck shell=bash
# Which Debian package a file came from, and for which machine. To be sourced. CC says which; a
# program of a machine that is not this one is run by EMULATOR.

# dpkg knows a file by its path before or after the merge of /usr.
owner() {
    local real found
    real=$(realpath "$1")
    found=$(dpkg-query -S "$1" "$real" "/usr$real" "${real#/usr}" 2>/dev/null || true)
    [ -n "$found" ] || {
        echo "packaging: no package owns $1" >&2
        return 1
    }
    echo "${found%%[:,]*}"
}

# The machine that CC makes programs for, by Debian's name, which is OCI's as well.
architecture() {
    local machine
    machine=$("${CC:-gcc}" -dumpmachine)
    case $machine in
        x86_64-*) echo amd64 ;;
        aarch64-*) echo arm64 ;;
        *)
            echo "packaging: neither amd64 nor arm64: $machine" >&2
            return 1
            ;;
    esac
}

# ldd would ask this machine's own loader.
linked_with() {
    local file
    if [ -z "${EMULATOR-}" ]; then
        ldd "$@"
        return
    fi
    for file in "$@"; do
        "$EMULATOR" "$(patchelf --print-interpreter "$1")" --list "$file"
    done
}

# The libraries that a program and others with it need, themselves and through each other.
libraries() {
    linked_with "$@" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | LC_ALL=C sort -u
}
