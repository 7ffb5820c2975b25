#!/bin/bash
# Prints the folder that holds spire-server, spire-agent and oidc-discovery-provider of
# the version below: $SPIRE_BIN; or where PATH finds them; or a cache folder, into which
# they are built with Go when they are not there yet (about five minutes, once).
set -euo pipefail

version=1.14.5
module=github.com/spiffe/spire
programs=(spire-server spire-agent oidc-discovery-provider)
home=${XDG_CACHE_HOME:-$HOME/.cache}/spire-hsm/spire-$version

say() { echo "spire: $*" >&2; }
die() { say "$*"; exit 1; }

# A build of ours says "1.14.5-dev-unk", a release "1.14.5".
complete() {
    local program said
    for program in "${programs[@]}"; do
        [ -x "$1/$program" ] || return 1
        said=$("$1/$program" --version 2>&1 | head -n 1)
        [[ $said == "$version" || $said == "$version"-* ]] || return 1
    done
}

check_go() {
    local needed=$1 found
    command -v go >/dev/null || die "Go is needed to build SPIRE $version;" \
        "or set SPIRE_BIN to a folder with its programs"
    found=$(go env GOVERSION)
    found=${found#go}
    [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n 1)" = "$needed" ] ||
        die "SPIRE $version needs Go $needed or newer, its go.mod says; this is Go $found"
    command -v "$(go env CC)" >/dev/null || die "SPIRE's sqlite3 needs a C compiler"
}

# Reads what Go says; passes on every fiftieth of the same kind, so that nobody thinks it
# hangs.
progress() {
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

# SPIRE's own go.sum comes first: `go get` looks up every module anew otherwise, and not
# all of them can still be. The hashes are SPIRE's, so checking stays on.
build() {
    local work=$1 source total
    cd "$work"
    check_go 1.24
    say "fetching SPIRE $version"
    source=$(go mod download -json "$module@v$version" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
    check_go "$(sed -n 's/^go //p' "$source/go.mod")"
    say "building SPIRE $version into $home (about five minutes, once)"
    go mod init spire-hsm/spire 2>/dev/null
    install -m 644 "$source/go.sum" go.sum
    go get -tool "$module/cmd/spire-server@v$version" "$module/cmd/spire-agent@v$version" \
        "$module/support/oidc-discovery-provider@v$version" 2>&1 | progress
    total=$(go list -deps tool 2> >(progress) | wc -l)
    CGO_ENABLED=1 GOBIN=$work/bin go install -v tool 2>&1 | progress "$total"
    complete "$work/bin" || die "what was built does not say it is $version"
}

if [ -n "${SPIRE_BIN-}" ]; then
    complete "$SPIRE_BIN" || die "SPIRE_BIN=$SPIRE_BIN lacks one of ${programs[*]} in version $version"
    cd "$SPIRE_BIN"
    exec pwd
fi
if found=$(command -v spire-server) && complete "$(dirname "$found")"; then
    dirname "$found"
    exit
fi
if ! complete "$home/bin"; then
    mkdir -p "$home"
    exec 9>"$home/lock"
    flock 9
    if ! complete "$home/bin"; then # nobody else built it while we waited
        work=$(mktemp -d "$home/build.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        (build "$work")
        rm -rf "$home/bin"
        mv "$work/bin" "$home/bin"
    fi
fi
echo "$home/bin"
