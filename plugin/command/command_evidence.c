/* spire-hsm evidence: which authorities of a published bundle have their key in this token. */
#include <string.h>
#include <time.h>

#include <jansson.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <openssl/x509.h>

#include "hsm/base/base64.h"
#include "hsm/base/hex.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/wire/pubkey.h"
#include "plugin/bundle/jwk.h"
#include "plugin/command/command_private.h"

enum {
    NONCE_MIN = 8,
    NONCE_MAX = 64,
    NONCE_RANDOM = 32,
    MESSAGE_MAX = 512,
    FINGERPRINT_TEXT = 2 * HSM_FINGERPRINT + 1,
};

/* The attributes of a key that HSM_PROVE calls complete (hsm/object.c). With attribute_check =
 * "lenient" the token may not have reported the history, or may have denied CKA_LOCAL. Then the
 * report claims none of these three. */
static const struct {
    const char *name;
    bool value;
    bool history;
} attributes[] = {
    {"CKA_TOKEN", true, false},
    {"CKA_PRIVATE", true, false},
    {"CKA_SENSITIVE", true, false},
    {"CKA_EXTRACTABLE", false, false},
    {"CKA_ALWAYS_SENSITIVE", true, true},
    {"CKA_NEVER_EXTRACTABLE", true, true},
    {"CKA_LOCAL", true, true},
};

/* One authority of the bundle and its key in the token. */
struct authority {
    const char *use;            /* its use, in the words of the SPIFFE format */
    char name[TABLE_CELL];      /* X.509: subject key identifier; JWT: key id */
    char until[TIME_TEXT];      /* for X.509 only */
    struct hsm_public_key key;  /* type NONE: a kind of key that this program does not make */
    char pem[2 * HSM_PKIX_MAX]; /* the same key as PEM */
    const struct inventory_item *item;   /* NULL: not found on the token */
    struct hsm_reply reply;              /* with the signature */
    char message[MESSAGE_MAX];           /* the signed text */
    char reason[FAULT_MESSAGE_MAX + 64]; /* why the key counts as absent; "" if it is there */
};

struct evidence {
    const struct command_options *options;
    const struct config *config;
    struct command_bundle bundle;
    struct command_token token;
    char nonce[2 * NONCE_MAX + 1];
    struct authority *authorities;
    size_t count;
    bool out_of_memory;
    size_t absent;
    size_t unproven; /* keys on the token whose public key is unknown */
};

static bool is_held(const struct authority *authority)
{
    return authority->reason[0] == '\0';
}

static void free_json(json_t **json)
{
    json_decref(*json);
}

/* ---- the bundle ---- */

static struct authority *new_authority(struct evidence *evidence, const char *use)
{
    struct authority *grown =
        reallocarray(evidence->authorities, evidence->count + 1, sizeof *grown);

    if (!grown) {
        evidence->out_of_memory = true;
        return NULL;
    }
    evidence->authorities = grown;
    grown += evidence->count++;
    *grown = (struct authority){.use = use};
    return grown;
}

static void write_pem(const struct hsm_public_key *key, char *text, size_t size)
{
    unsigned char lines[2 * HSM_PKIX_MAX];
    size_t at = (size_t)snprintf(text, size, "-----BEGIN PUBLIC KEY-----\n");

    (void)EVP_EncodeBlock(lines, key->pkix, (int)key->pkix_length);
    for (const char *line = (char *)lines; *line; line += strnlen(line, 64))
        at += (size_t)snprintf(text + at, size - at, "%.64s\n", line);
    (void)snprintf(text + at, size - at, "-----END PUBLIC KEY-----\n");
}

static void set_key(struct authority *authority, const EVP_PKEY *key)
{
    OWNED(der_free) unsigned char *der = NULL;
    int length = key ? i2d_PUBKEY(key, &der) : 0;

    ERR_clear_error();
    if (length > 0 && pubkey_from_pkix(der, (size_t)length, &authority->key, NULL) == 0)
        write_pem(&authority->key, authority->pem, sizeof authority->pem);
    else
        authority->key.type = HSM_KEY_NONE;
}

static void add_certificate(void *context, X509 *certificate)
{
    struct authority *authority = new_authority(context, "x509-svid");
    char ski[SKI_TEXT];

    if (!authority || !certificate)
        return;
    command_ski(certificate, ski);
    (void)snprintf(authority->name, sizeof authority->name, "%s", ski);
    command_time(X509_get0_notAfter(certificate), authority->until);
    set_key(authority, X509_get0_pubkey(certificate));
}

static void add_key(void *context, const json_t *jwk)
{
    struct authority *authority = new_authority(context, "jwt-svid");
    const char *kid = json_string_value(json_object_get(jwk, "kid"));
    struct fault ignored;
    OWNED(jwk_free_key) EVP_PKEY *key = jwk_read(jwk, &ignored);

    if (!authority)
        return;
    (void)snprintf(authority->name, sizeof authority->name, "%s", kid ? kid : "");
    set_key(authority, key);
}

/* A damaged file is refused: evidence about the rest of it would mislead. */
static int read_bundle(struct evidence *evidence, struct fault *fault)
{
    static const struct command_bundle_visitor visitor = {add_certificate, add_key};
    struct command_bundle *bundle = &evidence->bundle;
    const char *path = evidence->options->bundle;
    struct bundle_summary summary;

    if (!path)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "--bundle FILE is required");
    if (command_read_bundle(path, evidence->options->format, bundle, fault) != 0)
        return -1;
    if (bundle_read(bundle->bytes, bundle->length, bundle->format, &summary, fault) != 0)
        return fault_prefix(fault, "%s", path);
    command_visit_bundle(bundle, &visitor, evidence);
    if (evidence->out_of_memory)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    return 0;
}

/* ---- the token ---- */

static bool is_key_of(const struct inventory_item *item, const struct authority *authority)
{
    return item->proven && item->state == HSM_COMPLETE && authority->key.type != HSM_KEY_NONE &&
           memcmp(item->public_key.fingerprint, authority->key.fingerprint, HSM_FINGERPRINT) == 0;
}

static void look_up(struct evidence *evidence)
{
    const struct inventory *found = &evidence->token.census.found;

    for (size_t i = 0; i < found->count; i++) {
        const struct inventory_item *item = &found->items[i];

        evidence->unproven += !item->proven || item->state != HSM_COMPLETE;
        for (size_t k = 0; k < evidence->count; k++)
            if (!evidence->authorities[k].item && is_key_of(item, &evidence->authorities[k]))
                evidence->authorities[k].item = item;
    }
}

/* A CA's key must not sign a text of a stranger's choice. Whatever the nonce is, no certificate
 * begins like this text, and no JWT contains a blank. */
static void write_message(const struct evidence *evidence, struct authority *authority)
{
    char fingerprint[FINGERPRINT_TEXT];

    hex_encode(authority->key.fingerprint, HSM_FINGERPRINT, fingerprint);
    (void)snprintf(
        authority->message, sizeof authority->message,
        "spire-hsm evidence: this key signed a nonce\nnonce: %s\npublic key sha256: %s\n",
        evidence->nonce, fingerprint);
}

static int sign_nonce(struct evidence *evidence, struct authority *authority, struct fault *fault)
{
    struct hsm_request request = {.op = HSM_SIGN,
                                  .key = authority->item->name,
                                  .type = authority->key.type,
                                  .hash = HSM_SHA256,
                                  .digest_length = SHA256_DIGEST_LENGTH};

    write_message(evidence, authority);
    (void)SHA256((const uint8_t *)authority->message, strlen(authority->message), request.digest);
    memcpy(request.fingerprint, authority->key.fingerprint, sizeof request.fingerprint);
    command_execute(&evidence->token, &request, &authority->reply);
    if (authority->reply.fault.code != FAULT_NONE) {
        *fault = authority->reply.fault;
        return -1;
    }
    return pubkey_verify(&authority->key, &request, authority->reply.signature,
                         authority->reply.signature_length, fault);
}

static void judge(struct evidence *evidence, struct authority *authority)
{
    struct fault fault;

    if (authority->key.type == HSM_KEY_NONE)
        (void)snprintf(authority->reason, sizeof authority->reason,
                       "spire-hsm makes no keys of this type");
    else if (!authority->item && evidence->unproven > 0)
        (void)snprintf(authority->reason, sizeof authority->reason,
                       "no proven key of SPIRE on this token matches; %zu could not be proven, see "
                       "spire-hsm keys",
                       evidence->unproven);
    else if (!authority->item)
        (void)snprintf(authority->reason, sizeof authority->reason,
                       "no key of SPIRE on this token matches");
    else if (sign_nonce(evidence, authority, &fault) != 0)
        (void)snprintf(authority->reason, sizeof authority->reason,
                       "the key is there, but it did not sign: %s", fault.message);
    evidence->absent += !is_held(authority);
}

static int examine(struct evidence *evidence, struct fault *fault)
{
    struct inventory server = {.items = NULL};

    if (command_open_token(&evidence->config->keymanager, -1, &evidence->token, fault) != 0 ||
        command_census(&evidence->token, fault) != 0)
        return -1;
    while (census_next(&evidence->token.census, &server))
        command_prove(&evidence->token, &server);
    look_up(evidence);
    for (size_t i = 0; i < evidence->count; i++)
        judge(evidence, &evidence->authorities[i]);
    return 0;
}

/* ---- the nonce ---- */

static int read_nonce(struct evidence *evidence, struct fault *fault)
{
    const char *given = evidence->options->nonce;
    size_t digits = given ? strlen(given) : 0;
    uint8_t bytes[NONCE_MAX];

    if (!given) {
        if (RAND_bytes(bytes, NONCE_RANDOM) != 1)
            return fault_set(fault, FAULT_INTERNAL, "no random numbers");
        hex_encode(bytes, NONCE_RANDOM, evidence->nonce);
        return 0;
    }
    if (digits % 2 != 0 || digits / 2 < NONCE_MIN || digits / 2 > NONCE_MAX ||
        !hex_decode(given, digits / 2, bytes))
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "--nonce: %d to %d bytes are expected, in lower-case hexadecimal",
                         NONCE_MIN, NONCE_MAX);
    (void)snprintf(evidence->nonce, sizeof evidence->nonce, "%s", given);
    return 0;
}

/* ---- table ---- */

static void add_row(struct table *table, const struct authority *authority)
{
    const struct inventory_item *item = authority->item;
    char fingerprint[FINGERPRINT_TEXT];
    char cka_id[2 * HSM_ID_MAX + 1] = "";

    hex_encode(authority->key.fingerprint, HSM_FINGERPRINT, fingerprint);
    table_row(table, authority->use, *authority->name ? authority->name : "-",
              authority->key.type == HSM_KEY_NONE ? "-" : hsm_key_type_name(authority->key.type),
              *authority->until ? authority->until : "-", is_held(authority) ? "yes" : "NO",
              item ? item->label.key_id : "-", NULL);
    if (!is_held(authority)) {
        table_note(table, "%s", authority->reason);
        return;
    }
    hex_encode(item->name.id, item->name.id_length, cka_id);
    table_note(table, "label=%s cka_id=%s sha256=%s", item->name.label, cka_id, fingerprint);
}

static void print_claim(bool lenient)
{
    (void)printf("\n"
                 "The token reported just now of each key that it holds:");
    for (size_t i = 0; i < sizeof attributes / sizeof attributes[0]; i++)
        if (!attributes[i].history || !lenient)
            (void)printf(" %s=%s", attributes[i].name, attributes[i].value ? "true" : "false");
    if (lenient)
        (void)printf(".\n"
                     "attribute_check is lenient, so this does not show where a key was made, nor "
                     "whether it was ever outside.\n");
    else
        (void)printf(
            ".\n"
            "So the token made each key, always kept it sensitive, and never let it out.\n");
    (void)printf(
        "Each key signed the nonce, and the bundle's public key verifies it. --json has the "
        "signatures.\n"
        "All this is what the token's library says; the token's maker has signed none of it.\n");
}

static void print_table(const struct evidence *evidence)
{
    OWNED(table_free) struct table table = {.rows = NULL};
    const struct hsm_token_info *info = &evidence->token.info;
    size_t held = evidence->count - evidence->absent;

    (void)printf("bundle: %s\ntoken: \"%s\", serial %s, %s %s (library: %s)\nnonce: %s\n\n",
                 evidence->options->bundle, info->label, info->serial, info->manufacturer,
                 info->model, info->library, evidence->nonce);
    table_row(&table, "USE", "AUTHORITY", "TYPE", "UNTIL", "IN THIS TOKEN", "KEY ID", NULL);
    for (size_t i = 0; i < evidence->count; i++)
        add_row(&table, &evidence->authorities[i]);
    table_print(&table, stdout);
    if (evidence->bundle.format == BUNDLE_PEM)
        (void)printf("A bundle in PEM says nothing of JWT authorities.\n");
    if (evidence->bundle.format == BUNDLE_OIDC)
        (void)printf("A key set for OIDC says nothing of X.509 authorities.\n");
    if (held > 0)
        print_claim(evidence->config->keymanager.lenient);
    (void)printf("\n%zu of %zu authorities have their key in this token", held, evidence->count);
    if (evidence->absent > 0)
        (void)printf("; %zu NOT", evidence->absent);
    (void)printf("\n");
}

/* ---- JSON ---- */

static json_t *text_or_null(const char *text)
{
    return *text ? json_string(text) : json_null();
}

static void add_held(const struct evidence *evidence, const struct authority *authority,
                     json_t *entry)
{
    const struct inventory_item *item = authority->item;
    char cka_id[2 * HSM_ID_MAX + 1] = "";
    OWNED(scope_free)
    char *signature = base64_encode(BASE64_STANDARD, authority->reply.signature,
                                    authority->reply.signature_length);
    json_t *said = json_object();

    for (size_t i = 0; i < sizeof attributes / sizeof attributes[0]; i++)
        if (!attributes[i].history || !evidence->config->keymanager.lenient)
            (void)json_object_set_new(said, attributes[i].name, json_boolean(attributes[i].value));
    hex_encode(item->name.id, item->name.id_length, cka_id);
    (void)json_object_set_new(entry, "key_id", json_string(item->label.key_id));
    (void)json_object_set_new(entry, "label", json_string(item->name.label));
    (void)json_object_set_new(entry, "cka_id", json_string(cka_id));
    (void)json_object_set_new(entry, "attributes", said);
    (void)json_object_set_new(entry, "message", json_string(authority->message));
    (void)json_object_set_new(entry, "signature", json_string(signature ? signature : ""));
}

static json_t *authority_json(const struct evidence *evidence, const struct authority *authority)
{
    bool known = authority->key.type != HSM_KEY_NONE;
    char fingerprint[FINGERPRINT_TEXT] = "";
    json_t *entry = json_object();

    if (known)
        hex_encode(authority->key.fingerprint, HSM_FINGERPRINT, fingerprint);
    (void)json_object_set_new(entry, "use", json_string(authority->use));
    (void)json_object_set_new(entry, "authority", text_or_null(authority->name));
    (void)json_object_set_new(entry, "not_after", text_or_null(authority->until));
    (void)json_object_set_new(
        entry, "type", known ? json_string(hsm_key_type_name(authority->key.type)) : json_null());
    (void)json_object_set_new(entry, "sha256", text_or_null(fingerprint));
    (void)json_object_set_new(entry, "public_key", text_or_null(authority->pem));
    (void)json_object_set_new(entry, "in_token", json_boolean(is_held(authority)));
    (void)json_object_set_new(entry, "reason", text_or_null(authority->reason));
    if (is_held(authority))
        add_held(evidence, authority, entry);
    return entry;
}

static json_t *bundle_json(const struct evidence *evidence)
{
    const struct command_bundle *bundle = &evidence->bundle;
    const json_t *sequence = json_object_get(bundle->document, "spiffe_sequence");
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char text[FINGERPRINT_TEXT];

    (void)SHA256((const uint8_t *)bundle->bytes, bundle->length, digest);
    hex_encode(digest, sizeof digest, text);
    return json_pack("{ss ss ss so}", "file", evidence->options->bundle, "format",
                     command_format_name(bundle->format), "sha256", text, "sequence",
                     sequence ? json_deep_copy(sequence) : json_null());
}

static int print_json(const struct evidence *evidence)
{
    const struct hsm_token_info *info = &evidence->token.info;
    json_t *authorities = json_array();
    OWNED(free_json) json_t *document = NULL;
    time_t now = time(NULL);
    char made[TIME_TEXT] = "";
    struct tm utc;

    if (gmtime_r(&now, &utc))
        (void)strftime(made, sizeof made, "%Y-%m-%dT%H:%M:%SZ", &utc);
    for (size_t i = 0; i < evidence->count; i++)
        (void)json_array_append_new(authorities,
                                    authority_json(evidence, &evidence->authorities[i]));
    document = json_pack(
        "{ss ss so s{ss ss ss ss ss} ss ss so si}", "made", made, "trust_domain",
        evidence->config->trust_domain, "bundle", bundle_json(evidence), "token", "label",
        info->label, "serial", info->serial, "manufacturer", info->manufacturer, "model",
        info->model, "library", info->library, "attribute_check",
        evidence->config->keymanager.lenient ? "lenient" : "strict", "nonce", evidence->nonce,
        "authorities", authorities, "not_in_token", (int)evidence->absent);
    if (!document || json_dumpf(document, stdout, JSON_INDENT(2)) != 0)
        return -1;
    return fputc('\n', stdout) == EOF ? -1 : 0;
}

/* ---- the command ---- */

static void close_evidence(struct evidence *evidence)
{
    command_close_token(&evidence->token);
    command_free_bundle(&evidence->bundle);
    free(evidence->authorities);
}

static int gather(struct evidence *evidence, struct fault *fault)
{
    if (read_nonce(evidence, fault) != 0 || read_bundle(evidence, fault) != 0 ||
        examine(evidence, fault) != 0)
        return -1;
    if (!evidence->options->json)
        print_table(evidence);
    else if (print_json(evidence) != 0)
        return fault_set(fault, FAULT_UNAVAILABLE, "cannot write the JSON");
    return 0;
}

int evidence_command(const struct command_options *options)
{
    OWNED(command_wipe_config) struct command_config config = {.needed = {false}};
    OWNED(close_evidence)
    struct evidence evidence = {.options = options, .config = &config.config};
    struct fault fault;

    if (command_read_config(options, &config, &fault) != 0 || gather(&evidence, &fault) != 0)
        return command_fail(&fault);
    return evidence.absent == 0 ? COMMAND_FINE : COMMAND_WRONG;
}
