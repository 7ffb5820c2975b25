# shellcheck shell=bash
# The parts a SPIRE of one machine is made of, all real, all below $scratch. Sourced
# after lib.sh. Names that begin with an upper-case letter are for examples/server.conf.

SPIRE_HSM=${SPIRE_HSM:-$here/../build/spire-hsm}
SPIRE_HSM=$(realpath "$SPIRE_HSM")
SPIRE_HSM_SHA256=$(sha256sum <"$SPIRE_HSM" | cut -d ' ' -f 1)
CONFIGURATION_DIRECTORY=$scratch/etc
STATE_DIRECTORY=$scratch/state
CACHE_DIRECTORY=$scratch/cache
RUNTIME_DIRECTORY=$scratch/run
SOFTHSM2_CONF=$scratch/etc/softhsm2.conf
export SPIRE_HSM SPIRE_HSM_SHA256 CONFIGURATION_DIRECTORY STATE_DIRECTORY CACHE_DIRECTORY
export RUNTIME_DIRECTORY SOFTHSM2_CONF

spire=$("$here/lib/spire.sh") || exit 1
server_conf=$here/../examples/server.conf
agent_conf=$here/real/agent.conf
oidc_conf=$here/real/oidc.conf
server_socket=$RUNTIME_DIRECTORY/server.sock
agent_socket=$RUNTIME_DIRECTORY/agent.sock
oidc_socket=$RUNTIME_DIRECTORY/oidc.sock
bundle=$CACHE_DIRECTORY/bundle.json
port=$(free_port)
softhsm=/usr/lib/softhsm/libsofthsm2.so
workload=spiffe://example.org/ns/default/sa/default
issuer=https://oidc.example.org
umask 077
mkdir -p "$scratch/etc" "$scratch/state" "$scratch/cache" "$scratch/run" "$scratch/tokens" "$scratch/tmp"
export TMPDIR=$scratch/tmp # where go-plugin's sockets are

## The token

token_make() {
    printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' \
        "$scratch/tokens" >"$SOFTHSM2_CONF"
    PIN=$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')
    export PIN
    printf '%s\n' "$PIN" >"$scratch/etc/hsm-pin"
    softhsm2-util --init-token --free --label spire --pin "$PIN" --so-pin "$PIN"
}

token_tool() {
    pkcs11-tool --module "$softhsm" --token-label spire --login --pin env:PIN "$@" 2>&1
}

# How many private keys there are, and how many of them never were and never will be outside.
token_private_keys() {
    token_tool --list-objects --type privkey | grep -c '^Private Key Object'
}

token_sealed_keys() {
    token_tool --list-objects --type privkey |
        grep -c 'Access:.*sensitive, always sensitive, never extractable, local'
}

token_labels() {
    token_tool --list-objects --type privkey | sed -n 's/^ *label: *//p' | sort
}

# Is every private key on the token of the sealed kind, and are there COUNT of them?
token_holds() {
    local keys sealed
    keys=$(token_private_keys)
    sealed=$(token_sealed_keys)
    echo "$keys private keys, $sealed of them sealed; labels:"
    token_labels
    [ "$keys" -eq "$1" ] && [ "$sealed" -eq "$1" ]
}

## Configurations made from the example

# The example with SED-SCRIPT done to it.
conf_with() {
    sed -e "$1" "$here/../examples/server.conf" >"$scratch/etc/server.conf"
    server_conf=$scratch/etc/server.conf
}

# The example with the KeyManager's plugin_data in a file of its own, which SPIRE reads
# again on SIGUSR1. It knows no variables.
conf_with_data_file() {
    data_file=$scratch/etc/keymanager.hcl
    awk -v file="$data_file" '
        /^    KeyManager/ { block = 1 }
        block && /^        plugin_data \{/ {
            print "        plugin_data_file = \"" file "\""
            inside = 1
            next
        }
        inside && /^        \}/ { inside = block = 0; next }
        inside { print > file; next }
        { print }' "$here/../examples/server.conf" >"$scratch/etc/server.conf"
    sed -i -e "s|\${CONFIGURATION_DIRECTORY}|$CONFIGURATION_DIRECTORY|" \
        -e "s|\${STATE_DIRECTORY}|$STATE_DIRECTORY|" "$data_file"
    server_conf=$scratch/etc/server.conf
    grep -q plugin_data_file "$server_conf" && grep -q pin_file "$data_file"
}

## spire-server

server() {
    "$spire/spire-server" "$@" -socketPath "$server_socket"
}

server_healthy() {
    running server || return 2
    server healthcheck >/dev/null 2>&1
}

# Ends at once if the server does.
server_start() {
    start server "$spire/spire-server" run -expandEnv -config "$server_conf" \
        -serverPort "$port" -logLevel debug -logFormat json
    await 30 server_up_or_gone
    server_healthy || {
        server_complaints
        return 1
    }
}

server_up_or_gone() {
    server_healthy || ! running server
}

# Does a line of the server's log (of the current run) meet the jq condition?
server_said() {
    jq -R -n -e "[inputs | fromjson? | select($1)] | length > 0" "$logs/server.log" >/dev/null
}

# Warnings, errors, and what is no log line at all (a panic, a sanitizer's report).
server_complaints() {
    jq -R -r '(fromjson? // {level: "raw", msg: .}) |
        select(.level | IN("debug", "info") | not) |
        "\(.level): \(.msg) \(del(.level, .msg, .time) | tojson)"' "$logs/server.log"
}

server_quiet() {
    local complaints
    complaints=$(server_complaints)
    echo "$complaints"
    [ -z "$complaints" ]
}

# The id of the authority: active, prepared or old.
jwt_authority() {
    server localauthority jwt show -output json | jq -er ".$1.authority_id"
}

x509_authority() {
    server localauthority x509 show -output json | jq -er ".$1.authority_id"
}

found_its_journal() {
    server_said '.msg == "Found a CA journal record that matches with a local X509 authority ID"' &&
        not server_said '.msg | test("slot unusable|no key manager key")'
}

jwt_prepare() {
    server localauthority jwt prepare && await 10 oidc_has "$(jwt_authority prepared)"
}

jwt_activate() {
    server localauthority jwt activate -authorityID "$(jwt_authority prepared)"
}

jwt_revoke_old() {
    local old
    old=$(jwt_authority old) && server localauthority jwt taint -authorityID "$old" &&
        server localauthority jwt revoke -authorityID "$old" && await 10 oidc_lacks "$old"
}

x509_rotate() {
    local next
    server localauthority x509 prepare && next=$(x509_authority prepared) &&
        server localauthority x509 activate -authorityID "$next" &&
        [ "$(x509_authority active)" = "$next" ]
}

bundle_has_x509() { # so many of them
    jq -e --argjson n "$1" '[.keys[] | select(.use == "x509-svid")] | length == $n' "$bundle"
}

x509_revoke_old() {
    local old
    old=$(x509_authority old) && bundle_has_x509 2 &&
        server localauthority x509 taint -authorityID "$old" && bundle_has_x509 2 &&
        server localauthority x509 revoke -authorityID "$old" && await 10 bundle_has_x509 1
}

# A JWT-SVID for the workload into file $1.
jwt_mint() {
    server jwt mint -spiffeID "$workload" -audience mys3 -write "$1"
}

# The process that holds the PKCS#11 module.
worker_pid() {
    local pid
    for pid in $(descendants "${pids[server]}"); do
        if [ "$(tr '\0' ' ' <"/proc/$pid/cmdline")" = "spire-hsm-worker worker " ]; then
            echo "$pid"
            return 0
        fi
    done 2>/dev/null
    return 1
}

another_worker_than() {
    local now
    now=$(worker_pid) && [ "$now" != "$1" ]
}

## The bundle file, and the discovery provider

bundle_is_whole() {
    jq -e '(.keys | map(.use) | unique) == ["jwt-svid", "x509-svid"]' "$bundle"
}

oidc() {
    curl -fsS --max-time 5 --unix-socket "$oidc_socket" "http://${issuer#https://}/$1"
}

oidc_start() {
    start oidc "$spire/oidc-discovery-provider" -expandEnv -config "$oidc_conf"
    await 15 oidc keys >/dev/null 2>&1 && oidc keys >"$scratch/keys.json"
}

oidc_has() {
    oidc keys >"$scratch/keys.json" && jq -e --arg kid "$1" 'any(.keys[]; .kid == $kid)' \
        "$scratch/keys.json" >/dev/null
}

oidc_lacks() {
    oidc keys >"$scratch/keys.json" && not jq -e --arg kid "$1" 'any(.keys[]; .kid == $kid)' \
        "$scratch/keys.json" >/dev/null
}

oidc_has_active() {
    await 5 oidc_has "$(jwt_authority active)"
}

# What AWS reads first; RS256 is what it must find there.
oidc_document() {
    oidc .well-known/openid-configuration | tee "$scratch/openid.json" &&
        jq -e --arg url "$issuer" '.issuer == $url and .jwks_uri == $url + "/keys" and
            any(.id_token_signing_alg_values_supported[]; . == "RS256")' "$scratch/openid.json"
}

## spire-agent and a workload

agent_start() {
    start agent "$spire/spire-agent" run -expandEnv -config "$agent_conf" \
        -serverPort "$port" "$@"
    await 20 agent_up_or_gone
    agent_healthy
}

agent_healthy() {
    "$spire/spire-agent" healthcheck -socketPath "$agent_socket" >/dev/null 2>&1
}

agent_up_or_gone() {
    agent_healthy || ! running agent
}

# An agent hands out a token it has until half of its life is over; a new agent does not.
agent_restart() {
    stop agent && agent_start
}

# A token that admits one agent, and the workload (processes of our uid) behind it.
agent_admit() {
    join_token=$(server token generate -output json | jq -er .value) &&
        server entry create -parentID "spiffe://example.org/spire/agent/join_token/$join_token" \
            -spiffeID "$workload" -selector "unix:uid:$(id -u)"
}

# As the tutorial does it.
jwt_fetch() {
    "$spire/spire-agent" api fetch jwt -audience mys3 -socketPath "$agent_socket" |
        sed '2!d' | sed 's/[[:space:]]//g' >"$1" && [ -s "$1" ]
}

jwt_fetched() {
    jwt_fetch "$1" 2>/dev/null
}

## Verifying, by a program that shares nothing with SPIRE or us

verifier_build() {
    (cd "$here/peers" && go build -o "$scratch/jwtverify" ./jwtverify)
}

# Verifies the token in file $1 against what the discovery provider serves now.
jwt_verifies() {
    oidc keys >"$scratch/keys.json" &&
        "$scratch/jwtverify" -keys "$scratch/keys.json" -issuer "$issuer" -audience mys3 \
            -subject "$workload" "$1"
}

# base64url as JOSE has it: one line, without padding.
unbase64url() {
    tr '_-' '/+' | awk '{ print $0 substr("===", 1, (4 - length($0) % 4) % 4) }' | base64 -d
}

# jwt_rewrite FILE JQ: the token in FILE with its claims rewritten, its signature left.
jwt_rewrite() {
    local part
    IFS=. read -r -a part <"$1"
    part[1]=$(echo "${part[1]}" | unbase64url | jq -cj "$2" | base64 -w 0 | tr '/+' '_-' | tr -d =)
    (IFS=. && echo "${part[*]}")
}

jwt_kid() {
    cut -d . -f 1 "$1" | unbase64url | jq -er .kid
}

signed_by_the_authority() {
    jwt_kid "$1" && [ "$(jwt_kid "$1")" = "$(jwt_authority active)" ]
}

## The end

# Stops everything, the last started first; nothing below it is left.
all_gone() {
    local name i ours
    ours=$(for name in "${!pids[@]}"; do echo "${pids[$name]}"; descendants "${pids[$name]}"; done)
    for ((i = ${#order[@]} - 1; i >= 0; i--)); do
        stop "${order[i]}" || return 1
    done
    # shellcheck disable=SC2086 # a list of numbers
    await 5 not alive $ours
}
