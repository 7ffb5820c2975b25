#!/bin/bash
# The runbook of docs/operating.md on the real parts: each procedure is followed, and what it says will
# be seen is looked for.
. "$(dirname "$0")/../lib/lib.sh" runbook
. "$here/lib/parts.sh"

health_port=$(free_port)

section() {
    printf '%s\n' "$*"
}

# The example with a health check, calls that give up soon, and no long wait for the token.
conf_for_outages() {
    conf_with '/token = "pkcs11/a\            call_timeout = "5s"\
            startup_wait = "2s"'
    cat >>"$server_conf" <<END

health_checks {
    listener_enabled = true
    bind_address = "127.0.0.1"
    bind_port = "$health_port"
}
END
}

# SPIRE looks at its own health once a minute.
live() {
    [ "$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$health_port/live")" = "$1" ]
}

mints() {
    jwt_mint "$scratch/minted" && await 5 oidc_has "$(jwt_kid "$scratch/minted")" &&
        jwt_verifies "$scratch/minted"
}

mint_fails_saying() {
    not jwt_mint "$scratch/minted" >"$scratch/mint" 2>&1 || return 1
    cat "$scratch/mint"
    grep -qF -- "$1" "$scratch/mint"
}

rotate_all() {
    jwt_prepare && jwt_activate && x509_rotate
}

remember_authorities() {
    jwt=$(jwt_authority active) && x509=$(x509_authority active)
}

same_authorities() {
    echo "JWT $jwt, now $(jwt_authority active); X.509 $x509, now $(x509_authority active)"
    [ "$(jwt_authority active)" = "$jwt" ] && [ "$(x509_authority active)" = "$x509" ]
}

same_x509() {
    echo "X.509 $x509, now $(x509_authority active)"
    [ "$(x509_authority active)" = "$x509" ]
}

keys() {
    "$SPIRE_HSM" keys --config "$server_conf" --expand-env --json >"$scratch/keys"
}

checked() {
    "$SPIRE_HSM" check --config "$server_conf" --expand-env --no-trial
}

check_misses() {
    not checked >"$scratch/checked" && cat "$scratch/checked" && grep -F -- "$1" "$scratch/checked"
}

# What the log says was activated last.
activated_last() {
    jq -R -r 'fromjson? | select(.msg == "X509 CA activated").local_authority_id' \
        "$logs/server.log" | tail -n 1
}

# Does `spire-hsm keys` list it as current?
authority_is_current() {
    keys && cat "$scratch/keys" && jq -e --arg id "$1" \
        'any(.keys[]; .this_server and .state == "current" and .local_authority_id == $id)' "$scratch/keys"
}

authority_is_not_current() {
    authority_is_current "$1"
    [ $? -eq 1 ]
}

token_has_x509_authority() {
    [ "$(activated_last)" = "$x509" ] && authority_is_current "$x509"
}

token_lacks_x509_authority() {
    [ "$(activated_last)" = "$x509" ] && authority_is_not_current "$x509"
}

front_pid() {
    sed -n 's/^PPid:[[:space:]]*//p' "/proc/$(worker_pid)/status"
}

refused_saying() {
    not server_start && server_complaints | grep -F -- "$1"
}

# The agent as it is, with what it remembers. It tries for a while.
agent_is_turned_away() {
    not agent_start
    grep -F "certificate signed by unknown authority" "$logs/agent.log" && stop agent
}

# The agent as if it were new, trusting what the bundle file says.
agent_joins_anew() {
    rm -rf "$STATE_DIRECTORY/agent"
    agent_admit && agent_start -joinToken "$join_token" && await 20 jwt_fetched "$scratch/fetched" &&
        jwt_verifies "$scratch/fetched"
}

# A key as the server makes them, of the last generation there can be.
plant() {
    planted=$(token_labels | grep -m 1 -- -x509-CA-A | sed 's/-[^-]*-x509/-vvvvvv-x509/')
    token_tool --keypairgen --key-type EC:prime256v1 --sensitive --label "$planted" \
        --id 30313233343536373839616263646566
}

uproot() {
    token_tool --delete-object --type privkey --label "$planted" &&
        token_tool --delete-object --type pubkey --label "$planted"
}

# As the refusal says, without a look at the token.
loss_accepted() {
    local code
    code=$(server_complaints | grep -o 'spire-hsm accept [0-9a-f]*' | tail -n 1 | cut -d ' ' -f 3)
    [ -n "$code" ] && "$SPIRE_HSM" accept --config "$server_conf" --expand-env "$code"
}

# Half of a file is what a disk leaves of it.
record_damaged() {
    local file
    for file in "$record" "$record~"; do
        truncate -s $(($(stat -c %s "$file") / 2)) "$file" || return 1
    done
}

## Backups

# Of data_dir with its datastore, and of the token. The server does not run.
back_up() {
    rm -rf "$scratch/backup" && mkdir "$scratch/backup" &&
        cp -a "$STATE_DIRECTORY" "$scratch/backup/state" && cp -a "$scratch/tokens" "$scratch/backup/tokens"
}

restore_data_dir() {
    rm "$STATE_DIRECTORY"/hsm-id* && cp -a "$scratch/backup/state/"hsm-id* "$STATE_DIRECTORY"
}

restore_datastore() {
    rm "$STATE_DIRECTORY"/datastore* && cp -a "$scratch/backup/state/"datastore* "$STATE_DIRECTORY"
}

restore_token() {
    rm -rf "$scratch/tokens" && cp -a "$scratch/backup/tokens" "$scratch/tokens"
}

# Keys that are made in a hurry bear the times of the seconds to come.
keys_are_of_the_past() {
    keys && jq -e 'all(.keys[]; .age_seconds > 0)' "$scratch/keys"
}

# rotate_and_stop TIMES: what no backup knows. Of a datastore that went back the published bundle does
# not tell at once.
rotate_and_stop() {
    local i
    for ((i = 0; i < $1; i++)); do
        server localauthority jwt prepare && jwt_activate && x509_rotate || return 1
    done
    remember_authorities && await 20 keys_are_of_the_past && stop server
}

back_up_and_go_on() {
    stop server && back_up && server_start
}

# Each file is another one then, as on another host.
move_to_another_host() {
    rm -rf "$scratch/moved" && mv "$STATE_DIRECTORY" "$scratch/moved" &&
        cp -a "$scratch/moved" "$STATE_DIRECTORY"
}

record_removed() {
    rm "$record" "$record~"
}

# For an audience that the agent has no token for: it has to ask the server.
audiences=0
agent_is_let_in() {
    audiences=$((audiences + 1))
    "$spire/spire-agent" api fetch jwt -audience "nobody-$audiences" -socketPath "$agent_socket" |
        grep '^token'
}

## Another server, and another token

another_server() {
    local -x STATE_DIRECTORY=$scratch/another
    mkdir "$STATE_DIRECTORY" && server_start && stop server
}

conf_says() {
    sed -i "s|$1|$2|" "$server_conf" && grep -F "$2" "$server_conf"
}

serials() {
    softhsm2-util --show-slots | sed -n 's/^ *Serial number: *\([0-9a-f][0-9a-f]*\) *$/\1/p'
}

# As an HSM does it: the same label and objects, another serial.
token_cloned() {
    serial=$(serials) && clone=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n') &&
        cp -a "$scratch"/tokens/* "$scratch/clone" && LC_ALL=C sed -i "s/$serial/$clone/" "$scratch/clone/token.object" &&
        mv "$scratch/clone" "$scratch/tokens/clone" && serials | grep -x "$clone"
}

conf_for_outages
must "a token is made" token_make
must "spire-server starts" server_start
must "the discovery provider starts" oidc_start
must "a verifier is built" verifier_build
must "a minted JWT-SVID verifies" mints

section "The HSM is away for longer than calls wait"
check "keys are rotated before" rotate_all
remember_authorities
mv "$scratch/tokens" "$scratch/away"
check "it goes away: a mint fails, with the reason" mint_fails_saying "the token is away"
check "/live becomes 500 within two minutes" await 120 live 500
mv "$scratch/away" "$scratch/tokens"
check "it is back: a mint succeeds, without a restart" await 10 jwt_mint "$scratch/minted"
check "and verifies" mints
check "/live becomes 200 within two minutes" await 120 live 200
check "the authorities are those of before" same_authorities

section "The front is dead"
kill -KILL "$(front_pid)"
check "SPIRE says so" await 5 server_said '.msg == "plugin process exited"'
check "and starts no other: a mint fails" mint_fails_saying "connection refused"
check "/live becomes 500 within two minutes" await 120 live 500
check "which \`spire-server healthcheck\` does not see" server_healthy
must "the server stops" stop server
must "it starts" server_start
check "it finds its CA journal" found_its_journal
check "the authorities are those of before" same_authorities
check "a minted JWT-SVID verifies" mints

section "The PIN is changed"
next_pin=$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')
check "on the token" token_tool --change-pin --new-pin "$next_pin"
PIN=$next_pin
check "the worker that is logged in goes on signing" mints
printf '%s\n' "$PIN" >"$scratch/etc/hsm-pin"
worker=$(worker_pid)
kill -KILL "$worker"
check "the next login has the PIN from the file: nothing fails" mints
check "another worker is at work" another_worker_than "$worker"

section "A key was planted"
remember_authorities
check "by somebody with the PIN" plant
check "signing goes on" mints
check "and so does rotation" rotate_all
remember_authorities
must "the server stops" stop server
must "it starts" server_start
check "the log says so" server_said '.msg | test("two servers share one identity")'
check "the authorities are those of before" same_authorities
must "the server stops" stop server
check "the key is destroyed" uproot
must "the server starts" server_start
check "the authorities are those of before" same_authorities
check "keys can be made again" rotate_all

section "The server moves to another host"
remember_authorities
must "it stops" stop server
cp -a "$STATE_DIRECTORY" "$scratch/new-host"
mv "$STATE_DIRECTORY" "$scratch/old-host"
STATE_DIRECTORY=$scratch/new-host
must "it starts there, with its datastore and its identity" server_start
check "it finds its CA journal" found_its_journal
check "the authorities are those of before" same_authorities
check "a minted JWT-SVID verifies" mints

section "The record is lost"
record=$STATE_DIRECTORY/hsm-id.keys
must "the server stops" stop server
check "what is left is damaged" record_damaged
check "the active X.509 authority is on the token" token_has_x509_authority
check "the server does not start" refused_saying "Restore the record"
check "the loss is accepted" loss_accepted
must "it starts" server_start
check "it finds its CA journal" found_its_journal
check "the authorities are those of before" same_authorities
check "a minted JWT-SVID verifies" mints
must "the server stops" stop server
rm "$record" "$record~"
must "neither is left: it starts" server_start
check "it finds its CA journal" found_its_journal
check "the authorities are those of before" same_authorities

section "The record is older than the token"
must "the server stops" stop server
cp -a "$record" "$scratch/older"
must "it starts" server_start
check "all is rotated" rotate_all
remember_authorities
must "the server stops" stop server
cp -a "$scratch/older" "$record"
must "it starts" server_start
check "it finds its CA journal" found_its_journal
check "the authorities are those of before" same_authorities
check "a minted JWT-SVID verifies" mints

section "data_dir alone is restored"
must "a backup is made" back_up_and_go_on
must "all is rotated" rotate_and_stop 1
must "data_dir is restored" restore_data_dir
check "check is content" checked
must "the server starts" server_start
check "the authorities are those of before" same_authorities
check "a minted JWT-SVID verifies" mints
must "a backup is made" back_up_and_go_on
must "the server moves to another host" stop server
must "with its files" move_to_another_host
must "and starts" server_start
must "all is rotated" rotate_and_stop 1
must "data_dir is restored" restore_data_dir
check "check says that the record does not know newer keys" \
    check_misses "it does not know newer keys of this server"
check "the record and its copy are removed" record_removed
check "the active X.509 authority is current" token_has_x509_authority
must "the server starts" server_start
check "it finds its CA journal" found_its_journal
check "the authorities are those of before" same_authorities

section "The record is another server's"
remember_authorities
must "the server stops" stop server
must "another server makes one" another_server
cp -a "$STATE_DIRECTORY/hsm-id" "$scratch/own-id"
cp -a "$scratch/another/hsm-id" "$STATE_DIRECTORY/hsm-id"
check "the identity is the other's: a start is refused" refused_saying "is another server's"
check "so says check" check_misses "is another server's"
rm "$STATE_DIRECTORY/hsm-id"
must "it is removed: the server starts" server_start
check "with the identity it had" cmp "$scratch/own-id" "$STATE_DIRECTORY/hsm-id"
check "the authorities are those of before" same_authorities
must "the server stops" stop server
cp -a "$scratch/another/hsm-id.keys" "$record"
check "the record is the other's: a start is refused" refused_saying "is another server's"
check "so says check" check_misses "is another server's"
mv "$record~" "$record"
must "its copy takes its place: the server starts" server_start
check "it finds its CA journal" found_its_journal
check "the authorities are those of before" same_authorities
must "the server stops" stop server
check "trust_domain is another" conf_says '"example.org"' '"example.net"'
must "the server starts" server_start
check "with authorities of its own" not same_authorities
must "it stops" stop server
check "trust_domain is again what it was" conf_says '"example.net"' '"example.org"'
must "the server starts" server_start
check "the authorities are those of before" same_authorities

section "The token was cloned"
must "it is" token_cloned
check "the server that runs goes on" mints
worker=$(worker_pid)
kill -KILL "$worker"
check "so does its next worker" mints
must "the server stops" stop server
check "a start is refused" refused_saying "is ambiguous"
check "check names the token that the last start used" check_misses "the last start used token \"spire\", serial $serial"
conf_says "token=spire" "token=spire;serial=$serial" >/dev/null
must "that one is named: the server starts" server_start
check "the authorities are those of before" same_authorities
must "the server stops" stop server
conf_says "serial=$serial" "serial=$clone" >/dev/null
check "the clone is named: no key is missing" checked
must "the server starts" server_start
check "the authorities are those of before" same_authorities
must "all is rotated" rotate_and_stop 1
conf_says "serial=$clone" "serial=$serial" >/dev/null
check "the token of before is named again: a start is refused" refused_saying "but SPIRE needs it"
conf_says "serial=$serial" "serial=$clone" >/dev/null
must "the clone once more: the server starts" server_start
check "the authorities are those of before" same_authorities
must "the server stops" stop server
find "$scratch/tokens" -mindepth 1 -maxdepth 1 ! -name clone -exec rm -r {} +
conf_says ";serial=$clone" "" >/dev/null
must "the clone alone is left: the server starts" server_start

section "The token is restored from a backup made since the authorities became active"
must "an agent joins" agent_joins_anew
must "the server stops" stop server
must "a backup is made" back_up
must "the server starts" server_start
check "another JWT authority is prepared" jwt_prepare
check "so is an X.509 authority" server localauthority x509 prepare
must "the server stops" stop server
must "it is restored" restore_token
check "the active X.509 authority is on the token that is restored" token_has_x509_authority
check "a start is refused for the prepared one" refused_saying "unless the key was only prepared"
check "the loss is accepted" loss_accepted
must "the server starts" server_start
check "the authorities are those of before" same_authorities
check "a minted JWT-SVID verifies" mints
check "the agent is still let in" agent_healthy

section "The token is restored from a backup that is older"
check "all is rotated" rotate_all
remember_authorities
cp "$scratch/minted" "$scratch/before"
must "the agent stops" stop agent
must "the server stops" stop server
must "it is restored" restore_token
check "the active X.509 authority is not on it" token_lacks_x509_authority
check "the server does not start without it" refused_saying "but SPIRE needs it"
check "the loss is accepted" loss_accepted
must "the server starts" server_start
check "with authorities of its own" not same_authorities
check "a minted JWT-SVID verifies" mints
check "and one from before still does" jwt_verifies "$scratch/before"
check "the agent is turned away" agent_is_turned_away
check "it joins anew" agent_joins_anew

section "The token is lost"
remember_authorities
cp "$scratch/minted" "$scratch/before"
must "the agent stops" stop agent
must "the server stops" stop server
rm -rf "${scratch:?}/tokens/"*
check "the server does not start without it" refused_saying "is not there"
softhsm2-util --init-token --free --label spire --pin "$PIN" --so-pin "$PIN" >/dev/null
check "nor with a new one" refused_saying "but SPIRE needs it"
check "the loss is accepted" loss_accepted
must "it starts" server_start
check "it has made others" not same_authorities
check "a minted JWT-SVID verifies" mints
check "and one from before still does" jwt_verifies "$scratch/before"
check "the agent is turned away" agent_is_turned_away
check "it joins anew" agent_joins_anew

section "The datastore is restored from a backup of before one rotation"
must "a backup is made" back_up_and_go_on
remember_authorities
active=$x509
must "all is rotated" rotate_and_stop 1
must "the datastore is restored" restore_datastore
check "the X.509 authority that was active then is current" authority_is_current "$active"
must "the server starts" server_start
x509=$active
check "with the X.509 authority of the backup" same_x509
check "a minted JWT-SVID verifies" mints
check "the agent is let in" await 20 agent_is_let_in

section "The datastore is restored from a backup of before two rotations"
must "a backup is made" back_up_and_go_on
remember_authorities
active=$x509
must "all is rotated" rotate_and_stop 2
must "the agent stops" stop agent
must "the datastore is restored" restore_datastore
check "the X.509 authority that was active then is not current" authority_is_not_current "$active"
rm "$bundle"
must "the server starts" server_start
x509=$active
check "with an authority of its own" not same_x509
check "the agent joins anew" agent_joins_anew

section "data_dir and the datastore are restored"
must "a backup is made" back_up_and_go_on
remember_authorities
active=$x509
must "all is rotated" rotate_and_stop 1
must "both are restored" restore_data_dir
must "both are restored" restore_datastore
check "check is content" checked
check "the X.509 authority that was active then is current" authority_is_current "$active"
must "the server starts" server_start
x509=$active
check "with the X.509 authority of the backup" same_x509
check "the agent is let in" await 20 agent_is_let_in

section "The datastore and the token are restored"
must "a backup is made" back_up_and_go_on
remember_authorities
active=$x509
must "all is rotated" rotate_and_stop 2
must "the datastore is restored" restore_datastore
must "so is the token" restore_token
check "the X.509 authority that was active then is current" authority_is_current "$active"
check "a start is refused" refused_saying "but SPIRE needs it"
check "the loss is accepted" loss_accepted
must "the server starts" server_start
x509=$active
check "with the X.509 authority of the backup" same_x509
check "the agent is let in" await 20 agent_is_let_in

section "data_dir and the token are restored, then the datastore, too"
must "a backup is made" back_up_and_go_on
remember_authorities
active=$x509
must "all is rotated" rotate_and_stop 2
must "data_dir is restored" restore_data_dir
must "so is the token" restore_token
check "the X.509 authority that was activated last is not current" authority_is_not_current "$(activated_last)"
must "the datastore of that backup is restored, too" restore_datastore
check "the X.509 authority that was active then is current" authority_is_current "$active"
must "the server starts" server_start
x509=$active
check "it finds its CA journal" found_its_journal
check "with the X.509 authority of the backup" same_x509
check "a minted JWT-SVID verifies" mints
check "the agent is let in" await 20 agent_is_let_in
