#!/bin/bash
# The real spire-server, provider and agent with spire-hsm beneath them: what an operator
# does to them in a year, in a minute.
. "$(dirname "$0")/../lib/lib.sh" e2e
. "$here/lib/parts.sh"

section() {
    printf '%s\n' "$*"
}

# spire-server with this configuration ends by itself, and its log says all of WORDS.
refused_saying() {
    local word
    start server "$spire/spire-server" run -expandEnv -config "$server_conf" \
        -serverPort "$port" -logLevel debug -logFormat json
    await 30 not running server || { stop server; return 1; }
    server_complaints | tee "$scratch/complaints"
    for word in "$@"; do
        grep -qF -- "$word" "$scratch/complaints" || { echo "not said: $word"; return 1; }
    done
}

## Validate

# SPIRE's side of a plugin socket, plugin*, stays behind whatever the plugin is.
left_behind() {
    find "$scratch/state" "$scratch/run" "$scratch/tmp" "$scratch/tokens" ! -type d \
        ! -name '*.lock' ! -name 'plugin*' | sort
}

validate() {
    "$spire/spire-server" validate -expandEnv -config "$server_conf" \
        -logFile "$logs/validate.log" "$@"
}

nothing_new_is_left() {
    left_behind | diff "$scratch/before" -
}

# The server does not wait for its plugins to leave.
validates_without_trace() {
    left_behind >"$scratch/before"
    validate && await 10 nothing_new_is_left
}

invalid_saying() {
    not validate >"$scratch/validate" 2>&1 || return 1
    cat "$scratch/validate" "$logs/validate.log"
    cat "$scratch/validate" "$logs/validate.log" | grep -F -- "$1"
}

## Minting

mints_jwt() {
    jwt_mint "$scratch/minted" && await 5 oidc_has "$(jwt_kid "$scratch/minted")" &&
        jwt_verifies "$scratch/minted"
}

mints_x509() {
    local dir=$scratch/x509
    mkdir -p "$dir" && server x509 mint -spiffeID "$workload" -write "$dir" &&
        openssl verify -x509_strict -CAfile "$dir/bundle.pem" "$dir/svid.pem" &&
        openssl x509 -in "$dir/svid.pem" -noout -ext subjectAltName | grep -F "URI:$workload"
}

## Killing the process that holds the PKCS#11 module

mint_until() {
    local stop=$1 name=$2 number=0
    until [ -e "$stop" ]; do
        number=$((number + 1))
        jwt_mint "$scratch/load/$name.$number" || echo "mint $name.$number" >>"$scratch/load/failed"
    done
}

worker_killed_under_load() {
    local kills=0 worker i
    rm -rf "$scratch/load"
    mkdir "$scratch/load"
    for i in 1 2 3 4; do
        start "load$i" mint_until "$scratch/load/stop" "$i"
    done
    while ((kills < 12)) && worker=$(worker_pid); do
        await 10 test -e "$scratch/load/4.$((kills * 2 + 1))"
        kill -KILL "$worker" && kills=$((kills + 1))
        await 10 another_worker_than "$worker" || break
    done
    touch "$scratch/load/stop"
    for i in 1 2 3 4; do
        await 30 not running "load$i"
    done
    echo "$kills kills"
    ((kills == 12)) && not cat "$scratch/load/failed"
}

all_minted_verify() {
    set -- "$scratch"/load/[1-4].*
    echo "$# tokens"
    [ $# -ge 24 ] && jwt_verifies "$@"
}

## Reconfiguring

# SIGUSR1, and then a line in the log that meets the jq condition.
reconfigured() {
    kill -USR1 "${pids[server]}" && await 15 server_said "$1"
}

## Ending

# The plugins are killed with their server; a worker may finish the call it is in.
server_killed() {
    local all
    all=$(descendants "${pids[server]}")
    stop server KILL
    # shellcheck disable=SC2086 # a list of numbers
    [ -n "$all" ] && await 12 not alive $all
}

pin_in_no_log() {
    not grep -rlF "$PIN" "$logs"
}

agent_with_token() {
    sed -e 's|KeyManager "disk"|KeyManager "pkcs11"|' -e '/directory =/c\
            module = "/usr/lib/softhsm/libsofthsm2.so"\
            token = "pkcs11:token=spire"\
            pin_file = "${CONFIGURATION_DIRECTORY}/hsm-pin"\
            key_identifier_file = "${STATE_DIRECTORY}/agent-id"' \
        -e '/KeyManager/a\
        plugin_cmd = "${SPIRE_HSM}"\
        plugin_checksum = "${SPIRE_HSM_SHA256}"' "$here/real/agent.conf" >"$scratch/etc/agent.conf"
    agent_conf=$scratch/etc/agent.conf
}

section "Configuration"
must "a token is made" token_make
check "validate says the example is valid and leaves nothing behind" validates_without_trace
conf_with 's/pin_file =/pin_fil =/'
check "validate names a misspelt option and the right one" invalid_saying pin_file
check "spire-server refuses it too" refused_saying pin_fil pin_file
conf_with 's|token=spire|token=spore|; /token = /a\            startup_wait = "1s"'
check "a token that is not there is named" refused_saying spore
conf_with 's|/hsm-pin|/wrong-pin|'
(umask 077 && echo 000000 >"$scratch/etc/wrong-pin")
check "a wrong PIN ends the start, saying which file it came from" refused_saying wrong-pin
check "nothing was made on the token" token_holds 0
check "the identity that such a start has made is left alone" test -s "$STATE_DIRECTORY/hsm-id"
rm -f "$STATE_DIRECTORY/hsm-id" # a start that finds one, and no key, remarks it

section "Start, restart, rotation"
conf_with_data_file
must "spire-server starts, plugin_data in a file" server_start
check "the token holds its two keys" token_holds 2
must "the discovery provider starts" oidc_start
must "a verifier is built" verifier_build
check "a minted JWT-SVID verifies" mints_jwt
check "a minted X.509-SVID verifies" mints_x509
must "it stops" stop server
check "the log of all this has no warning and no error" server_quiet
must "it starts again" server_start
check "it finds its CA journal" found_its_journal
check "the token still holds two keys" token_holds 2
check "the JWT authority is rotated" jwt_prepare
check "and activated" jwt_activate
check "the X.509 authority is rotated" x509_rotate
check "the token holds four keys" token_holds 4
check "the old JWT authority is revoked, and no longer served" jwt_revoke_old
check "a minted JWT-SVID verifies" mints_jwt
check "a minted X.509-SVID verifies" mints_x509
check "the log has no warning and no error" server_quiet

section "Reconfiguring on SIGUSR1"
echo 'max_sessions = 3' >>"$data_file"
check "a good change is taken" reconfigured '.msg == "Plugin reconfigured"'
check "a minted JWT-SVID verifies" mints_jwt
echo 'max_sesions = 3' >>"$data_file"
check "a bad one is refused, by name" \
    reconfigured '.msg == "Failed to reconfigure plugin" and (.error | test("max_sesions"))'
check "and what was keeps working" mints_jwt
sed -i '$d' "$data_file"

section "An agent whose key is in the token too"
must "a join token, an entry" agent_admit
agent_with_token
must "the agent joins" agent_start -joinToken "$join_token"
check "the token holds five keys" token_holds 5
check "the workload fetches a JWT-SVID" await 20 jwt_fetched "$scratch/token"
check "which verifies" jwt_verifies "$scratch/token"
check "the agent stops" stop agent
check "it comes back with its key, without a join token" agent_start
check "it stops" stop agent

section "The worker killed, the bundle file damaged"
echo damaged >"$bundle"
check "kill -9 of the worker, 12 times under load, costs no mint" worker_killed_under_load
check "every token minted meanwhile verifies" all_minted_verify
check "the token still holds five keys" token_holds 5
check "the bundle file is whole again within SPIRE's 30 seconds" await 35 bundle_is_whole
check "a minted JWT-SVID verifies" mints_jwt

section "The server killed"
check "kill -9 of spire-server takes plugins and worker with it" server_killed
must "it starts" server_start
check "it finds its CA journal" found_its_journal
check "the old X.509 authority, tainted, is in the file until it is revoked" x509_revoke_old
check "a minted X.509-SVID verifies" mints_x509
check "a minted JWT-SVID verifies" mints_jwt
check "the log has no warning and no error" server_quiet
check "it stops" stop server
check "the PIN is in no log" pin_in_no_log
