/* spire-hsm keys: lists what SPIRE has on this token. */
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "hsm/base/hex.h"
#include "hsm/base/scope.h"
#include "plugin/command/command_private.h"
#include "plugin/keys/catalogue.h"
#include "plugin/keys/generations.h"

/* The servers and trust domains whose names are known. */
struct names {
    const char *trust_domain;
    struct label_scope own; /* this server's; "" if it is not known */
    const char *named;      /* from --server-id or its file, or NULL */
    struct label_scope other;
    struct record record; /* this server's, empty if there is none */
    bool recorded;        /* there is a record */
};

/* One key, for both forms of output. */
struct line {
    const struct inventory_item *item;
    const char *trust_domain; /* NULL where only its hash is known */
    const char *server;
    bool own;
    int64_t age; /* in seconds */
    char made[32];
    const char *state;
    const char *record; /* its state in the record: "" if not known */
    const char *type;   /* this and the next two: "" if not known */
    char fingerprint[2 * HSM_FINGERPRINT + 1];
    char authority_id[CATALOGUE_AUTHORITY_ID];
    char cka_id[2 * HSM_ID_MAX + 1];
};

static void date(int64_t age, char text[32])
{
    time_t made = time(NULL) - (time_t)age;
    struct tm utc;

    if (!gmtime_r(&made, &utc) || strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0)
        text[0] = '\0';
}

/* Generations are seconds. Of two keys made in one second, the later one has the next second, which
 * may lie in the future. */
static int64_t age_of(uint32_t generation)
{
    uint32_t now = generations_now();

    return now < generation ? 0 : (int64_t)now - generation;
}

static void tell_public_key(const struct inventory_item *item, struct line *line)
{
    OWNED(scope_free)
    struct catalogue_key *key = catalogue_key_new(&item->label, &item->name, &item->public_key);

    if (!key)
        return;
    line->type = hsm_key_type_name(item->public_key.type);
    memcpy(line->fingerprint, key->fingerprint, sizeof line->fingerprint);
    memcpy(line->authority_id, key->authority_id, sizeof line->authority_id);
}

static const char *recorded(struct names *names, const struct inventory_item *item)
{
    static const char *const states[] = {[RECORD_SERVED] = "served",
                                         [RECORD_MISSING] = "displaced",
                                         [RECORD_CONDEMNED] = "condemned",
                                         [RECORD_ATTEMPTED] = "attempted",
                                         [RECORD_FOUND] = "found"};
    const struct record_key *key = record_find(&names->record, &item->name);

    return key ? states[key->state] : "";
}

static void fill(struct names *names, struct inventory *server, struct inventory_item *item,
                 struct line *line)
{
    const struct label_scope *scope = &item->label.scope;

    *line = (struct line){
        .item = item, .age = age_of(item->label.generation), .record = "", .type = ""};
    if (strcmp(scope->trust_domain, names->own.trust_domain) == 0)
        line->trust_domain = names->trust_domain;
    line->own = label_same_scope(scope, &names->own);
    if (line->own)
        line->record = recorded(names, item);
    if (line->own)
        line->server = "this server";
    else if (names->named && label_same_scope(scope, &names->other))
        line->server = names->named;
    date(line->age, line->made);
    line->state = census_state_name(
        census_state(line->own && names->recorded ? &names->record : NULL, server, item));
    hex_encode(item->name.id, item->name.id_length, line->cka_id);
    if (item->proven && item->state == HSM_COMPLETE)
        tell_public_key(item, line);
}

/* ---- table ---- */

static void add_row(struct table *table, const struct line *line)
{
    const struct inventory_item *item = line->item;
    char generation[16];
    char age[AGE_TEXT];
    char public_key[192] = "";

    (void)snprintf(generation, sizeof generation, "%u", item->label.generation);
    print_age(line->age, age);
    table_row(table, line->trust_domain ? line->trust_domain : item->label.scope.trust_domain,
              line->server ? line->server : item->label.scope.server, item->label.key_id,
              generation, *line->type ? line->type : "-", age, line->state, NULL);
    if (*line->type)
        (void)snprintf(public_key, sizeof public_key, " sha256=%s local_authority_id=%s",
                       line->fingerprint, line->authority_id);
    table_note(table, "label=%s cka_id=%s%s%s%s%s%s", item->name.label, line->cka_id, public_key,
               *line->record ? " record=" : "", line->record, item->why[0] ? " reason=" : "",
               item->why);
}

/* Is a key of the record, served or displaced, absent from the token? */
static bool is_missing(const struct command_token *token, const struct record_key *key)
{
    if (key->state != RECORD_SERVED && key->state != RECORD_MISSING)
        return false;
    for (size_t i = 0; i < token->census.found.count; i++)
        if (label_same_name(&token->census.found.items[i].name, &key->name))
            return false;
    return true;
}

static void print_missing(const struct command_token *token, const struct names *names)
{
    for (size_t i = 0; i < names->record.count; i++) {
        const struct record_key *key = &names->record.keys[i];

        if (is_missing(token, key))
            (void)printf("missing: key \"%s\" (label %s) was served and is not on the token\n",
                         key->label.key_id, key->name.label);
    }
}

/* These keys are not on the token: their signatures come from the place that the block previous
 * names. */
static void print_previous(const struct record *record)
{
    for (size_t i = 0; i < record->previous_count; i++) {
        const struct record_previous *key = &record->previous[i];
        char fingerprint[2 * HSM_FINGERPRINT + 1];

        hex_encode(key->public_key.fingerprint, HSM_FINGERPRINT, fingerprint);
        if (!key->moved)
            (void)printf("in previous: key \"%s\" (%s, sha256=%s) is served from there\n",
                         key->key_id, hsm_key_type_name(key->public_key.type), fingerprint);
    }
}

static void print_table(const struct command_token *token, struct names *names)
{
    OWNED(table_free) struct table table = {.rows = NULL};
    const struct census *census = &token->census;
    struct inventory server = {.items = NULL};
    struct line line;

    table_row(&table, "TRUST DOMAIN", "SERVER", "KEY ID", "GENERATION", "TYPE", "AGE", "STATE",
              NULL);
    while (census_next(census, &server))
        for (size_t i = 0; i < server.count; i++) {
            fill(names, &server, &server.items[i], &line);
            add_row(&table, &line);
        }
    if (census->found.count > 0)
        table_print(&table, stdout);
    (void)printf("%zu key%s of SPIRE on token \"%s\" (serial %s); not SPIRE's: %u foreign key "
                 "object%s, %u without a name\n",
                 census->found.count, census->found.count == 1 ? "" : "s", token->info.label,
                 token->info.serial, census->foreign, census->foreign == 1 ? "" : "s",
                 census->nameless);
    print_missing(token, names);
    print_previous(&names->record);
}

/* ---- JSON ---- */

/* NULL and "" become null. */
static json_t *text(const char *value)
{
    return value && *value ? json_string(value) : json_null();
}

static json_t *key_json(const struct line *line)
{
    const struct inventory_item *item = line->item;
    const struct {
        const char *name;
        json_t *value;
    } members[] = {
        {"trust_domain", text(line->trust_domain)},
        {"trust_domain_hash", text(item->label.scope.trust_domain)},
        {"server", line->own ? json_null() : text(line->server)},
        {"server_hash", text(item->label.scope.server)},
        {"this_server", json_boolean(line->own)},
        {"key_id", text(item->label.key_id)},
        {"generation", json_integer(item->label.generation)},
        {"made", text(line->made)},
        {"age_seconds", json_integer(line->age)},
        {"type", text(line->type)},
        {"state", text(line->state)},
        {"record", text(line->record)},
        {"reason", text(item->why)},
        {"label", text(item->name.label)},
        {"cka_id", text(line->cka_id)},
        {"sha256", text(line->fingerprint)},
        {"local_authority_id", text(line->authority_id)},
    };
    json_t *key = json_object();

    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++)
        (void)json_object_set_new(key, members[i].name, members[i].value);
    return key;
}

static json_t *missing_json(const struct command_token *token, const struct names *names)
{
    json_t *missing = json_array();

    for (size_t i = 0; i < names->record.count; i++) {
        const struct record_key *key = &names->record.keys[i];

        if (is_missing(token, key))
            (void)json_array_append_new(missing, json_pack("{ss ss}", "key_id", key->label.key_id,
                                                           "label", key->name.label));
    }
    return missing;
}

static json_t *previous_json(const struct record *record)
{
    json_t *keys = json_array();

    for (size_t i = 0; i < record->previous_count; i++) {
        const struct record_previous *key = &record->previous[i];
        char fingerprint[2 * HSM_FINGERPRINT + 1];

        hex_encode(key->public_key.fingerprint, HSM_FINGERPRINT, fingerprint);
        (void)json_array_append_new(keys, json_pack("{ss ss ss ss}", "key_id", key->key_id, "type",
                                                    hsm_key_type_name(key->public_key.type),
                                                    "sha256", fingerprint, "state",
                                                    key->moved ? "moved" : "served"));
    }
    return keys;
}

static int print_json(const struct command_token *token, struct names *names)
{
    const struct census *census = &token->census;
    struct inventory server = {.items = NULL};
    json_t *keys = json_array();
    json_t *document;
    struct line line;
    int result;

    while (census_next(census, &server))
        for (size_t i = 0; i < server.count; i++) {
            fill(names, &server, &server.items[i], &line);
            (void)json_array_append_new(keys, key_json(&line));
        }
    document = json_pack("{s{ss ss ss ss ss} so so so si si}", "token", "label", token->info.label,
                         "serial", token->info.serial, "manufacturer", token->info.manufacturer,
                         "model", token->info.model, "library", token->info.library, "keys", keys,
                         "missing", missing_json(token, names), "previous",
                         previous_json(&names->record), "foreign_objects", (int)census->foreign,
                         "nameless_objects", (int)census->nameless);
    result = document ? json_dumpf(document, stdout, JSON_INDENT(2)) : -1;
    (void)fputc('\n', stdout);
    json_decref(document);
    return result;
}

/* ---- the command ---- */

static void close_names(struct names *names)
{
    record_close(&names->record);
}

static int find_names(const struct command_options *options, const struct config *config,
                      struct names *names, struct fault *fault)
{
    OWNED(identity_close) struct identity identity = {.lock = -1};
    OWNED(identity_close) struct identity other = {.lock = -1};

    *names = (struct names){.trust_domain = config->trust_domain};
    label_trust_domain_hash(config->trust_domain, names->own.trust_domain);
    if (command_identity(config, false, &identity, &names->own, fault) != 0) {
        if (fault->code != FAULT_NOT_FOUND)
            return -1;
        (void)fprintf(stderr, "spire-hsm: warning: %s: cannot tell which keys are this server's\n",
                      fault->message);
    }
    if (names->own.server[0] != '\0' &&
        command_record(config, &identity, &names->record, &names->recorded, fault) != 0)
        (void)fprintf(stderr, "spire-hsm: warning: %s\n", fault->message);
    if (!options->server_id && !options->server_id_file)
        return 0;
    names->named = options->server_id ? options->server_id : options->server_id_file;
    return command_named(options, config, false, &other, &names->other, fault);
}

static int list_keys(const struct command_options *options, const struct config *config,
                     struct fault *fault)
{
    OWNED(command_close_token) struct command_token token = {.supervisor = NULL};
    struct inventory server = {.items = NULL};
    OWNED(close_names) struct names names = {.named = NULL};

    if (find_names(options, config, &names, fault) != 0 ||
        command_open_token(&config->keymanager, -1, &token, fault) != 0 ||
        command_census(&token, fault) != 0)
        return -1;
    while (census_next(&token.census, &server))
        command_prove(&token, &server);
    if (!options->json)
        print_table(&token, &names);
    else if (print_json(&token, &names) != 0)
        return fault_set(fault, FAULT_UNAVAILABLE, "cannot write the JSON");
    return 0;
}

int keys_command(const struct command_options *options)
{
    OWNED(command_wipe_config) struct command_config config = {.needed = {false}};
    struct fault fault;

    if (command_read_config(options, &config, &fault) != 0 ||
        list_keys(options, &config.config, &fault) != 0)
        return command_fail(&fault);
    return COMMAND_FINE;
}
