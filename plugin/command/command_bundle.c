/* spire-hsm bundle show: lists a published file, and what its readers would refuse in it. */
#include <string.h>

#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include "hsm/base/hex.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "plugin/bundle/bundle.h"
#include "plugin/bundle/jwk.h"
#include "plugin/command/command_private.h"

struct show {
    const struct command_bundle *bundle;
    struct table x509;
    struct table jwt;
    unsigned warnings;
};

static void free_openssl(char **text)
{
    OPENSSL_free(*text);
}

static void warn(struct show *show, const char *text)
{
    show->warnings++;
    (void)printf("WARNING: %s\n", text);
}

/* ---- X.509 authorities ---- */

static void subject_text(const X509 *certificate, char text[TABLE_CELL])
{
    OWNED(free_openssl) char *line = X509_NAME_oneline(X509_get_subject_name(certificate), NULL, 0);

    (void)snprintf(text, TABLE_CELL, "%.*s", TABLE_CELL - 1, line ? line : "?");
}

static void add_certificate(void *context, X509 *certificate)
{
    struct show *show = context;
    char subject[TABLE_CELL];
    char ski[SKI_TEXT];
    char until[TIME_TEXT];
    uint8_t digest[EVP_MAX_MD_SIZE];
    char fingerprint[2 * EVP_MAX_MD_SIZE + 1] = "?";
    unsigned length = 0;
    bool expired;

    if (!certificate) {
        table_row(&show->x509, "not a certificate", "-", "-", "DAMAGED", NULL);
        return;
    }
    expired = X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0;
    subject_text(certificate, subject);
    command_ski(certificate, ski);
    command_time(X509_get0_notAfter(certificate), until);
    if (X509_digest(certificate, EVP_sha256(), digest, &length) == 1)
        hex_encode(digest, length, fingerprint);
    table_row(&show->x509, subject, until, ski[0] ? ski : "-", expired ? "EXPIRED" : "", NULL);
    table_note(&show->x509, "sha256=%s", fingerprint);
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

static void add_key(void *context, const json_t *jwk)
{
    struct show *show = context;
    const char *kid = json_string_value(json_object_get(jwk, "kid"));
    char type[64];

    key_text(jwk, type);
    table_row(&show->jwt, kid && *kid ? kid : "no key id", type,
              strcmp(type, "-") == 0 ? "DAMAGED" : "", NULL);
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

static void print_head(const struct command_bundle *bundle, const char *path)
{
    (void)printf("file: %s\n"
                 "format: %s\n"
                 "trust domain: the file does not name it\n",
                 path, command_format_name(bundle->format));
    if (bundle->format != BUNDLE_SPIFFE)
        return;
    print_number(bundle->document, "spiffe_sequence", "sequence", "");
    print_number(bundle->document, "spiffe_refresh_hint", "refresh hint", " s");
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
    if (show->bundle->format != BUNDLE_SPIFFE)
        warn(show, "the OIDC discovery provider cannot read this format; it needs spiffe");
    else if (show->jwt.count == 0)
        warn(show,
             "no JWT authority: the discovery provider serves no key, and no JWT-SVID verifies");
    if (show->x509.count == 0)
        warn(show, "no X.509 authority: no X.509-SVID verifies with this bundle");
    if (is_marked(&show->x509, "EXPIRED"))
        warn(show, "an X.509 authority has expired: is the file still being published?");
}

static void judge_file(struct show *show)
{
    const struct command_bundle *bundle = show->bundle;
    struct bundle_summary summary;
    struct fault fault;
    int result = bundle_read(bundle->bytes, bundle->length, bundle->format, &summary, &fault);

    (void)printf("\n");
    /* Readable, but not in the form that we write. */
    if (result != 0 && fault.code == FAULT_NOT_FOUND) {
        warn(show,
             "the file has no authorities: the discovery provider accepts it and serves no key");
        return;
    }
    if (result != 0) {
        show->warnings++;
        (void)printf("WARNING: the file is damaged, and readers refuse all of it: %s\n",
                     fault.message);
        if (show->x509.count + show->jwt.count == 0)
            return;
    } else if (summary.others > 0) {
        (void)printf("keys for another use, which readers ignore: %zu\n", summary.others);
    }
    if (bundle->format != BUNDLE_OIDC)
        judge_authorities(show);
    if (show->warnings == 0)
        (void)printf("fine: readers accept this file\n");
}

static void close_show(struct show *show)
{
    table_free(&show->x509);
    table_free(&show->jwt);
}

static int show_file(const struct command_options *options, struct show *show, struct fault *fault)
{
    static const struct command_bundle_visitor visitor = {add_certificate, add_key};
    const char *path = options->operands[1];
    OWNED(command_free_bundle) struct command_bundle bundle = {.bytes = NULL};

    if (command_read_bundle(path, options->format, &bundle, fault) != 0)
        return -1;
    show->bundle = &bundle;
    print_head(&bundle, path);
    command_visit_bundle(&bundle, &visitor, show);
    if (bundle.format != BUNDLE_OIDC)
        print_authorities(&show->x509, "X.509");
    if (bundle.format != BUNDLE_PEM)
        print_authorities(&show->jwt, "JWT");
    judge_file(show);
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
