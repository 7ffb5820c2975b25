# shellcheck shell=bash
# The manifests of examples/k8s in a test's hands: what the API server and its Pod Security
# say of them as they are, and copies with what the test changes. Sourced by tests/real/k8s.sh.

## The manifests, as a reader makes them

# placeholders FOLDER DOMAIN: a copy of the examples with all of them replaced.
placeholders() {
    cp -R "$examples" "$1" &&
        find "$1" -name '*.yaml' -exec sed -i -e "s/MY_DISCOVERY_DOMAIN/$2/g" \
            -e "s/MY_EMAIL_ADDRESS/user@example.org/" -e "s/MY_REGISTRY/$registry/" \
            -e "s|MY_HSM_MODULE|/usr/lib/softhsm/libsofthsm2.so|" {} +
}

# In as many places as the tutorial's table says; the lines above them tell what to do.
placeholder_is() {
    local word=$1 file count
    shift
    for file; do
        count=${file#*:}
        file=$examples/base/${file%:*}
        [ "$(grep -c "^[^#]*$word" "$file")" = "$count" ] || return 1
        [ "$(grep -c "# [T]ODO: Replace $word" "$file")" = "$count" ] || return 1
    done
}

# The plugin's image is that of the newest version in the changelog.
version_is_ours() {
    grep -rho 'MY_REGISTRY/spire-hsm:.*' "$examples" | sort -u | tee "$scratch/version"
    [ "$(<"$scratch/version")" = "MY_REGISTRY/spire-hsm:$(sed -nE 's/^## [^0-9]*([0-9]+\.[0-9]+\.[0-9]+).*/\1/p' \
        "$here/../packaging/CHANGELOG.md" | head -n 1)" ]
}

# Whole and, for files, one by one; `apply` says which placeholders it found.
apply_refuses() {
    local word
    not "$examples/apply" "$1" --dry-run=server >"$scratch/refusal" 2>&1
    cat "$scratch/refusal"
    shift
    for word; do
        grep -q "$word is still to be replaced" "$scratch/refusal" || return 1
    done
    not grep -qE 'created|configured' "$scratch/refusal"
}

dry_run() {
    kubectl apply --dry-run=server --validate=strict "$@"
}

overlay_is_valid() {
    "$unpatched/apply" "$1" --dry-run=server --validate=strict
}

# One by one, as `kubectl apply -f` would.
files_are_valid() {
    local file
    for file in "$unpatched"/base/*.yaml; do
        case $file in */kustomization.yaml) continue ;; esac
        dry_run -f "$file" || return 1
    done
}

misspelt_is_refused() {
    sed 's/readOnlyRootFilesystem/readOnlyRootFileSystem/' \
        "$unpatched/base/server-statefulset.yaml" >"$scratch/misspelt.yaml"
    dry_run -f "$scratch/misspelt.yaml" >"$scratch/refusal" 2>&1
    grep 'unknown field.*readOnlyRootFileSystem' "$scratch/refusal"
}

## Pod Security

rendered() {
    if [ -d "$1" ]; then kubectl kustomize "$1"; else cat "$1"; fi
}

# pods_of TARGET KIND: the pod that this controller would make, in the namespace spire.
pods_of() {
    rendered "$unpatched/$1" | kubectl create --dry-run=client -o json -f - | jq --arg kind "$2" '
        select(.kind == $kind) | (.spec.volumeClaimTemplates // []) as $claims |
        .spec.template | {apiVersion: "v1", kind: "Pod",
            metadata: (.metadata + {name: "a-pod", namespace: "spire"}),
            spec: (.spec | del(.serviceAccountName) | .volumes += ($claims | map({
                name: .metadata.name, persistentVolumeClaim: {claimName: .metadata.name}})))}'
}

is_restricted() {
    pods_of "$1" StatefulSet | kubectl create --dry-run=server --validate=strict -f -
}

# why_not_restricted TARGET KIND REASON...: its pod is refused, for these reasons alone.
why_not_restricted() {
    local said reason count
    pods_of "$1" "$2" | kubectl create --dry-run=server -f - >"$scratch/refusal" 2>&1 && return 1
    cat "$scratch/refusal"
    said=$(sed -n 's/.*violates PodSecurity "restricted:latest": //p' "$scratch/refusal")
    shift 2
    count=$(sed 's/([^()]*)//g' <<<"$said" | tr , '\n' | grep -c .)
    for reason; do
        [[ $said == *"$reason"* ]] || return 1
    done
    [ "$count" -eq $# ]
}

client_with_csi_is_restricted() {
    pods_of base/client-deployment.yaml Deployment |
        jq '(.spec.volumes[] | select(.hostPath)) |=
            {name, csi: {driver: "csi.spiffe.io", readOnly: true}}' |
        kubectl create --dry-run=server --validate=strict -f -
}

## What the test changes

fill_in() {
    sed -e "s/@API@/$api_port/g" -e "s/@HEALTH@/$health/g" -e "s/@OIDCHEALTH@/$oidc_health/g" \
        -e "s/@AGENTHEALTH@/$agent_health/g" -e "s/@MINIO@/${s3_address#*:}/g" \
        -e "s|@SOCKETS@|$scratch/sockets|g" -e "s|@HSM@|$scratch/hsm|g"
}

# patched FILE PATCH: FILE with tests/real/k8s/PATCH laid over it.
patched() {
    local work
    work=$(mktemp -d "$scratch/patch.XXXXXX")
    cp "$1" "$work/file.yaml"
    fill_in <"$here/real/k8s/$2" >"$work/patch.yaml"
    printf '%s\n' 'resources: [file.yaml]' 'patches: [{path: patch.yaml}]' >"$work/kustomization.yaml"
    kubectl kustomize "$work" >"$1"
}

# Everything on loopback, and what is one address in a cluster at that of the forwarder.
on_this_host() {
    local base=$manifests/base
    # shellcheck disable=SC2016 # the server puts in the number
    sed -i -e 's/"0.0.0.0"/"127.0.0.1"/' -e "s/\"8081\"/\"$grpc\${ORDINAL}\"/" \
        -e "s/\"8080\"/\"$health\${ORDINAL}\"/" -e "s|https://127.0.0.1|$issuer|" \
        "$base/server-configmap.yaml"
    # shellcheck disable=SC2016
    sed -i -e "s/8008/$oidc_health\${ORDINAL}/" -e "s/\":443\"/\"127.0.0.1:$oidc\${ORDINAL}\"/" \
        "$manifests/ha/oidc-dp-configmap.yaml"
    sed -e '/^#/d' "$manifests/ha/oidc-dp-configmap.yaml" >"$base/oidc-dp-configmap.yaml"
    sed -i -e 's/"spire-server.spire"/"127.0.0.1"/' -e "s/\"8081\"/\"$front\"/" \
        -e "s/10250/$kubelet_port/" -e "s/9982/$agent_health/" "$base/agent-configmap.yaml"
    sed -i 's/: restricted/: privileged/' "$base/spire-namespace.yaml"
    sed -i 's/127.0.0.1/oidc.example.org/' "$base/ingress.yaml" # takes no address
    patched "$base/server-statefulset.yaml" server-statefulset.yaml &&
        patched "$base/agent-daemonset.yaml" agent-daemonset.yaml &&
        patched "$base/client-deployment.yaml" client-deployment.yaml
}

made_for_this_host() {
    placeholders "$manifests" 127.0.0.1 && on_this_host
}
