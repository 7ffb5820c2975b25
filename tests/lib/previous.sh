#!/bin/bash
# Prints the path of the program as it was before: at the last release tag before HEAD, or
# while there is none, at the first commit that ever landed. It is built once, into the same
# cache as SPIRE. Exit status 3, and the reason, where there is no history to build from.
set -euo pipefail
umask 022
cd "$(dirname "$0")/../.."

first=9ba05163ff16030b8058e50df5179731b0b21935
commit=$(git rev-parse --verify --quiet "$(git describe --tags --abbrev=0 --match 'v[0-9]*' HEAD^ 2>/dev/null || echo "$first")^{commit}") || {
    echo "no commit $first here: not a git clone, or a shallow one" >&2
    exit 3
}
home=${XDG_CACHE_HOME:-$HOME/.cache}/spire-hsm/spire-hsm-$commit
mkdir -p "$home"
exec 9>"$home/lock"
flock 9
if [ ! -x "$home/spire-hsm" ]; then
    work=$(mktemp -d "$home/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    git archive "$commit" | tar -x -C "$work"
    # not with the sanitizers and flags of the make that may have started this
    env -u MAKEFLAGS -u SAN -u CFLAGS -u LDFLAGS make -C "$work" --no-print-directory -j2 BUILD=build all >&2
    mv "$work"/build/spire-hsm-worker "$home/" 2>/dev/null || true # there is none before 0.1.0
    mv "$work/build/spire-hsm" "$home/spire-hsm"
fi
echo "$home/spire-hsm"
