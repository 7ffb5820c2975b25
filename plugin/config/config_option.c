/* The tables of options; and finding, setting and showing one of them. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "hsm/wire/uri.h"
#include "plugin/bundle/oidc.h"
#include "plugin/config/config_private.h"

#define FIELD(member) offsetof(struct config, member), sizeof(((struct config *)NULL)->member)

/* ---- the tables ---- */

static const struct option_choice attribute_checks[] = {{"strict", false}, {"lenient", true}, {0}};
static const struct option_choice key_templates[] = {{"full", false}, {"least", true}, {0}};
static const struct option_choice missing_keys[] = {{"refuse", false}, {"replace", true}, {0}};
static const struct option_choice verifications[] = {{"auto", false}, {"always", true}, {0}};
static const struct option_choice id_lengths[] = {{"16", 16}, {"2", 2}, {0}};
static const struct option_choice formats[] = {{"spiffe", BUNDLE_SPIFFE},
                                               {"jwks", BUNDLE_JWKS},
                                               {"pem", BUNDLE_PEM},
                                               {"oidc", BUNDLE_OIDC},
                                               {0}};

static const struct config_option keymanager_options[] = {
    {"module", OPTION_STRING, FIELD(keymanager.place.module), .required = true,
     .type = "path or file name", .check = value_check_module,
     .help = "the token's PKCS#11 library: an absolute path, or a file name in p11-kit's module "
             "folder"},
    {"module_args", OPTION_STRING, FIELD(keymanager.place.module_args), .type = "string",
     .help =
         "text that the library expects at C_Initialize, if any; NSS wants its configdir there"},
    {"token", OPTION_STRING, FIELD(keymanager.place.token), .required = true, .type = "PKCS#11 URI",
     .check = uri_wrong,
     .help = "which token, by any of token (its label), serial, model, manufacturer and slot-id; "
             "exactly one token must match"},
    {"pin_file", OPTION_STRING, FIELD(keymanager.place.pin_file), .group = GROUP_PIN,
     .type = "absolute path", .check = value_check_path,
     .help = "file with the PIN, read at each login; the server's user or root must own it, and no "
             "other user may access it"},
    {"pin_env", OPTION_STRING, FIELD(keymanager.place.pin_env), .group = GROUP_PIN,
     .type = "variable name", .check = value_check_variable,
     .help = "environment variable that holds the PIN"},
    {"pin", OPTION_STRING, FIELD(keymanager.place.pin), .group = GROUP_PIN, .type = "string",
     .help = "the PIN itself, for local tests only: SPIRE keeps it in memory too"},
    {"key_identifier_file", OPTION_STRING, FIELD(keymanager.place.key_identifier_file),
     .group = GROUP_IDENTITY, .type = "absolute path", .check = value_check_path,
     .help = "file that identifies this server's keys on the token; the plugin makes it if it is "
             "absent"},
    {"key_identifier_value", OPTION_STRING, FIELD(keymanager.place.key_identifier_value),
     .group = GROUP_IDENTITY, .type = "string of 1 to 256 bytes",
     .help = "a fixed name in place of that file, where there is no disk; a second server with "
             "this name is refused only on the same host"},
    {"record_file", OPTION_STRING, FIELD(keymanager.record_file), .type = "absolute path",
     .check = value_check_path,
     .help = "file that records which keys are served; if it is not set: the path of "
             "key_identifier_file with .keys added"},
    {"missing_keys", OPTION_CHOICE, FIELD(keymanager.replace_missing), .initial = "refuse",
     .choices = missing_keys,
     .help = "refuse: the plugin refuses to start if a key that SPIRE needs is missing; replace: "
             "it starts, and SPIRE makes new keys"},
    {"accept_loss", OPTION_STRING, FIELD(keymanager.accept_loss), .type = "code of 8 characters",
     .check = value_check_code,
     .help = "the code from a refused start: accept once the loss of exactly the keys, or the "
             "damaged record, that the code stands for"},
    {"max_sessions", OPTION_INTEGER, FIELD(keymanager.max_sessions), .initial = "4", .low = "1",
     .high = "64",
     .help = "how many sessions the plugin opens on the token, and so how many signatures run at a "
             "time; spire-hsm bench names the value to set"},
    {"startup_wait", OPTION_DURATION, FIELD(keymanager.startup_wait), .initial = "60s", .low = "0s",
     .high = "10m",
     .help = "how long a start waits for an absent token or PIN file; then the server ends; 0s = "
             "it does not wait"},
    {"call_timeout", OPTION_DURATION, FIELD(keymanager.call_timeout), .initial = "25s", .low = "1s",
     .high = "29s",
     .help = "how long a call waits while the token is away; then it fails, and SPIRE or the agent "
             "tries again; SPIRE itself gives up after 30s"},
    {"operation_timeout", OPTION_DURATION, FIELD(keymanager.operation_timeout), .initial = "10s",
     .low = "1s", .high = "60s",
     .help = "how long one request, such as a signature, may take; then the plugin ends the worker "
             "that hangs, starts another and asks again"},
    {"generate_timeout", OPTION_DURATION, FIELD(keymanager.generate_timeout), .initial = "5m",
     .low = "10s", .high = "30m",
     .help = "the same as operation_timeout, for making a key pair and for a search of the token"},
    {"keep_alive", OPTION_DURATION, FIELD(keymanager.keep_alive), .initial = "20s", .low = "1s",
     .high = "10m", .zero = true,
     .help = "how often the plugin asks an idle token for a random number, to keep its sessions "
             "alive; 0 = never"},
    {"destroy_superseded", OPTION_BOOLEAN, FIELD(keymanager.destroy_superseded), .initial = "true",
     .help = "true: destroy old keys once a new one is served; false: leave them to spire-hsm "
             "prune, for a role that may not destroy keys"},
    {"destroy_superseded_after", OPTION_DURATION, FIELD(keymanager.destroy_superseded_after),
     .initial = "24h", .low = "1s", .high = "8760h", .zero = true,
     .help = "how long a superseded key stays, counted while the server runs and across restarts; "
             "0 = it goes at once"},
    {"keep_condemned", OPTION_INTEGER, FIELD(keymanager.keep_condemned), .initial = "4", .low = "1",
     .high = "64",
     .help = "how many superseded keys of one key id may wait for destruction; if there are more, "
             "the oldest goes before its time"},
    {"attribute_check", OPTION_CHOICE, FIELD(keymanager.lenient), .initial = "strict",
     .choices = attribute_checks,
     .help = "strict: serve only keys that the token reports as made there and never extractable; "
             "lenient: also keys whose origin it cannot report, which may be imported ones"},
    {"key_template", OPTION_CHOICE, FIELD(keymanager.least), .initial = "full",
     .choices = key_templates,
     .help =
         "full: request all attributes that protect a key; least: leave out those that forbid "
         "other uses, changes and copies; try it if key generation fails with an unspecific error"},
    {"verify_signatures", OPTION_CHOICE, FIELD(keymanager.verify_always), .initial = "auto",
     .choices = verifications,
     .help = "auto: verify every RSA signature, every EC signature of a slow token, and one in 64 "
             "of a fast one; always: verify every signature"},
    {"cka_id_length", OPTION_CHOICE, FIELD(keymanager.cka_id_length), .initial = "16",
     .choices = id_lengths,
     .help = "bytes of CKA_ID; 2 for a token that cannot store 16, at the cost of the mark of who "
             "made a key"},
    {"label_max", OPTION_INTEGER, FIELD(keymanager.label_max), .initial = "0", .low = "40",
     .high = "800", .zero = true,
     .help = "how many bytes of CKA_LABEL the token can store, 40 on a YubiHSM; no key is made "
             "whose label is longer; 0 = no limit known"},
    {"previous", OPTION_BLOCK, FIELD(keymanager.previous), .type = "block",
     .help =
         "the keys that this server or agent used before it moved; they sign until SPIRE has made "
         "new ones on the token"},
    {0}};

static const struct config_option previous_options[] = {
    {"keys_file", OPTION_STRING, FIELD(keymanager.previous.keys_file), .type = "absolute path",
     .check = value_check_path,
     .help = "the keys.json of SPIRE's KeyManager disk; the plugin reads it and never writes it"},
    {"module", OPTION_STRING, FIELD(keymanager.previous.module), .type = "path or file name",
     .check = value_check_module,
     .help = "the PKCS#11 library of the old token; instead of keys_file"},
    {"module_args", OPTION_STRING, FIELD(keymanager.previous.module_args), .type = "string",
     .help = "text for that library at C_Initialize"},
    {"token", OPTION_STRING, FIELD(keymanager.previous.token), .type = "PKCS#11 URI",
     .check = uri_wrong, .help = "the old token"},
    {"pin_file", OPTION_STRING, FIELD(keymanager.previous.pin_file), .group = GROUP_PIN,
     .type = "absolute path", .check = value_check_path,
     .help = "file with the PIN of the old token"},
    {"pin_env", OPTION_STRING, FIELD(keymanager.previous.pin_env), .group = GROUP_PIN,
     .type = "variable name", .check = value_check_variable,
     .help = "environment variable with that PIN"},
    {"pin", OPTION_STRING, FIELD(keymanager.previous.pin), .group = GROUP_PIN, .type = "string",
     .help = "that PIN itself; only for local tests"},
    {"key_identifier_file", OPTION_STRING, FIELD(keymanager.previous.key_identifier_file),
     .group = GROUP_IDENTITY, .type = "absolute path", .check = value_check_path,
     .help = "the key_identifier_file that went with the old token; it must exist"},
    {"key_identifier_value", OPTION_STRING, FIELD(keymanager.previous.key_identifier_value),
     .group = GROUP_IDENTITY, .type = "string of 1 to 256 bytes",
     .help = "the key_identifier_value that went with the old token"},
    {0}};

/* The rows that both kinds of bundle writer have. */
/* clang-format off */
#define BUNDLE_OPTIONS \
    {"path", OPTION_STRING, FIELD(bundle.path), .required = true, .type = "absolute path", \
     .check = value_check_place, \
     .help = "the file that gets the bundle, or with format oidc a folder; the folder must exist, and the server's user must be able to write to it"}, \
    {"format", OPTION_CHOICE, FIELD(bundle.format), .initial = "spiffe", .choices = formats, \
     .help = "spiffe: for the OIDC discovery provider; oidc: a folder for any web server, without that provider; jwks and pem: for other readers"}, \
    {"issuer", OPTION_STRING, FIELD(bundle.issuer), .type = "https URL", \
     .check = oidc_issuer_wrong, \
     .help = "with format oidc: jwt_issuer of server.conf; a web server serves the folder at this URL"}, \
    {"refresh_hint", OPTION_DURATION, FIELD(bundle.refresh_hint), .initial = "0", .low = "1s", \
     .high = "8760h", .zero = true, \
     .help = "how often readers should load the bundle again, in whole seconds; 0 = as the bundle itself says"}, \
    {"mode", OPTION_MODE, FIELD(bundle.mode), .initial = "0644", \
     .help = "permissions of the file, as for chmod; never writable for everyone"}
/* clang-format on */

static const struct config_option publisher_options[] = {BUNDLE_OPTIONS, {0}};

static const struct config_option notifier_options[] = {
    BUNDLE_OPTIONS,
    {"required", OPTION_BOOLEAN, FIELD(bundle.required), .initial = "false",
     .help = "keep the server from starting when the file cannot be written"},
    {0}};

const struct config_option *option_table(enum config_kind kind)
{
    static const struct config_option *const tables[] = {
        [CONFIG_KEYMANAGER] = keymanager_options,
        [CONFIG_PUBLISHER] = publisher_options,
        [CONFIG_NOTIFIER] = notifier_options,
        [CONFIG_PREVIOUS] = previous_options,
    };

    return tables[kind];
}

const char *config_option_name(enum config_kind kind, size_t index)
{
    return option_table(kind)[index].name;
}

/* ---- names ---- */

enum { NAME_MAX_LENGTH = 40 };

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The number of letters to change, add or leave out (Levenshtein), ignoring case. */
static size_t distance(const char *a, const char *b)
{
    size_t row[NAME_MAX_LENGTH + 1];
    size_t length = strlen(b);

    for (size_t j = 0; j <= length; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        size_t corner = row[0];

        row[0] = i;
        for (size_t j = 1; j <= length; j++) {
            size_t above = row[j];
            bool same = strncasecmp(&a[i - 1], &b[j - 1], 1) == 0;

            row[j] = least(corner + !same, least(above, row[j - 1]) + 1);
            corner = above;
        }
    }
    return row[length];
}

const struct config_option *option_find(enum config_kind kind, const char *name,
                                        const char **nearest)
{
    size_t best = NAME_MAX_LENGTH;

    *nearest = NULL;
    for (const struct config_option *option = option_table(kind); option->name; option++) {
        size_t far;

        if (strcmp(option->name, name) == 0)
            return option;
        far = strlen(name) <= NAME_MAX_LENGTH ? distance(option->name, name) : best;
        if (far >= best || far > 1 + strlen(option->name) / 4)
            continue;
        best = far;
        *nearest = option->name;
    }
    return NULL;
}

/* ---- types ---- */

static void choice_type(const struct option_choice *choice, char type[OPTION_TYPE_MAX])
{
    size_t used = 0;

    for (size_t i = 0; choice[i].name; i++) {
        const char *between = i == 0 ? "" : choice[i + 1].name ? ", " : " or ";

        used +=
            (size_t)snprintf(type + used, OPTION_TYPE_MAX - used, "%s%s", between, choice[i].name);
    }
}

void option_type(const struct config_option *option, char type[OPTION_TYPE_MAX])
{
    static const char *const words[] = {[OPTION_DURATION] = "duration",
                                        [OPTION_INTEGER] = "integer",
                                        [OPTION_BOOLEAN] = "true or false",
                                        [OPTION_MODE] = "octal file mode"};

    if (option->kind == OPTION_CHOICE)
        choice_type(option->choices, type);
    else if (option->low)
        (void)snprintf(type, OPTION_TYPE_MAX, "%s%s from %s to %s", option->zero ? "0 or " : "",
                       words[option->kind], option->low, option->high);
    else
        (void)snprintf(type, OPTION_TYPE_MAX, "%s",
                       option->type ? option->type : words[option->kind]);
}

/* ---- values ---- */

static bool read_choice(const struct option_choice *choice, const char *text, int64_t *value)
{
    for (; choice->name; choice++) {
        if (strcasecmp(choice->name, text) != 0)
            continue;
        *value = choice->value;
        return true;
    }
    return false;
}

static bool read_text(const struct config_option *option, const char *text, int64_t *value)
{
    switch (option->kind) {
    case OPTION_DURATION:
        return config_duration(text, value);
    case OPTION_INTEGER:
        return value_integer(text, value);
    case OPTION_CHOICE:
        return read_choice(option->choices, text, value);
    case OPTION_MODE:
        return value_mode(text, value);
    case OPTION_BOOLEAN:
        *value = strcmp(text, "true") == 0;
        return *value || strcmp(text, "false") == 0;
    case OPTION_STRING:
    case OPTION_BLOCK:
        break;
    }
    return false;
}

static bool in_range(const struct config_option *option, int64_t value)
{
    int64_t low = 0;
    int64_t high = 0;

    if (!option->low || (option->zero && value == 0))
        return true;
    return read_text(option, option->low, &low) && read_text(option, option->high, &high) &&
           value >= low && value <= high;
}

/* Without quotes the value has its own kind. In quotes it may be a number, as for hcl.Decode, but
 * neither true nor false. A duration is text; 0 needs no unit. */
static bool read_item(const struct config_option *option, const struct hcl_item *item,
                      int64_t *value)
{
    char digits[24];

    *value = item->number;
    if (item->kind == HCL_BOOL)
        return option->kind == OPTION_BOOLEAN;
    if (item->kind == HCL_STRING)
        return option->kind != OPTION_BOOLEAN && read_text(option, item->text, value);
    if (item->kind != HCL_NUMBER)
        return false;
    (void)snprintf(digits, sizeof digits, "%lld", (long long)item->number);
    if (option->kind == OPTION_CHOICE)
        return read_choice(option->choices, digits, value);
    return option->kind == OPTION_INTEGER || option->kind == OPTION_MODE ||
           (option->kind == OPTION_DURATION && item->number == 0);
}

static void store(const struct config_option *option, int64_t value, struct config *config)
{
    char *at = (char *)config + option->offset;

    if (option->size == sizeof(int64_t))
        memcpy(at, &value, sizeof value);
    else if (option->size == sizeof(uint32_t))
        memcpy(at, &(uint32_t){(uint32_t)value}, sizeof(uint32_t));
    else
        memcpy(at, &(bool){value != 0}, sizeof(bool));
}

static bool refuse_value(char why[CONFIG_NOTE_MAX], const char *what)
{
    (void)snprintf(why, CONFIG_NOTE_MAX, "%s", what);
    return false;
}

static bool has_right_kind(const struct config_option *option, const struct hcl_item *item)
{
    if (item->kind == HCL_STRING)
        return option->kind != OPTION_BOOLEAN;
    if (item->kind == HCL_NUMBER)
        return option->kind == OPTION_INTEGER || option->kind == OPTION_CHOICE ||
               option->kind == OPTION_MODE;
    return item->kind == HCL_BOOL && option->kind == OPTION_BOOLEAN;
}

/* Returns NULL if the value is right. Most refused durations lack their unit. */
static const char *what_is_wrong(const struct config_option *option, const struct hcl_item *item)
{
    static const char *const found[] = {
        [HCL_STRING] = "text in quotes", [HCL_NUMBER] = "a bare number", [HCL_FLOAT] = "a fraction",
        [HCL_BOOL] = "true or false",    [HCL_LIST] = "a list",          [HCL_BLOCK] = "a block"};
    int64_t number;

    if (option->kind == OPTION_DURATION &&
        (item->kind == HCL_NUMBER ||
         (item->kind == HCL_STRING && value_integer(item->text, &number) && number != 0)))
        return "a number without a unit";
    return has_right_kind(option, item) ? NULL : found[item->kind];
}

static bool refuse_type(const struct config_option *option, const struct hcl_item *item,
                        char why[CONFIG_NOTE_MAX])
{
    char type[OPTION_TYPE_MAX];
    const char *wrong = what_is_wrong(option, item);

    option_type(option, type);
    (void)snprintf(why, CONFIG_NOTE_MAX, "expected %s%s%s", type, wrong ? ", found " : "",
                   wrong ? wrong : "");
    return false;
}

static bool set_string(const struct config_option *option, const struct hcl_item *item,
                       struct config *config, char why[CONFIG_NOTE_MAX])
{
    const char *wrong;

    if (item->kind != HCL_STRING)
        return refuse_type(option, item, why);
    if (option->required && item->length == 0)
        return refuse_value(why, "is empty");
    wrong = value_check_text(item->text);
    if (!wrong && option->check)
        wrong = option->check(item->text);
    if (wrong)
        return refuse_value(why, wrong);
    if (item->length >= option->size) {
        (void)snprintf(why, CONFIG_NOTE_MAX, "is longer than %zu bytes", option->size - 1);
        return false;
    }
    memcpy((char *)config + option->offset, item->text, item->length + 1);
    return true;
}

bool option_set(const struct config_option *option, const struct hcl_item *item,
                struct config *config, char why[CONFIG_NOTE_MAX])
{
    const char *wrong = NULL;
    int64_t value;

    if (option->kind == OPTION_STRING)
        return set_string(option, item, config, why);
    if (!read_item(option, item, &value) || !in_range(option, value))
        return refuse_type(option, item, why);
    if (option->kind == OPTION_MODE)
        wrong = value_check_mode(value);
    if (wrong)
        return refuse_value(why, wrong);
    store(option, value, config);
    return true;
}

void option_set_initial(const struct config_option *option, struct config *config)
{
    int64_t value;

    if (option->initial && read_text(option, option->initial, &value))
        store(option, value, config);
}

/* ---- for people ---- */

void config_help(enum config_kind kind, FILE *out)
{
    for (const struct config_option *option = option_table(kind); option->name; option++) {
        char type[OPTION_TYPE_MAX];

        option_type(option, type);
        (void)fprintf(out, "  %-20s  %s%s%s%s\n", option->name, type,
                      option->initial ? ", default " : "", option->initial ? option->initial : "",
                      option->required ? ", required" : "");
        (void)fprintf(out, "  %-20s  %s\n", "", option->help);
    }
}

void config_markdown(enum config_kind kind, FILE *out)
{
    (void)fputs("| option | type | default | meaning |\n|---|---|---|---|\n", out);
    for (const struct config_option *option = option_table(kind); option->name; option++) {
        char type[OPTION_TYPE_MAX];
        const char *quote = option->initial ? "`" : "";

        option_type(option, type);
        (void)fprintf(out, "| `%s` | %s | %s%s%s | %s |\n", option->name, type, quote,
                      option->initial    ? option->initial
                      : option->required ? "required"
                                         : "",
                      quote, option->help);
    }
}
