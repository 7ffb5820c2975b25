/* plugin_data as settings: reads the text by the tables of options, fills in defaults, and collects
 * all complaints and not only the first. */
#include "plugin/config/config.h"

#include <stdarg.h>
#include <string.h>

#include <openssl/sha.h>

#include "hsm/base/clock.h"
#include "hsm/base/hex.h"
#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"
#include "hsm/wire/uri.h"
#include "plugin/config/config_private.h"

enum { LATCH_HASH = 10 }; /* so many bytes of the hash name the file */

/* The reading of one text. */
struct reading {
    enum config_kind kind;
    const char *prefix; /* put before every option's name: "", or "previous: " */
    struct config *config;
    struct config_notes *notes;
    unsigned lines[OPTIONS_MAX]; /* line of each option of the table; 0 = not given */
    struct {
        const char *option; /* NULL = none was given */
        unsigned line;
    } groups[GROUPS];
};

/* ---- notes ---- */

__attribute__((format(printf, 3, 4))) static void note(struct config_notes *notes, bool error,
                                                       const char *format, ...)
{
    size_t at = notes->errors + notes->warnings;
    size_t last = CONFIG_NOTES_MAX - 1;
    char text[2 * CONFIG_NOTE_MAX];
    va_list args;

    notes->errors += error;
    notes->warnings += !error;
    if (at > last) {
        notes->notes[last].error = notes->notes[last].error || error;
        (void)snprintf(notes->notes[last].text, CONFIG_NOTE_MAX, "and %zu more", at + 1 - last);
        return;
    }
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    notes->notes[at].error = error;
    utf8_clean(text, false, notes->notes[at].text, CONFIG_NOTE_MAX);
}

/* ---- options ---- */

static void note_unknown(struct reading *r, const struct hcl_item *item, const char *nearest)
{
    char name[64];

    utf8_clean(item->key, false, name, sizeof name);
    if (nearest)
        note(r->notes, true, "line %u: %sunknown option \"%s\" (did you mean %s?)", item->line,
             r->prefix, name, nearest);
    else
        note(r->notes, true, "line %u: %sunknown option \"%s\"", item->line, r->prefix, name);
}

static const struct {
    const char *twice; /* in the words of SPIRE's own key managers, which have the same options */
    const char *missing;
} groups[GROUPS] = {
    [GROUP_PIN] = {"there can be only one source of the PIN", NULL},
    [GROUP_IDENTITY] = {"configuration can't have a key identifier file and a key identifier "
                        "value at the same time",
                        "configuration requires a key identifier file or a key identifier value: "
                        "key_identifier_file or key_identifier_value"},
};

static void join_group(struct reading *r, enum option_group group, const char *option,
                       unsigned line)
{
    if (group == GROUP_NONE)
        return;
    if (r->groups[group].option) {
        note(r->notes, true, "line %u: %s%s: %s, and line %u has %s", line, r->prefix, option,
             groups[group].twice, r->groups[group].line, r->groups[group].option);
        return;
    }
    r->groups[group].option = option;
    r->groups[group].line = line;
}

/* For settings that are allowed, but perhaps not intended. */
static void warn(struct reading *r, const struct config_option *option, unsigned line)
{
    const struct config_bundle *bundle = &r->config->bundle;
    const char *odd = NULL;

    if (strcmp(option->name, "pin") == 0)
        odd = "a PIN in the configuration is for local tests only: use pin_file";
    else if (strcmp(option->name, "format") == 0 && bundle->format != BUNDLE_SPIFFE &&
             bundle->format != BUNDLE_OIDC)
        odd = "the OIDC discovery provider cannot read this format; it needs spiffe";
    else if (strcmp(option->name, "refresh_hint") == 0 &&
             bundle->refresh_hint >= 24 * 3600 * CLOCK_SECOND)
        odd = "a day or more is long: readers learn of a new key no sooner";
    else if (strcmp(option->name, "refresh_hint") == 0 && bundle->refresh_hint > 0 &&
             bundle->refresh_hint < 60 * CLOCK_SECOND)
        odd = "less than a minute is short: every reader will ask this often";
    if (odd)
        note(r->notes, false, "line %u: %s%s: %s", line, r->prefix, option->name, odd);
}

static bool is_whole_seconds(const struct reading *r, const struct config_option *option)
{
    return strcmp(option->name, "refresh_hint") != 0 ||
           r->config->bundle.refresh_hint % CLOCK_SECOND == 0;
}

static void read_previous(struct reading *r, const struct hcl_item *block);

static void read_option(struct reading *r, const struct config_option *option,
                        const struct hcl_item *item)
{
    unsigned *line = &r->lines[option - option_table(r->kind)];
    char why[CONFIG_NOTE_MAX];

    if (*line != 0) {
        note(r->notes, true, "line %u: %s%s is given twice, first in line %u", item->line,
             r->prefix, option->name, *line);
        return;
    }
    *line = item->line;
    if (option->kind == OPTION_BLOCK) {
        read_previous(r, item);
        return;
    }
    join_group(r, option->group, option->name, item->line);
    if (!option_set(option, item, r->config, why)) {
        note(r->notes, true, "line %u: %s%s: %s", item->line, r->prefix, option->name, why);
        return;
    }
    if (!is_whole_seconds(r, option))
        note(r->notes, true, "line %u: %s: expected whole seconds", item->line, option->name);
    if (strcmp(option->name, "token") == 0 &&
        uri_has_pin_source((const char *)r->config + option->offset))
        join_group(r, GROUP_PIN, "the pin-source of token", item->line);
    warn(r, option, item->line);
}

static void read_items(struct reading *r, const struct hcl_item *root)
{
    for (size_t i = 0; i < root->count; i++) {
        const struct hcl_item *item = &root->items[i];
        const char *nearest;
        const struct config_option *option = option_find(r->kind, item->key, &nearest);

        if (option)
            read_option(r, option, item);
        else
            note_unknown(r, item, nearest);
    }
}

static void note_missing(struct reading *r)
{
    const struct config_option *table = option_table(r->kind);

    for (size_t i = 0; table[i].name; i++)
        if (table[i].required && r->lines[i] == 0)
            note(r->notes, true, "%s is required: %s", table[i].name, table[i].help);
    for (size_t i = 0; i < GROUPS && r->kind == CONFIG_KEYMANAGER; i++)
        if (groups[i].missing && !r->groups[i].option)
            note(r->notes, true, "%s", groups[i].missing);
}

/* Only one format has a document that names the issuer. */
static void check_issuer(struct reading *r)
{
    const char *nearest;
    const struct config_option *issuer = option_find(r->kind, "issuer", &nearest);
    unsigned line;

    if (!issuer)
        return;
    line = r->lines[issuer - option_table(r->kind)];
    if (line == 0 && r->config->bundle.format == BUNDLE_OIDC)
        note(r->notes, true, "issuer is required: %s", issuer->help);
    if (line != 0 && r->config->bundle.format != BUNDLE_OIDC)
        note(r->notes, true, "line %u: issuer: expected with format = \"oidc\" only", line);
}

/* ---- the block previous ---- */

static const char *given_option(const struct reading *r, const char *name)
{
    const char *nearest;
    const struct config_option *option = option_find(r->kind, name, &nearest);

    return r->lines[option - option_table(r->kind)] != 0 ? name : NULL;
}

/* A file has neither token nor identity, so these options beside it are a mistake. */
static void check_file_alone(const struct reading *r, unsigned line)
{
    const struct config_option *table = option_table(r->kind);

    for (size_t i = 0; table[i].name; i++)
        if (r->lines[i] != 0 && strcmp(table[i].name, "keys_file") != 0) {
            note(r->notes, true,
                 "line %u: previous: keys_file and %s: keys come from a file or from a token, give "
                 "one",
                 line, table[i].name);
            return;
        }
}

static void check_token_whole(const struct reading *r, unsigned line)
{
    static const char *const wanted[] = {"module", "token"};

    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        if (!given_option(r, wanted[i]))
            note(r->notes, true, "line %u: previous: %s is required, beside %s", line, wanted[i],
                 wanted[1 - i]);
    if (!r->groups[GROUP_IDENTITY].option)
        note(r->notes, true,
             "line %u: previous: key_identifier_file or key_identifier_value is required: whose "
             "keys on that token they are",
             line);
}

static void check_previous(const struct reading *r, unsigned line)
{
    if (given_option(r, "keys_file"))
        check_file_alone(r, line);
    else if (given_option(r, "module") || given_option(r, "token"))
        check_token_whole(r, line);
    else
        note(r->notes, true,
             "line %u: previous: expected keys_file, or module and token: where the keys are",
             line);
}

/* If previous names the server's own token, each new key would be adopted as an old one. */
static void check_other_place(struct reading *r)
{
    const struct config_keymanager *own = &r->config->keymanager;
    const struct config_place *previous = &own->previous;

    if (own->has_previous && previous->keys_file[0] == '\0' &&
        strcmp(previous->module, own->place.module) == 0 &&
        strcmp(previous->token, own->place.token) == 0 &&
        strcmp(previous->key_identifier_file, own->place.key_identifier_file) == 0 &&
        strcmp(previous->key_identifier_value, own->place.key_identifier_value) == 0)
        note(r->notes, true,
             "previous: it is this token and key identifier itself, and there is nothing to move");
}

static void read_previous(struct reading *r, const struct hcl_item *block)
{
    struct reading inner = {
        .kind = CONFIG_PREVIOUS, .prefix = "previous: ", .config = r->config, .notes = r->notes};
    size_t errors = r->notes->errors;

    if (block->kind != HCL_BLOCK || block->label) {
        note(r->notes, true, "line %u: previous: expected a block without a label", block->line);
        return;
    }
    r->config->keymanager.has_previous = true;
    read_items(&inner, block);
    if (r->notes->errors == errors)
        check_previous(&inner, block->line);
}

/* ---- the whole ---- */

static void read_trust_domain(struct reading *r, const char *name)
{
    static const char scheme[] = "spiffe://";
    const char *wrong;

    if (strncmp(name, scheme, sizeof scheme - 1) == 0)
        name += sizeof scheme - 1;
    wrong = value_check_trust_domain(name);
    if (wrong)
        note(r->notes, true, "the server's trust domain %s", wrong);
    else
        memcpy(r->config->trust_domain, name, strlen(name) + 1);
}

/* The record lies beside the identity, unless record_file is set. */
static void place_record(struct config_keymanager *config)
{
    if (config->record_file[0] == '\0' && config->place.key_identifier_file[0] != '\0')
        (void)snprintf(config->record_file, sizeof config->record_file, "%.*s.keys",
                       (int)(sizeof config->record_file - sizeof ".keys"),
                       config->place.key_identifier_file);
}

/* Without a record each start would adopt all of previous anew, and no key would ever count as
 * moved. */
static void check_record_file(struct reading *r)
{
    const struct config_keymanager *config = &r->config->keymanager;

    if (config->has_previous && config->record_file[0] == '\0')
        note(r->notes, true,
             "previous: record_file is required beside key_identifier_value: what has moved is "
             "written down there");
}

static void read_tree(struct reading *r, const struct hcl_item *root)
{
    read_items(r, root);
    note_missing(r);
    check_issuer(r);
    if (r->kind == CONFIG_KEYMANAGER && r->notes->errors == 0)
        check_other_place(r);
}

static void read_text(struct reading *r, const char *text, size_t length)
{
    OWNED(hcl_scope_free) struct hcl *tree = NULL;
    struct fault fault;

    if (hcl_parse(text, length, &tree, &fault) != 0) {
        note(r->notes, true, "%s", fault.message);
        return;
    }
    read_tree(r, hcl_root(tree));
}

/* Reads either `block` or `text`; the other is NULL. */
static int read_whole(struct reading *r, const char *trust_domain, const struct hcl_item *block,
                      const char *text, size_t length)
{
    memset(r->notes, 0, sizeof *r->notes);
    for (const struct config_option *option = option_table(r->kind); option->name; option++)
        option_set_initial(option, r->config);
    read_trust_domain(r, trust_domain);
    if (block)
        read_tree(r, block);
    else
        read_text(r, text, length);
    if (r->kind == CONFIG_KEYMANAGER)
        place_record(&r->config->keymanager);
    if (r->kind == CONFIG_KEYMANAGER && r->notes->errors == 0)
        check_record_file(r);
    return r->notes->errors > 0 ? -1 : 0;
}

int config_read(enum config_kind kind, const char *trust_domain, const char *text, size_t length,
                struct config *config, struct config_notes *notes)
{
    OWNED(config_wipe) struct config made = {.kind = kind};
    struct reading reading = {.kind = kind, .prefix = "", .config = &made, .notes = notes};

    if (read_whole(&reading, trust_domain, NULL, text, length) != 0)
        return -1;
    *config = made;
    return 0;
}

int config_read_block(enum config_kind kind, const char *trust_domain, const struct hcl_item *block,
                      struct config *config, struct config_notes *notes)
{
    OWNED(config_wipe) struct config made = {.kind = kind};
    struct reading reading = {.kind = kind, .prefix = "", .config = &made, .notes = notes};

    if (read_whole(&reading, trust_domain, block, NULL, 0) != 0)
        return -1;
    *config = made;
    return 0;
}

int config_fault(const struct config_notes *notes, struct fault *fault)
{
    static const char tail[] = "; and 18446744073709551615 more, see the log";
    char text[FAULT_MESSAGE_MAX];
    size_t kept = notes->errors + notes->warnings > CONFIG_NOTES_MAX
                      ? CONFIG_NOTES_MAX - 1
                      : notes->errors + notes->warnings;
    size_t shown = 0;
    size_t used =
        (size_t)snprintf(text, sizeof text, "%zu mistake%s in plugin_data: ", notes->errors,
                         notes->errors == 1 ? "" : "s");

    for (size_t i = 0; i < kept; i++) {
        size_t room = sizeof text - used - (shown + 1 < notes->errors ? sizeof tail : 0);

        if (!notes->notes[i].error)
            continue;
        if (strlen(notes->notes[i].text) + 2 >= room)
            break;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", shown > 0 ? "; " : "",
                                 notes->notes[i].text);
        shown++;
    }
    if (shown < notes->errors)
        (void)snprintf(text + used, sizeof text - used, "; and %zu more, see the log",
                       notes->errors - shown);
    return fault_set(fault, FAULT_INVALID_ARGUMENT, "%s", text);
}

/* A refused PIN is remembered beside the identity or the record. If there is neither, it is
 * remembered in the host's memory, beside the lock of key_identifier_value: that file outlives our
 * process, though not a reboot. */
static void name_latch(const struct config_keymanager *config, char latch[HSM_PATH_MAX])
{
    const char *beside = config->place.key_identifier_file[0] != '\0'
                             ? config->place.key_identifier_file
                             : config->record_file;
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char hex[2 * LATCH_HASH + 1];

    if (beside[0] != '\0') {
        (void)snprintf(latch, HSM_PATH_MAX, "%.*s.pin-refused",
                       (int)(HSM_PATH_MAX - sizeof ".pin-refused"), beside);
        return;
    }
    (void)SHA256((const uint8_t *)config->place.key_identifier_value,
                 strlen(config->place.key_identifier_value), digest);
    hex_encode(digest, LATCH_HASH, hex);
    (void)snprintf(latch, HSM_PATH_MAX, "/dev/shm/spire-hsm-%s.pin-refused", hex);
}

void config_settings(const struct config_keymanager *config, struct hsm_settings *settings)
{
    *settings = (struct hsm_settings){.sessions = (uint32_t)config->max_sessions,
                                      .lenient = config->lenient,
                                      .least = config->least,
                                      .verify_always = config->verify_always};
    memcpy(settings->module, config->place.module, sizeof settings->module);
    memcpy(settings->module_args, config->place.module_args, sizeof settings->module_args);
    memcpy(settings->token, config->place.token, sizeof settings->token);
    memcpy(settings->keys_file, config->place.keys_file, sizeof settings->keys_file);
    name_latch(config, settings->latch);
    if (config->place.pin_file[0] != '\0') {
        settings->pin_kind = HSM_PIN_FILE;
        memcpy(settings->pin_text, config->place.pin_file, sizeof config->place.pin_file);
    } else if (config->place.pin_env[0] != '\0') {
        settings->pin_kind = HSM_PIN_ENV;
        memcpy(settings->pin_text, config->place.pin_env, sizeof config->place.pin_env);
    } else if (config->place.pin[0] != '\0') {
        settings->pin_kind = HSM_PIN_INLINE;
        memcpy(settings->pin_text, config->place.pin, sizeof config->place.pin);
    }
}

bool config_previous(const struct config *config, struct config *previous)
{
    struct config_keymanager *to = &previous->keymanager;

    if (!config->keymanager.has_previous)
        return false;
    *previous = *config;
    to->record_file[0] = '\0';
    to->accept_loss[0] = '\0';
    to->place = to->previous;
    to->has_previous = false;
    explicit_bzero(&to->previous, sizeof to->previous);
    return true;
}

void config_wipe(struct config *config)
{
    if (config->kind != CONFIG_KEYMANAGER)
        return;
    explicit_bzero(config->keymanager.place.pin, sizeof config->keymanager.place.pin);
    explicit_bzero(config->keymanager.previous.pin, sizeof config->keymanager.previous.pin);
}
