#!/bin/bash
# What is installed beside the program: manual pages, units for a confined spire-server, the
# Debian package. With CHROOT=1 (`make test-deb`) the package is also installed into a fresh
# Debian and removed again, which fetches some 150 MB.
. "$(dirname "$0")/../lib/lib.sh" packages
. "$here/lib/parts.sh"
. "$here/lib/chroot.sh"

packaging=$here/../packaging
units=$scratch/units
live_port=$(free_port)

## Versions

# What version.sh says in a repository, after each step of its life.
version_after() { # COMMAND-IN-THE-REPOSITORY PATTERN
    local said
    (cd "$repository" && eval "$1") >/dev/null && said=$("$repository/packaging/version.sh")
    echo "after \"$1\": $said; expected $2"
    grep -qxE "$2" <<<"$said"
}

# released VERSION: the commit that makes it one.
released() {
    echo "$1" >packaging/VERSION && printf '## %s (2026-01-01)\n\n- More.\n' "$1" >packaging/CHANGELOG.md &&
        git add . && git commit -qm "release $1"
}

versions_follow_releases() {
    local hash='g[0-9a-f]{12}'
    # a machine may have no name to commit under
    local -x GIT_AUTHOR_NAME=test GIT_AUTHOR_EMAIL=test GIT_COMMITTER_NAME=test GIT_COMMITTER_EMAIL=test
    repository=$scratch/repository
    mkdir -p "$repository/packaging"
    cp "$packaging/version.sh" "$repository/packaging"
    version_after 'echo 1.2.0-dev >packaging/VERSION' '1\.2\.0-dev\+unknown' &&
        version_after 'git init -q && git add . && git commit -qm x' "1\\.2\\.0-dev\\+$hash" &&
        version_after 'echo 1.2.0 >packaging/VERSION; git commit -qam "no changelog"' "1\\.2\\.1-dev\\+$hash" &&
        version_after 'echo 1.2.0-dev >packaging/VERSION; git commit -qam x' "1\\.2\\.0-dev\\+$hash" &&
        version_after 'released 1.2.0' '1\.2\.0' &&
        version_after 'git archive HEAD --prefix=tree/ | tar -x && cp -r tree/packaging . && rm -r tree' '1\.2\.0' &&
        version_after 'echo >>packaging/version.sh' "1\\.2\\.1-dev\\.0\\+$hash\\.dirty" &&
        version_after 'git commit -qam x' "1\\.2\\.1-dev\\.1\\+$hash" &&
        version_after 'echo 1.3.0-dev >packaging/VERSION; git commit -qam x' "1\\.3\\.0-dev\\.2\\+$hash" &&
        [ "$(cd "$repository" && git show -s --format=%s "$(packaging/version.sh --release)")" = "release 1.2.0" ] &&
        version_after 'released 1.3.0' '1\.3\.0' &&
        version_after 'rm -rf .git' '1\.3\.0' &&
        version_after 'echo 1.3.0 1700000000 >packaging/VERSION' '1\.3\.0' &&
        [ "$("$repository/packaging/version.sh" --epoch)" = 1700000000 ]
}

# In a clone of HEAD's, where version 9.9.9 is made.
release_made() {
    repository=$scratch/clone
    git clone -q "$here/.." "$repository" && cd "$repository" && git config user.name test &&
        git config user.email test && echo 9.9.9 >packaging/VERSION &&
        sed -i '0,/^## /s//## 9.9.9 (2026-01-01)\n\n- All of it.\n\n## /' packaging/CHANGELOG.md &&
        git commit -qam "release 9.9.9"
}

# may_be_released COMMAND SENTENCE: what `make release` says after COMMAND, which is undone again.
may_be_released() {
    (cd "$repository" && eval "$1") || return 1
    (cd "$repository" && ! packaging/release.sh build check) >"$scratch/said" 2>&1
    local refused=$?
    cat "$scratch/said"
    (cd "$repository" && git reset -q --hard "$released" && git clean -qfd && git tag -d v9.9.9) >/dev/null 2>&1
    grep -F "$2" "$scratch/said" && [ $refused = "${3-0}" ]
}

releases_are_checked() {
    local released
    (release_made) && repository=$scratch/clone && released=$(git -C "$repository" rev-parse HEAD) &&
        may_be_released true "this commit is 9.9.9" 1 &&
        may_be_released 'git tag v9.9.9' "this commit is 9.9.9" 1 &&
        may_be_released 'echo >>README.md' "files differ from the commit: M README.md" &&
        may_be_released 'touch more' "files differ from the commit: ?? more" &&
        may_be_released 'sed -i /9.9.9/d packaging/CHANGELOG.md && git commit -qa --amend -m x' 'has no entry "## 9.9.9 (YEAR-MONTH-DAY)"' &&
        may_be_released 'git commit -q --allow-empty -m more' "this commit is 9.9.10-dev.1+g" &&
        may_be_released 'echo 9.10.0-dev >packaging/VERSION && git commit -qam more' "says 9.10.0-dev, which is no release" &&
        may_be_released 'git tag v9.9.9 HEAD^' "the tag v9.9.9 is on"
}

# For dpkg, as packaging/deb.sh spells them.
versions_sort() {
    local -a order=(0.1.0-dev+g0123 0.1.0 0.1.1-dev.1+g89ab 0.1.1 0.2.0-dev.9+g4567 0.2.0-dev.10+gcdef 0.2.0)
    local i
    for ((i = 1; i < ${#order[@]}; i++)); do
        dpkg --compare-versions "${order[i - 1]/-/\~}-1" lt "${order[i]/-/\~}-1" || { echo "${order[i]}"; return 1; }
    done
}

## The programs of others

# parts.sh has a umask of 077: whoever asks first must not make the cache his own.
cache_is_for_everybody() {
    (
        umask 077
        export XDG_CACHE_HOME=$scratch/cache
        bash -c '. "$0" probe 1
            complete() { [ -e "$1/probe" ]; }
            build() { mkdir "$1/bin" && touch "$1/bin/probe"; }
            provide "" no-probe-in-the-PATH' "$here/lib/cache.sh" >"$scratch/probe"
    ) && [ "$(stat -c %a "$(<"$scratch/probe")" "$(<"$scratch/probe")/probe" | xargs)" = "755 644" ]
}

## The SBOM

# dpkg-shlibdeps has found out for itself what the program needs.
sbom_has_what_the_package_depends_on() {
    local package
    make -C "$here/.." --no-print-directory BUILD=build sbom
    for package in $(dpkg-deb -f "$deb" Depends | sed -e 's/([^)]*)//g' -e 's/,//g'); do
        jq -e --arg id "SPDXRef-Package-$package" 'any(.relationships[];
            .relationshipType == "DYNAMIC_LINK" and .relatedSpdxElement == $id)' \
            "$here/../build/sbom.spdx.json" || return 1
    done
    jq -e '[.relationships[] | select(.relationshipType == "STATIC_LINK").relatedSpdxElement] ==
        ["SPDXRef-Package-libjansson-dev", "SPDXRef-Package-libssl-dev"]' "$here/../build/sbom.spdx.json"
}

## Manual pages

pages_are_well_formed() {
    ! mandoc -T lint -W warning "$packaging"/man/* 2>&1 | grep .
}

pages_say_the_version() {
    local page version
    version=$("$SPIRE_HSM" --version) && version=${version%%+*}
    for page in "$scratch"/deb/usr/share/man/man*/*.gz; do
        zcat "$page" | mandoc -T ascii | col -bx | tail -n 1 | grep -F "$version  " || return 1
    done
}

# Commands and options in `--help` against the page, and none in the page that is not there.
page_has_all_options() {
    local command
    man -l -Tascii -E UTF-8 "$packaging/man/spire-hsm.1" 2>/dev/null | col -bx >"$scratch/page"
    for command in "" check keys prune accept evidence bench bundle; do
        # shellcheck disable=SC2086 # no command is no argument
        "$SPIRE_HSM" $command --help
    done >"$scratch/help"
    diff <(options <"$scratch/page") <(options <"$scratch/help")
}

options() {
    grep -oE -- '(^|[^a-z-])--[a-z][a-z-]+' | grep -oE -- '--.*' | sort -u
}

## Units

units_verify() {
    mkdir "$units"
    cp -r "$packaging"/systemd/* "$units"
    # it looks whether the program is there
    sed -i "s|^ExecStart=/usr/bin/spire-server|ExecStart=$spire/spire-server|" "$units/spire-server.service"
    ! systemd-analyze verify --man=no "$units"/*.service "$units"/*.timer 2>&1 | grep .
}

server_is_confined() {
    systemd-analyze security --offline=true --no-pager --threshold=15 "$units/spire-server.service"
}

files_are_made() { # the folder of the server's and others' sockets
    local root=$scratch/tmpfiles
    mkdir -p "$root/etc"
    printf 'spire:x:1000:1000::/:/bin/false\n' >"$root/etc/passwd"
    printf 'spire:x:1000:\n' >"$root/etc/group"
    systemd-tmpfiles --root="$root" --create "$units/tmpfiles.conf" &&
        [ "$(stat -c '%a' "$root/run/spire")" = 755 ]
}

## Is the server alive? The unit's own command line, asked once.

alive_says_the_unit() {
    local command
    command=$(sed -n -e "s|:8080/|:$live_port/|" -e 's/--retry 20 /--retry 0 /' -e 's/^ExecStart=//p' \
        "$units/spire-server-health.service")
    [[ $command == *" --retry 0 "*":$live_port/live" ]] && $command
}

server_starts() {
    conf_with "\$a health_checks { listener_enabled = true bind_address = \"127.0.0.1\" bind_port = \"$live_port\" }" &&
        server_start
}

kill_the_key_manager() {
    local pid
    for pid in $(descendants "${pids[server]}"); do
        if grep -qz '^KeyManager=KeyManager$' "/proc/$pid/environ" &&
            [ "$(tr '\0' ' ' <"/proc/$pid/cmdline")" != "spire-hsm-worker worker " ]; then
            kill -s KILL "$pid"
            return
        fi
    done
    return 1
}

## The Debian package

deb_is_made() {
    make -C "$here/.." --no-print-directory BUILD=build deb-now && deb=$(echo "$here"/../build/deb/spire-hsm_*.deb)
}

lintian_is_content() {
    ! lintian --fail-on none --tag-display-limit 0 "$here"/../build/deb/*.changes 2>/dev/null | grep .
}

deb_has() { # PATH...
    local path
    dpkg-deb --fsys-tarfile "$deb" | tar -t >"$scratch/listing"
    for path in "$@"; do
        grep -x "./$path" "$scratch/listing" || { cat "$scratch/listing"; return 1; }
    done
}

# In the package dh_compress has packed the long ones.
every_document_is_packed() {
    (cd "$here/.." && find SECURITY.md docs examples -type f | sort) >"$scratch/documents"
    tar -tzf "$here/../build/spire-hsm-$("$packaging/version.sh").tar.gz" | sed 's|^[^/]*/||' | sort >"$scratch/tarball"
    sed -n -e 's/\.gz$//' -e 's|^\./usr/share/doc/spire-hsm/||p' "$scratch/listing" | sort >"$scratch/package"
    ! { comm -23 "$scratch/documents" "$scratch/tarball" && comm -23 "$scratch/documents" "$scratch/package"; } | grep .
}

deb_starts_nothing() { # no unit, nothing that runs when it is installed
    not grep -E '^\./(etc|lib|usr/lib)/' "$scratch/listing" &&
        [ "$(dpkg-deb --ctrl-tarfile "$deb" | tar -t | sort | xargs)" = "./ ./control ./md5sums" ]
}

deb_runs() {
    dpkg-deb -x "$deb" "$scratch/deb" &&
        [ "$("$scratch/deb/usr/libexec/spire-hsm" --version)" = "$("$here/../build/spire-hsm" --version)" ]
}

# dh_strip and its like must have left the worker as the front was built with it.
deb_checks_a_token() {
    printf 'module = "%s"\ntoken = "pkcs11:token=spire"\npin_file = "%s"\nkey_identifier_value = "deb"\n' \
        /usr/lib/softhsm/libsofthsm2.so "$scratch/etc/hsm-pin" >"$scratch/deb_data"
    "$scratch/deb/usr/libexec/spire-hsm" check --trust-domain example.org --config "$scratch/deb_data"
}

install_there() {
    in_chroot apt-get -q update &&
        in_chroot apt-get -qy --no-install-recommends install "/${deb##*/}" softhsm2
}

# A token of its own, a key made, verified and destroyed, by the program found in PATH.
check_there() {
    cat >"$debian/tmp/plugin_data" <<-'END'
	module = "/usr/lib/softhsm/libsofthsm2.so"
	token = "pkcs11:token=spire"
	pin = "1234"
	key_identifier_value = "test"
	END
    in_chroot softhsm2-util --init-token --free --label spire --pin 1234 --so-pin 5678 &&
        in_chroot spire-hsm check --trust-domain example.org --config /tmp/plugin_data
}

gone_there() {
    in_chroot apt-get -qy purge spire-hsm && chroot_package_is_gone
}

must "make deb makes a package" deb_is_made
check "lintian has nothing to say" lintian_is_content
check "program, command, pages, example and units are where they belong" deb_has \
    usr/libexec/spire-hsm usr/libexec/spire-hsm-worker usr/bin/spire-hsm usr/share/man/man1/spire-hsm.1.gz \
    usr/share/man/man5/spire-hsm.conf.5.gz usr/share/doc/spire-hsm/examples/server.conf \
    usr/share/doc/spire-hsm/examples/systemd/spire-server.service.d/spire-hsm.conf \
    usr/share/doc/spire-hsm/examples/prometheus/spire-hsm.rules.yml \
    usr/share/doc/spire-hsm/examples/grafana/spire-hsm.json
check "SECURITY.md and all of docs/ and examples/ are in it, and in the tarball" every_document_is_packed
check "installing it starts nothing and changes no unit" deb_starts_nothing
check "its program runs and says the version" deb_runs
check "so do its manual pages" pages_say_the_version
must "a token is made" token_make
check "its programs are a pair: the token passes every check" deb_checks_a_token
check "its dependencies are all in the SBOM" sbom_has_what_the_package_depends_on
check "versions follow releases, and are SemVer" versions_follow_releases
check "later ones sort behind earlier ones" versions_sort
if git -C "$here/.." rev-parse --verify --quiet HEAD >/dev/null; then
    check "make release refuses all but a release's own commit" releases_are_checked
else
    echo "  skip  make release: this is no git clone"
fi
check "what is cached can be read by everybody, whoever asked first" cache_is_for_everybody
check "manual pages are well formed" pages_are_well_formed
check "spire-hsm(1) has the options of --help, all of them and no others" page_has_all_options
check "systemd finds no fault with the units" units_verify
check "the server's unit is confined: systemd's exposure level is 1.5 at most" server_is_confined
check "the folder for sockets is made, open to others" files_are_made

must "a server starts, with the listener the health unit asks" server_starts
check "the health unit's command finds it alive" await 90 alive_says_the_unit
must "its KeyManager is killed" kill_the_key_manager
check "the health unit's command finds it dead" await 180 not alive_says_the_unit
check "which spire-server healthcheck does not see" server_healthy

if [ -n "${CHROOT-}" ]; then
    must "a fresh Debian is made" chroot_make "$deb"
    must "the package is installed there with apt" install_there
    check "spire-hsm --version runs there" in_chroot spire-hsm --version
    check "spire-hsm check is content with a SoftHSM token there" check_there
    check "the package is removed without a trace" gone_there
fi
