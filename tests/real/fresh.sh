#!/bin/bash
# README.md's two commands, `make demo` and `make test`, on the last commit and as root, where
# nothing is installed but git, make, a C compiler, python3 and Go: in a fresh Debian 12 of its
# own. `make test-fresh` runs it; it takes as long as both commands and some ten minutes more.
#
#   FRESH_CACHE=1   what Go has fetched and built, and the programs of others, come from this
#                   user's caches, which stay as they are; else all is built there, as a user does
#   FRESH_COMMANDS  others than those two, separated by commas
#   FRESH_TARBALL   not a clone, but this tarball of `make dist`'s
. "$(dirname "$0")/../lib/lib.sh" fresh

[ "$(id -u)" -eq 0 ] || { echo "debootstrap and mounts are root's, so this test is"; exit 1; }
root=$scratch/root
go=$(go env GOROOT) || exit 1
apart=

# apart CMD...: with mounts and processes of its own. All of both end with its first process, so
# whatever ends this script, nothing stays mounted.
apart() {
    setpriv --pdeathsig KILL unshare --mount --pid --mount-proc --fork --kill-child "$@" </dev/null 3>&- 4>&- &
    apart=$!
    wait "$apart" # unlike a command in the foreground, this lets the traps run
    local status=$?
    apart=
    return $status
}

end() {
    exec >&3 2>&4
    if [ -n "$apart" ]; then
        kill -KILL "$apart"
        wait "$apart"
    fi 2>/dev/null
    # the folders of tests that failed
    mv "$root"/tmp/spire-hsm-* "$scratch" 2>/dev/null
    # those whom the kernel ends may write for a moment longer
    await 20 rm -rf --one-file-system "$root" "$scratch/changes" 2>/dev/null || echo "left: $root"
}
trap 'status=$?; end; (exit $status); finish' EXIT # finish is lib.sh's

bare_debian() {
    apart debootstrap --variant=minbase --include=git,make,gcc,libc6-dev,ca-certificates,python3 \
        bookworm "$root" >"$logs/debootstrap.log" 2>&1 || { tail -n 20 "$logs/debootstrap.log"; return 1; }
}

# Where this machine gets its packages from, and whom it trusts.
set_up_as_here() {
    local file
    rm -rf "$root/etc/apt"
    cp -r /etc/apt "$root/etc/" && cp -r /usr/share/keyrings/. "$root/usr/share/keyrings/" &&
        cp -L /etc/ssl/certs/ca-certificates.crt "$root/usr/local/share/ca-certificates/here.crt" || return 1
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf; do
        [ ! -e "$file" ] || cp -L "$file" "$root/etc/" || return 1
    done
    within update-ca-certificates && within apt-get -q update
}

# The values of Go's settings that lead to modules, of pip's, and of proxies; nothing else of ours.
settings() {
    local name
    for name in GOPROXY GOSUMDB GONOPROXY GONOSUMDB GOPRIVATE GOINSECURE GOAUTH GOFLAGS GOTOOLCHAIN; do
        printf '%s=%s\n' "$name" "$(go env "$name")"
    done
    env | grep -iE '^((https?|no|all)_proxy|PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|PROXY|CERT|DEFAULT_TIMEOUT))='
}

# What the root has of ours, "FOLDER PLACE"; what is written there goes to $scratch/changes.
caches() {
    [ -n "${FRESH_CACHE-}" ] || return 0
    printf '%s\n' "${XDG_CACHE_HOME:-$HOME/.cache}/spire-hsm /root/.cache/spire-hsm" \
        "$(go env GOCACHE) /root/.cache/go-build" "$(go env GOMODCACHE) /root/go/pkg/mod"
}

# The root is a mount, as some tests unshare theirs; shared memory and processes are its own.
within() { # CMD...
    local -a own
    mapfile -t own < <(settings)
    # shellcheck disable=SC2016 # the inner shell's variables
    apart bash -c '
        set -e
        root=$1 go=$2 changes=$3 number=0
        shift 3
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
        mkdir -p "$root$go"
        mount --bind "$go" "$root$go"
        mount -o remount,bind,ro "$root$go"
        while [ "$1" != -- ]; do
            read -r folder place <<<"$1"
            number=$((number + 1)) over=$changes/$number
            mkdir -p "$folder" "$root$place" "$over/upper" "$over/work"
            mount -t overlay -o "lowerdir=$folder,upperdir=$over/upper,workdir=$over/work" overlay "$root$place"
            shift
        done
        shift
        set +e
        chroot "$root" "$@"
        exit $? # this shell is the first process: it waits for those whose parents died' \
        within "$root" "$go" "$scratch/changes" "${cached[@]}" -- env -i --default-signal=INT,QUIT "${own[@]}" \
        HOME=/root LC_ALL=C.UTF-8 TERM=dumb PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$go/bin" "$@"
}

source_there() {
    if [ -n "${FRESH_TARBALL-}" ]; then
        mkdir "$root/root/spire-hsm" && tar -C "$root/root/spire-hsm" --strip-components=1 -xzf "$FRESH_TARBALL"
        return
    fi
    git clone -q --no-hardlinks "$here/.." "$root/root/spire-hsm" &&
        git -C "$root/root/spire-hsm" log -1 --oneline
}

as_readme_has_it() { # COMMAND...
    local status
    grep -F "$*" "$here/../README.md" >"$said" || { echo "README.md does not say: $*"; return 1; }
    within env -C /root/spire-hsm "$@" >"$said" 2>&1
    status=$?
    cat "$said"
    return $status
}

mapfile -t cached < <(caches)
must "a Debian 12 with git, make, gcc, python3 and nothing else is made" bare_debian
must "it gets its packages from where this machine does" set_up_as_here
must "the source is put there: ${FRESH_TARBALL:-a clone of the last commit}" source_there
IFS=, read -r -a commands <<<"${FRESH_COMMANDS:-make demo,make test}"
for command in "${commands[@]}"; do
    said=$logs/${command//[ \/]/-}.log
    since=$SECONDS
    # shellcheck disable=SC2086 # words
    check "\`$command\`" as_readme_has_it $command
    printf '        %s (%d s)\n' "$(grep -E '^[0-9]+ passed, ' "$said" | tail -n 1)" $((SECONDS - since))
done
