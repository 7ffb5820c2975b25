#!/bin/bash
# Prints the folder that holds SPIRE's three programs linked statically, as SPIRE's own
# images have them: no loader, no library. Compiled they are already (tests/lib/spire.sh).
. "$(dirname "$0")/cache.sh" spire-static 1.14.5

complete() {
    local program
    for program in spire-server spire-agent oidc-discovery-provider; do
        [ -x "$1/$program" ] && ! readelf -l "$1/$program" | grep -q INTERP || return 1
    done
}

# The linker warns of what a static glibc cannot do by itself (names of hosts and users by
# way of NSS), for which Go has code of its own.
build() {
    local spire=github.com/spiffe/spire
    CGO_ENABLED=1 go_build "$1" "-s -w -linkmode=external -extldflags=-static" $spire \
        "v$version" $spire/cmd/spire-server $spire/cmd/spire-agent \
        $spire/support/oidc-discovery-provider 2> >(grep -v -e /usr/bin/ld: -e 'statically linked' >&2)
}

provide "" no-static-spire-of-the-PATH
