#!/bin/bash
# examples/agent.conf: a spire-agent whose key is in the token, as docs/agents.md tells it. It
# joins once, and comes back without a join token for as long as its key is there.
. "$(dirname "$0")/../lib/lib.sh" agents
. "$here/lib/parts.sh"

agent_conf=$here/../examples/agent.conf

# An SVID so short that its key is renewed some 15 s later: half of its life is over then.
server_configured() {
    conf_with '/ca_ttl/i\    agent_ttl = "30s"' && grep 'agent_ttl = "30s"' "$server_conf"
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

pin_in_no_log() {
    not grep -rlF "$PIN" "$logs"
}

echo "An agent with its key in a token: SPIRE from $spire"
must "a SoftHSM token, with the PIN in a file" token_make
must "the server gives agents SVIDs of 30 s" server_configured
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
check "for the server it is one agent" known_to_the_server
check "the agent stops" stop agent
must "its key is removed from the token" agent_key_removed
check "without it, it would need a new join token" agent_is_refused
check "the PIN is in no log" pin_in_no_log
check "no warning and no error in the server's log" server_quiet
check "everything that was started has ended" all_gone
