# shellcheck shell=bash
# Which Debian package a file came from. To be sourced.

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

# The libraries that programs and libraries need, themselves and through each other.
libraries() {
    ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | LC_ALL=C sort -u
}
