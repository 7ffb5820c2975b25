#!/bin/bash
# examples/aws: its JSON is the tutorial's, and its page is run from top to bottom, each
# block of commands as a reader would paste it. MinIO is S3 and STS. Moto plays IAM, of
# which nothing real can be had, and a public name neither.
. "$(dirname "$0")/../lib/lib.sh" aws
. "$here/lib/parts.sh"
. "$here/lib/parts_aws.sh"

moto=$("$here/lib/moto.sh") || exit 1
iam_port=$(free_port)
account=123456789012 # Moto's
page=$client         # a copy of examples/aws, where the reader is
blocks=$scratch/blocks
tools=$scratch/tools
mkdir "$blocks" "$tools"

section() {
    printf '%s\n' "$*"
}

## The tutorial's JSON, as facts. (`jq -e` alone takes an empty file for a yes.)

policy_is_the_tutorials() {
    jq -n -e 'input | .Version == "2012-10-17" and (.Statement | length) == 2 and
        all(.Statement[]; .Effect == "Allow") and
        (.Statement[0] | .Resource == "*" and (.Action | sort) == [
            "s3:CreateJob", "s3:GetAccountPublicAccessBlock", "s3:HeadBucket",
            "s3:ListAllMyBuckets", "s3:ListJobs", "s3:PutAccountPublicAccessBlock"]) and
        (.Statement[1] | .Action == "s3:*" and (.Resource | sort) == [
            "arn:aws:s3:*:*:job/*", "arn:aws:s3:::MY_TEST_BUCKET", "arn:aws:s3:::MY_TEST_BUCKET/*"])
        ' "$1"
}

# trust_is_the_tutorials FILE DOMAIN ACCOUNT
trust_is_the_tutorials() {
    jq -n -e --arg domain "$2" --arg account "$3" 'input | .Version == "2012-10-17" and .Statement == [{
            Effect: "Allow",
            Principal: {Federated: "arn:aws:iam::\($account):oidc-provider/\($domain)"},
            Action: "sts:AssumeRoleWithWebIdentity",
            Condition: {StringEquals: {
                "\($domain):aud": "mys3",
                "\($domain):sub": "spiffe://example.org/ns/default/sa/default"}}}]' "$1"
}

## The page

# Each block into a file of its own, NN.sh or NN.ini; NN.sh.title is the heading above it.
page_take_apart() {
    cp "$aws_examples"/* "$page" && awk -v to="$blocks/" '
        /^## / { title = substr($0, 4) }
        /^```$/ { close(file); file = ""; next }
        /^```/ { file = sprintf("%s%02d.%s", to, ++n, substr($0, 4)); print title >(file ".title"); next }
        file { print >file }' "$page/README.md"
    sed -i "s|/run/spire/sockets/agent.sock|$agent_socket|" "$blocks"/*.sh
    grep -h '^aws' "$blocks"/*.sh
}

# aws, with what MinIO is not going to Moto, which refuses the region in a policy's resource,
# as AWS has it in those of S3's jobs; nslookup, for a name that is none.
tools_make() {
    local less=$scratch/policy-for-moto.json
    cat >"$tools/aws" <<END
#!/bin/bash
case "\$1 \$2" in
    iam\ * | "sts get-caller-identity") export AWS_ENDPOINT_URL=http://127.0.0.1:$iam_port ;;
esac
if [ "\$2" = create-policy ]; then
    jq 'del(.Statement[].Resource | arrays | .[] | select(test(":job/")))' my-policy.json >"$less"
    set -- "\${@/my-policy.json/$less}"
fi
exec "$awscli/aws" "\$@"
END
    printf '%s\n' '#!/bin/sh' "[ \"\$*\" = $OIDC_ADDRESS ]" >"$tools/nslookup"
    chmod 755 "$tools"/*
}

moto_answers() {
    curl -fsS --max-time 5 --noproxy '*' "http://127.0.0.1:$iam_port/moto-api/" >/dev/null 2>&1
}

moto_start() {
    start moto "$moto/moto_server" -H 127.0.0.1 -p "$iam_port" && await 30 moto_answers
}

# pasted WHO LINES: into a shell of the administrator's, or of the workload's.
pasted() {
    "$1" PATH="$tools:$spire:$awscli:$PATH" CURL_CA_BUNDLE="$TLS/root.pem" \
        AWS_CONFIG_FILE="$scratch/etc/aws" bash -e -c "$2"
}

# The page's first block, with the domain of this run; its variables are for all the others.
names_set() {
    local lines
    lines=$(sed "s/^MY_DISCOVERY_DOMAIN=.*/MY_DISCOVERY_DOMAIN=$OIDC_ADDRESS/" "$blocks/01.sh")
    pasted administrator "$lines; declare -p \${!MY_@}" >"$scratch/names"
    cat "$scratch/names"
    grep -q "MY_TEST_BUCKET=\"$bucket\"" "$scratch/names" &&
        grep -q "MY_ACCOUNT_ID=\"$account\"" "$scratch/names"
}

block_run() {
    cat "$2"
    pasted "$1" ". '$scratch/names'; . '$2'"
}

# blocks_run WHO PATTERN: every block below a heading like that.
run=1 # the first is names_set's
blocks_run() {
    local block
    for block in "$blocks"/*.sh; do
        # shellcheck disable=SC2053 # a pattern
        [[ $(cat "$block.title") == $2 ]] || continue
        check "\`$(head -n 1 "$block" | cut -c 1-70)\`" block_run "$1" "$block"
        run=$((run + 1))
    done
}

all_blocks_were_run() {
    set -- "$blocks"/*.sh
    echo "$run of $#"
    [ $# -eq "$run" ] && [ $# -gt 10 ]
}

## What the page's commands leave behind

iam() {
    pasted administrator "aws iam $*"
}

provider_is_there() {
    iam get-open-id-connect-provider --open-id-connect-provider-arn \
        "arn:aws:iam::$account:oidc-provider/$OIDC_ADDRESS" |
        jq -n -e --arg url "$OIDC_ADDRESS" --arg print "$(thumbprint_of "$TLS/intermediate.pem")" '
            input | (.Url | ltrimstr("https://")) == $url and .ClientIDList == ["mys3"] and
                .ThumbprintList == [$print]'
}

thumbprint_of() {
    openssl x509 -in "$1" -outform DER | sha1sum | cut -d ' ' -f 1
}

role_has_the_policy() {
    iam list-attached-role-policies --role-name oidc-federation-test-role |
        jq -n -e 'input | [.AttachedPolicies[].PolicyName] == ["oidc-federation-test-policy"]'
}

role_trusts() {
    iam get-role --role-name oidc-federation-test-role |
        jq .Role.AssumeRolePolicyDocument | tee "$scratch/trust.json" &&
        trust_is_the_tutorials "$scratch/trust.json" "$OIDC_ADDRESS" "$account"
}

role_policies_are() {
    iam list-role-policies --role-name oidc-federation-test-role |
        jq -n -e --argjson names "$1" 'input | .PolicyNames == $names'
}

arn_is_saved() {
    grep -x "arn:aws:iam::$account:role/oidc-federation-test-role" "$page/oidc-arn.txt"
    echo "$role_arn" >"$page/oidc-arn.txt" # for Part 4, in which STS is MinIO
}

nothing_is_left() {
    iam list-roles | jq -n -e 'input | .Roles == []' &&
        iam list-policies --scope Local | jq -n -e 'input | .Policies == []' &&
        iam list-open-id-connect-providers | jq -n -e 'input | .OpenIDConnectProviderList == []' &&
        administrator aws s3 ls >"$scratch/buckets" && not test -s "$scratch/buckets" &&
        diff -r "$aws_examples" "$page"
}

## Fresh credentials

test_file_came() {
    grep -x "oidc-tutorial file" "$page/test.txt" && rm "$page/test.txt"
}

# The page's lines for ~/.aws/config.
config_made() {
    sed "s|/usr/local/bin/spire-credentials arn:.*|$page/spire-credentials $role_arn mys3 $agent_socket|" \
        "$blocks"/*.ini >"$scratch/etc/aws" && grep -F "$agent_socket" "$scratch/etc/aws"
}

credentials() {
    environment "$page/spire-credentials" "$@"
}

# They are what the AWS SDKs want, and end within the token's five minutes as MinIO has it.
credentials_are_right() {
    credentials "$role_arn" mys3 "$agent_socket" >"$scratch/credentials" &&
        jq -e '.Version == 1 and all(.AccessKeyId, .SecretAccessKey, .SessionToken; length > 8) and
            (.Expiration | sub("(\\.[0-9]+)?(Z|\\+00:00)$"; "Z") | fromdate | . > now and . < now + 310)' \
            "$scratch/credentials"
}

refused_saying() {
    not credentials "${@:2}" >"$scratch/refusal" 2>&1 && cat "$scratch/refusal" &&
        grep -F -- "$1" "$scratch/refusal"
}

nothing_on_stdout() {
    credentials "$role_arn" mys3 /nowhere.sock >"$scratch/out" 2>/dev/null
    not test -s "$scratch/out"
}

section "The JSON"
check "policy.json has the tutorial's actions and resources" \
    policy_is_the_tutorials "$aws_examples/policy.json"
check "trust.json has its principal, and its conditions on aud and sub" \
    trust_is_the_tutorials "$aws_examples/trust.json" MY_DISCOVERY_DOMAIN MY_ACCOUNT_ID

section "What the page needs: SPIRE (Part 1), and the other side"
conf_with "s|https://oidc.example.org|$issuer|"
must "certificates" tls_make
must "a token" token_make
must "spire-server" server_start
must "the discovery provider" oidc_start
must "an entry" agent_admit
must "an agent" agent_start -joinToken "$join_token"
must "a token for the workload" await 20 jwt_fetched "$scratch/token"
must "MinIO" minio_start
must "Moto" moto_start
must "the page, in pieces" page_take_apart
tools_make
must "its names" names_set

section "The page: Part 2"
blocks_run administrator "Part 2*"

section "The page: Part 3"
blocks_run administrator "Part 3*"
check "the provider has the audience, and the intermediate authority's thumbprint" provider_is_there
check "the role has the policy" role_has_the_policy
check "its trust is the tutorial's" role_trusts
check "its ARN is saved" arn_is_saved

section "The page: Part 4"
check "MinIO takes policy and trust of Part 3, less what it does not know" \
    role_policy_taken "$page"/my-{policy,trust}.json
rm -f "$page/test.txt"
blocks_run environment "Part 4*"
check "test.txt is there" test_file_came
blocks_run environment "When it does not work"

section "The page: fresh credentials"
check "the profile" config_made
check "spire-credentials prints what credential_process is to print" credentials_are_right
blocks_run environment "Fresh*"
check "test.txt is there" test_file_came
check "the token's file was replaced" not test -e "$page/token.new"
check "with no agent it fails, saying so" refused_saying "no token for mys3 from /nowhere.sock" \
    "$role_arn" mys3 /nowhere.sock
check "and prints nothing that could be taken for credentials" nothing_on_stdout
check "for another audience STS's refusal is passed on" \
    refused_saying AssumeRoleWithWebIdentity "$role_arn" somewhere-else "$agent_socket"

section "The page: theft, and clean-up"
blocks_run administrator "When a key is stolen*"
check "the role is as it was" role_trusts
check "without the policy that closed older sessions" role_policies_are '[]'
blocks_run administrator "Clean up"
check "nothing is left of it, in AWS or here" nothing_is_left
check "no block of the page was passed over" all_blocks_were_run
check "everything that was started has ended" all_gone
