#!/bin/bash
# Prints the folder that holds spire-server, spire-agent and oidc-discovery-provider of
# version $SPIRE_VERSION (1.14.5 if it is not set; 1.15.3 is tested as well): $SPIRE_BIN; or
# where PATH finds them; or a cache folder, into which they are built with Go when they are
# not there yet (about five minutes, once).
. "$(dirname "$0")/cache.sh" spire "${SPIRE_VERSION:-1.14.5}"

# A build of ours says "1.14.5-dev-unk", a release "1.14.5".
complete() {
    local program said
    for program in spire-server spire-agent oidc-discovery-provider; do
        [ -x "$1/$program" ] || return 1
        said=$("$1/$program" --version 2>&1 | head -n 1)
        [[ $said == "$version" || $said == "$version"-* ]] || return 1
    done
}

build() {
    local spire=github.com/spiffe/spire ejbca=github.com/Keyfactor/ejbca-go-client-sdk
    command -v "$(go env CC)" >/dev/null || die "SPIRE's sqlite3 needs a C compiler"
    # The module proxy does not hand out version 1.1.0, which SPIRE 1.15 asks for. It is the
    # client of an UpstreamAuthority that no test configures; 1.14 is built with 1.0.2.
    [[ $version == 1.14.* ]] || go_replace=$ejbca=$ejbca@v1.0.2
    CGO_ENABLED=1 go_build "$1" "" $spire "v$version" $spire/cmd/spire-server \
        $spire/cmd/spire-agent $spire/support/oidc-discovery-provider
}

provide "${SPIRE_BIN-}" spire-server
