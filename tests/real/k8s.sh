#!/bin/bash
# examples/k8s on a real Kubernetes of one node: every manifest as the API server takes it,
# the pods against the Pod Security level "restricted", and then the tutorial's Parts 1 and
# 4 in its own command lines, with keys in SoftHSM; a pod's loss, a plugin's death; and the
# overlay "ha" while either of its servers is lost. `make test-k8s` runs it, as root.
#
# What the test changes of the manifests is in tests/real/k8s/, most of
# it because there is no network between pods. Not tried, as it cannot be here: load
# balancer, ingress controller, public DNS, ACME. The API server has checked their objects.
. "$(dirname "$0")/../lib/lib.sh" k8s
[ "$(id -u)" -eq 0 ] || {
    echo "a kubelet must be root's, so this test is"
    exit 1
}
. "$here/lib/parts.sh"
. "$here/lib/parts_aws.sh"
. "$here/lib/postgres.sh"
. "$here/lib/cluster.sh"
. "$here/lib/manifests.sh"

examples=$here/../examples/k8s
image_tar=$here/../build/image/spire-hsm.tar
registry=registry.example.org
static=$("$here/lib/spire-static.sh") && debian=$("$here/lib/debian.sh") || exit 1
umask 022

# Ten ports of which the last digit is a pod's number.
free_ports() {
    local ports
    while ports=$(free_port); do
        ports=${ports%?}
        (exec 3<>"/dev/tcp/127.0.0.1/${ports}0") 2>/dev/null ||
            (exec 3<>"/dev/tcp/127.0.0.1/${ports}1") 2>/dev/null || break
    done
    echo "$ports"
}
grpc=$(free_ports) health=$(free_ports) oidc=$(free_ports) oidc_health=$(free_ports)
front=$(free_port) agent_health=$(free_port)

say() {
    printf '\n%s\n' "$*"
}

# Volumes for the claims: two for one server, two for two.
volumes() {
    local number
    for number in "$@"; do
        mkdir -p "$scratch/volumes/$number"
        kubectl create -f - <<-END || return 1
	apiVersion: v1
	kind: PersistentVolume
	metadata: {name: volume-$number}
	spec:
	  capacity: {storage: 1Gi}
	  accessModes: [ReadWriteOnce]
	  local: {path: $scratch/volumes/$number}
	  nodeAffinity:
	    required:
	      nodeSelectorTerms:
	        - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [localhost]}]
	END
    done
}

# The failover that Services do elsewhere: to the first of the two that is there.
forwarder() {
    cat >"$scratch/haproxy.cfg" <<-END
	defaults
	  mode tcp
	  timeout connect 2s
	  timeout client 1h
	  timeout server 1h
	  default-server check inter 300ms fall 2 rise 1 on-marked-down shutdown-sessions
	listen servers
	  bind 127.0.0.1:$front
	  server 0 127.0.0.1:${grpc}0
	  server 1 127.0.0.1:${grpc}1 backup
	listen providers
	  bind $OIDC_ADDRESS
	  server 0 127.0.0.1:${oidc}0
	  server 1 127.0.0.1:${oidc}1 backup
	END
    start forwarder haproxy -db -f "$scratch/haproxy.cfg"
    await 10 eval "(exec 3<>/dev/tcp/127.0.0.1/$front)"
}

images() {
    local program config
    for program in spire-server spire-agent oidc-discovery-provider; do
        config=$(jq -n --arg program "/opt/spire/bin/$program" '{WorkingDir: "/opt/spire",
            User: (if $program | endswith("agent") then "0:0" else "1000:1000" end),
            Entrypoint: ([$program] + if $program | test("spire-") then ["run"] else [] end)}')
        layer "$scratch/$program.tar" "$static/$program=opt/spire/bin/$program" &&
            image "ghcr.io/spiffe/$program:1.14.5" "$config" "$scratch/$program.tar" || return 1
    done
    config='{"User": "1000:1000", "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]}'
    image "$registry/tutorial-client:0.1.0" "$config" "$debian/root.tar" "$scratch/spire-agent.tar" &&
        image "$registry/hsm-client:0.1.0" "$config" "$debian/root.tar" &&
        ctr images import "$image_tar" >"$scratch/imported" &&
        ctr images tag "$(ctr images ls -q | grep '/spire-hsm:' | grep -v "$registry")" \
            "$registry/spire-hsm:0.1.0" && ctr images ls -q
}

## SPIRE in its pods

namespaces_made() {
    kubectl apply -f "$unpatched/base/spire-namespace.yaml" &&
        await 20 kubectl get serviceaccount default -n spire
}

pods_ready() {
    kubectl rollout status "$1" -n "$2" --timeout="${3-180}s" || {
        kubectl get pods -A -o wide
        kubectl describe pods -n "$2" | tail -n 60
        kubectl logs -n "$2" "$1" --all-containers --tail=20
        return 1
    }
}

in_pod() { # NUMBER COMMAND...: in the server's container
    local number=$1
    shift
    kubectl exec -n spire "spire-server-$number" -c spire-server -- "$@"
}

server_of() { # NUMBER ARGUMENT...
    local number=$1
    shift
    in_pod "$number" /opt/spire/bin/spire-server "$@"
}

# As the README does it, but that a token lives for 40 s: an agent hands out the one it has
# until half of its life is over.
entries() {
    server_of 0 entry create -node -spiffeID spiffe://example.org/ns/spire-agent/sa/spire-agent \
        -selector k8s_psat:cluster:demo-cluster -selector k8s_psat:agent_ns:spire-agent \
        -selector k8s_psat:agent_sa:spire-agent &&
        server_of 0 entry create -parentID spiffe://example.org/ns/spire-agent/sa/spire-agent \
            -spiffeID "$workload" -selector k8s:ns:default -selector k8s:sa:default \
            -jwtSVIDTTL 40
}

attested() {
    server_of 0 agent list | tee /dev/stderr | grep -q 'spiffe://example.org/spire/agent/k8s_psat/demo-cluster/'
}

keys() {
    in_pod 0 /opt/spire-hsm/bin/spire-hsm keys --config /run/spire/config/server.conf --expand-env --json |
        jq -S 'del(.. | .age_seconds?)'
}

authority() { # NUMBER: the id of the key with which it signs tokens
    server_of "$1" localauthority jwt show -output json | jq -er .active.authority_id
}

oidc_of() { # NUMBER PATH
    curl -fsS --max-time 5 --cacert "$TLS/root.pem" "https://127.0.0.1:$oidc$1/$2"
}

oidc_of_has() { # NUMBER KID
    oidc_of "$1" keys | jq -e --arg kid "$2" 'any(.keys[]; .kid == $kid)'
}

in_client() {
    kubectl exec "$(kubectl get pods -o jsonpath='{.items[*].metadata.name}')" -- "$@"
}

copies() {
    in_client sh -c "rm -f test.txt; AWS_ROLE_ARN=$role_arn AWS_WEB_IDENTITY_TOKEN_FILE=token aws s3 \
        cp s3://$bucket/test.txt test.txt && cat test.txt" >"$scratch/copied" 2>&1
    cat "$scratch/copied"
    grep -x 'oidc-tutorial file' "$scratch/copied"
}

pod() { # NUMBER JSONPATH
    kubectl get pod -n spire "spire-server-$1" -o "jsonpath={$2}"
}

another_pod() { # NUMBER, the uid of the one before
    local uid
    uid=$(pod "$1" .metadata.uid 2>/dev/null) && [ "$uid" != "$2" ]
}

## Parts 1 and 4, in the folder with the tutorial's files

# The tutorial's line, run as it stands, shown.
types_in() { # FOLDER LINE
    printf '        $ %s\n' "$2" >&3
    (cd "$1" && bash -o pipefail -c "$2")
}

secrets() {
    printf '%s\n' "$PIN" >"$scratch/pin"
    kubectl create secret generic spire-hsm-pin -n spire --from-file=pin="$scratch/pin" &&
        kubectl create secret tls spire-oidc-tls -n spire --cert="$TLS/chain.pem" --key="$TLS/server.key"
}

quickstart() {
    types_in "$manifests/base" 'kubectl apply -f spire-namespace.yaml' && secrets &&
        types_in "$manifests/base" 'kubectl apply -f ../softhsm/hsm-configmap.yaml \
            -f server-account.yaml -f server-cluster-role.yaml -f server-service.yaml \
            -f spire-bundle-configmap.yaml -f agent-account.yaml -f agent-cluster-role.yaml \
            -f agent-configmap.yaml -f agent-daemonset.yaml'
}

client_started() {
    kubectl create configmap minio-ca --from-file=ca.crt="$TLS/root.pem" &&
        types_in "$manifests/base" 'kubectl apply -f client-deployment.yaml' &&
        pods_ready deployment/client default
}

# shellcheck disable=SC2016 # the tutorial's own text
part_1='kubectl apply \
    -f server-configmap.yaml \
    -f oidc-dp-configmap.yaml \
    -f server-statefulset.yaml'
containers='kubectl get pods -n spire -l app=spire-server -o \
    jsonpath='\''{.items[*].spec.containers[*].name}{"\n"}'\'
# shellcheck disable=SC2016
exec_line='kubectl exec -it $(kubectl get pods -o \
    jsonpath={'\''.items[*]'\''.metadata.name}) -- /bin/sh'
fetch_line='/opt/spire/bin/spire-agent api fetch jwt -audience mys3 -socketPath \
    /run/spire/sockets/agent.sock | sed '\''2!d'\'' | sed '\''s/[[:space:]]//g'\'' > token'
copy_line="AWS_ROLE_ARN=$role_arn AWS_WEB_IDENTITY_TOKEN_FILE=token aws s3 \\
    cp s3://$bucket/test.txt test.txt"

names_both_containers() {
    [ "$(types_in . "$containers")" = "spire-server spire-oidc" ]
}

# An agent knows of a new entry within seconds.
token_fetched() {
    echo "$fetch_line" | bash -c "$exec_line" && in_client cat token >"$scratch/token" &&
        [ -s "$scratch/token" ]
}

client_gets_token() {
    printf '        $ %s\n        # %s\n' "$exec_line" "$fetch_line" >&3
    await 60 token_fetched && [ "$(jwt_kid "$scratch/token")" = "$(authority 0)" ]
}

client_opens_s3() {
    printf '        # %s\n' "$copy_line" >&3
    printf '%s\n' "$copy_line" 'cat test.txt' | bash -c "$exec_line" >"$scratch/copied" 2>&1
    cat "$scratch/copied"
    grep -q "download: s3://$bucket/test.txt to ./test.txt" "$scratch/copied" &&
        grep -x 'oidc-tutorial file' "$scratch/copied"
}

another_bucket_is_refused() {
    in_client sh -c "AWS_ROLE_ARN=$role_arn AWS_WEB_IDENTITY_TOKEN_FILE=token aws s3 \
        cp s3://another-bucket/test.txt test.txt" >"$scratch/copied" 2>&1
    grep 'An error occurred (403)' "$scratch/copied"
}

## Losses

same_keys() {
    keys >"$scratch/keys.now" && diff "$scratch/keys.before" "$scratch/keys.now" &&
        [ "$(authority 0)" = "$kid" ] || return 1
    kubectl logs -n spire spire-server-0 -c spire-server >"$scratch/said"
    cat "$scratch/said"
    grep -q 'msg="Journal loaded" jwt_keys=1 .* x509_cas=1' "$scratch/said" &&
        [ "$(grep -c 'msg="key adopted"' "$scratch/said")" -eq 2 ] &&
        not grep -E 'msg="key made"|slot unusable' "$scratch/said"
}

pod_is_replaced() {
    local uid
    uid=$(pod 0 .metadata.uid)
    kubectl delete pod -n spire spire-server-0 && await 60 another_pod 0 "$uid" &&
        pods_ready statefulset/spire-server spire
}

# The plugin process of the KeyManager in the pod.
front_of() {
    local uid process
    uid=$(pod 0 .metadata.uid)
    for process in $(grep -l "$uid" /proc/[0-9]*/cgroup 2>/dev/null); do
        process=${process%/cgroup}
        if [[ $(readlink "$process/exe") == /opt/spire-hsm/bin/spire-hsm ]] &&
            tr '\0' '\n' <"$process/environ" | grep -qx KeyManager=KeyManager &&
            [ "$(tr '\0' ' ' <"$process/cmdline")" != "spire-hsm-worker worker " ]; then
            echo "${process#/proc/}"
            return
        fi
    done 2>/dev/null
    return 1
}

plugin_killed() {
    local process
    process=$(front_of) && kill -KILL "$process"
}

restarted() {
    [ "$(pod 0 '.status.containerStatuses[?(@.name=="spire-server")].restartCount')" = 1 ]
}

# A minute until SPIRE looks, two of red, and what the start takes.
kubelet_restarts_it() {
    await 300 restarted && pods_ready statefulset/spire-server spire &&
        kubectl get events -n spire --field-selector reason=Unhealthy -o jsonpath='{.items[*].message}' |
        grep -o 'Liveness probe failed: HTTP probe failed with statuscode: 500'
}

## Two servers

# The HSM: a SoftHSM in a folder of this host, of the pods' user.
hsm_itself() {
    mkdir -p "$scratch/hsm/tokens"
    printf 'directories.tokendir = %s\nobjectstore.backend = file\n' "$scratch/hsm/tokens" >"$scratch/hsm/softhsm2.conf"
    SOFTHSM2_CONF=$scratch/hsm/softhsm2.conf softhsm2-util --init-token --free --label spire \
        --pin "$PIN" --so-pin "$PIN" && chown -R 1000:1000 "$scratch/hsm"
}

hsm_private_keys() {
    SOFTHSM2_CONF=$scratch/hsm/softhsm2.conf pkcs11-tool --module "$softhsm" --token-label spire \
        --login --pin env:PIN --list-objects --type privkey 2>&1 | grep -c '^Private Key Object'
}

ha_manifests() {
    manifests=$scratch/ha
    placeholders "$manifests" 127.0.0.1 && on_this_host || return 1
    printf '  softhsm2.conf: |\n    directories.tokendir = /var/lib/hsm/tokens\n' \
        >>"$manifests/network-hsm/hsm-configmap.yaml"
    fill_in <"$here/real/k8s/ha.yaml" >"$manifests/ha/test.yaml"
    echo '  - path: test.yaml' >>"$manifests/ha/kustomization.yaml"
}

ha_applied() {
    types_in "$manifests" './apply base/spire-namespace.yaml' && secrets &&
        printf %s "host=127.0.0.1 port=$postgres_port dbname=spire user=postgres sslmode=disable" |
        kubectl create secret generic spire-database -n spire --from-file=connection=/dev/stdin &&
        types_in "$manifests" './apply ha' &&
        types_in "$manifests/base" 'kubectl apply -f client-deployment.yaml'
}

# Each publishes the other's key at the latest 30 s after it was made.
both_providers_serve_both() {
    local key
    for key in "$@"; do
        await 60 oidc_of_has 0 "$key" && await 60 oidc_of_has 1 "$key" || return 1
    done
}

# No new pod is placed meanwhile: one server is lost, not restarted.
lost() {
    kubectl cordon localhost && kubectl delete pod -n spire "spire-server-$1" &&
        not server_of "$1" healthcheck
}

# The agent gets a token that it had not before, signed with this key, and it opens S3.
served_with() { # KID
    cp "$scratch/token" "$scratch/token.before"
    await 90 newly_signed_with "$1" && copies
}

newly_signed_with() {
    token_fetched && not cmp -s "$scratch/token" "$scratch/token.before" &&
        [ "$(jwt_kid "$scratch/token")" = "$1" ]
}

back() { # NUMBER KID
    kubectl uncordon localhost && pods_ready statefulset/spire-server spire &&
        [ "$(authority "$1")" = "$2" ]
}

cleaned_up() {
    types_in . 'kubectl delete deployment client' &&
        types_in . 'kubectl delete namespace spire spire-agent' &&
        types_in . 'kubectl delete clusterrole spire-server-trust-role spire-agent-cluster-role' &&
        types_in . 'kubectl delete clusterrolebinding spire-server-trust-role-binding \
            spire-agent-cluster-role-binding'
}

## The story

export BUILD=${BUILD:-build}
PIN=$(secret)
export PIN
echo "examples/k8s on Kubernetes, with $("$static/spire-server" --version 2>&1 | head -n 1) and the plugin's image"

say "A cluster"
cluster_up
must "the images: SPIRE's three, the plugin's, a client's, an HSM client's" images

say "The manifests"
unpatched=$scratch/unpatched
must "a copy with the tutorial's placeholders replaced" placeholders "$unpatched" oidc.example.org
check "MY_DISCOVERY_DOMAIN is where the tutorial says" placeholder_is MY_DISCOVERY_DOMAIN \
    ingress.yaml:2 oidc-dp-configmap.yaml:1 server-configmap.yaml:1
check "MY_EMAIL_ADDRESS is where the tutorial says" placeholder_is MY_EMAIL_ADDRESS \
    oidc-dp-configmap.yaml:1
check "the plugin's image is asked for in the newest version of the changelog" version_is_ours
check "\`apply\` refuses an overlay with placeholders, and names them" \
    apply_refuses ha MY_DISCOVERY_DOMAIN MY_REGISTRY MY_HSM_MODULE
check "\`apply\` refuses a file with placeholders, and names them" \
    apply_refuses base/oidc-dp-configmap.yaml MY_DISCOVERY_DOMAIN MY_EMAIL_ADDRESS
must "the namespaces are made" namespaces_made
for overlay in softhsm network-hsm ha; do
    check "every object of the overlay $overlay is valid to the API server, strictly" \
        overlay_is_valid $overlay
done
check "so is every file by itself, ingress and services included" files_are_valid
check "a misspelt field is refused" misspelt_is_refused

say "Pod Security level restricted, enforced in the namespace spire"
for overlay in softhsm network-hsm ha; do
    check "the server's pod of the overlay $overlay is admitted" is_restricted $overlay
done
check "the agent's pod would not be: host namespaces and address, hostPath, root" \
    why_not_restricted softhsm DaemonSet 'host namespaces' 'probe or lifecycle host' \
    'restricted volume types (volume "sockets"' 'runAsNonRoot' 'runAsUser=0'
check "the client's pod would not be for the agent's socket, and for that alone" \
    why_not_restricted base/client-deployment.yaml Deployment 'restricted volume types (volume "sockets"'
check "with the SPIFFE CSI driver in its place it is admitted" client_with_csi_is_restricted
kubectl delete namespace spire spire-agent >"$scratch/output"

say "Part 1: SPIRE, with keys in SoftHSM"
manifests=$scratch/k8s
must "a copy with what the test changes" made_for_this_host
must "certificates for what is not ACME's here" tls_make
must "a forwarder in the place of Services" forwarder
must "volumes" volumes 0
must "what the tutorial takes for granted: accounts, roles, agent; the HSM's settings, the PIN" quickstart
must "the tutorial's line for the server is taken" types_in "$manifests/base" "$part_1"
must "the server's pod gets Ready" pods_ready statefulset/spire-server spire 300
check "it has the containers spire-server and spire-oidc" names_both_containers
check "the tutorial's line for service and ingress is taken" types_in "$manifests/base" \
    'kubectl apply -f server-oidc-service.yaml -f ingress.yaml'
must "the agent's pod gets Ready" pods_ready daemonset/spire-agent spire-agent 300
check "k8s_psat attested it" attested
kid=$(authority 0)
check "the discovery provider serves the key that signs" await 30 oidc_of_has 0 "$kid"
check "the keys are on the token, says \`spire-hsm keys\` in the pod" keys
keys >"$scratch/keys.before"

say "Part 4: the client and S3, which MinIO stands in for"
must "MinIO trusts the discovery provider" minio_start
must "a bucket with test.txt" bucket_make "$bucket"
must "registration entries for agent and client" entries
must "the client's pod gets Ready" client_started
must "it fetches a JWT-SVID as the tutorial does, signed with that key" client_gets_token
check "with nothing but that, it copies test.txt from S3" client_opens_s3
check "another bucket is refused with 403" another_bucket_is_refused

say "Losses"
check "the server's pod is deleted, and another comes" pod_is_replaced
check "with the same keys, and its journal" same_keys
check "a new token from it opens S3" served_with "$kid"
check "its plugin is killed" plugin_killed
check "/live turns red, and the kubelet restarts the container" kubelet_restarts_it
check "with the same keys, and its journal" same_keys
check "a new token from it opens S3" served_with "$kid"
check "all is removed with the tutorial's lines" cleaned_up

say "Two servers, one HSM, PostgreSQL"
must "PostgreSQL" postgres_start "$(free_port)"
must "an HSM, which both reach by \`p11-kit server\`" hsm_itself
must "a copy of the overlay ha with what the test changes" ha_manifests
must "volumes" volumes 1 2
must "it is applied" ha_applied
must "both servers' pods get Ready" pods_ready statefulset/spire-server spire 300
must "the agent's pod gets Ready" pods_ready daemonset/spire-agent spire-agent 300
must "the client's pod gets Ready" pods_ready deployment/client default
must "registration entries for agent and client" entries
kid0=$(authority 0) kid1=$(authority 1)
check "each signs with a key of its own" [ "$kid0" != "$kid1" ]
check "the HSM holds two keys of each" [ "$(hsm_private_keys)" -eq 4 ]
must "each one's discovery provider serves the keys of both" both_providers_serve_both "$kid0" "$kid1"
check "a new token opens S3" served_with "$kid0"
check "server 0 is lost" lost 0
check "a new token, of server 1, opens S3" served_with "$kid1"
check "server 0 comes back with its key" back 0 "$kid0"
check "server 1 is lost" lost 1
check "a new token, of server 0, opens S3" served_with "$kid0"
check "server 1 comes back with its key" back 1 "$kid1"
check "the HSM holds these four keys still" [ "$(hsm_private_keys)" -eq 4 ]
check "all is removed" cleaned_up
