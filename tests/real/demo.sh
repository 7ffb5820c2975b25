#!/bin/bash
# The whole chain on real parts, told line by line; `make demo` runs it. Every line is
# a check: the demo fails where the chain does.
. "$(dirname "$0")/../lib/lib.sh" demo
. "$here/lib/parts.sh"

say() {
    printf '\n%s\n' "$*"
}

pin_is_private() {
    stat -c '%a %s bytes' "$CONFIGURATION_DIRECTORY/hsm-pin" | grep '^600 '
}

bundle_is_there() {
    await 5 test -s "$bundle" && jq -e '(.keys | map(.use) | unique) == ["jwt-svid", "x509-svid"]' \
        "$bundle" && stat -c '%a' "$bundle" | grep -x 644
}

# The agent asks the server for its entries every five seconds.
workload_gets_token() {
    await 20 jwt_fetched "$1" && signed_by_the_authority "$1"
}

tampered_is_refused() {
    jwt_rewrite "$1" '.exp += 3600' >"$scratch/tampered" && not jwt_verifies "$scratch/tampered"
}

# Does the record say of one key, and of no more, that it was superseded?
one_is_condemned() {
    jq -e '[.scopes[].keys[] | select(.state == "condemned")] | length == 1' \
        "$STATE_DIRECTORY/hsm-id.keys"
}

remember_keys() {
    token_labels >"$scratch/labels" && kid=$(jwt_authority active) &&
        ski=$(x509_authority active)
}

same_keys_again() {
    token_labels | diff "$scratch/labels" - &&
        [ "$(jwt_authority active)" = "$kid" ] &&
        [ "$(x509_authority active)" = "$ski" ]
}

echo "spire-hsm, start to end: $("$SPIRE_HSM" --version 2>&1 | head -n 1); SPIRE from $spire"

say "A token, and a server whose keys are in it"
must "a SoftHSM token \"spire\" is made" token_make
check "its PIN is in a file that nobody else can read" pin_is_private
must "spire-server starts on examples/server.conf" server_start
check "the token holds its two keys, sensitive and never extractable" token_holds 2

say "Its bundle, and an OIDC discovery provider that reads it"
must "the bundle file is there, with X.509 and JWT authorities" bundle_is_there
must "the discovery provider starts on that file" oidc_start
check "it serves /.well-known/openid-configuration for $issuer" oidc_document
check "it serves /keys with the key the server signs with" oidc_has_active

say "A workload and its JWT-SVID, as in the AWS tutorial"
must "a join token and an entry for $workload" agent_admit
must "an agent joins, trusting what the bundle file says" agent_start -joinToken "$join_token"
must "the workload fetches a JWT-SVID for audience mys3" workload_gets_token "$scratch/token"
must "(a verifier that uses nothing of SPIRE or spire-hsm is compiled)" verifier_build
check "its signature verifies against /keys; iss, aud, sub, exp are right" \
    jwt_verifies "$scratch/token"
check "a tampered token does not" tampered_is_refused "$scratch/token"

say "A new JWT authority"
check "prepared: the next key is made, and served before it is used" jwt_prepare
check "the token holds three keys" token_holds 3
check "activated" jwt_activate
check "the agent is restarted, as it caches tokens" agent_restart
check "the workload fetches a token signed with the new key" workload_gets_token "$scratch/token2"
check "the new token verifies" jwt_verifies "$scratch/token2"
check "the old one still does" jwt_verifies "$scratch/token"
check "prepared once more, a fourth key supersedes the first" jwt_prepare
check "which is condemned in the record, and stays for a day" one_is_condemned
check "so that the token holds four" token_holds 4

say "The server restarted"
check "no warning and no error in its log so far" server_quiet
remember_keys
must "it stops" stop server
must "it starts" server_start
check "it finds its CA journal by the keys on the token" found_its_journal
check "the keys are the same, and it signs with the same ones" same_keys_again
check "both tokens still verify" jwt_verifies "$scratch/token" "$scratch/token2"
check "no warning and no error in its log" server_quiet
check "everything that was started has ended" all_gone
echo
