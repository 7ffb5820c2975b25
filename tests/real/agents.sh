#!/bin/bash
# examples/agent.conf: a spire-agent whose key is in the token, as docs/agents.md tells it. It
# joins once, and comes back without a join token for as long as its key is there. Then the same with
# a TPM, where one in software and tpm2-pkcs11 are installed; and an agent that moves here from a disk.
. "$(dirname "$0")/../lib/lib.sh" agents
. "$here/lib/parts.sh"
. "$here/lib/tpm.sh"

agent_conf=$here/../examples/agent.conf

# An SVID so short that its key is renewed some 20 s later: half of its life is over then.
server_configured() {
    conf_with '/ca_ttl/i\    agent_ttl = "40s"' && grep 'agent_ttl = "40s"' "$server_conf"
}

bundle_is_copied() {
    await 5 bundle_is_whole && cp "$bundle" "$scratch/etc/bundle.json"
}

serves() {
    await 20 jwt_fetched "$scratch/token" && signed_by_the_authority "$scratch/token"
}

# The labels that stand for a key of the agent's, with their generation.
agent_labels() {
    token_labels | grep -- '-agent-svid'
}

key_is_another() {
    local now
    now=$(agent_labels) && [ "$now" != "$labels" ] && echo "$labels, now: $now"
}

key_is_renewed() {
    labels=$(agent_labels) && await 40 key_is_another
}

# The KeyManager "disk" would have its keys.json here.
no_key_on_disk() {
    ls -A "$STATE_DIRECTORY/agent" && [ "$(ls -A "$STATE_DIRECTORY/agent")" = agent-data.json ]
}

agent_killed() {
    local all
    all=$(descendants "${pids[agent]}")
    stop agent KILL
    # shellcheck disable=SC2086 # a list of numbers
    [ -n "$all" ] && await 12 not alive $all
}

# Its module shows no private key for some seconds of a start.
agent_configured_to_look_in_vain() {
    cp "${FAULTY:-$(dirname "$SPIRE_HSM")/tests/faulty.so}" "$RUNTIME_DIRECTORY/faulty.so" &&
        chmod 755 "$RUNTIME_DIRECTORY/faulty.so" && labels=$(agent_labels) &&
        echo "profile hide private 3000" >"$scratch/run/faults" || return 1
    export FAULTY_MODULE=$softhsm FAULTY_SCRIPT=$scratch/run/faults
    agent_conf=$scratch/etc/agent-in-vain.conf
    sed "s|module = .*|module = \"$RUNTIME_DIRECTORY/faulty.so\"|" "$here/../examples/agent.conf" >"$agent_conf" &&
        grep faulty.so "$agent_conf"
}

key_is_kept() {
    agent_labels && [ -z "$(comm -23 <(echo "$labels") <(agent_labels))" ]
}

known_to_the_server() {
    server agent list -output json | jq -e '.agents | length == 1'
}

agent_key_removed() {
    local label kind
    for label in $(agent_labels); do
        for kind in privkey pubkey; do
            token_tool --delete-object --type "$kind" --label "$label" || return 1
        done
    done
    not agent_labels
}

# Without waiting for its key to come back, and without asking whether it may be replaced.
agent_is_refused() {
    sed -e '/max_sessions = 1/a\            startup_wait = "1s"\n            missing_keys = "replace"' \
        "$agent_conf" >"$scratch/etc/agent.conf"
    agent_conf=$scratch/etc/agent.conf
    grep missing_keys "$agent_conf" && not agent_start && grep -i 'join token' "$logs/agent.log"
}

## An agent that moves

# The agent as SPIRE has it by default, with folders of its own; then with the example's KeyManager.
agent_configured_for_the_disk() {
    mkdir -p "$moving" && agent_conf=$scratch/etc/agent-moving.conf
    sed "s|\${STATE_DIRECTORY}|$moving|" "$here/../examples/agent.conf" >"$scratch/etc/agent-token.conf"
    sed -e "/KeyManager \"pkcs11\"/,/^    }/c\    KeyManager \"disk\" { plugin_data { directory = \"$moving/agent\" } }" \
        "$scratch/etc/agent-token.conf" >"$agent_conf"
    grep 'KeyManager "disk"' "$agent_conf" && not grep pkcs11 "$agent_conf"
}

agent_told_of_its_disk() {
    sed "/max_sessions = 1/a\            previous { keys_file = \"$moving/agent/keys.json\" }" \
        "$scratch/etc/agent-token.conf" >"$agent_conf"
    disk_sum=$(sha256sum <"$moving/agent/keys.json") && grep previous "$agent_conf"
}

agent_told_of_its_disk_no_more() {
    cp "$scratch/etc/agent-token.conf" "$agent_conf" && not grep previous "$agent_conf"
}

agent_says() {
    grep -F "$1" "$logs/agent.log"
}

moved_away() {
    agent_says "the last key moved to the token"
}

disk_is_as_it_was() {
    [ "$disk_sum" = "$(sha256sum <"$moving/agent/keys.json")" ]
}

from_the_disk() {
    must "the agent's configuration with SPIRE's KeyManager disk" agent_configured_for_the_disk
    must "a join token and an entry for $workload" agent_admit
    must "an agent joins" agent_start -joinToken "$join_token"
    check "the workload fetches a JWT-SVID" serves
    check "the agent stops" stop agent
    check "its new configuration has the token, and previous for the disk's key" agent_told_of_its_disk
    check "it comes back without a join token" agent_start
    check "it signs with the disk's key" agent_says "key served from previous"
    check "the workload fetches a JWT-SVID" serves
    check "it renews its key, which is in the token" await 40 moved_away
    check "kill -9 of the agent takes plugin and worker with it" agent_killed
    check "it comes back without a join token" agent_start
    check "keys.json is as it was" disk_is_as_it_was
    check "the agent stops" stop agent
    check "previous is taken out" agent_told_of_its_disk_no_more
    check "it comes back without a join token" agent_start
    check "the workload fetches a JWT-SVID" serves
    check "the agent stops" stop agent
}

## The same on a TPM

tpm_up() {
    tpm_start && tpm_bus_start && tpm_manager_start && tpm_token_make
}

# The example but for what a TPM wants, with folders of its own.
agent_configured_for_the_tpm() {
    sed -e "s|^\( *module = \).*|\1\"$tpm_module\"|" -e "s|\${STATE_DIRECTORY}|$scratch/state/tpm|" \
        "$here/../examples/agent.conf" >"$scratch/etc/agent-tpm.conf"
    agent_conf=$scratch/etc/agent-tpm.conf
    mkdir -p "$scratch/state/tpm" && grep "$tpm_module" "$agent_conf" && grep -c "$scratch/state/tpm" "$agent_conf"
}

manager_killed_and_restarted() {
    stop tpm-manager KILL && tpm_manager_start
}

tpm_and_manager_restarted() {
    stop tpm-manager && stop tpm && tpm_start && tpm_manager_start
}

# Another SVID: the agent has made a key, and shown the server that it has it.
svid() {
    jq -er '.svid[0]' "$scratch/state/tpm/agent/agent-data.json"
}

svid_is_another() {
    local now
    now=$(svid) && [ "$now" != "$before" ]
}

svid_is_renewed() {
    before=$(svid) && await 40 svid_is_another
}

# Of the agent's keys in the TPM, none could be read out.
tpm_keys_are_sealed() {
    local listed keys
    listed=$(pkcs11-tool --module "$tpm_module" --token-label spire --login --pin env:PIN --list-objects --type privkey)
    echo "$listed"
    keys=$(grep -c 'label:.*-agent-svid' <<<"$listed") && ((keys > 0)) &&
        [ "$(grep -c 'Access:.*sensitive, always sensitive, never extractable, local' <<<"$listed")" -eq "$keys" ]
}

two_agents() {
    server agent list -output json | jq -e '.agents | length == 2'
}

on_a_tpm() {
    must "the agent's configuration for the TPM" agent_configured_for_the_tpm
    must "a software TPM, its resource manager, a token" tpm_up
    must "a join token and an entry for $workload" agent_admit
    must "an agent joins" agent_start -joinToken "$join_token"
    check "the workload fetches a JWT-SVID" serves
    check "the TPM's resource manager is killed, and another started" manager_killed_and_restarted
    check "the agent renews its SVID all the same" svid_is_renewed
    check "the workload fetches a JWT-SVID" serves
    check "the agent stops" stop agent
    check "TPM and resource manager stop, and start again, as when a node does" tpm_and_manager_restarted
    check "the agent comes back without a join token" agent_start
    check "the workload fetches a JWT-SVID" serves
    check "kill -9 of the agent takes plugin and worker with it" agent_killed
    check "the TPM's resource manager is killed, and another started" manager_killed_and_restarted
    check "the agent comes back without a join token" agent_start
    check "the workload fetches a JWT-SVID" serves
    check "for the server it is one more agent" two_agents
    check "the agent stops" stop agent
    check "its keys are in the TPM; none can be taken out" tpm_keys_are_sealed
}

pin_in_no_log() {
    not grep -rlF "$PIN" "$logs"
}

echo "An agent with its key in a token: SPIRE from $spire"
must "a SoftHSM token, with the PIN in a file" token_make
must "the server gives agents SVIDs of 40 s" server_configured
must "spire-server starts" server_start
must "the agent is given the bundle" bundle_is_copied
must "a join token and an entry for $workload" agent_admit
must "an agent joins on examples/agent.conf" agent_start -joinToken "$join_token"
check "its key is in the token, beside the server's two; none can be taken out" token_holds 3
check "its data_dir has its certificate, and no key" no_key_on_disk
check "the workload fetches a JWT-SVID" serves
check "the agent renews its key" key_is_renewed
check "and once more" key_is_renewed
check "the workload fetches a JWT-SVID" serves
check "the agent stops" stop agent
check "it comes back without a join token" agent_start
check "the workload fetches a JWT-SVID" serves
check "kill -9 of the agent takes plugin and worker with it" agent_killed
check "it comes back without a join token" agent_start
check "the workload fetches a JWT-SVID" serves
check "the agent stops" stop agent
must "at its next start the token shows no private key for 3 s" agent_configured_to_look_in_vain
check "it comes back without a join token" agent_start
check "it waited for its key" agent_says "waiting for the keys on the token"
check "its key is still there" key_is_kept
check "the workload fetches a JWT-SVID" serves
agent_conf=$here/../examples/agent.conf
check "for the server it is one agent" known_to_the_server
check "the agent stops" stop agent
must "its key is removed from the token" agent_key_removed
check "without it, it would need a new join token" agent_is_refused
lacking=$(tpm_lacking | xargs)
if [ -n "$lacking" ]; then
    echo "  skip  an agent with its key in a TPM: not installed: $lacking"
else
    echo "An agent with its key in a TPM"
    on_a_tpm
fi
echo "An agent goes over from SPIRE's KeyManager disk"
moving=$scratch/state/moving
from_the_disk
check "the PIN is in no log" pin_in_no_log
check "no warning and no error in the server's log" server_quiet
check "everything that was started has ended" all_gone
