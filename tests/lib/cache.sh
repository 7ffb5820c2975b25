# shellcheck shell=bash
# For scripts that find the programs of others which tests need and Debian has not. They
# are taken from where they are, or else built once into a cache folder, for all clones.
# To be sourced:
#
#   . tests/lib/cache.sh NAME VERSION
#   complete FOLDER         the script's own: is everything there, in this version?
#   build WORK              the script's own: puts it into WORK/bin
#   provide GIVEN PROGRAM   prints the folder: GIVEN (a variable of the user's) unless that
#                           is empty; or where PATH finds PROGRAM; or the cache
#
# A build may take minutes: it says on stderr what it does.
set -euo pipefail
umask 022 # what is cached is for everybody: it must not depend on who asked first

name=$1
version=$2
home=${XDG_CACHE_HOME:-$HOME/.cache}/spire-hsm/$name-$version

say() { echo "$name: $*" >&2; }
die() { say "$*"; exit 1; }

provide() {
    local given=$1 found work
    if [ -n "$given" ]; then
        complete "$given" || die "what is needed in version $version is not in $given"
        realpath "$given"
        return
    fi
    if found=$(command -v "$2") && complete "$(dirname "$found")"; then
        dirname "$found"
        return
    fi
    if ! complete "$home/bin"; then
        mkdir -p "$home"
        exec 9>"$home/lock"
        flock 9
        if ! complete "$home/bin"; then # nobody else built it while we waited
            work=$(mktemp -d "$home/build.XXXXXX")
            # shellcheck disable=SC2064 # the folder of now
            trap "rm -rf '$work'" EXIT
            (build "$work")
            complete "$work/bin" || die "what was built does not say it is $version"
            rm -rf "$home/bin"
            mv "$work/bin" "$home/bin"
        fi
    fi
    echo "$home/bin"
}

## Building with Go

go_check() {
    local needed=$1 found
    command -v go >/dev/null || die "Go is needed to build $version, which is not in PATH"
    found=$(go env GOVERSION)
    found=${found#go}
    [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n 1)" = "$needed" ] ||
        die "$version needs Go $needed or newer, its go.mod says; this is Go $found"
}

# Reads what Go says; passes on every fiftieth of the same kind, so that nobody thinks it
# hangs.
go_progress() {
    local line fetched=0 compiled=0
    while IFS= read -r line; do
        case $line in
            "go: added "*) ;;
            "go: downloading "*)
                ((++fetched % 50)) || say "$fetched modules fetched"
                ;;
            *" "*) say "$line" ;;
            *) ((++compiled % 50)) || say "$compiled packages compiled, of ${1-?} at most" ;;
        esac
    done
}

# go_build WORK LDFLAGS MODULE VERSION PACKAGE...: the programs PACKAGE of MODULE.
# The module's own go.sum comes first: `go get` looks up every module anew otherwise, and
# not all of them can still be. The hashes are the module's, so checking stays on. A version
# that cannot be fetched at all is passed over with go_replace, as in `go mod edit -replace`.
go_build() {
    local work=$1 ldflags=$2 module=$3 tag=$4 source total
    shift 4
    cd "$work"
    go_check 1.24
    say "fetching $version"
    source=$(go mod download -json "$module@$tag" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
    go_check "$(sed -n 's/^go //p' "$source/go.mod")"
    say "building $version into $home (some minutes, once)"
    go mod init spire-hsm/tools 2>/dev/null
    install -m 644 "$source/go.sum" go.sum
    [ -z "${go_replace-}" ] || go mod edit -replace "$go_replace"
    go get -tool "${@/%/@$tag}" 2>&1 | go_progress
    total=$(go list -deps tool 2> >(go_progress) | wc -l)
    GOBIN=$work/bin go install -v -ldflags "$ldflags" tool 2>&1 | go_progress "$total"
}

## Installing with pip

# pip_install WORK PROGRAM MODULE REQUIREMENT...: PROGRAM runs Python's MODULE, with a venv
# beside it: a venv's own programs do not bear being moved, as WORK/bin will be.
pip_install() {
    local work=$1 program=$2 run=$3
    shift 3
    say "pip installs $* into $home"
    mkdir "$work/bin"
    python3 -m venv "$work/bin/venv"
    "$work/bin/venv/bin/pip" install --quiet --disable-pip-version-check "$@" >&2
    cat >"$work/bin/$program" <<END
#!/bin/sh
exec "\$(dirname "\$0")/venv/bin/python3" -m $run "\$@"
END
    chmod 755 "$work/bin/$program"
}
