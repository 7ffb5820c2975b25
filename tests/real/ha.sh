#!/bin/bash
# Two spire-servers with one PostgreSQL datastore and one token, each with an identity and
# a discovery provider of its own, while their authorities are rotated and one is killed:
# every JWT-SVID that either ever issued verifies at both providers until it expires.
. "$(dirname "$0")/../lib/lib.sh" ha
. "$here/lib/parts.sh"
. "$here/lib/postgres.sh"

token_life=60 # of a JWT-SVID, seconds
jwts=$scratch/jwts
mkdir "$jwts" "$scratch/down"

## The servers, A and B

# Does something to, or in the place of, one of the two.
on() {
    local node=$1
    local -x STATE_DIRECTORY=$scratch/state/$1 RUNTIME_DIRECTORY=$scratch/run/$1
    local -x CACHE_DIRECTORY=$scratch/cache/$1
    local server_socket=$RUNTIME_DIRECTORY/server.sock oidc_socket=$RUNTIME_DIRECTORY/oidc.sock
    shift
    "$@"
}

# "6m" is as short as leaves an authority two minutes between being made and being used.
conf_of_two() {
    mkdir -p "$scratch"/{run,state,cache}/{A,B}
    server_conf=$scratch/etc/server.conf
    sed -e 's|ca_ttl = .*|ca_ttl = "6m"|; s|svid_ttl = .*|svid_ttl = "1m"|' \
        -e 's|database_type = .*|database_type = "postgres"|' \
        -e "s|connection_string = .*|connection_string = \"dbname=spire host=$postgres_home user=postgres sslmode=disable\"|" \
        -e 's|# destroy_superseded_after = .*|destroy_superseded_after = 0|' \
        "$here/../examples/server.conf" >"$server_conf"
    grep -c 'postgres\|"6m"' "$server_conf" | grep -x 3
}

healthy() {
    server healthcheck >/dev/null 2>&1
}

healthy_or_gone() {
    healthy || ! running "$node"
}

node_start() {
    start "$node" "$spire/spire-server" run -expandEnv -config "$server_conf" \
        -serverPort "$(free_port)" -logLevel debug -logFormat json
    await 30 healthy_or_gone
    healthy || { tail -n 20 "$logs/$node.log"; return 1; }
    rm -f "$scratch/down/$node"
}

node_killed() {
    touch "$scratch/down/$node"
    all=$(descendants "${pids[$node]}")
    stop "$node" KILL
    # shellcheck disable=SC2086 # a list of numbers
    [ -n "$all" ] && await 12 not alive $all
}

# What a server said, in all its lives, of the key events of its plugin.
said_labels() {
    cat "$logs/$node".*log* | jq -R -r --arg what "$1" \
        'fromjson? | select(.msg | test($what)) | .label' | sort -u
}

node_oidc() {
    start "oidc$node" "$spire/oidc-discovery-provider" -expandEnv -config "$here/real/oidc.conf"
    await 15 oidc keys
}

## Authorities

has() {
    oidc keys | jq -e --arg kid "$1" 'any(.keys[]; .kid == $kid)' >/dev/null
}

# A new key of one server reaches the provider of the other with the next tick of that
# one's BundlePublisher: 30 s; and the provider's poll: 1 s.
both_serve() {
    local which=$1 node kid
    for node in A B; do
        kid=$(on "$node" jwt_authority "$which") || return 1
        await 40 on A has "$kid" && await 40 on B has "$kid" || return 1
    done
}

both() {
    on A "$@" && on B "$@"
}

prepare() {
    server localauthority jwt prepare
}

activate() {
    local next
    next=$(jwt_authority prepared) && jwt_activate && [ "$(jwt_authority active)" = "$next" ]
}

## JWT-SVIDs, all the time

mint() {
    local number=0 file
    until [ -e "$scratch/stop" ]; do
        number=$((number + 1))
        file=$jwts/$node.$(printf %05d $number)
        if server jwt mint -spiffeID "$workload" -audience mys3 -ttl ${token_life}s \
            -write "$scratch/tmp/minted.$node"; then
            mv "$scratch/tmp/minted.$node" "$file"
        elif [ ! -e "$scratch/down/$node" ]; then
            echo "mint $file" >>"$scratch/failed"
        fi
        sleep 0.3
    done
}

# Those that live for as long as a busy machine takes to verify them all.
unexpired() {
    find "$jwts" -type f -newermt "-$((token_life - 15)) seconds" | sort
}

verify_all() {
    local tokens node
    mapfile -t tokens < <(unexpired)
    [ ${#tokens[@]} -gt 0 ] || return 0
    for node in A B; do
        on "$node" oidc keys >"$scratch/tmp/keys.$node" &&
            "$scratch/jwtverify" -keys "$scratch/tmp/keys.$node" -issuer "$issuer" -audience mys3 \
                -subject "$workload" "${tokens[@]}" || return 1
    done
}

verify() {
    until [ -e "$scratch/stop" ]; do
        if verify_all >"$scratch/tmp/verified" 2>&1; then
            echo >>"$scratch/rounds"
        else
            cat "$scratch/tmp/verified" >>"$scratch/failed"
        fi
        sleep 1
    done
}

no_failure() {
    [ -s "$scratch/rounds" ] && not cat "$scratch/failed"
}

# However slow the machine: so many of each, and the last of them with the key that is active now.
enough_minted() {
    local node tokens
    for node in A B; do
        tokens=("$jwts/$node".*)
        echo "$node: ${#tokens[@]}"
        [ ${#tokens[@]} -ge 40 ] &&
            [ "$(jwt_kid "${tokens[-1]}")" = "$(on "$node" jwt_authority active)" ] || return 1
    done
}

# COUNT rounds, and two more: the second of those has begun since.
verified_since() {
    [ "$(wc -l <"$scratch/rounds")" -ge $(($1 + 2)) ]
}

three_keys_each() {
    local node token
    for node in A B; do
        for token in "$jwts/$node".*; do
            jwt_kid "$token"
        done | sort | uniq -c | tee "$scratch/tmp/kids"
        [ "$(wc -l <"$scratch/tmp/kids")" -eq 3 ] || return 1
    done
}

# Is every label it destroyed one that it had made or adopted, and is it not the other's?
destroyed_only_its_own() {
    local destroyed
    destroyed=$(said_labels 'key destroyed|key cleared away')
    echo "$destroyed"
    [ -n "$destroyed" ] &&
        comm -23 <(echo "$destroyed") <(said_labels '^key (made|adopted)') | not grep .
}

nobody_elses_was_lost() {
    comm -12 <(on A said_labels '^key (made|adopted)') <(on B said_labels '^key (made|adopted)') |
        not grep .
}

node_quiet() {
    cat "$logs/$node".*log* | jq -R -r 'fromjson? | select(.level | IN("warning", "error")) |
        "\(.level): \(.msg) \(del(.level, .msg, .time) | tojson)"' | not grep .
}

## The story

must "PostgreSQL runs" postgres_start
must "a token is made" token_make
must "a verifier is built" verifier_build
must "a configuration for two" conf_of_two
must "server A starts" on A node_start
must "server B starts" on B node_start
check "the token holds two keys of each" token_holds 4
must "A's discovery provider starts" on A node_oidc
must "B's discovery provider starts" on B node_oidc
must "each serves the keys of both" both_serve active
start mintA on A mint
start mintB on B mint
start verify verify

check "both prepare a JWT authority" both prepare
check "A is killed with it, and its plugins and worker are gone" on A node_killed
check "A starts again" on A node_start
check "it has its prepared authority still" on A jwt_authority prepared
check "both X.509 authorities are rotated" both x509_rotate
must "each provider serves what both prepared" both_serve prepared
check "both activate it" both activate
check "both prepare another one, which supersedes the first keys" both prepare
must "each provider serves it" both_serve prepared
check "both activate it" both activate
check "the token holds four keys of each" await 10 token_holds 8
check "both issued tokens all the time, the last ones with the last keys" await 180 enough_minted
check "those were verified, too" await 60 verified_since "$(wc -l <"$scratch/rounds")"
touch "$scratch/stop"
for name in mintA mintB verify; do
    await 30 not running "$name"
done
check "with three keys each" three_keys_each
check "no mint failed, and all tokens verified at both providers until they expired" no_failure
check "A destroyed keys, all its own" on A destroyed_only_its_own
check "B destroyed keys, all its own" on B destroyed_only_its_own
check "no key was both's" nobody_elses_was_lost
for name in A B; do
    check "no warning and no error in $name's log" on "$name" node_quiet
done
echo "faults survived: $((failed == 0)) of 1"
