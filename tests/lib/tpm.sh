# shellcheck shell=bash
# A TPM in software and what lies between it and PKCS#11: swtpm, the resource manager
# tpm2-abrmd, a bus for the two, tpm2-pkcs11. Sourced after lib.sh and parts.sh.
#
#   tpm_lacking          says what is not installed, if anything
#   tpm_start            the TPM; a second time it finds the state of the first
#   tpm_bus_start        the bus, once
#   tpm_manager_start    the resource manager, once TPM and bus are there
#   tpm_token_make       a token "spire" with the PIN of token_make

tpm_module=$(find /usr/lib -path '*/pkcs11/libtpm2_pkcs11.so' 2>/dev/null | head -n 1)
tpm_socket=$scratch/tpm/socket
mkdir -p "$scratch/tpm/state" "$scratch/tpm/store"
export DBUS_SESSION_BUS_ADDRESS=unix:path=$scratch/tpm/bus
export TPM2TOOLS_TCTI=tabrmd:bus_type=session TPM2_PKCS11_TCTI=tabrmd:bus_type=session
export TPM2_PKCS11_STORE=$scratch/tpm/store

tpm_lacking() {
    local program
    [ -n "$tpm_module" ] || echo tpm2-pkcs11
    for program in swtpm tpm2-abrmd dbus-daemon tpm2_ptool tpm2_getrandom; do
        command -v "$program" >/dev/null || echo "$program"
    done
}

tpm_start() {
    rm -f "$tpm_socket" "$tpm_socket.ctrl"
    start tpm swtpm socket --tpm2 --tpmstate "dir=$scratch/tpm/state" --flags not-need-init,startup-clear \
        --server "type=unixio,path=$tpm_socket" --ctrl "type=unixio,path=$tpm_socket.ctrl"
    await 30 listens "$tpm_socket" && await 30 listens "$tpm_socket.ctrl"
}

tpm_bus_start() {
    start tpm-bus dbus-daemon --session --nofork --nopidfile --address="$DBUS_SESSION_BUS_ADDRESS"
    await 30 listens "$scratch/tpm/bus"
}

# What a manager that was killed left in the TPM is in the next one's way: --flush-all. Until
# 1.10 tpm2-pkcs11 keeps the objects of destroyed keys loaded: --max-transients.
tpm_manager_start() {
    start tpm-manager tpm2-abrmd --session --allow-root --flush-all --max-transients=100 --tcti="swtpm:path=$tpm_socket"
    await 60 tpm2_getrandom 4
}

tpm_token_make() {
    tpm2_ptool init && tpm2_ptool addtoken --pid=1 --label=spire --userpin="$PIN" --sopin="$PIN"
}
