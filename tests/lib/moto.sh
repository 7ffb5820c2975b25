#!/bin/bash
# Prints the folder that holds moto_server, which plays AWS's IAM where commands are tried
# of which nothing real can run here: $MOTO_BIN; or where PATH finds it; or a cache folder,
# into which pip installs the version below.
. "$(dirname "$0")/cache.sh" moto 5.2.5

complete() {
    [ -x "$1/moto_server" ] && "$1/moto_server" --help >/dev/null 2>&1
}

build() {
    pip_install "$1" moto_server moto.server "moto==$version" flask flask-cors
}

provide "${MOTO_BIN-}" moto_server
