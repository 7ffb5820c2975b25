#!/bin/bash
# An upgrade from the last release, a rollback, and the second try, as docs/installing.md has it:
# a real spire-server and an agent that lives through all of it. Each version rotates keys, and the
# next one finds them. Where there is no release in the history, it says so and tests nothing.
. "$(dirname "$0")/../lib/lib.sh" upgrade

before=$("$here/lib/previous.sh" 2>"$scratch/why") || {
    [ $? = 3 ] || { cat "$scratch/why"; exit 1; }
    echo "  skip  upgrade and rollback: $(<"$scratch/why")"
    exit 0
}
now=$(realpath "${SPIRE_HSM:-$here/../build/spire-hsm}")
declare -A programs=([release]=${before%/*} [now]=${now%/*})

# The place that server.conf names, whatever version lies there.
place=$scratch/libexec
mkdir -p "$place"
cp "$now" "$now-worker" "$place"
export SPIRE_HSM=$place/spire-hsm
. "$here/lib/parts.sh"

record=$STATE_DIRECTORY/hsm-id.keys

section() {
    printf '%s\n' "$*"
}

## Installing

# put VERSION PROGRAM...: as dpkg and install(1) do it, by a new file in the old one's place.
put() {
    local name
    for name in "${@:2}"; do
        cp "${programs[$1]}/$name" "$place/$name.new" && mv "$place/$name.new" "$place/$name" || return 1
    done
    SPIRE_HSM_SHA256=$(sha256sum <"$SPIRE_HSM" | cut -d ' ' -f 1)
}

installed() {
    put "$1" spire-hsm-worker spire-hsm && "$SPIRE_HSM" --version
}

replaced_by() {
    stop server && installed "$1" && server_start
}

sum() {
    sha256sum <"$1" | cut -d ' ' -f 1
}

same_build() {
    cmp -s "${programs[release]}/spire-hsm-worker" "${programs[now]}/spire-hsm-worker"
}

## What is to last

remember() {
    jwt=$(jwt_authority active) && x509=$(x509_authority active) && token_labels >"$scratch/labels" &&
        [ -s "$scratch/labels" ]
}

same_authorities() {
    echo "X.509 $x509, now $(x509_authority active); JWT $jwt, now $(jwt_authority active)"
    [ "$(x509_authority active)" = "$x509" ] && [ "$(jwt_authority active)" = "$jwt" ] && found_its_journal
}

none_destroyed() {
    token_labels | comm -23 "$scratch/labels" - >"$scratch/lost" && cat "$scratch/lost" && [ ! -s "$scratch/lost" ]
}

agent_joins() {
    agent_admit && agent_start -joinToken "$join_token" && agent_pid=${pids[agent]} && await 20 fetches_anew
}

# For an audience that the agent has no token for: it has to ask the server.
audiences=0
fetches_anew() {
    audiences=$((audiences + 1))
    "$spire/spire-agent" api fetch jwt -audience "nobody-$audiences" -socketPath "$agent_socket" |
        sed '2!d' | sed 's/[[:space:]]//g' >"$scratch/token" && [ -s "$scratch/token" ]
}

agent_lives_on() {
    running agent && [ "${pids[agent]}" = "$agent_pid" ] && await 20 fetches_anew && running agent &&
        signed_by_the_authority "$scratch/token"
}

## Rotations

# An agent refuses a server whose authority is not in its bundle.
agent_knows() {
    rm -rf "$scratch/svid" && mkdir "$scratch/svid" &&
        "$spire/spire-agent" api fetch x509 -write "$scratch/svid" -socketPath "$agent_socket" >/dev/null 2>&1 &&
        openssl storeutl -noout -text -certs "$scratch/svid/bundle.0.pem" 2>/dev/null |
        grep -A 1 'Subject Key Identifier' | tr -d ': ' | grep -qi "$1"
}

rotates() {
    local next
    server localauthority jwt prepare && server localauthority jwt activate -authorityID "$(jwt_authority prepared)" &&
        server localauthority x509 prepare && next=$(x509_authority prepared) && await 30 agent_knows "$next" &&
        server localauthority x509 activate -authorityID "$next" && [ "$(x509_authority active)" = "$next" ]
}

others() {
    [ "$(x509_authority active)" != "$x509" ] && [ "$(jwt_authority active)" != "$jwt" ]
}

# works VERSION: what it must do after its start.
works() {
    check "$1: the same authorities" same_authorities
    check "$1: no key was destroyed" none_destroyed
    check "$1: the agent has lived on, and fetches a JWT-SVID that this authority signed" agent_lives_on
    check "$1: an X.509 and a JWT authority are made and activated" rotates
    check "$1: they are others" others
    check "$1: the agent has lived on, and fetches a JWT-SVID that this authority signed" agent_lives_on
    check "$1: no warning and no error in the server's log" server_quiet
    remember
}

## Files replaced beneath a running server

worker_killed_and_back() {
    local worker
    worker=$(worker_pid) && kill -KILL "$worker" && await 10 another_worker_than "$worker" &&
        await 10 fetches_anew && worker=$(worker_pid) && readlink "/proc/$worker/exe" &&
        [ "$(sum "/proc/$worker/exe")" = "$(sum "${programs[release]}/spire-hsm-worker")" ]
}

# SPIRE repeats it; nothing else is said.
refused_saying() {
    not server_start && server_complaints >"$scratch/refused" && grep -F -- "$1" "$scratch/refused" &&
        not grep -vF -- "$1" "$scratch/refused"
}

pair_refused() { # VERSION-OF-THE-FRONT VERSION-OF-THE-WORKER
    stop server && put "$2" spire-hsm-worker && put "$1" spire-hsm &&
        refused_saying "is not the worker that this spire-hsm was built with"
}

## The record of a version that is still to come

# record_with JQ: with a digest that is right.
record_with() {
    local digest
    jq -cS "del(.sha256) | $1" "$record" | tr -d '\n' >"$scratch/tmp/record" &&
        digest=$(sum "$scratch/tmp/record") &&
        jq -cS --arg digest "$digest" '.sha256 = $digest' "$scratch/tmp/record" >"$record"
}

newer_refused() { # VERSION
    stop server && installed "$1" && cp -p "$record" "$scratch/tmp/kept" &&
        record_with '.min_reader = 99' && written=$(sum "$record") &&
        refused_saying "is of a newer version: its min_reader is 99, and this version reads 1: install the newer version again"
}

untouched() {
    [ "$(sum "$record")" = "$written" ]
}

newer_version_back() {
    cp -p "$scratch/tmp/kept" "$record" && server_start
}

grown() {
    stop server && record_with '.later = [1] | .scopes[].later = {a: "b"} | .scopes[].keys[].later = true' &&
        installed "$1" && server_start
}

# Of keys it is there for those that were there then.
still_grown() {
    jq -e '.later == [1] and all(.scopes[]; .later == {a: "b"} and any(.keys[]; .later))' "$record"
}

must "a token is made" token_make
must "the last release is installed" installed release
must "spire-server starts on it" server_start
must "an agent joins" agent_joins
check "an X.509 and a JWT authority are made and activated" rotates
check "the agent has lived on, and fetches a JWT-SVID that this authority signed" agent_lives_on
must "the authorities are noted" remember

section "Its files are replaced beneath it"
check "the new version is installed" installed now
check "a worker that dies is followed by one of the release" worker_killed_and_back
check "and so is that" worker_killed_and_back
check "the agent has lived on, and fetches a JWT-SVID that this authority signed" agent_lives_on

section "The upgrade"
must "the server is restarted on the new version" replaced_by now
works "the new version"

section "The rollback"
must "the server is restarted on the release" replaced_by release
works "the release"

section "The upgrade again"
must "the server is restarted on the new version" replaced_by now
works "the new version"

section "Half an upgrade"
if same_build; then
    echo "  skip  both versions are the same bytes"
else
    check "the new front refuses the release's worker in one sentence" pair_refused now release
    check "the release's front refuses the new worker in one sentence" pair_refused release now
fi

section "A record that a later version wrote"
for version in release now; do
    check "$version: one that it cannot read is refused in one sentence" newer_refused $version
    check "$version: which changes nothing in it" untouched
    must "$version: with the record of its own version it starts" newer_version_back
    check "$version: the same authorities" same_authorities
done
must "release: one that has members it does not know is read" grown release
works "the release"
check "they are still there" still_grown
must "the server is restarted on the new version" replaced_by now
works "the new version"
check "they are still there" still_grown
check "everything that was started has ended" all_gone
