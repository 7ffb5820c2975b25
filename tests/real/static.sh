#!/bin/bash
# examples/oidc-static: the AWS tutorial's verification with a plain web server in the discovery
# provider's place. nginx serves the folder that spire-hsm writes; the real provider is there
# only to be compared with. MinIO is S3 and STS.
. "$(dirname "$0")/../lib/lib.sh" static
. "$here/lib/parts.sh"
. "$here/lib/parts_aws.sh"

example=$here/../examples/oidc-static
folder=$scratch/oidc

## The example's files, with the places and the name of this run

here_is() {
    sed -e "s|/srv/oidc|$folder|" -e "s|/etc/ssl/oidc|$TLS|" -e "s|https://oidc.example.org|$issuer|" \
        -e "s|listen 443 |listen $OIDC_ADDRESS |" -e "s|server_name .*|server_name 127.0.0.1;|" "$1"
}

server_configured() {
    conf_with "s|https://oidc.example.org|$issuer|" &&
        here_is "$example/plugins.conf" >"$scratch/etc/plugins.conf" &&
        sed -i "/^plugins {/r $scratch/etc/plugins.conf" "$server_conf" &&
        install -d -m 755 "$folder"
}

# One process in the foreground, of our user.
nginx_configured() {
    {
        echo "daemon off; master_process off; pid $scratch/nginx.pid; error_log stderr;"
        echo "events { }"
        echo "http { access_log off;"
        for name in client_body proxy fastcgi uwsgi scgi; do
            echo "${name}_temp_path $scratch/tmp/$name;"
        done
        here_is "$example/nginx.conf"
        echo "}"
    } >"$scratch/etc/nginx.conf" && nginx -t
}

nginx() {
    /usr/sbin/nginx -p "$scratch" -c "$scratch/etc/nginx.conf" -e stderr "$@"
}

nginx_run() {
    exec /usr/sbin/nginx -p "$scratch" -c "$scratch/etc/nginx.conf" -e stderr
}

nginx_start() {
    start nginx nginx_run
    await 10 oidc keys >/dev/null 2>&1 && oidc keys >"$scratch/keys.json"
}

folder_is_whole() {
    await 5 test -s "$folder/.well-known/openid-configuration" && ls -AlR "$folder" &&
        "$SPIRE_HSM" bundle show "$folder/keys"
}

nothing_else_is_served() {
    ls -A "$folder" && [ -e "$folder/.keys.lock" ] && not oidc .keys.lock && not oidc . &&
        not oidc .well-known/.openid-configuration.lock
}

## The real provider, on a socket: what it says of the file for it

provider() {
    curl -fsS --max-time 5 --unix-socket "$oidc_socket" "http://127.0.0.1/$1"
}

provider_start() {
    sed -e "s|oidc.example.org|127.0.0.1|" "$here/real/oidc.conf" >"$scratch/etc/oidc.conf"
    printf 'jwt_issuer = "%s"\n' "$issuer" >>"$scratch/etc/oidc.conf"
    start oidc "$spire/oidc-discovery-provider" -expandEnv -config "$scratch/etc/oidc.conf"
    await 15 provider keys >/dev/null 2>&1
}

# Every member of the document; every member of each key, whatever the order of the keys.
document_is_the_providers() {
    diff <(provider .well-known/openid-configuration | jq -S .) \
        <(oidc .well-known/openid-configuration | jq -S .) && oidc .well-known/openid-configuration
}

keys_are_the_providers() {
    diff <(provider keys | jq -S '.keys |= sort_by(.kid)') \
        <(oidc keys | jq -S '.keys |= sort_by(.kid)') && [ "$(oidc keys | jq '.keys | length')" -eq "$1" ]
}

keys_are_the_providers_soon() {
    await 10 keys_are_the_providers "$1" && oidc keys
}

## The workload

copies() {
    rm -f "$client/test.txt"
    environment AWS_ROLE_ARN="$role_arn" AWS_WEB_IDENTITY_TOKEN_FILE="$1" \
        aws s3 cp "s3://$bucket/test.txt" test.txt && [ "$(cat "$client/test.txt")" = "oidc-tutorial file" ]
}

is_refused() {
    not copies "$1" >"$scratch/refusal" 2>&1 && cat "$scratch/refusal" &&
        grep -E "AssumeRoleWithWebIdentity.*$2" "$scratch/refusal"
}

agent_joins() {
    agent_admit && agent_start -joinToken "$join_token"
}

new_key_signs() {
    jwt_activate && jwt_mint "$client/new" && signed_by_the_authority "$client/new" && copies new
}

minio_restart() {
    stop minio && minio_start
}

lost_files_are_back() {
    rm "$folder/keys" "$folder/.well-known/openid-configuration" &&
        await 45 oidc_document && oidc_has_active
}

echo "An issuer of two files: SPIRE from $spire, $(nginx -v 2>&1), minio from $minio"
must "a certificate authority for this run, in Let's Encrypt's place" tls_make
must "a SoftHSM token, with the PIN in a file" token_make
must "server.conf has examples/oidc-static/plugins.conf in it" server_configured
must "spire-server starts" server_start
must "the folder has the document and the keys, which bundle show finds fine" folder_is_whole
must "nginx takes examples/oidc-static/nginx.conf" nginx_configured
must "and serves the folder over HTTPS" nginx_start
check "the document has the right issuer, and RS256" oidc_document
check "the keys have the one that signs" oidc_has_active
check "nothing else is served, no lock and no list" nothing_else_is_served
must "SPIRE's discovery provider starts on the bundle file, for comparing" provider_start
check "its document has the same members" document_is_the_providers
check "so have its keys" keys_are_the_providers 1
must "an agent joins" agent_joins
must "minio starts, with the folder as its identity provider" minio_start
must "a bucket with test.txt" bucket_make "$bucket"
must "the workload fetches a JWT-SVID" await 20 jwt_fetched "$client/token"
check "STS takes it, and S3 hands out the file" copies token
check "a key is prepared: the keys have it before it signs" jwt_prepare
check "they are the provider's again, two of them" keys_are_the_providers_soon 2
check "activated; a token of the new key is accepted" new_key_signs
check "so is that of the old one" copies token
check "both files are removed: SPIRE's next publication, within 30 s, brings them back" lost_files_are_back
check "the old key is revoked: the keys have it no more" jwt_revoke_old
check "they are the provider's again, one of them" keys_are_the_providers_soon 1
must "minio is restarted: it asks for the keys anew" minio_restart
check "a token of the revoked key is refused" is_refused token 'No public key found'
check "one of the new key is accepted" copies new
check "no warning and no error in the server's log" server_quiet
check "everything that was started has ended" all_gone
