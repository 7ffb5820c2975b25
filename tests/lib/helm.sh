#!/bin/bash
# Prints the folder that holds helm of the version below: where PATH finds it, or a cache
# folder, into which it is built with Go when it is not there yet (about three minutes, once).
. "$(dirname "$0")/cache.sh" helm 3.18.6

complete() {
    [ -x "$1/helm" ] && [ "$("$1/helm" version --template '{{.Version}}' 2>/dev/null)" = "v$version" ]
}

build() {
    local helm=helm.sh/helm/v3
    CGO_ENABLED=0 go_build "$1" "-X $helm/internal/version.version=v$version" $helm "v$version" $helm/cmd/helm
}

provide "" helm
