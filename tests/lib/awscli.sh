#!/bin/bash
# Prints the folder that holds an aws client which takes AWS_ENDPOINT_URL: $AWSCLI_BIN; or
# where PATH finds one; or a cache folder, into which pip installs the version below.
. "$(dirname "$0")/cache.sh" awscli 1.45.11

# The variable came with 1.29 and 2.13. The environment is empty, as callers have it: not
# every aws that a PATH leads to bears it.
complete() {
    local said
    said=$(env -i PATH="$PATH" HOME=/nonexistent "$1/aws" --version 2>/dev/null) || return 1
    [[ $said =~ ^aws-cli/([0-9]+)\.([0-9]+)\. ]] || return 1
    case ${BASH_REMATCH[1]} in
        1) ((BASH_REMATCH[2] >= 29)) ;;
        *) ((BASH_REMATCH[2] >= 13)) ;;
    esac
}

build() {
    pip_install "$1" aws awscli "awscli==$version"
}

provide "${AWSCLI_BIN-}" aws
