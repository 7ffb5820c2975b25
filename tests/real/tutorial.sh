#!/bin/bash
# The AWS tutorial with its signing keys in an HSM, on one machine and on real parts:
# SoftHSM is the HSM, MinIO is S3 and STS, 127.0.0.1 is the public name. `make tutorial`
# runs it. Every line is a check; lines after a $ are typed as printed.
. "$(dirname "$0")/../lib/lib.sh" tutorial
. "$here/lib/parts.sh"
. "$here/lib/parts_aws.sh"

say() {
    printf '\n%s\n' "$*"
}

explain() {
    printf '  %s\n' "$@"
}

# The tutorial's two commands; the second names the token's file.
fetch="spire-agent api fetch jwt -audience mys3 -socketPath \\
            $agent_socket | sed '2!d' | sed 's/[[:space:]]//g' > token"
copy() {
    echo "AWS_ROLE_ARN=$role_arn AWS_WEB_IDENTITY_TOKEN_FILE=$1 \\
            aws s3 cp s3://${2-$bucket}/test.txt test.txt"
}

# The agent asks the server for its entries every five seconds.
token_is_fetched() {
    await 20 jwt_fetched "$client/token" && rm "$client/token" && types "$fetch" &&
        signed_by_the_authority "$client/token"
}

# The file that is meant, not one from before.
copies() {
    rm -f "$client/test.txt"
    types "$(copy "$1")" && [ "$(cat "$client/test.txt")" = "oidc-tutorial file" ]
}

# With the token of now: the agent has a fresh one when half of the last one's life is over.
token_is_accepted() {
    jwt_fetch "$client/token" && signed_by_the_authority "$client/token" && copies token
}

token_says() {
    cut -d . -f 2 "$client/token" | unbase64url | jq -n -e --arg iss "$issuer" --arg sub "$workload" \
        'input | .iss == $iss and .sub == $sub and .aud == ["mys3"] and .exp - .iat == 300'
}

mint() {
    server jwt mint -write "$client/$1" -spiffeID "${2-$workload}" -audience "${3-mys3}" -ttl "${4-5m}"
}

expired() {
    (($(date +%s) > $(cut -d . -f 2 "$client/$1" | unbase64url | jq .exp)))
}

keys_are_the_same() {
    token_labels | diff "$scratch/labels" - && [ "$(jwt_authority active)" = "$kid" ]
}

minio_restart() {
    stop minio && minio_start
}

echo "The AWS tutorial with its keys in an HSM: $("$SPIRE_HSM" --version 2>&1 | head -n 1)"
echo "SPIRE from $spire, minio from $minio, aws from $awscli"

say "Part 1: SPIRE, its keys in a token"
conf_with "s|https://oidc.example.org|$issuer|"
must "a certificate authority for this run, in Let's Encrypt's place" tls_make
must "a SoftHSM token, with the PIN in a file" token_make
must "spire-server starts; KeyManager and BundlePublisher are spire-hsm" server_start
check "its two keys are in the token; they cannot be taken out" token_holds 2
must "the plugin has written the trust bundle to a file" await 5 bundle_is_whole
must "the discovery provider serves that file over HTTPS" oidc_start
must "an entry gives $workload to the workload" agent_admit
must "an agent joins" agent_start -joinToken "$join_token"

say "Part 2: what AWS will ask for (no DNS record: the name is $OIDC_ADDRESS)"
check "https://$OIDC_ADDRESS/.well-known/openid-configuration has the right issuer, and RS256" \
    oidc_document
check "/keys has the key that signs, whose private half is in the token" oidc_has_active

say "Part 3: S3 and STS (MinIO, where the tutorial has AWS)"
explain "An identity provider: tokens of $issuer for audience mys3 are accepted." \
    "A policy $policy_name: all of S3 in one bucket." \
    "A role with that policy: for the workload's SPIFFE ID alone. AWS writes that into the role's" \
    "trust, where STS looks; MinIO has it in the policy, where S3 looks."
must "the policy is made of examples/aws, less what MinIO does not know" \
    role_policy "$aws_examples"/{policy,trust}.json
must "minio starts with the identity provider and the role" minio_start
must "a bucket with test.txt, $bucket" bucket_make "$bucket"
must "and a second one, of others" bucket_make someone-elses-bucket

say "Part 4: the workload reads S3 with nothing but its SPIFFE identity"
check "without a token it gets nothing" \
    is_refused "Unable to locate credentials" "aws s3 cp s3://$bucket/test.txt test.txt"
must "it fetches a JWT-SVID into the file token" token_is_fetched
check "which is a token" types "cat token"
check "for audience mys3, from the issuer above, with its SPIFFE ID, good for five minutes" token_says
check "STS changes it for credentials of the role, and S3 hands out the file" copies token
check "which is the right one" types "cat test.txt"

say "Troubleshooting: what is refused, and how that looks"
check "another bucket than the policy's: 403" is_refused '\(403\).*Forbidden' "$(copy token someone-elses-bucket)"
must "a second workload's token, .../sa/other" mint other spiffe://example.org/ns/default/sa/other
check "another SPIFFE ID than the role's: 403 (in AWS, AssumeRoleWithWebIdentity: AccessDenied)" \
    is_refused '\(403\).*Forbidden' "$(copy other)"
jwt_rewrite "$client/other" ".sub = \"$workload\"" >"$client/tampered"
check "that token with the subject rewritten: its signature does not fit" \
    is_refused 'AssumeRoleWithWebIdentity.*verification error' "$(copy tampered)"
must "a token for another audience" mint elsewhere "$workload" somewhere-else
check "another audience than the provider's" \
    is_refused 'AssumeRoleWithWebIdentity.*must match configured OpenID Client ID' "$(copy elsewhere)"
must "a token of one second" mint expiring "$workload" mys3 1s
must "which is over" await 10 expired expiring
check "an expired token (in AWS, ExpiredTokenException): fetch a new one" \
    is_refused 'AssumeRoleWithWebIdentity.*expired' "$(copy expiring)"

say "The signing key is rotated, nobody notices"
must "a token of an hour, signed with the key of now, is kept" mint before "$workload" mys3 1h
check "prepared: a new key in the token; /keys has it before it signs anything" jwt_prepare
check "activated" jwt_activate
check "the agent is restarted: it would hand out what it has for another two minutes" agent_restart
check "the workload fetches a token signed with the new key" token_is_fetched
check "it is accepted" copies token
check "so is the one that was kept" copies before

say "The server is restarted"
check "no warning and no error in its log so far" server_quiet
kid=$(jwt_authority active)
token_labels >"$scratch/labels"
must "it stops" stop server
must "it starts" server_start
check "it signs with the same key in the token, and made no new one" keys_are_the_same
must "minio is restarted: it asks for the keys anew" minio_restart
check "the workload's token is accepted" token_is_accepted
check "so is the one that was kept" copies before

say "The old key is revoked, as after a theft"
check "tainted and revoked: /keys has it no more" jwt_revoke_old
check "a token it signed is still accepted: MinIO has the key in memory" copies before
explain "Relying parties cache key sets: MinIO until it restarts, AWS for a time it does not tell." \
    "Revocation is not immediate; who cannot wait closes the role (examples/aws says how)."
must "minio is restarted" minio_restart
check "a token of the revoked key is refused" \
    is_refused 'AssumeRoleWithWebIdentity.*No public key found' "$(copy before)"
check "the workload's own is accepted" token_is_accepted

say "The end"
check "no warning and no error in the server's log since then" server_quiet
check "everything that was started has ended" all_gone
echo
