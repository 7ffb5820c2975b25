/* spire-hsm bundle show: what a published file holds. */
#include <string.h>
#include <time.h>

#include <jansson.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "hsm/base/hex.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "plugin/bundle/base64.h"
#include "plugin/bundle/bundle.h"
#include "plugin/bundle/jwk.h"
#include "plugin/command/command_private.h"

static const size_t file_max = (size_t)16 << 20;

struct show {
    enum bundle_format format;
    struct table x509;
    struct table jwt;
    unsigned warnings;
};

static const struct {
    const char *name;
    enum bundle_format format;
} formats[] = {[BUNDLE_SPIFFE] = {"spiffe", BUNDLE_SPIFFE},
               [BUNDLE_JWKS] = {"jwks", BUNDLE_JWKS},
               [BUNDLE_PEM] = {"pem", BUNDLE_PEM},
               [BUNDLE_OIDC] = {"oidc", BUNDLE_OIDC}};

static void free_json(json_t **json)
{
    json_decref(*json);
}

static void free_openssl(char **text)
{
    OPENSSL_free(*text);
}

static void warn(struct show *show, const char *text)
{
    show->warnings++;
    (void)printf("WARNING: %s\n", text);
}

/* ---- format ---- */

static bool has_use(const json_t *document)
{
    const json_t *key;
    size_t i;

    json_array_foreach (json_object_get(document, "keys"), i, key)
        if (json_object_get(key, "use"))
            return true;
    return json_object_get(document, "spiffe_sequence") ||
           json_object_get(document, "spiffe_refresh_hint");
}

/* Of our formats only the key set for OIDC says what a key signs with. */
static bool has_algorithm(const json_t *document)
{
    const json_t *key;
    size_t i;

    json_array_foreach (json_object_get(document, "keys"), i, key)
        if (json_object_get(key, "alg"))
            return true;
    return false;
}

static int choose_format(const char *wanted, const char *bytes, const json_t *document,
                         enum bundle_format *format, struct fault *fault)
{
    *format = has_algorithm(document) ? BUNDLE_OIDC : BUNDLE_JWKS;
    if (has_use(document))
        *format = BUNDLE_SPIFFE;
    if (!document)
        *format = strstr(bytes, "-----BEGIN ") ? BUNDLE_PEM : BUNDLE_SPIFFE;
    if (!wanted)
        return 0;
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (strcmp(formats[i].name, wanted) == 0) {
            *format = formats[i].format;
            return 0;
        }
    return fault_set(fault, FAULT_INVALID_ARGUMENT, "--format: expected spiffe, jwks, pem or oidc");
}

/* ---- X.509 authorities ---- */

static void date_text(const ASN1_TIME *time, char text[32])
{
    struct tm utc;

    if (ASN1_TIME_to_tm(time, &utc) != 1 || strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0)
        (void)snprintf(text, 32, "?");
}

static void subject_text(const X509 *certificate, char text[TABLE_CELL])
{
    OWNED(free_openssl) char *line = X509_NAME_oneline(X509_get_subject_name(certificate), NULL, 0);

    (void)snprintf(text, TABLE_CELL, "%.*s", TABLE_CELL - 1, line ? line : "?");
}

static void ski_text(X509 *certificate, char text[TABLE_CELL])
{
    const ASN1_OCTET_STRING *id = X509_get0_subject_key_id(certificate);
    int length = id ? ASN1_STRING_length(id) : 0;

    text[0] = '\0';
    if (length > 0 && length < TABLE_CELL / 2)
        hex_encode(ASN1_STRING_get0_data(id), (size_t)length, text);
}

static void add_certificate(struct show *show, X509 *certificate)
{
    char subject[TABLE_CELL];
    char ski[TABLE_CELL];
    char until[32];
    uint8_t digest[EVP_MAX_MD_SIZE];
    char fingerprint[2 * EVP_MAX_MD_SIZE + 1] = "?";
    unsigned length = 0;
    bool expired = X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0;

    subject_text(certificate, subject);
    ski_text(certificate, ski);
    date_text(X509_get0_notAfter(certificate), until);
    if (X509_digest(certificate, EVP_sha256(), digest, &length) == 1)
        hex_encode(digest, length, fingerprint);
    table_row(&show->x509, subject, until, ski[0] ? ski : "-", expired ? "EXPIRED" : "", NULL);
    table_note(&show->x509, "sha256=%s", fingerprint);
}

static void add_der(struct show *show, const uint8_t *der, size_t length)
{
    const unsigned char *at = der;
    OWNED(x509_free)
    X509 *certificate = length < file_max ? d2i_X509(NULL, &at, (long)length) : NULL;

    ERR_clear_error();
    if (certificate)
        add_certificate(show, certificate);
    else
        table_row(&show->x509, "not a certificate", "-", "-", "DAMAGED", NULL);
}

static void add_pem(struct show *show, const char *bytes, size_t length)
{
    OWNED(bio_free) BIO *bio = BIO_new_mem_buf(bytes, (int)length);

    for (;;) {
        OWNED(x509_free) X509 *certificate = PEM_read_bio_X509(bio, NULL, NULL, NULL);

        if (!certificate)
            break;
        add_certificate(show, certificate);
    }
    ERR_clear_error();
}

/* ---- JWT authorities ---- */

static void key_text(const json_t *jwk, char text[64])
{
    struct fault fault;
    OWNED(jwk_free_key) EVP_PKEY *key = jwk_read(jwk, &fault);
    const char *kty = json_string_value(json_object_get(jwk, "kty"));
    const char *crv = json_string_value(json_object_get(jwk, "crv"));

    if (!key)
        (void)snprintf(text, 64, "-");
    else if (crv)
        (void)snprintf(text, 64, "%.20s %.20s", kty, crv);
    else
        (void)snprintf(text, 64, "%.20s %d", kty, EVP_PKEY_get_bits(key));
}

static void add_entry(struct show *show, const json_t *jwk)
{
    const char *x5c = json_string_value(json_array_get(json_object_get(jwk, "x5c"), 0));
    const char *kid = json_string_value(json_object_get(jwk, "kid"));
    const char *use = json_string_value(json_object_get(jwk, "use"));
    size_t length = 0;
    OWNED(scope_free) uint8_t *der = x5c ? base64_decode(BASE64_STANDARD, x5c, &length) : NULL;
    char type[64];

    if (show->format == BUNDLE_SPIFFE && bundle_passes_over(use))
        return;
    if (json_object_get(jwk, "x5c")) {
        add_der(show, der, length);
        return;
    }
    key_text(jwk, type);
    table_row(&show->jwt, kid && *kid ? kid : "no key id", type,
              strcmp(type, "-") == 0 ? "DAMAGED" : "", NULL);
}

static void add_entries(struct show *show, const json_t *document)
{
    const json_t *jwk;
    size_t i;

    json_array_foreach (json_object_get(document, "keys"), i, jwk)
        add_entry(show, jwk);
}

/* ---- the whole ---- */

static void print_number(const json_t *document, const char *name, const char *title,
                         const char *unit)
{
    const json_t *number = json_object_get(document, name);

    if (json_is_integer(number))
        (void)printf("%s: %lld%s\n", title, (long long)json_integer_value(number), unit);
    else
        (void)printf("%s: %s\n", title, number ? "not a number" : "none");
}

static void print_head(const struct show *show, const char *path, const json_t *document)
{
    (void)printf("file: %s\nformat: %s\ntrust domain: does not stand in the file\n", path,
                 formats[show->format].name);
    if (show->format != BUNDLE_SPIFFE)
        return;
    print_number(document, "spiffe_sequence", "sequence", "");
    print_number(document, "spiffe_refresh_hint", "refresh hint", " s");
}

static void print_authorities(const struct table *table, const char *title)
{
    (void)printf("\n%s authorities: %zu\n", title, table->count);
    table_print(table, stdout);
}

static bool is_marked(const struct table *table, const char *mark)
{
    for (size_t i = 0; i < table->count; i++)
        for (size_t column = 0; column < TABLE_COLUMNS; column++)
            if (strcmp(table->rows[i].cells[column], mark) == 0)
                return true;
    return false;
}

static void judge_authorities(struct show *show)
{
    if (show->format != BUNDLE_SPIFFE)
        warn(show, "the OIDC discovery provider cannot read this format, it needs spiffe");
    else if (show->jwt.count == 0)
        warn(show, "no JWT authority: the discovery provider serves no key, no JWT-SVID verifies");
    if (show->x509.count == 0)
        warn(show, "no X.509 authority: no X.509-SVID verifies with this bundle");
    if (is_marked(&show->x509, "EXPIRED"))
        warn(show, "an X.509 authority has expired: is the file still being published?");
}

static void judge_file(struct show *show, const char *bytes, size_t length)
{
    struct bundle_summary summary;
    struct fault fault;
    int result = bundle_read(bytes, length, show->format, &summary, &fault);

    (void)printf("\n");
    if (result != 0 && fault.code == FAULT_NOT_FOUND) { /* we would not write it */
        warn(show, "no authorities in it: the discovery provider believes that and serves no key");
        return;
    }
    if (result != 0) {
        show->warnings++;
        (void)printf("WARNING: the file is damaged, readers refuse all of it: %s\n", fault.message);
        if (show->x509.count + show->jwt.count == 0)
            return;
    } else if (summary.others > 0) {
        (void)printf("keys of another use, which readers pass over: %zu\n", summary.others);
    }
    if (show->format != BUNDLE_OIDC)
        judge_authorities(show);
    if (show->warnings == 0)
        (void)printf("fine: readers take this file as it is\n");
}

static void close_show(struct show *show)
{
    table_free(&show->x509);
    table_free(&show->jwt);
}

static int show_file(const struct command_options *options, struct show *show, struct fault *fault)
{
    const char *path = options->operands[1];
    size_t length;
    OWNED(scope_free) char *bytes = command_read_file(path, file_max, &length, fault);
    OWNED(free_json) json_t *document = NULL;

    if (!bytes)
        return -1;
    document = json_loadb(bytes, length, JSON_REJECT_DUPLICATES, NULL);
    if (choose_format(options->format, bytes, document, &show->format, fault) != 0)
        return -1;
    print_head(show, path, document);
    if (show->format == BUNDLE_PEM)
        add_pem(show, bytes, length);
    else
        add_entries(show, document);
    if (show->format != BUNDLE_OIDC)
        print_authorities(&show->x509, "X.509");
    if (show->format != BUNDLE_PEM)
        print_authorities(&show->jwt, "JWT");
    judge_file(show, bytes, length);
    return 0;
}

int bundle_command(const struct command_options *options)
{
    OWNED(close_show) struct show show = {.warnings = 0};
    struct fault fault;

    if (options->operand_count != 2 || strcmp(options->operands[0], "show") != 0) {
        (void)fault_set(&fault, FAULT_INVALID_ARGUMENT,
                        "expected: spire-hsm bundle show FILE; see --help");
        return command_fail(&fault);
    }
    if (show_file(options, &show, &fault) != 0)
        return command_fail(&fault);
    return show.warnings == 0 ? COMMAND_FINE : COMMAND_WRONG;
}
