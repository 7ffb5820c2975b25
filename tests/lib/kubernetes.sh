#!/bin/bash
# Prints the folder that holds kube-apiserver, kube-controller-manager, kube-scheduler,
# kubelet and kubectl of the version below, which are built with Go into a cache folder
# when they are not there yet (about ten minutes of one core, once).
. "$(dirname "$0")/cache.sh" kubernetes 1.34.4

libraries=0.34.4 # the version that Kubernetes' own modules have of their own
programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl)

complete() {
    local program
    for program in "${programs[@]}"; do
        [ -x "$1/$program" ] || return 1
    done
    [ "$("$1/kube-apiserver" --version)" = "Kubernetes v$version" ]
}

# Kubernetes is one module with its parts beside it, replaced by folders of its repository
# in its go.mod, which the module proxy's archive does not have: the same parts come from
# where they are published.
module() {
    local gomod=$1 program
    echo "module spire-hsm/kubernetes"
    grep -E '^(go|godebug) ' "$gomod"
    echo "require k8s.io/kubernetes v$version"
    echo "replace ("
    sed -n "s|^\t*\(k8s.io/[^ ]*\) => ./staging.*|\t\1 => \1 v$libraries|p" "$gomod"
    echo ")"
    {
        echo "//go:build tools"
        echo "package tools"
        for program in "${programs[@]}"; do
            echo "import _ \"k8s.io/kubernetes/cmd/$program\""
        done
    } >tools.go
}

build() {
    local work=$1 program gomod stamp=k8s.io/component-base/version
    cd "$work"
    say "fetching $version"
    gomod=$(go mod download -json "k8s.io/kubernetes@v$version" |
        sed -n 's/^\t"GoMod": "\(.*\)",*$/\1/p')
    go_check "$(sed -n 's/^go //p' "$gomod")"
    module "$gomod" >go.mod
    mkdir bin
    for program in "${programs[@]}"; do
        say "building $program into $home"
        GOFLAGS=-mod=mod nice -n 10 go build -p 1 -o "bin/$program" -ldflags "-s -w
            -X $stamp.gitVersion=v$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=34" \
            "k8s.io/kubernetes/cmd/$program" 2>"$program.err" || {
            tail -n 40 "$program.err" >&2
            return 1
        }
    done
}

provide "" no-kubernetes-of-the-PATH
