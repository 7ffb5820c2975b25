#!/bin/bash
# docs/metrics.md, the alerts and the dashboard on the real parts: a Prometheus scrapes a
# spire-server while its token goes away, its PIN is refused, its workers die, its signatures are
# slow, its bundle cannot be written and its plugin is killed. Each alert fires and, when the fault
# has ended, clears. Then scrape and table are held to each other, and every query of the dashboard
# has something to show.
#
# Prometheus runs a copy of the rules with shorter durations. With PICTURE=FILE chromium draws the
# dashboard into FILE, which is how docs/metrics.png is made.
. "$(dirname "$0")/../lib/lib.sh" metrics
. "$here/lib/parts.sh"

page=$here/../docs/metrics.md
rules=$here/../packaging/prometheus/spire-hsm.rules.yml
dashboard=$here/../packaging/grafana/spire-hsm.json
telemetry=$(free_port)
prometheus=$(free_port)
faulty=${FAULTY:-$(dirname "$SPIRE_HSM")/tests/faulty.so}
export FAULTY_MODULE=$softhsm FAULTY_SCRIPT=$scratch/run/faults

script() {
    printf '%s\n' "$1" >"$FAULTY_SCRIPT.new" && mv "$FAULTY_SCRIPT.new" "$FAULTY_SCRIPT"
}

conf_with_telemetry() {
    cp "$faulty" "$RUNTIME_DIRECTORY/faulty.so" && chmod 755 "$RUNTIME_DIRECTORY/faulty.so" && script "" &&
        conf_with "s|module = .*|module = \"$RUNTIME_DIRECTORY/faulty.so\"|"'
            /token = "pkcs11/a\            call_timeout = "3s"\n            keep_alive = "1s"' &&
        printf 'telemetry {\n    Prometheus {\n        host = "127.0.0.1"\n        port = %s\n    }\n}\n' \
            "$telemetry" >>"$server_conf"
}

## Prometheus

# Every range holds several heartbeats, of which there is one in 5 s.
rules_in_seconds() {
    sed -e '/for:/s/[0-9]*[mh]$/2s/' -e 's/\[10m\]/[40s]/; s/\[[0-9]*[mhd]\]/[20s]/g' \
        -e 's/offset 15m/offset 20s/' "$rules" >"$scratch/etc/rules.yml" && promtool check rules "$scratch/etc/rules.yml"
}

prometheus_start() {
    cat >"$scratch/etc/prometheus.yml" <<END
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [$scratch/etc/rules.yml]
scrape_configs:
  - job_name: spire
    static_configs: [{targets: ["127.0.0.1:$telemetry"]}]
END
    start prometheus prometheus --config.file="$scratch/etc/prometheus.yml" --log.level=warn \
        --storage.tsdb.path="$scratch/prometheus" --web.listen-address="127.0.0.1:$prometheus"
    await 30 curl -fsS "http://127.0.0.1:$prometheus/-/ready"
}

scrape() {
    curl -fsS --max-time 5 "http://127.0.0.1:$telemetry/metrics"
}

query() {
    curl -fsS --max-time 10 "http://127.0.0.1:$prometheus/api/v1/query" --data-urlencode "query=$1"
}

# Does the query have a result that is a number?
answers() {
    query "$1" | tee "$scratch/answer" |
        jq -e '.status == "success" and any(.data.result[]; .value[1] != "NaN")'
}

firing() {
    answers "ALERTS{alertstate=\"firing\",alertname=\"SpireHsm$1\"}" >/dev/null
}

# An alert's name may be one of several.
fires() {
    await "${2:-60}" firing "$1" || { alerts; return 1; }
}

clears() {
    await "${2:-60}" not firing "$1" || { alerts; return 1; }
}

alerts() {
    query ALERTS | jq -c '.data.result[].metric'
}

no_alert() {
    not answers ALERTS >/dev/null
}

all_clear() {
    await 60 no_alert || { alerts; return 1; }
}

## Faults

# Signs all the time, and says nothing of what comes of it.
sign_on() {
    until [ -e "$scratch/stop" ]; do
        jwt_mint "$scratch/tmp/minted"
        sleep 0.2
    done
}

workers_killed() {
    local round pid
    for round in 1 2 3 4 5; do
        pid=$(worker_pid) && kill -KILL "$pid" && await 20 another_worker_than "$pid" || return 1
    done
}

worker_killed() {
    local pid
    pid=$(worker_pid) && kill -KILL "$pid"
}

# The process above the worker.
front_killed() {
    local pid
    pid=$(worker_pid) && kill -KILL "$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status")"
}

# The worker may have ended by itself by then, as it asks the token every second.
token_away() {
    mv "$scratch/tokens" "$scratch/tokens.away" && { worker_killed || true; }
}

key_cannot_be_made() {
    not server localauthority jwt prepare
}

token_back() {
    mv "$scratch/tokens.away" "$scratch/tokens"
}

pin_changed() {
    printf '%s\n' "$1" >"$scratch/etc/hsm-pin"
}

pin_wrong() {
    pin_changed "not-$PIN" && worker_killed
}

restarted() {
    stop server && server_start
}

## Table and scrape

# NAME TYPE LABEL,LABEL of the page, and of the scrape without the label that SPIRE adds.
of_the_page() {
    sed -n 's/^| `pkcs11_\([a-z_]*\)` | \([a-z]*\) | \([^|]*\) |.*/\1 \2 \3/p' "$page" |
        sed -e 's/ *([^)]*)//g; s/[`,]//g' |
        awk '{ n = $1; t = $2; $1 = $2 = ""; gsub(/^ +/, ""); gsub(/ +/, ","); print n, t, $0 }' | sort
}

of_the_scrape() {
    awk '/^# TYPE spire_server_pkcs11_/ { type = $4 == "summary" ? "sample" : $4; next }
         /^spire_server_pkcs11_/ && !/quantile=/ {
            name = $1; sub(/^spire_server_pkcs11_/, "", name); sub(/[{].*/, "", name)
            if (type == "sample") { if (name !~ /_count$/) next; sub(/_count$/, "", name) }
            labels = ""
            text = $0
            while (match(text, /[a-z_]+="[^"]*"/)) {
                label = substr(text, RSTART, RLENGTH); text = substr(text, RSTART + RLENGTH)
                sub(/=.*/, "", label)
                if (label != "host") seen[name " " type, label] = 1
            }
            names[name " " type] = 1
         }
         END { for (name in names) { labels = ""
                 for (key in seen) { split(key, part, SUBSEP); if (part[1] == name) labels = labels "," part[2] }
                 print name, substr(labels, 2) } }' "$1" | sort
}

# Labels in any order.
in_order() {
    while read -r name type labels; do
        echo "$name $type $(tr , '\n' <<<"$labels" | sort | paste -sd,)"
    done
}

scrape_is_as_the_page_says() {
    scrape >"$scratch/scrape" && [ "$(of_the_page | wc -l)" -gt 20 ] &&
        diff <(of_the_page | in_order) <(of_the_scrape "$scratch/scrape" | in_order)
}

every_alert_has_its_page() {
    local name
    promtool check rules "$rules" && for name in $(sed -n 's/.*alert: //p' "$rules"); do
        grep -qx "### $name" "$page" && grep -q "runbook: docs/metrics.md#${name,,}$" "$rules" ||
            { echo "$name"; return 1; }
    done
}

## The dashboard

dashboard_is_well_formed() {
    jq -e '.title and .uid and .schemaVersion >= 36 and (.panels | length) > 15 and
        ([.panels[].id] | length == (unique | length)) and
        all(.panels[]; .title and .gridPos.w + .gridPos.x <= 24 and
            (.type == "row" or ((.targets | length) > 0 and
             all(.targets[]; .expr and .refId and .datasource.uid == "${datasource}"))))' "$dashboard"
}

every_query_shows_something() {
    local expr count=0
    while read -r expr; do
        expr=${expr//'$__rate_interval'/10m}
        expr=${expr//'$job'/spire}
        expr=${expr//'$instance'/.*}
        answers "$expr" >/dev/null || { echo "$expr"; cat "$scratch/answer"; return 1; }
        count=$((count + 1))
    done < <(jq -r '.panels[].targets[]?.expr' "$dashboard")
    echo "$count queries"
    ((count > 20))
}

# Into the file $PICTURE, if that is set: what an operator would see, drawn by a browser.
picture() {
    {
        printf '<script>const picture = {prometheus: "http://127.0.0.1:%s", seconds: %s, dashboard: ' \
            "$prometheus" "$SECONDS"
        cat "$dashboard"
        printf '};</script>\n'
        cat "$here/lib/picture.html"
    } >"$scratch/picture.html"
    HOME=$scratch/tmp chromium --headless --no-sandbox --disable-gpu --hide-scrollbars \
        --window-size=1400,1610 --virtual-time-budget=15000 --screenshot="$PICTURE" "file://$scratch/picture.html"
    [ -s "$PICTURE" ]
}

echo "Metrics, alerts and dashboard: SPIRE from $spire"
check "every alert is in order, and has its place in docs/metrics.md" every_alert_has_its_page
check "what needs days to fire or to clear does" promtool test rules "$here/real/metrics.rules.yml"
check "the dashboard is in order" dashboard_is_well_formed
must "a SoftHSM token, with the PIN in a file" token_make
must "a server with telemetry" conf_with_telemetry
must "the rules, with durations of seconds" rules_in_seconds
must "Prometheus runs" prometheus_start
check "where no server is, the alert for no heartbeat fires" fires NoHeartbeat
must "spire-server starts" server_start
check "it clears" clears NoHeartbeat
start sign sign_on
check "no alert fires where all is well" all_clear

check "the bundle's folder goes away" mv "$CACHE_DIRECTORY" "$CACHE_DIRECTORY.away"
check "the token goes away" token_away
check "the alert for the token fires" fires TokenAway
check "so does that for signatures that fail" fires SignaturesFail
check "and that for a key that cannot be made" key_cannot_be_made
check "by its own alert" fires KeyNotMade
check "no worker is said to have died, as none opens the token" not firing WorkersDie
check "the token is back" token_back
check "the alert for the token clears" clears TokenAway
check "the key can be made now" server localauthority jwt prepare
check "so does that for signatures" clears SignaturesFail
check "and that for the key" clears KeyNotMade

check "five workers are killed" workers_killed
check "the alert for workers fires" fires WorkersDie
check "it clears" clears WorkersDie

check "the PIN file has another PIN" pin_wrong
check "the alert for the PIN fires" fires PinRefused
check "the PIN is put right" pin_changed "$PIN"
check "the alert for the PIN clears" clears PinRefused

check "the token takes two seconds for a signature" script "C_Sign every before sleep 2000"
check "the alert for slow signatures fires" fires Slow
check "the token is as fast as before" script ""
check "the alert for slow signatures clears" clears Slow
check "the bundle's folder has been away all the time: its alert fires" fires BundleStale 120
check "the folder is back" mv "$CACHE_DIRECTORY.away" "$CACHE_DIRECTORY"
check "the bundle is published again: its alert clears" clears BundleStale

check "a dashboard of this hour shows something in every panel" every_query_shows_something
[ -z "${PICTURE-}" ] || check "a browser draws the dashboard: $PICTURE" picture
check "the scrape has all that docs/metrics.md has, and nothing else" scrape_is_as_the_page_says

check "kill -9 of the KeyManager's plugin" front_killed
check "the alert for the plugin fires" fires PluginGone
touch "$scratch/stop"
check "the server is started again" restarted
check "the alert for the plugin clears" clears PluginGone
check "no alert fires any more" all_clear
check "everything that was started has ended" all_gone
