#!/bin/bash
# Prints the folder that holds root.tar, a small Debian 12 with what containers of the
# Kubernetes test need and the machine's own images cannot give it: python3 with awscli,
# SoftHSM, p11-kit. Made once with debootstrap (a minute), as root.
. "$(dirname "$0")/cache.sh" debian 12

awscli=1.45.11

# A pod's user reads what is in it: one that was made under a umask of 077 will not do.
complete() {
    tar --list --verbose --file="$1/root.tar" --occurrence=1 --no-recursion ./opt/awscli/ 2>/dev/null |
        grep -q '^drwxr-xr-x '
}

build() {
    local work=$1 root=$1/root
    say "making a Debian $version in $home"
    debootstrap --variant=minbase --include=python3,softhsm2,p11-kit bookworm "$root" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        return 1
    }
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
        --target "$root/opt/awscli" "awscli==$awscli" >&2
    printf '%s\n' '#!/bin/sh' 'PYTHONPATH=/opt/awscli exec python3 -m awscli "$@"' \
        >"$root/usr/local/bin/aws"
    chmod 755 "$root/usr/local/bin/aws"
    mkdir "$work/bin"
    tar -C "$root" --sort=name --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
        --exclude='./dev/*' -cf "$work/bin/root.tar" .
}

provide "" no-debian-of-the-PATH
