#!/bin/bash
# What this source is, as SemVer 2.0.0, and when it was made:
#
#   packaging/version.sh          0.1.0                      the commit tagged v0.1.0
#                                 0.1.0-dev.7+g0123456789ab  7 commits after some v tag
#                                 0.1.0-dev+g0123456789ab    there is no v tag before it
#                                 0.1.0-dev+unknown          neither git nor a tarball of ours
#   packaging/version.sh --epoch  seconds since 1970: of the commit; SOURCE_DATE_EPOCH if set
#
# `.dirty` is added where files differ from the commit. packaging/VERSION is where the
# number comes from: in git it holds the release that is being worked on; in a tarball
# `make dist` has put there all of the above, for there is no git to ask.
set -euo pipefail
cd "$(dirname "$0")/.."

read -r number made <packaging/VERSION
in_git() { # a repository of ours, not one that a tarball was unpacked into
    [ "$(git rev-parse --show-cdup 2>/dev/null || echo none)" = "" ] &&
        git ls-files --error-unmatch packaging/VERSION >/dev/null 2>&1
}

epoch() {
    if [ -n "${SOURCE_DATE_EPOCH-}" ]; then
        echo "$SOURCE_DATE_EPOCH"
    elif [ -n "$made" ]; then
        echo "$made"
    else
        git log -1 --format=%ct 2>/dev/null || stat -c %Y packaging/VERSION
    fi
}

# git describes a commit as v0.0.9-7-g0123456789ab, or by the hash alone.
version() {
    local described commits="" hash dirty=""
    described=$(git describe --tags --match 'v[0-9]*' --always --dirty --abbrev=12)
    case $described in *-dirty) dirty=.dirty ;; esac
    described=${described%-dirty}
    if [ "$described" = "v$number" ]; then
        echo "$number${dirty:+-dev+dirty}"
        return
    fi
    hash=${described##*-g}
    [ "$hash" = "$described" ] || commits=${described%-g*} commits=.${commits##*-}
    case $hash in v*) hash=$(git rev-parse --short=12 HEAD) ;; esac # the tag of another release
    echo "$number-dev$commits+g$hash$dirty"
}

case ${1-} in
    --epoch) epoch ;;
    "")
        if in_git; then
            version
        elif [ -n "$made" ]; then
            echo "$number"
        else
            echo "$number-dev+unknown"
        fi
        ;;
    *) echo "usage: packaging/version.sh [--epoch]" >&2; exit 2 ;;
esac
