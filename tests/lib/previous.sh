#!/bin/bash
# Prints the path of the program as it was at the last release, or at RELEASE_COMMIT. It is built
# once for each commit, into the same cache as SPIRE. Exit status 3, and the reason, where there
# is no release in the history.
set -euo pipefail
umask 022
cd "$(dirname "$0")/../.."

if [ -n "${RELEASE_COMMIT-}" ]; then
    commit=$(git rev-parse --verify "$RELEASE_COMMIT^{commit}")
else
    commit=$(packaging/version.sh --release)
fi
home=${XDG_CACHE_HOME:-$HOME/.cache}/spire-hsm/spire-hsm-$commit
mkdir -p "$home"
exec 9>"$home/lock"
flock 9
if [ ! -x "$home/spire-hsm" ]; then
    echo "previous: building $(git log -1 --format='%h, %s' "$commit") (a minute, once)" >&2
    work=$(mktemp -d "$home/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    git archive "$commit" | tar -x -C "$work"
    # not with the sanitizers and flags of the make that may have started this
    env -u MAKEFLAGS -u SAN -u CFLAGS -u LDFLAGS make -C "$work" --no-print-directory -j2 BUILD=build all >&2
    mv "$work/build/spire-hsm-worker" "$work/build/spire-hsm" "$home/"
fi
echo "$home/spire-hsm"
