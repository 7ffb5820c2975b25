#!/bin/bash
# examples/helm/values.yaml laid over the real chart `spire` of helm-charts-hardened: rendered
# without a network, with the chart's own values and with its recommended ones; each object read
# as strictly as an API server reads it; and the server's configuration run by a real spire-server.
# Paths and ports of that are mapped below $scratch, and what the sidecar's command line starts is
# `p11-kit server` with SoftHSM. `make test-helm CHART=DIR` runs it; DIR is charts/spire of a
# checkout. There is no cluster: nothing is installed.
if [ -z "${CHART-}" ]; then
    echo "test-helm: skipped, as CHART=DIR (charts/spire of a checkout of helm-charts-hardened) is not given:"
    echo "  - examples/helm/values.yaml rendered with the chart"
    echo "  - the rendered objects read strictly"
    echo "  - the rendered server configuration run by a real spire-server"
    exit 0
fi
version=$(sed -n 's/^appVersion: *"\(.*\)"$/\1/p' "$CHART/Chart.yaml")
export SPIRE_VERSION=${SPIRE_VERSION:-$version}
. "$(dirname "$0")/../lib/lib.sh" helm
. "$here/lib/parts.sh"

helm=$("$here/lib/helm.sh")/helm || exit 1
values=$here/../examples/helm/values.yaml
chart=$scratch/charts/spire
health=$(free_port)
hsm=$scratch/run/hsm

say() {
    printf '\n%s\n' "$*"
}

## The chart

# The parts beside it are found where `helm dependency build` would put them.
chart_is_copied() {
    local part
    mkdir "$scratch/charts" && cp -R "$CHART" "$chart" || return 1
    for part in $(sed -n 's|^ *repository: file://\.\./||p' "$CHART/Chart.yaml"); do
        cp -R "$CHART/../$part" "$chart/charts/" || return 1
    done
}

reader_is_built() {
    (cd "$here/peers/manifests" && go build -o "$scratch/manifests" .)
}

placeholders_replaced() {
    sed -e 's/MY_REGISTRY/registry.example.org/' -e "s|MY_HSM_MODULE|$softhsm|" "$values" >"$scratch/values.yaml"
}

render() { # NAME ARGUMENT...: the objects, as JSON, into $scratch/NAME.json
    local name=$1
    shift
    "$helm" template spire "$chart" --namespace spire-mgmt --kube-version 1.34.0 \
        "$@" >"$scratch/$name.yaml" && "$scratch/manifests" <"$scratch/$name.yaml" >"$scratch/$name.json"
}

recommended=(--set global.spire.recommendations.enabled=true --set global.spire.clusterName=production
    --set global.spire.trustDomain=example.com --set global.spire.jwtIssuer=https://oidc.example.com
    --set global.spire.caSubject.country=DE --set global.spire.caSubject.organization=Ours
    --set global.spire.caSubject.commonName=example.com)

# Which is why it is elsewhere in the values; once the chart counts it, it can move.
custom_plugin_is_refused() {
    not "$helm" template spire "$chart" --kube-version 1.34.0 --set spire-server.keyManager.disk.enabled=false \
        --set spire-server.customPlugins.keyManager.pkcs11.plugin_cmd=/opt/spire-hsm/bin/spire-hsm \
        --set spire-server.customPlugins.keyManager.pkcs11.plugin_checksum=00 >"$scratch/refusal" 2>&1 &&
        grep 'exactly one Key Manager. There are 0 enabled' "$scratch/refusal"
}

misspelt_is_refused() {
    sed 's/fsGroupChangePolicy/fsGroupChangePolice/' "$scratch/values.yaml" >"$scratch/misspelt-values.yaml"
    not render misspelt -f "$scratch/misspelt-values.yaml" 2>"$scratch/refusal" &&
        grep 'unknown field.*fsGroupChangePolice' "$scratch/refusal"
}

## The objects

# Is the filter true of the one StatefulSet? $pod is its pod.
server_has() { # NAME FILTER
    jq -e '[.[] | select(.kind == "StatefulSet")] | length == 1' "$scratch/$1.json" >/dev/null &&
        jq -e "[.[] | select(.kind == \"StatefulSet\")][0] as \$set | \$set.spec.template.spec as \$pod |
            def container(\$name): [\$pod.containers[], \$pod.initContainers[]] | map(select(.name == \$name)) |
                if length == 1 then .[0] else error(\$name) end;
            def mounted(\$name): container(\$name).volumeMounts | map({(.mountPath): {name, ro: (.readOnly // false)}}) | add;
            def volume(\$name): \$pod.volumes | map(select(.name == \$name)) |
                if length == 1 then .[0] else error(\$name) end;
            $2" "$scratch/$1.json"
}

configuration() { # NAME: the server's, as the chart wrote it
    jq -er '[.[] | select(.kind == "ConfigMap" and .data["server.conf"] != null and
        (.data["server.conf"] | test("KeyManager")))] | if length == 1 then .[0].data["server.conf"] else error end' \
        "$scratch/$1.json"
}

key_manager_is_ours() {
    configuration "$1" | jq -e '.plugins.KeyManager | length == 1 and (.[0] | keys == ["pkcs11"]) and
        .[0].pkcs11.plugin_cmd == "/opt/spire-hsm/bin/spire-hsm"'
}

# What the chart makes nothing of would pass unseen: every path in plugin_data lies on a volume.
paths_are_mounted() {
    local path
    for path in $(configuration "$1" | jq -er '.plugins.KeyManager[0].pkcs11 |
        .plugin_cmd, .plugin_data.pin_file, .plugin_data.key_identifier_file'); do
        server_has "$1" "any(mounted(\"spire-server\") | keys[]; . as \$mount | \"$path\" | startswith(\$mount + \"/\"))" || return 1
    done
}

volumes_are_there() {
    # shellcheck disable=SC2016
    server_has "$1" '(($pod.volumes | map(.name)) + ($set.spec.volumeClaimTemplates | map(.metadata.name))) as $there |
        [$pod.containers[], $pod.initContainers[] | .volumeMounts[].name] - $there == []'
}

objects() { # NAME WHAT: what is to hold with any values
    local name=$1
    check "$2: SPIRE gets one KeyManager, ours" key_manager_is_ours "$name"
    check "$2: all that it names lies on a volume" paths_are_mounted "$name"
    check "$2: no container mounts a volume that is not there" volumes_are_there "$name"
    check "$2: the init container fills the volume that the server sees, read-only, as /opt/spire-hsm" server_has "$name" \
        'mounted("spire-hsm")["/install"].name == mounted("spire-server")["/opt/spire-hsm"].name and
            mounted("spire-server")["/opt/spire-hsm"].ro and container("spire-hsm").command == null'
    check "$2: it is another user than the server" server_has "$name" \
        'container("spire-hsm").securityContext.runAsUser as $user | $user > 0 and $user != $pod.securityContext.runAsUser'
    check "$2: the PIN is a Secret that the server's group may read" server_has "$name" \
        'volume(mounted("spire-server")["/run/spire/pin"].name) | .secret.defaultMode == 288 and $pod.securityContext.fsGroup > 0'
    check "$2: a mount leaves modes as they are" server_has "$name" '$pod.securityContext.fsGroupChangePolicy == "OnRootMismatch"'
    check "$2: identity, record and datastore outlive the pod" server_has "$name" \
        'mounted("spire-server")["/run/spire/data"].name as $data | any($set.spec.volumeClaimTemplates[]; .metadata.name == $data)'
    check "$2: server and HSM client meet at one socket" server_has "$name" \
        'mounted("hsm-client")["/run/hsm"].name == mounted("spire-server")["/run/hsm"].name and
            any(container("spire-server").env[]; .name == "P11_KIT_SERVER_ADDRESS" and .value == "unix:path=/run/hsm/p11-kit.sock")'
    check "$2: the HSM client is there before the server, and goes on running" server_has "$name" \
        'container("hsm-client") | .restartPolicy == "Always" and .startupProbe.exec.command[-1] == "/run/hsm/p11-kit.sock"'
    check "$2: what is added may be in a namespace that enforces restricted" server_has "$name" \
        '[container("spire-hsm", "hsm-client").securityContext] | all(.runAsNonRoot and (.allowPrivilegeEscalation | not) and
            .capabilities.drop == ["ALL"] and .seccompProfile.type == "RuntimeDefault")'
    check "$2: the kubelet leaves a start four minutes" server_has "$name" \
        'container("spire-server").livenessProbe | .initialDelaySeconds + .periodSeconds * (.failureThreshold - 1) >= 240'
}

## The configuration, run

# No cluster answers SPIRE's own publisher; it is to find that out from a kubeconfig, as
# without one and outside of a pod it would not start.
no_cluster() {
    cat >"$scratch/kubeconfig" <<-END
	apiVersion: v1
	kind: Config
	clusters: [{name: none, cluster: {server: "https://127.0.0.1:1"}}]
	contexts: [{name: none, context: {cluster: none, user: none}}]
	users: [{name: none}]
	current-context: none
	END
}

configuration_is_mapped() {
    server_conf=$scratch/etc/server.conf
    no_cluster && configuration plain | jq --arg data "$STATE_DIRECTORY" --arg program "$SPIRE_HSM" \
        --arg pin "$scratch/etc/hsm-pin" --arg socket "$server_socket" --arg health "$health" \
        --arg kubeconfig "$scratch/kubeconfig" '
        walk(if type == "string" then sub("^/run/spire/data"; $data) | sub("^/opt/spire-hsm/bin/spire-hsm$"; $program) |
            sub("^/run/spire/pin/pin$"; $pin) else . end) |
        .server += {bind_address: "127.0.0.1", socket_path: $socket} |
        .health_checks += {bind_address: "127.0.0.1", bind_port: $health} |
        .plugins.BundlePublisher[0].k8s_configmap.plugin_data.clusters[0]["chart-internal"].kubeconfig_path = $kubeconfig' >"$server_conf"
}

# The sidecar's own command line.
hsm_client_starts() {
    local line
    mkdir -p "$hsm" && line=$(server_has plain 'container("hsm-client").args[0]' | jq -r .) || return 1
    start hsm-client env HSM_CLIENT_MODULE="$softhsm" sh -c "${line//\/run\/hsm/$hsm}"
    await 30 listens "$hsm/p11-kit.sock"
}

environment_is_mapped() {
    local pair
    while read -r pair; do
        export "${pair//\/run\/hsm/$hsm}"
    done < <(server_has plain 'container("spire-server").env[] | select(.name != "PATH") | "\(.name)=\(.value)"' | jq -r .)
    echo "$P11_KIT_SERVER_ADDRESS"
}

is_live() {
    curl -fsS --max-time 5 "http://127.0.0.1:$health/live"
}

identity_is_kept() {
    [ -s "$STATE_DIRECTORY/hsm-id" ] && [ -s "$STATE_DIRECTORY/hsm-id.keys" ]
}

signs_with_a_key_of_the_token() {
    jwt_mint "$scratch/token" && signed_by_the_authority "$scratch/token"
}

comes_back() {
    local jwt x509
    jwt=$(jwt_authority active) && x509=$(x509_authority active) && stop server && server_start &&
        [ "$(jwt_authority active)" = "$jwt" ] && [ "$(x509_authority active)" = "$x509" ] && found_its_journal
}

operator_sees_the_keys() {
    "$SPIRE_HSM" keys --config "$server_conf" --expand-env --json | tee "$scratch/keys.json" |
        jq -e '[.keys[] | select(.this_server and .record == "served") | .key_id] | sort == ["JWT-Signer-A", "x509-CA-A"]'
}

# That there is no cluster, and that the plugin is not pinned by a checksum.
server_says_no_more() {
    server_complaints | grep -vE '^(error: Failed to publish bundle .*"BundlePublisher":"k8s_configmap"|warning: Plugin checksum not configured )' >"$scratch/complaints"
    cat "$scratch/complaints"
    [ ! -s "$scratch/complaints" ]
}

echo "examples/helm/values.yaml on $(sed -n 's/^\(name\|version\): *//p' "$CHART/Chart.yaml" | head -n 2 | xargs), helm $("$helm" version --short), SPIRE from $spire"
must "the chart is copied with its parts" chart_is_copied
must "what reads the objects is built" reader_is_built
must "the placeholders are replaced" placeholders_replaced
check "a KeyManager under customPlugins is refused by the chart" custom_plugin_is_refused

say "The objects, strictly"
must "the chart takes the values" render plain -f "$scratch/values.yaml"
must "with its recommended settings, too" render recommended "${recommended[@]}" -f "$scratch/values.yaml"
check "a misspelt field would be seen" misspelt_is_refused
objects plain "plain"
objects recommended "recommended"

say "The server's configuration, run"
must "a SoftHSM token, with the PIN in a file" token_make
must "the HSM client's command line makes the socket" hsm_client_starts
must "the server's environment" environment_is_mapped
must "the configuration, its paths and ports mapped" configuration_is_mapped
must "spire-server starts" server_start
check "the chart's probe finds it alive" is_live
check "its keys are in the token, by way of the HSM client; none can be taken out" token_holds 2
check "it signs with one of them" signs_with_a_key_of_the_token
check "identity and record are in the folder of the volume" identity_is_kept
check "it stops, and comes back with its keys" comes_back
check "\`spire-hsm keys\` reads the chart's configuration" operator_sees_the_keys
check "it complains of nothing but the cluster that is not there" server_says_no_more
check "everything that was started has ended" all_gone
