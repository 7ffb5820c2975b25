#!/bin/bash
# A real spire-server whose authorities live for two minutes, under load and under random
# faults, for so many seconds:
#
#   tests/real/soak.sh [SECONDS]       120 if left out; SOAK_SEED repeats a choice of faults
#
# Single faults, and trouble that lasts for seconds. Its /live stays 200, nobody mints in vain,
# every JWT-SVID verifies against what the discovery provider serves, every X.509-SVID by OpenSSL,
# and the token holds no more keys at the end than at the beginning.
. "$(dirname "$0")/../lib/lib.sh" soak
. "$here/lib/parts.sh"

seconds=${1:-120}
seed=${SOAK_SEED:-$(((RANDOM << 15) + RANDOM))}
faulty=${FAULTY:-$(dirname "$SPIRE_HSM")/tests/faulty.so}
health_port=$(free_port)
export FAULTY_MODULE=$softhsm FAULTY_SCRIPT=$scratch/run/faults
stories=$scratch/faults
mkdir "$scratch/load"

## Load

# A minute is more than SPIRE itself would wait for one answer.
patiently() {
    timeout 60 "$@"
}

mint_jwts() {
    local file=$scratch/load/jwt.$1 minted=0
    until [ -e "$scratch/stop" ]; do
        if patiently "$spire/spire-server" jwt mint -spiffeID "$workload" -audience mys3 \
            -write "$file" -socketPath "$server_socket" >"$file.said" 2>&1; then
            minted=$((minted + 1))
            await 5 oidc_at_last "$1" "$file" ||
                echo "$(date +%T) JWT $minted of $1: $(cat "$file.said")" >>"$scratch/failed"
        else
            echo "$(date +%T) jwt mint: $(cat "$file.said")" >>"$scratch/failed"
        fi
        echo $minted >"$scratch/load/count.jwt.$1"
        sleep 0.1
    done
}

# The provider polls the file each second.
oidc_at_last() {
    oidc keys >"$scratch/load/keys.$1" 2>"$2.said" &&
        "$scratch/jwtverify" -keys "$scratch/load/keys.$1" -issuer "$issuer" -audience mys3 \
            -subject "$workload" "$2" >"$2.said" 2>&1
}

mint_x509s() {
    local dir=$scratch/load/x509 minted=0
    mkdir "$dir"
    until [ -e "$scratch/stop" ]; do
        if patiently "$spire/spire-server" x509 mint -spiffeID "$workload" -write "$dir" \
            -socketPath "$server_socket" >"$dir/said" 2>&1 &&
            openssl verify -x509_strict -CAfile "$dir/bundle.pem" "$dir/svid.pem" \
                >"$dir/said" 2>&1; then
            minted=$((minted + 1))
        else
            echo "$(date +%T) x509 mint: $(cat "$dir/said")" >>"$scratch/failed"
        fi
        echo $minted >"$scratch/load/count.x509.1"
        sleep 0.5
    done
}

live() {
    local code
    code=$(curl -s -o "$scratch/load/live.body" -w '%{http_code}' --max-time 5 \
        "http://127.0.0.1:$health_port/live")
    [ "$code" = 200 ] || { echo "/live says $code: $(cat "$scratch/load/live.body")"; return 1; }
}

watch_live() {
    local rounds=0
    until [ -e "$scratch/stop" ]; do
        live >"$scratch/load/live" || echo "$(date +%T) $(cat "$scratch/load/live")" >>"$scratch/failed"
        rounds=$((rounds + 1))
        echo $rounds >"$scratch/load/count.live.1"
        sleep 1
    done
}

minted() {
    cat "$scratch/load/count.$1".* | awk '{ n += $1 } END { print n + 0 }'
}

## Faults: each says in $story what it was

# One of these, in $drawn. (A subshell would draw with a seed of its own.)
draw() {
    shift $((RANDOM % $#))
    drawn=$1
}

# The next part of $rule: one of these.
rule_part() {
    draw "$@"
    rule+="${rule:+ }$drawn"
}

# Noticed within a tick of the clock; whoever is to go on has it back within `call_timeout`.
script() {
    printf '%s\n' "$1" >"$FAULTY_SCRIPT.new" && mv "$FAULTY_SCRIPT.new" "$FAULTY_SCRIPT"
}

functions=(C_Sign C_SignInit C_FindObjectsInit C_FindObjects C_OpenSession C_GenerateKeyPair
    C_GetAttributeValue C_DestroyObject C_Login C_GetSessionInfo C_GenerateRandom)
errors=(CKR_DEVICE_ERROR CKR_GENERAL_ERROR CKR_FUNCTION_FAILED CKR_DEVICE_REMOVED CKR_HOST_MEMORY
    CKR_SESSION_HANDLE_INVALID CKR_USER_NOT_LOGGED_IN CKR_TOKEN_NOT_PRESENT CKR_DEVICE_MEMORY)

fault_kill() {
    local worker
    worker=$(worker_pid) && kill -KILL "$worker" 2>/dev/null
    story="worker $worker killed"
}

fault_away() {
    local for=$((1 + RANDOM % 3))
    mv "$scratch/tokens" "$scratch/away"
    sleep $for
    [ ! -d "$scratch/tokens" ] || rmdir "$scratch/tokens"
    mv "$scratch/away" "$scratch/tokens"
    story="token away for $for s"
}

fault_error() {
    rule_part "${functions[@]}"
    rule_part before after
    rule_part "${errors[@]}"
    rule_part 'shared once' 'shared times 3' 'for 3000'
}

fault_crash() {
    rule_part "${functions[@]}"
    rule_part before after
    rule_part segv abort exit die
    rule+=' shared once'
}

fault_hang() {
    rule_part C_Sign C_SignInit C_GetAttributeValue
    rule+=' before'
    rule_part 'sleep 2000' hang
    rule+=' shared once'
}

# Trouble that lasts, of one key or of all.
fault_lasting() {
    rule_part 'C_Sign before segv' 'C_SignInit before abort' 'C_Sign before hang' \
        'C_Sign before CKR_FUNCTION_FAILED' 'C_SignInit before CKR_KEY_HANDLE_INVALID' \
        'C_Sign before bend' 'C_Sign before shorten'
    rule_part 'for 300' 'for 3000'
    draw '' ' on x509-CA' ' on JWT'
    rule+=$drawn
}

fault_hidden() {
    rule='profile'
    rule_part hide 'unreadable CKR_DEVICE_ERROR' 'unreadable CKR_OBJECT_HANDLE_INVALID'
    rule_part private public both
    rule+=' 3000'
    draw '' ' x509-CA' ' JWT'
    rule+=$drawn$'\n''C_SignInit before CKR_KEY_HANDLE_INVALID for 3000' # it has to look for them
}

fault_renumber() {
    rule='profile renumber 100'
}

fault_logout() {
    rule='profile logout'
}

fault_reconfigure() {
    local sessions=$((2 + RANDOM % 5))
    sed -i '/^max_sessions/d' "$data_file"
    echo "max_sessions = $sessions" >>"$data_file"
    kill -USR1 "${pids[server]}"
    story="max_sessions = $sessions, SIGUSR1"
}

fault_bundle() {
    draw "rm" "truncate -s 100" "tee"
    $drawn "$bundle" </dev/null
    story="bundle file: $drawn"
}

kinds=(kill away error error crash hang lasting lasting hidden renumber logout reconfigure bundle)

shuffle_kinds() {
    local i j
    for ((i = ${#kinds[@]} - 1; i > 0; i--)); do
        j=$((RANDOM % (i + 1)))
        set -- "${kinds[i]}" "${kinds[j]}"
        kinds[i]=$2
        kinds[j]=$1
    done
}

# Every kind has its turn, in an order of its own each time round.
soak() {
    local until=$((SECONDS + seconds)) kind
    RANDOM=$seed
    while ((SECONDS < until)); do
        shuffle_kinds
        for kind in "${kinds[@]}"; do
            ((SECONDS < until)) && running server || break
            rule=""
            "fault_$kind"
            [ -z "$rule" ] || script "$rule"
            story=${rule:-$story}
            echo "$(date +%T) ${story//$'\n'/; }" >>"$stories"
            draw 2 3 5
            sleep "$drawn"
        done
    done
    script ""
    running server
}

## Before and after

conf_of_the_soak() {
    conf_with_data_file || return 1
    cp "$faulty" "$scratch/run/faulty.so" && chmod 755 "$scratch/run/faulty.so"
    script ""
    sed -i "s|module = .*|module = \"$scratch/run/faulty.so\"|" "$data_file"
    sed -i -e 's|ca_ttl = .*|ca_ttl = "2m"|; s|svid_ttl = .*|svid_ttl = "1m"|' "$server_conf"
    # nobody waits a day here, and no wrong signature may leave
    printf '%s\n' 'operation_timeout = "3s"' 'destroy_superseded_after = 0' \
        'verify_signatures = "always"' >>"$data_file"
    cat >>"$server_conf" <<END
health_checks {
    listener_enabled = true
    bind_address = "127.0.0.1"
    bind_port = "$health_port"
    live_path = "/live"
}
END
}

nothing_failed() {
    [ ! -s "$scratch/failed" ] || {
        cat "$scratch/failed"
        echo "faults:"
        cat "$stories"
        return 1
    }
}

at_least() {
    local what=$1 least=$2
    echo "$(minted "$what") of $least"
    [ "$(minted "$what")" -ge "$least" ]
}

# Two slots of two kinds of authorities: while all is well, no more keys than these.
token_is_tidy() {
    local keys
    keys=$(token_private_keys)
    token_labels
    [ "$keys" -ge 2 ] && [ "$keys" -le 4 ] && token_holds "$keys"
}

rotated() {
    local made
    made=$(jq -R -n '[inputs | fromjson? | select(.msg == "key made")] | length' "$logs/server.log")
    echo "$made keys were made"
    [ "$made" -ge "$1" ]
}

each_kind_had_its_turn() {
    [ "$(wc -l <"$stories")" -ge ${#kinds[@]} ]
}

echo "soak of $seconds s, seed $seed"
must "a token is made" token_make
must "a configuration: ca_ttl 2m, a module that fails on request" conf_of_the_soak
must "a verifier is built" verifier_build
must "spire-server starts" server_start
must "the discovery provider starts" oidc_start
must "its /live is 200" await 10 live
start jwt1 mint_jwts 1
start jwt2 mint_jwts 2
start x509 mint_x509s
start live watch_live
check "$seconds seconds of faults" soak
cp "$stories" "$logs/faults"
touch "$scratch/stop"
for name in jwt1 jwt2 x509 live; do
    await 70 not running "$name"
done
check "there were faults of every kind" each_kind_had_its_turn
check "nobody minted in vain, all verified, /live was always 200" nothing_failed
check "JWT-SVIDs were minted all the time" at_least jwt "$seconds"
check "X.509-SVIDs too" at_least x509 $((seconds / 4))
check "authorities were rotated" rotated $((2 + seconds / 100))
check "the token holds no more keys than SPIRE has slots" await 70 token_is_tidy
check "the bundle file is whole within SPIRE's 30 seconds" await 35 bundle_is_whole
check "it stops" stop server
check "the PIN is in no log" not grep -rlF "$PIN" "$logs"
echo "faults survived: $( ((failed > 0)) && echo 0 || wc -l <"$stories") of $(wc -l <"$stories")"
printf '%s faults, %s JWT-SVIDs, %s X.509-SVIDs, seed %s\n' "$(wc -l <"$stories")" \
    "$(minted jwt)" "$(minted x509)" "$seed"
