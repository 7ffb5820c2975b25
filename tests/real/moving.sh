#!/bin/bash
# docs/moving.md, its commands as they stand there: a server goes over from the KeyManager disk to
# a token and back to disk by a second server, and then to the same token in place, on SQLite and
# on PostgreSQL. Meanwhile an agent serves a workload, JWT-SVIDs are minted, and each must verify
# until it expires. The same change without a recipe ends the agent.
. "$(dirname "$0")/../lib/lib.sh" moving
. "$here/lib/parts.sh"
. "$here/lib/postgres.sh"

page=$here/../docs/moving.md
token_life=40 # of a JWT-SVID, seconds
beside_port=$(free_port)
units=$scratch/units
conf=$scratch/etc

section() {
    printf '%s\n' "$*"
}

## The page

# Each block of commands as a function of the reader's: its places are those of this run.
page_take_apart() {
    mkdir "$scratch/blocks" && awk -v to="$scratch/blocks/" '
        /^##/ { title = $0; sub(/^#+ /, "", title); n = 0 }
        /^```$/ { file = ""; next }
        /^```sh$/ { file = to title "." ++n; next }
        file { print >file }' "$page" &&
        sed -i -e "s|/etc/systemd/system|$units|g; s|/etc/spire|$CONFIGURATION_DIRECTORY|g" \
            -e "s|/var/lib/spire|$STATE_DIRECTORY|g; s|/run/spire|$RUNTIME_DIRECTORY|g" \
            -e "s|-write /tmp|-write $scratch/tmp|; s|/tmp/bundle|$scratch/tmp/bundle|" \
            -e "s|\"8082\"|\"$beside_port\"|" "$scratch/blocks"/*
}

# follow TITLE [N]: the blocks below this heading, or the Nth, one command after the other, in this
# shell. What a command prints is shown.
follow() {
    local block line
    for block in "$scratch/blocks/$1".${2:-*}; do
        while IFS= read -r line; do
            echo "\$ $line"
            eval "$line" || return 1
        done < <(sed -e ':more' -e '/[\\|]$/{N; s/\\\?\n *//; b more' -e '}' "$block")
    done
}

# The host's own commands, as far as the page uses them.
spire-server() {
    "$spire/spire-server" "$@"
}

spire-agent() {
    "$spire/spire-agent" "$@"
}

spire-hsm() {
    "$SPIRE_HSM" "$@"
}

curl() {
    command curl --max-time 5 --unix-socket "$oidc_socket" "${@/https:/http:}"
}

# A unit's process has the unit's name.
systemctl() {
    case $1 in
        daemon-reload) ;;
        stop) down "$2" && stop "$2" ;;
        start) unit_start "$2" ;;
    esac
}

down() {
    [ "$1" != spire-server ] || touch "$scratch/down"
}

# A unit without this line would be no unit of ours.
unit_start() {
    local config
    config=$(sed -n 's|^ExecStart=.* run -expandEnv -config \(.*\)$|\1|p' "$units/$1.service")
    [ -n "$config" ] || return 1
    start "$1" "$spire/spire-server" run -logLevel debug -logFormat json -expandEnv \
        -config "${config/\$\{CONFIGURATION_DIRECTORY\}/$CONFIGURATION_DIRECTORY}"
    await 30 up_or_gone "$1"
    up "$1" || { tail -n 20 "$logs/$1.log"; return 1; }
    [ "$1" != spire-server ] || agent_is_back
}

up() {
    running "$1" && spire-server healthcheck -socketPath "$RUNTIME_DIRECTORY/$(socket_of "$1")" >/dev/null 2>&1
}

up_or_gone() {
    up "$1" || ! running "$1"
}

socket_of() {
    [ "$1" = spire-server ] && echo server.sock || echo beside.sock
}

## The server's configurations

# conf_of BLOCK FILE: the example with this KeyManager, on this run's datastore and port.
conf_of() {
    awk -v block="$conf/$1" -v port="$port" -v store="$store" '
        /^    KeyManager/ { while ((getline line < block) > 0) print line; skip = 1 }
        skip { if (/^    }/) skip = 0; next }
        /^    bind_port/ { sub(/"8081"/, "\"" port "\"") }
        store && /database_type/ { sub(/sqlite3/, "postgres") }
        store && /connection_string/ { sub(/"[^"]*"/, "\"" store "\"") }
        { print }' "$here/../examples/server.conf" >"$conf/$2"
}

blocks_made() {
    printf '    KeyManager "disk" {\n        plugin_data { keys_path = "%s" }\n    }\n' \
        "$STATE_DIRECTORY/keys.json" >"$conf/disk" &&
        sed "s|keys.json|new-keys.json|" "$conf/disk" >"$conf/disk.new" &&
        sed -n '/^    KeyManager/,/^    }/p' "$here/../examples/server.conf" >"$conf/token" &&
        sed "s|hsm-id|hsm-id-new|" "$conf/token" >"$conf/token.new" &&
        previous="previous { keys_file = \"$STATE_DIRECTORY/new-keys.json\" }" &&
        sed "s|^ *key_identifier_file.*|&\n            $previous|" "$conf/token" >"$conf/token.previous" &&
        grep -q keys_file "$conf/token.previous"
}

units_made() {
    mkdir -p "$units" && cp -r "$here/../packaging/systemd"/spire-server.service{,.d} "$units"
}

## What goes on all the while

# during COMMAND...: what fails while the server is being restarted is its users' to bear.
during() {
    local was=0
    [ ! -e "$scratch/down" ] || was=1
    "$@" >"$scratch/tmp/during.$1" 2>&1 && return
    if [ $was = 1 ] || [ -e "$scratch/down" ]; then
        echo "$1" >>"$scratch/waited"
    else
        { date +%T.%3N; cat "$scratch/tmp/during.$1"; } >>"$scratch/failed"
    fi
    return 1
}

number=0
minted() {
    local server_socket=$RUNTIME_DIRECTORY/server.sock
    server jwt mint -spiffeID "$workload" -audience mys3 -ttl ${token_life}s \
        -write "$scratch/tmp/minted" && mv "$scratch/tmp/minted" "$scratch/jwts/minted.$number"
}

# For an audience of its own: the agent has no token for it, and has to ask the server.
fetched() {
    timeout 15 "$spire/spire-agent" api fetch jwt -audience "mys3-$number" -socketPath "$agent_socket" \
        >"$scratch/tmp/fetched" && sed '2!d; s/[[:space:]]//g' "$scratch/tmp/fetched" >"$scratch/tmp/fetched.jwt" &&
        [ -s "$scratch/tmp/fetched.jwt" ] && mv "$scratch/tmp/fetched.jwt" "$scratch/jwts/fetched.$number"
}

mint() {
    until [ -e "$scratch/stop" ]; do
        number=$((number + 1))
        during minted
        sleep 0.2
    done
}

fetch() {
    until [ -e "$scratch/stop" ]; do
        number=$((number + 1))
        during fetched
        sleep 0.2
    done
}

# Those that live for as long as a busy machine takes to verify them all.
unexpired() {
    find "$scratch/jwts" -name "$1.*" -newermt "-$((token_life - 15)) seconds"
}

verified() {
    local tokens audience=()
    mapfile -t tokens < <(unexpired minted)
    [ ${#tokens[@]} -eq 0 ] || "$scratch/jwtverify" -keys "$scratch/tmp/keys" -issuer "$issuer" \
        -audience mys3 -subject "$workload" "${tokens[@]}" || return 1
    mapfile -t tokens < <(unexpired fetched)
    for token in "${tokens[@]}"; do
        "$scratch/jwtverify" -keys "$scratch/tmp/keys" -issuer "$issuer" \
            -audience "mys3-${token##*.}" -subject "$workload" "$token" || return 1
    done
}

verify() {
    until [ -e "$scratch/stop" ] && [ -z "$(unexpired '*')" ]; do
        if oidc keys >"$scratch/tmp/keys" && verified >"$scratch/tmp/verified" 2>&1; then
            echo >>"$scratch/rounds"
        else
            cat "$scratch/tmp/verified" >>"$scratch/failed"
        fi
        sleep 1
    done
}

load_start() {
    rm -rf "$scratch"/{stop,failed,rounds,waited,jwts} && mkdir "$scratch/jwts" &&
        start mint mint && start fetch fetch && start verify verify
}

# No more are issued, but all are verified until none is left.
load_stop() {
    touch "$scratch/stop"
    await 30 not running mint && await 30 not running fetch &&
        await $((token_life + 30)) not running verify
}

nothing_failed() {
    echo "$(find "$scratch/jwts" -name 'minted.*' | wc -l) minted," \
        "$(find "$scratch/jwts" -name 'fetched.*' | wc -l) fetched," \
        "$(wc -l <"$scratch/rounds") times all verified; failed in restarts: $(sort "$scratch/waited" | uniq -c | xargs)"
    [ -s "$scratch/rounds" ] && not cat "$scratch/failed"
}

## Agent and authorities

agent_is_back() {
    [ -z "${agent_pid-}" ] || await 20 asks_anew || return 1
    rm -f "$scratch/down"
}

asks_anew() {
    "$spire/spire-agent" api fetch jwt -audience "anew-$SRANDOM" -socketPath "$agent_socket" >/dev/null 2>&1
}

agent_joins() {
    agent_admit && agent_start -joinToken "$join_token" && agent_pid=${pids[agent]} && await 20 asks_anew
}

agent_lives_on() {
    echo "it was process $agent_pid, and is ${pids[agent]}"
    running agent && [ "${pids[agent]}" = "$agent_pid" ] && asks_anew
}

x509_of() {
    server_socket=$RUNTIME_DIRECTORY/$(socket_of "$1") x509_authority active
}

jwt_of() {
    server_socket=$RUNTIME_DIRECTORY/$(socket_of "$1") jwt_authority active
}

# The ids of this server's authorities into authorities[NAME].
declare -A authorities=()
remember() {
    authorities[$1]="$(x509_of "$2") $(jwt_of "$2")"
}

signs_with() {
    local now
    now="$(x509_of spire-server) $(jwt_of spire-server)"
    echo "$1: ${authorities[$1]}, now: $now"
    [ "$now" = "${authorities[$1]}" ]
}

agent_knows() {
    follow "3. Wait until everybody knows" 1 >"$scratch/tmp/known" 2>&1 &&
        tr -d ' :\n' <"$scratch/tmp/known" | tr A-F a-f | grep -q "$1"
}

provider_serves() {
    follow "3. Wait until everybody knows" 2 >"$scratch/tmp/served" 2>&1 && grep -qx "$1" "$scratch/tmp/served"
}

everybody_knows() {
    local id
    read -r -a id <<<"${authorities[$1]}"
    await 40 agent_knows "${id[0]}" && await 40 provider_serves "${id[1]}"
}

agent_ends() {
    await 40 not running agent && grep 'Agent crashed.*certificate signed by unknown authority' "$logs/agent.log"
}

# log_is_quiet NAME WARNING: but for this one.
log_is_quiet() {
    cat "$logs/$1".*log* | jq -R -r '(fromjson? // {level: "raw", msg: .}) |
        select(.level | IN("debug", "info") | not) | "\(.level): \(.msg) \(del(.level, .msg, .time) | tojson)"' |
        sed "/^warning: .*$2/d" | not grep .
}

## By a second server: FROM and TO are KeyManager blocks

server_begins() {
    rm -rf "${scratch:?}"/{state,run,cache,units}/* "$conf"/server.*
    units_made && conf_of "$1" server.conf && systemctl start spire-server && await 5 bundle_is_whole
}

moved_by_a_second_server() {
    local from=$1 to=$2
    section "From $from to $to by a second server"
    remember "$from" spire-server
    must "server.new.conf, with another KeyManager" conf_of "$to" server.new.conf
    must "the second server's configuration" follow "1. Two configurations"
    must "the second server starts, and says its authorities" follow "2. The second server"
    remember "$to" spire-beside
    check "the first one signs on" signs_with "$from"
    must "agent and discovery provider know the new authorities" everybody_knows "$to"
    check "giving up changes nothing: the second server stops" systemctl stop spire-beside
    check "the agent lives on" agent_lives_on
    must "it starts again, and has the same authorities" again_beside "$to"
    must "the change: both stop, and the server starts with the new file" follow "4. Change over"
    check "it signs with the second server's authorities" signs_with "$to"
    check "the agent lives on" agent_lives_on
    must "the way back: the old file and a restart" follow "5. The way back"
    check "it signs with the old authorities" signs_with "$from"
    check "the agent lives on" agent_lives_on
    must "and forward again" changed_to server.new.conf
    check "it signs with the new authorities" signs_with "$to"
    check "the agent lives on" agent_lives_on
    check "what the second server left is removed" follow "6. Clean up"
}

again_beside() {
    systemctl start spire-beside && [ "${authorities[$1]}" = "$(x509_of spire-beside) $(jwt_of spire-beside)" ]
}


## In place: from disk.new to the token, which still has what the server made there before

moved_in_place() {
    keys=$STATE_DIRECTORY/new-keys.json
    section "From disk.new to the token in place"
    remember disk.new spire-server
    must "server.new.conf, with previous" conf_of token.previous server.new.conf
    cp "$keys" "$scratch/keys"
    must "check, while the server runs; then the change" follow "1. Change the block"
    check "the server signs with the authorities of the disk" signs_with disk.new
    check "the agent lives on" agent_lives_on
    must "the way back: the old file and a restart" changed_to server.old.conf
    check "it signs with the same authorities" signs_with disk.new
    must "and forward again" changed_to server.new.conf
    check "it signs with the same authorities" signs_with disk.new
    check "the agent lives on" agent_lives_on
    must "an authority of each kind is prepared in the token" follow "2. Let SPIRE go over to the token" 1
    remember_prepared
    must "everybody knows them" everybody_knows prepared
    must "the way back, a last time" changed_to server.old.conf
    check "it signs with the authorities of the disk" signs_with disk.new
    check "the agent lives on" agent_lives_on
    must "and forward again" changed_to server.new.conf
    check "it signs with the authorities of the disk" signs_with disk.new
    check "it has the same prepared ones" still_prepared
    must "without previous" conf_of token server.conf
    check "a start is refused, as those keys are needed" refused
    must "with previous it starts" changed_to server.new.conf
    check "the agent lives on" agent_lives_on
    check "check says that previous cannot go yet" not may_go
    must "those of the token are activated" follow "2. Let SPIRE go over to the token" 2
    check "they sign" signs_with prepared
    must "and others are prepared" follow "2. Let SPIRE go over to the token" 3
    must "check says that previous can go" may_go
    must "it is taken out" conf_of token server.new.conf
    must "the server is restarted" changed_to server.new.conf
    check "the same authorities sign" signs_with prepared
    check "the agent lives on" agent_lives_on
    check "keys.json is as it was" cmp "$scratch/keys" "$keys"
}

changed_to() {
    systemctl stop spire-server && cp -p "$conf/$1" "$conf/server.conf" && systemctl start spire-server
}

remember_prepared() {
    server_socket=$RUNTIME_DIRECTORY/server.sock
    authorities[prepared]="$(x509_authority prepared) $(jwt_authority prepared)"
}

still_prepared() {
    local before=${authorities[prepared]}
    remember_prepared
    echo "$before, now: ${authorities[prepared]}"
    [ "${authorities[prepared]}" = "$before" ]
}

# Its log is no part of what must be quiet.
refused() {
    systemctl stop spire-server && not systemctl start spire-server &&
        grep -F "but SPIRE needs it" "$logs/spire-server.log" && rm "$logs/spire-server.log"
}

may_go() {
    follow "3. Take \`previous\` out" | tee "$scratch/tmp/check" && grep -i 'previous.*can go' "$scratch/tmp/check"
}

all_of_the_page() {
    must "spire-server starts on KeyManager disk" server_begins disk
    must "the discovery provider starts" oidc_start
    must "an agent joins" agent_joins
    must "JWT-SVIDs are minted and fetched from now on, and verified" load_start
    moved_by_a_second_server disk token
    check "the token's keys are all made in it, and never outside" token_holds "$1"
    moved_by_a_second_server token disk.new
    moved_in_place
    must "the load ends" load_stop
    check "no call failed but in a restart; all JWT-SVIDs verified until they expired" nothing_failed
    check "the server warned of nothing but keys that lie elsewhere" \
        log_is_quiet spire-server '\(slot unusable\|previous\)'
    check "the second one of nothing" log_is_quiet spire-beside '^$'
}

unplanned_change() {
    systemctl stop spire-server && conf_of token.new server.conf && agent_pid='' &&
        systemctl start spire-server
}

echo "docs/moving.md: SPIRE from $spire"
must "a token is made" token_make
must "a verifier is built" verifier_build
must "the page has its commands" page_take_apart
must "KeyManager blocks: disk, and a token" blocks_made
store=
section "On SQLite"
all_of_the_page 2
section "The same change without the recipe"
must "the KeyManager is changed, and the server restarted" unplanned_change
check "the agent ends, as the page says" agent_ends
for name in oidc spire-server; do
    check "$name stops" stop $name
done
section "On PostgreSQL"
must "PostgreSQL runs" postgres_start
store="dbname=spire host=$postgres_home user=postgres sslmode=disable"
all_of_the_page 10
check "everything that was started has ended" all_gone
