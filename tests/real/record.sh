#!/bin/bash
# What the record is for, on the real parts: a spire-server is started while its token shows less
# than it has, or has lost a key, or all of them; with a record that is damaged or too open; with
# its identity gone; and twice, by a copy of its data_dir. An agent lives through all but the loss.
. "$(dirname "$0")/../lib/lib.sh" record
. "$here/lib/parts.sh"

faulty=${FAULTY:-$(dirname "$SPIRE_HSM")/tests/faulty.so}
export FAULTY_MODULE=$softhsm FAULTY_SCRIPT=$scratch/run/faults
identity=$STATE_DIRECTORY/hsm-id
record=$identity.keys

section() {
    printf '%s\n' "$*"
}

script() {
    printf '%s\n' "$1" >"$FAULTY_SCRIPT.new" && mv "$FAULTY_SCRIPT.new" "$FAULTY_SCRIPT"
}

# A module that fails on request, in a folder that it may be loaded from.
conf_of_the_record() {
    cp "$faulty" "$RUNTIME_DIRECTORY/faulty.so" && chmod 755 "$RUNTIME_DIRECTORY/faulty.so" &&
        script "" && conf_with "s|module = .*|module = \"$RUNTIME_DIRECTORY/faulty.so\"|"'
            /token = "pkcs11/a\            startup_wait = "30s"'
}

conf_set() {
    sed -i "/^ *$1 = /d; /token = \"pkcs11/a\            $1 = \"$2\"" "$server_conf"
}

## What is to last

remember() {
    jwt=$(jwt_authority active) && x509=$(x509_authority active)
}

same_x509() {
    echo "X.509 $x509, now $(x509_authority active)"
    [ "$(x509_authority active)" = "$x509" ]
}

same_jwt() {
    echo "JWT $jwt, now $(jwt_authority active)"
    [ "$(jwt_authority active)" = "$jwt" ]
}

same_authorities() {
    same_x509 && same_jwt
}

agent_joins() {
    agent_admit && agent_start -joinToken "$join_token" && agent_pid=${pids[agent]} &&
        await 20 fetches_anew
}

# For an audience that the agent has no token for: it has to ask the server.
audiences=0
fetches_anew() {
    audiences=$((audiences + 1))
    "$spire/spire-agent" api fetch jwt -audience "nobody-$audiences" -socketPath "$agent_socket" |
        grep -q '^token'
}

agent_lives_on() {
    running agent && [ "${pids[agent]}" = "$agent_pid" ] && await 20 fetches_anew && running agent
}

## Starts

restarted() {
    stop server && server_start
}

# restarted_with SCRIPT: the trouble begins as the plugin loads its module.
restarted_with() {
    stop server && script "$1" && server_start
}

start_survived() {
    restarted_with "$1" && same_authorities && found_its_journal
}

# Either it waits for keys, or one worker after the other, as a device error ends them.
met_trouble() {
    server_said '.msg == "waiting for the keys on the token" or
        (.msg | startswith("PKCS#11 worker ended"))'
}

refused_saying() {
    not server_start && server_complaints | tee "$scratch/refused" && grep -F -- "$1" "$scratch/refused"
}

warned() {
    server_said ".level == \"warning\" and (.msg | startswith(\"$1\"))"
}

# As the sentence has it: accept_loss = "CODE".
refusal_code() {
    code=$(grep -o 'accept_loss = \\*"[0-9a-f]*' "$scratch/refused" | tail -n 1 | grep -o '[0-9a-f]*$')
    [ ${#code} -eq 8 ]
}

## The token and the files

token_anew() {
    rm -rf "${scratch:?}/tokens/"* &&
        softhsm2-util --init-token --free --label spire --pin "$PIN" --so-pin "$PIN"
}

key_destroyed() {
    local label
    label=$(token_labels | grep -e "$1") && [ "$(wc -l <<<"$label")" = 1 ] &&
        token_tool --delete-object --type privkey --label "$label" &&
        token_tool --delete-object --type pubkey --label "$label"
}

# The label of the key of the authority that is prepared.
x509_prepared() {
    server localauthority x509 prepare &&
        "$SPIRE_HSM" keys --config "$server_conf" --expand-env --json >"$scratch/keys" &&
        prepared=$(jq -er --arg id "$(x509_authority prepared)" \
            '.keys[] | select(.local_authority_id == $id).label' "$scratch/keys")
}

# Half of a file is what a disk leaves of it.
damage() {
    truncate -s $(($(stat -c %s "$1") / 2)) "$1"
}

has_mode() {
    stat -c %a "$2" | grep -x "$1"
}

same_identity() {
    cmp "$scratch/identity" "$identity" && has_mode 600 "$identity"
}

## Two servers by one data_dir

on() {
    local node=$1
    local -x STATE_DIRECTORY=$scratch/state.$1 RUNTIME_DIRECTORY=$scratch/run.$1
    local server_socket=$RUNTIME_DIRECTORY/server.sock
    shift
    "$@"
}

copied() {
    local node
    for node in here there; do
        cp -a "$STATE_DIRECTORY" "$scratch/state.$node" && mkdir "$scratch/run.$node" || return 1
    done
}

node_healthy() {
    server healthcheck >/dev/null 2>&1
}

node_healthy_or_gone() {
    node_healthy || ! running "$node"
}

node_start() {
    start "$node" "$spire/spire-server" run -expandEnv -config "$server_conf" \
        -serverPort "$(free_port)" -logLevel debug -logFormat json
    await 30 node_healthy_or_gone
    node_healthy || { tail -n 20 "$logs/$node.log"; return 1; }
}

node_restart() {
    stop "$node" && node_start
}

node_mints() {
    jwt_mint "$scratch/minted.$node" && [ "$(jwt_kid "$scratch/minted.$node")" = "$(jwt_authority active)" ]
}

node_rotates() {
    local next
    server localauthority jwt prepare && next=$(jwt_authority prepared) &&
        server localauthority jwt activate -authorityID "$next" && [ "$(jwt_authority active)" = "$next" ]
}

declare -A its=()
node_remember() {
    its[$node]="$(jwt_authority active) $(x509_authority active)"
}

node_is_as_before() {
    echo "${its[$node]}: now $(jwt_authority active) $(x509_authority active)"
    [ "$(jwt_authority active) $(x509_authority active)" = "${its[$node]}" ]
}

node_tells_of_the_other() {
    await 10 grep -F "two servers share one identity" "$logs/$node.log"
}

none_destroyed() {
    token_labels >"$scratch/labels.now"
    [ -s "$scratch/labels.now" ] && comm -23 "$scratch/labels" "$scratch/labels.now" >"$scratch/lost" &&
        cat "$scratch/lost" && [ ! -s "$scratch/lost" ]
}

they_differ() {
    echo "here ${its[here]}, there ${its[there]}"
    [ "${its[here]%% *}" != "${its[there]%% *}" ]
}

must "a token is made" token_make
must "a configuration: a module that fails on request" conf_of_the_record
must "spire-server starts" server_start
must "an agent joins" agent_joins

section "Clean starts"
remember
check "a second one has the authorities of the first" start_survived ""
check "so has a third" start_survived ""
check "the agent has lived on, and fetches a JWT-SVID" agent_lives_on

section "Starts at which the token shows less than it has"
token_labels >"$scratch/labels"
for trouble in "hide private" "hide public" "unreadable CKR_DEVICE_ERROR both"; do
    for milliseconds in 50 300 3000 10000; do
        check "$trouble for $milliseconds ms: the authorities are the same" \
            start_survived "profile $trouble $milliseconds"
        ((milliseconds < 3000)) || check "it has met the trouble" met_trouble
    done
    check "the agent has lived on, and fetches a JWT-SVID" agent_lives_on
done
script ""
check "no key was destroyed" none_destroyed

section "The files of the identity"
must "the server stops" stop server
damage "$record"
check "the record is damaged: a start goes on" server_start
check "with a warning, by the copy beside it" warned "record_file is damaged: the plugin uses the copy beside it"
check "with the same authorities" same_authorities
must "the server stops" stop server
cp -a "$record" "$record~" "$scratch/tmp/"
damage "$record"
damage "$record~"
check "so is its copy: a start is refused, naming record_file" refused_saying "record_file \\\"$record\\\""
cp -a "$scratch/tmp/hsm-id.keys" "$record"
check "one of them is restored: a start goes on" server_start
check "with the same authorities" same_authorities
must "the server stops" stop server
chmod 0660 "$record"
check "the record has mode 0660 after a remount: a start goes on" server_start
check "with a warning" warned "other users had access to record_file"
check "its mode is 0600 again" has_mode 600 "$record"
check "with the same authorities" same_authorities
must "the server stops" stop server
mv "$identity" "$scratch/identity"
check "the identity is gone: a start goes on" server_start
check "with a warning" warned "key_identifier_file had vanished and was written back"
check "the identity is there again" same_identity
check "with the same authorities" same_authorities
check "the agent has lived on, and fetches a JWT-SVID" agent_lives_on

section "A JWT key alone is lost"
conf_set startup_wait 2s
must "the server stops" stop server
check "it is destroyed" key_destroyed -JWT-Signer-A
check "a start goes on without it" server_start
check "with a warning" warned "key is gone, or cannot be proven"
check "with the same X.509 authority" same_x509
check "and another JWT authority" not same_jwt
check "the agent has lived on, and fetches a JWT-SVID" agent_lives_on

section "A prepared X.509 key alone is lost"
remember
check "an X.509 authority is prepared" x509_prepared
must "the server stops" stop server
check "its key is destroyed" key_destroyed "$prepared"
check "a start is refused, as it may be in use" refused_saying "unless the key was only prepared"
check "with a code for this loss" refusal_code
conf_set accept_loss "${code-}"
check "accept_loss = that code: a start goes on" server_start
check "with the same authorities" same_authorities
check "the agent has lived on, and fetches a JWT-SVID" agent_lives_on
sed -i '/^ *accept_loss = /d' "$server_conf"

section "The token is lost"
remember
must "the agent stops" stop agent
must "the server stops" stop server
check "another one has its label" token_anew
check "a start is refused" refused_saying "but SPIRE needs it"
check "with a code for this loss" refusal_code
conf_set accept_loss "00000000"
check "the code of another loss does not help" refused_saying "but SPIRE needs it"
conf_set accept_loss "${code-}"
check "accept_loss = that code: a start goes on" server_start
check "with a warning" warned "the loss of keys is accepted"
check "with another X.509 authority" not same_x509
check "and another JWT authority" not same_jwt
remember
check "the code left in plugin_data does no harm: the next start has the same authorities" start_survived ""

section "Two servers by one data_dir"
must "the server stops" stop server
must "its folder is copied by cp -a" copied
token_labels >"$scratch/labels"
for node in here there; do
    must "a server starts $node" on $node node_start
done
for node in here there; do
    check "$node: it mints" on $node node_mints
    check "$node: it makes and activates a JWT authority" on $node node_rotates
    check "$node: it mints with that" on $node node_mints
    on $node node_remember
done
check "each has one of its own" they_differ
check "no key was destroyed" none_destroyed
token_labels >"$scratch/labels"
for node in here there; do
    must "$node: it starts again" on $node node_restart
    check "$node: it tells of the other one" on $node node_tells_of_the_other
    check "$node: it has the authorities it had" on $node node_is_as_before
    check "$node: it mints" on $node node_mints
done
for node in here there; do
    check "$node: it makes and activates another JWT authority" on $node node_rotates
    on $node node_remember
    check "$node: it starts again" on $node node_restart
    check "$node: it has the authorities it had" on $node node_is_as_before
done
check "no key was destroyed" none_destroyed
check "everything that was started has ended" all_gone
