# shellcheck shell=bash
# For scripts that run real programs: a folder of their own, processes that end with the
# script whatever happens, waiting for events, checks that are counted. To be sourced:
#
#   . tests/lib/lib.sh NAME   makes $scratch, a folder below /tmp; $here is tests/
#   check "a sentence" CMD    runs CMD; says and counts whether it succeeded
#   must "a sentence" CMD     the same; ends the script if it did not
#   start NAME CMD...         in the background, output to $logs/NAME.log
#   stop NAME [SIGNAL]        ends it and waits until it is gone
#   await SECONDS CMD...      until CMD succeeds, at most so long
#   listens PATH              does a process listen on this unix socket?
#
# The last line is `N passed, N failed`, and the exit status says the same. $scratch is
# removed when all passed, and named otherwise.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Unix socket paths have 108 bytes: not below $TMPDIR, which may be long.
scratch=$(mktemp -d "/tmp/spire-hsm-$1.XXXXXX")
logs=$scratch/logs
mkdir "$logs"
exec 3>&1 4>&2
unset MAKEFLAGS MAKELEVEL # a make that runs this has nothing to say to those it runs

passed=0
failed=0
declare -A pids=()
order=() # names in the order of their start

check() {
    local sentence=$1
    shift
    if "$@" >"$scratch/output" 2>&1; then
        passed=$((passed + 1))
        printf '  ok    %s\n' "$sentence"
        return 0
    fi
    failed=$((failed + 1))
    printf '  FAIL  %s\n' "$sentence"
    sed 's/^/          | /' "$scratch/output" | tail -n 40
    return 1
}

must() {
    check "$@" || exit 1
}

not() {
    ! "$@"
}

start() {
    local name=$1
    shift
    [ ! -e "$logs/$name.log" ] || mv --backup=numbered "$logs/$name.log" "$logs/$name.old.log"
    "$@" </dev/null >"$logs/$name.log" 2>&1 3>&- 4>&- &
    pids[$name]=$!
    order+=("$name")
}

running() {
    [ -n "${pids[$1]-}" ] && kill -0 "${pids[$1]}" 2>/dev/null
}

stop() {
    local name=$1 signal=${2-TERM}
    running "$name" || return 0
    kill -s "$signal" "${pids[$name]}"
    await 15 not running "$name" || {
        echo "$name did not end within 15 s of SIG$signal: killed"
        kill -s KILL "${pids[$name]}"
        return 1
    }
}

# The socket's file is there a little before.
listens() {
    grep -q " 00010000 .* $1\$" /proc/net/unix # __SO_ACCEPTCON
}

await() {
    local deadline=$((SECONDS + $1 + 1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# The process ids of all processes below PID. Others come and go meanwhile.
descendants() {
    local child
    for child in $(grep -slx "PPid:[[:space:]]*$1" /proc/[0-9]*/status); do
        child=${child#/proc/}
        echo "${child%/status}"
        descendants "${child%/status}"
    done
}

alive() {
    local pid
    for pid in "$@"; do
        [ ! -d "/proc/$pid" ] || return 0
    done
    return 1
}

# A TCP port nobody listens on now, below those the kernel gives out by itself.
free_port() {
    local port
    while port=$((20000 + RANDOM % 10000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

finish() {
    local status=$? i
    trap - EXIT HUP INT TERM
    exec >&3 2>&4 # a signal may have come within a check
    for ((i = ${#order[@]} - 1; i >= 0; i--)); do
        stop "${order[i]}" || failed=$((failed + 1))
    done
    if ((status != 0 && failed == 0)); then
        failed=1
        echo "  FAIL  the script ended early (exit status $status)"
    fi
    if ((failed == 0)); then
        rm -rf "$scratch"
    else
        echo "logs: $logs (everything else of this run beside it, in $scratch)"
    fi
    echo "$passed passed, $failed failed"
    exit $((failed != 0))
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
