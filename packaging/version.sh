#!/bin/bash
# What this source is, as SemVer 2.0.0, and when it was made:
#
#   packaging/version.sh            0.1.0                      the commit of a release
#                                   0.2.0-dev.7+g0123456789ab  7 commits after the last release
#                                   0.2.0-dev+g0123456789ab    there is no release before it
#                                   0.2.0-dev+unknown          neither git nor a tarball of ours
#   packaging/version.sh --epoch    seconds since 1970: of the commit; SOURCE_DATE_EPOCH if set
#   packaging/version.sh --release  the commit of the last release; status 3 and why if there is none
#
# `.dirty` is added where files differ from the commit. packaging/VERSION is where the number
# comes from: 0.1.0 in the commit of release 0.1.0, and from the next one on 0.2.0-dev. In a
# tarball `make dist` has put there all of the above, for there is no git to ask.
#
# The commit of a release is the one that writes its number there, and has its entry in the
# changelog. A tag may not come along with a clone, and a file cannot hold its own commit's hash.
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

is_release() { # COMMIT
    local its
    its=$(git show "$1:packaging/VERSION") && [[ $its =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] &&
        git show "$1:packaging/CHANGELOG.md" 2>/dev/null | grep -qE "^## ${its//./\\.} \(.+\)$"
}

release() {
    local commit
    for commit in $(git log --format=%H -- packaging/VERSION); do
        ! is_release "$commit" || { echo "$commit"; return; }
    done
    return 1
}

why_no_release() {
    if ! in_git; then
        echo "this is no git clone, so no release can be found in its history"
    elif [ "$(git rev-parse --is-shallow-repository)" = true ]; then
        echo "this clone is shallow: its history ends before the last release"
    else
        echo "there was no release before this commit"
    fi
}

# Whoever goes on without saying which version is next works on the next patch.
after() { # 0.1.0
    echo "${1%.*}.$((${1##*.} + 1))-dev"
}

version() {
    local described last commits=0 dirty=""
    described=$(git describe --always --dirty --abbrev=12 --exclude='*')
    [ "$described" = "${described%-dirty}" ] || dirty=.dirty
    ! last=$(release) || commits=$(git rev-list --count "$last..HEAD")
    case $number in
        *-dev) ;;
        *)
            if [ -n "$last" ] && [ "$commits$dirty" = 0 ]; then
                echo "$number"
                return
            fi
            number=$(after "$number")
            ;;
    esac
    echo "$number${last:+.$commits}+g${described%-dirty}$dirty"
}

case ${1-} in
    --epoch) epoch ;;
    --release)
        { in_git && release; } || {
            why_no_release >&2
            exit 3
        }
        ;;
    "")
        if in_git; then
            version
        elif [ -n "$made" ]; then
            echo "$number"
        else
            case $number in *-dev) number+=+unknown ;; esac # the tree of a release is one
            echo "$number"
        fi
        ;;
    *) echo "usage: packaging/version.sh [--epoch | --release]" >&2; exit 2 ;;
esac
