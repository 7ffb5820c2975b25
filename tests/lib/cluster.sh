# shellcheck shell=bash
# A Kubernetes of one node, every part of it real, on loopback and below $scratch. To be
# sourced after lib.sh, by root:
#
#   cluster_up           etcd, API server, controllers, scheduler, containerd, kubelet
#   image NAME CONFIG LAYER.tar...    an image of these layers, known to containerd
#   kubectl ...          of the version of the cluster, as its administrator
#   cluster_down         everything of it ended, unmounted and removed; also on exit
#
# There is no kube-proxy and no pod network: pods are to use the host's, and no address of
# a Service works. CAP_SYS_RESOURCE is not needed, nor is systemd.

kubernetes=$("$here/lib/kubernetes.sh") || exit 1
cluster=$scratch/cluster
containerd_socket=$cluster/containerd.sock
api_port=$(free_port)
kubelet_port=$(free_port)
etcd_port=$(free_port)
export KUBECONFIG=$cluster/kubeconfig
export PATH=$kubernetes:$PATH:/usr/sbin

ctr() {
    command ctr -a "$containerd_socket" -n k8s.io "$@"
}

## Configurations

cluster_pki() {
    local pki=$cluster/pki
    mkdir -p "$pki" && openssl genrsa -out "$pki/sa.key" 2048 &&
        openssl req -x509 -newkey rsa:2048 -nodes -keyout "$pki/ca.key" -out "$pki/ca.crt" \
            -days 2 -subj /CN=kubelet-clients &&
        openssl req -newkey rsa:2048 -nodes -keyout "$pki/client.key" -out "$pki/client.csr" \
            -subj /O=system:masters/CN=kube-apiserver &&
        openssl x509 -req -in "$pki/client.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" \
            -CAcreateserial -days 2 -out "$pki/client.crt" || return 1
    admin=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    echo "$admin,admin,admin,system:masters" >"$pki/tokens.csv"
}

cluster_kubeconfig() {
    kubectl config set-cluster test --server="https://127.0.0.1:$api_port" \
        --certificate-authority="$cluster/pki/apiserver.crt" --embed-certs &&
        kubectl config set-credentials admin --token="$admin" &&
        kubectl config set-context test --cluster=test --user=admin &&
        kubectl config use-context test
}

# Without CAP_SYS_RESOURCE nothing may be shielded from the kernel's out-of-memory killer.
cluster_containerd_conf() {
    mkdir -p "$cluster/cni"
    echo '{"cniVersion": "0.4.0", "name": "lo", "type": "loopback"}' >"$cluster/cni/lo.conf"
    cat >"$cluster/containerd.toml" <<-END
	version = 2
	root = "$cluster/containerd/root"
	state = "$cluster/containerd/state"
	[grpc]
	  address = "$containerd_socket"
	[plugins."io.containerd.grpc.v1.cri"]
	  sandbox_image = "test.local/pause:1"
	  restrict_oom_score_adj = true
	  stream_server_address = "127.0.0.1"
	  [plugins."io.containerd.grpc.v1.cri".cni]
	    bin_dir = "/usr/lib/cni"
	    conf_dir = "$cluster/cni"
	END
}

cluster_kubelet_conf() {
    cat >"$cluster/kubelet.yaml" <<-END
	apiVersion: kubelet.config.k8s.io/v1beta1
	kind: KubeletConfiguration
	address: 127.0.0.1
	port: $kubelet_port
	healthzPort: 0
	containerRuntimeEndpoint: unix://$containerd_socket
	authentication:
	  anonymous: {enabled: false}
	  webhook: {enabled: true}
	  x509: {clientCAFile: $cluster/pki/ca.crt}
	authorization: {mode: Webhook}
	cgroupDriver: cgroupfs
	failCgroupV1: false
	failSwapOn: false
	enforceNodeAllocatable: []
	makeIPTablesUtilChains: false
	resolvConf: /dev/null
	podLogsDir: $cluster/pods
	evictionHard: {memory.available: "1Mi"}
	imageGCHighThresholdPercent: 100
	syncFrequency: 10s
	END
}

## The parts

cluster_etcd() {
    local url=http://127.0.0.1
    start etcd etcd --data-dir "$cluster/etcd" --listen-client-urls $url:"$etcd_port" \
        --advertise-client-urls $url:"$etcd_port" --listen-peer-urls $url:0 \
        --initial-advertise-peer-urls $url:0 --initial-cluster default=$url:0
    await 20 curl -fsS $url:"$etcd_port/health"
}

cluster_apiserver() {
    local pki=$cluster/pki
    start apiserver kube-apiserver --etcd-servers="http://127.0.0.1:$etcd_port" \
        --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port="$api_port" \
        --cert-dir="$pki" --token-auth-file="$pki/tokens.csv" --authorization-mode=RBAC \
        --service-account-key-file="$pki/sa.key" --service-account-signing-key-file="$pki/sa.key" \
        --service-account-issuer=https://kubernetes.default.svc \
        --service-cluster-ip-range=10.96.0.0/24 --endpoint-reconciler-type=none \
        --kubelet-client-certificate="$pki/client.crt" --kubelet-client-key="$pki/client.key" \
        --kubelet-preferred-address-types=Hostname
    await 60 test -s "$cluster/pki/apiserver.crt" && cluster_kubeconfig &&
        await 60 kubectl get --raw=/readyz
}

cluster_controllers() {
    local common=(--kubeconfig="$KUBECONFIG" --bind-address=127.0.0.1 --leader-elect=false)
    start controllers kube-controller-manager "${common[@]}" --secure-port="$(free_port)" \
        --cert-dir="$cluster/controllers" --use-service-account-credentials \
        --service-account-private-key-file="$cluster/pki/sa.key" \
        --root-ca-file="$cluster/pki/apiserver.crt"
    start scheduler kube-scheduler "${common[@]}" --secure-port="$(free_port)" \
        --cert-dir="$cluster/scheduler"
    await 60 kubectl get serviceaccount default
}

cluster_containerd() {
    cluster_containerd_conf
    start containerd containerd --config "$cluster/containerd.toml"
    await 20 ctr version && pause_image
}

# Its name is "localhost", so that what asks for it by name stays on loopback.
cluster_kubelet() {
    cluster_kubelet_conf
    start kubelet kubelet --config="$cluster/kubelet.yaml" --kubeconfig="$KUBECONFIG" \
        --root-dir="$cluster/kubelet" --cert-dir="$cluster/kubelet-pki" \
        --hostname-override=localhost
    await 60 kubectl get node localhost && kubectl wait node localhost --for=condition=Ready --timeout=120s
}

# Two kubelets would share the groups of processes that the pods are put into.
cluster_alone() {
    local groups
    groups=$(cluster_groups)
    echo "$groups"
    [ -z "$groups" ]
}

cluster_up() {
    trap 'status=$?; cluster_down; (exit $status); finish' EXIT
    mkdir -p "$cluster"
    must "no other Kubernetes on this machine" cluster_alone
    must "keys and certificates of the cluster" cluster_pki
    must "etcd" cluster_etcd
    must "the API server, $(kube-apiserver --version)" cluster_apiserver
    must "controllers and scheduler" cluster_controllers
    must "containerd" cluster_containerd
    must "kubelet, and the node is Ready" cluster_kubelet
}

## Images

image() {
    local name=$1 config=$2 work layer layers=() hashes=()
    shift 2
    work=$(mktemp -d "$cluster/image.XXXXXX")
    for layer; do
        ln -s "$(realpath "$layer")" "$work/${#layers[@]}.tar"
        hashes+=("sha256:$(sha256sum <"$layer" | cut -c 1-64)")
        layers+=("${#layers[@]}.tar")
    done
    jq -n --argjson config "$config" '{architecture: "amd64", os: "linux", config: $config,
        rootfs: {type: "layers", diff_ids: $ARGS.positional}}' \
        --args "${hashes[@]}" >"$work/config.json"
    jq -n --arg name "$name" '[{Config: "config.json", RepoTags: [$name],
        Layers: $ARGS.positional}]' --args "${layers[@]}" >"$work/manifest.json"
    tar -C "$work" -chf - . | ctr images import - && rm -rf "$work"
}

# layer TAR FILE=PATH...: a layer with these files at these paths.
layer() {
    local tar=$1 root file
    shift
    root=$(mktemp -d "$cluster/layer.XXXXXX")
    for file; do
        install -D -m 755 "${file%%=*}" "$root/${file#*=}"
    done
    chmod 755 "$root"
    tar -C "$root" --owner=0 --group=0 -cf "$tar" . && rm -rf "$root"
}

# What holds a pod's namespaces: it only waits for its end.
pause_image() {
    gcc -static -Os -o "$cluster/pause" -xc - <<-END
	#include <signal.h>
	#include <unistd.h>
	int main(void)
	{
	    sigset_t end;
	    int got;
	    sigemptyset(&end);
	    sigaddset(&end, SIGTERM);
	    sigaddset(&end, SIGINT);
	    sigprocmask(SIG_BLOCK, &end, 0);
	    return sigwait(&end, &got);
	}
	END
    layer "$cluster/pause.tar" "$cluster/pause=pause" &&
        image test.local/pause:1 '{"Entrypoint": ["/pause"]}' "$cluster/pause.tar"
}

## The end

# The control groups of pods, the innermost first.
cluster_groups() {
    find /sys/fs/cgroup -depth -type d -path '*/kubepods*' 2>/dev/null
}

cluster_shims() {
    local pid
    for pid in $(grep -lzxF -- "$containerd_socket" /proc/[0-9]*/cmdline 2>/dev/null); do
        pid=${pid#/proc/}
        pid=${pid%/cmdline}
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != containerd-shim ] || echo "$pid"
    done
}

cluster_mounts() {
    awk -v below="$scratch/" 'index($2, below) == 1 { print $2 }' /proc/mounts | tac
}

# none LIST REMOVE: whatever LIST prints is removed; is nothing left?
none() {
    local one
    while read -r one; do
        "$2" "$one" 2>/dev/null
    done < <("$1")
    [ -z "$("$1")" ]
}

cluster_down() {
    local name pid
    [ -d "$cluster" ] || return 0
    exec >&3 2>&4
    stop kubelet
    if running containerd; then
        for name in $(ctr tasks ls -q 2>/dev/null); do
            ctr tasks rm -f "$name" >/dev/null 2>&1
        done
    fi
    stop containerd
    for pid in $(cluster_shims); do
        kill -KILL "$pid"
    done
    await 10 none cluster_groups rmdir || echo "left: $(cluster_groups)"
    await 10 none cluster_mounts umount || echo "left: $(cluster_mounts)"
}
