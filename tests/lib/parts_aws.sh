# shellcheck shell=bash
# What the AWS tutorial has on the other side: a discovery provider over HTTPS, S3 and STS,
# and a workload with the aws client. MinIO stands in for AWS. Sourced after parts.sh.

minio=$("$here/lib/minio.sh") || exit 1
awscli=$("$here/lib/awscli.sh") || exit 1
OIDC_ADDRESS=127.0.0.1:$(free_port)
TLS=$scratch/tls
export OIDC_ADDRESS TLS # for oidc_https.conf
issuer=https://$OIDC_ADDRESS
oidc_conf=$here/real/oidc_https.conf
s3_address=127.0.0.1:$(free_port)
s3=https://$s3_address
bucket=oidc-federation-test-bucket
policy_name=oidc-federation-test-policy
aws_examples=$here/../examples/aws
client=$scratch/client # the workload's folder
mkdir -p "$TLS" "$client"

# MinIO names the role after the audience.
role_arn=arn:minio:iam:::role/$(printf mys3 | openssl sha1 -binary | base64 | tr '/+' '_-' | tr -d =)

## TLS, as Let's Encrypt has it: a root that clients know, an intermediate, a server

# certificate NAME ISSUER EXTENSION...: NAME.pem and NAME.key
certificate() {
    local name=$1 issuer=$2 extension with=()
    shift 2
    for extension in "$@"; do with+=(-addext "$extension"); done
    [ "$name" = "$issuer" ] || with+=(-CA "$issuer.pem" -CAkey "$issuer.key")
    openssl req -x509 -config <(printf '[req]\ndistinguished_name = dn\n[dn]\n') -days 2 \
        -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=tutorial $name" \
        -keyout "$name.key" -out "$name.pem" "${with[@]}"
}

tls_make() (
    cd "$TLS" &&
        certificate root root basicConstraints=critical,CA:true &&
        certificate intermediate root basicConstraints=critical,CA:true &&
        certificate server intermediate subjectAltName=IP:127.0.0.1 &&
        mkdir -p minio/CAs && cp root.pem minio/CAs && cp server.key minio/private.key &&
        cat server.pem intermediate.pem | tee chain.pem >minio/public.crt
)

# In the place of parts.sh's, which asks on a socket.
oidc() {
    curl -fsS --max-time 5 --noproxy '*' --cacert "$TLS/root.pem" "$issuer/$1"
}

## MinIO

secret() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}
minio_user=administrator
minio_password=$(secret)
minio_client_secret=$(secret) # of OIDC: with none, MinIO takes what anyone signs with ""

# The audience belongs to the identity provider, the policy to the role, as in the
# tutorial's Part 3.
minio_run() {
    export MINIO_BROWSER=off MINIO_UPDATE=off
    export MINIO_ROOT_USER=$minio_user MINIO_ROOT_PASSWORD=$minio_password
    export MINIO_IDENTITY_OPENID_CONFIG_URL=$issuer/.well-known/openid-configuration
    export MINIO_IDENTITY_OPENID_CLIENT_ID=mys3
    export MINIO_IDENTITY_OPENID_CLIENT_SECRET=$minio_client_secret
    export MINIO_IDENTITY_OPENID_ROLE_POLICY=$policy_name
    exec "$minio/minio" server --address "$s3_address" --certs-dir "$TLS/minio" \
        "$scratch/minio"
}

# Up is when it can take a policy.
minio_start() {
    [ -s "$scratch/policy.json" ] || role_policy "$aws_examples"/{policy,trust}.json
    start minio minio_run
    await 30 minio_up_or_gone
    running minio && policy_put
}

minio_up_or_gone() {
    ! running minio || policy_put >/dev/null 2>&1
}

policy_put() {
    curl -fsS --max-time 5 --noproxy '*' --cacert "$TLS/root.pem" \
        --aws-sigv4 aws:amz:us-east-1:s3 --user "$minio_user:$minio_password" \
        --upload-file "$scratch/policy.json" \
        -H "x-amz-content-sha256: $(sha256sum <"$scratch/policy.json" | cut -d ' ' -f 1)" \
        "$s3/minio/admin/v3/add-canned-policy?name=$policy_name"
}

# role_policy POLICY TRUST: what MinIO can do of a policy and a role's trust. It has no trust
# of a role beyond the audience, but a policy may ask for the token's subject and issuer; it
# does not know some actions of the policy's first statement, nor jobs, and refuses them.
role_policy() {
    jq -n --slurpfile policy "$1" --slurpfile trust "$2" --arg bucket "$bucket" --arg iss "$issuer" '
        ($trust[0].Statement[0].Condition.StringEquals | with_entries(.key |= sub(".*:"; ""))) as $of |
        $policy[0] | .Statement = [.Statement[1]] |
        .Statement[0].Resource |= map(select(test(":job/") | not) | sub("MY_TEST_BUCKET"; $bucket)) |
        .Statement[0].Condition.StringEquals = {"jwt:sub": $of.sub, "jwt:iss": $iss}
    ' | tee "$scratch/policy.json"
}

role_policy_taken() {
    role_policy "$@" && policy_put
}

## The aws client

# What it needs to find MinIO in AWS's place, and nothing of the user's own: an empty
# environment, a new HOME (there are cached credentials in the old one).
environment() {
    local home
    home=$(mktemp -d "$TMPDIR/home.XXXXXX")
    (cd "$client" && env -i PATH="$spire:$awscli:$PATH" HOME="$home" LANG=C.UTF-8 \
        AWS_ENDPOINT_URL="$s3" AWS_CA_BUNDLE="$TLS/root.pem" \
        AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true "$@")
}

administrator() {
    environment AWS_ACCESS_KEY_ID="$minio_user" AWS_SECRET_ACCESS_KEY="$minio_password" "$@"
}

bucket_make() {
    administrator aws s3 mb "s3://$1" &&
        echo "oidc-tutorial file" | administrator aws s3 cp - "s3://$1/test.txt"
}

# What the workload types: shown, with the last line of what comes back.
types() {
    local status
    printf '        $ %s\n' "$1" >&3
    environment bash -o pipefail -c "$1" 2>&1 | tr '\r' '\n' | sed '/^ *$/d' | tee "$scratch/typed"
    status=${PIPESTATUS[0]}
    tail -n 1 "$scratch/typed" | fold -s -w 90 | sed 's/^/        /' >&3
    return "$status"
}

# It fails, saying what fits the pattern.
is_refused() {
    not types "$2" && grep -E -- "$1" "$scratch/typed"
}
