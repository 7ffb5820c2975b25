/* spire-hsm prune: destroys keys that nobody needs any more. */
#include <string.h>
#include <time.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "plugin/command/command_private.h"
#include "plugin/keys/verdict.h"

static const int64_t least = 24 * 3600 * CLOCK_SECOND;

/* While an identity is held here, no other process can take it up. */
struct prune {
    const struct command_options *options;
    const struct config *config;
    struct census_rule rule;
    struct identity own;
    struct identity named;
    struct record record;
    struct command_token token;
    size_t found;
    size_t failed;
};

static int read_floor(const struct command_options *options, uint32_t *seconds, struct fault *fault)
{
    int64_t duration = least;

    if (options->older_than &&
        (!config_duration(options->older_than, &duration) || duration < least))
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "--older-than: expected a duration of 24h or more, such as 720h");
    duration /= CLOCK_SECOND;
    *seconds = duration < UINT32_MAX ? (uint32_t)duration : UINT32_MAX;
    return 0;
}

static int read_target(const struct command_options *options, enum census_target *target,
                       struct fault *fault)
{
    bool named = options->server_id || options->server_id_file;

    if (options->server_id && options->server_id_file)
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "only one of --server-id and --server-id-file can be used");
    if (options->other_servers && named)
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "--other-servers takes all servers: do not combine it with --server-id");
    *target = named ? CENSUS_NAMED : options->other_servers ? CENSUS_OTHERS : CENSUS_OWN;
    return 0;
}

/* Only destroying keys needs the lock, and a dry run destroys none. */
static int read_own(struct prune *prune, struct fault *fault)
{
    bool lock = prune->options->yes && prune->rule.target == CENSUS_OWN;

    if (command_identity(prune->config, lock, &prune->own, &prune->rule.own, fault) == 0)
        return 0;
    if (fault->code == FAULT_NOT_FOUND)
        return fault_prefix(fault, "cannot tell which keys are this server's, so none is pruned");
    return lock ? fault_prefix(fault, "nothing was destroyed; stop the server first") : -1;
}

/* If the name given is our own identity's, its lock is needed, too. */
static int read_named(struct prune *prune, struct fault *fault)
{
    struct label_scope scope;

    if (prune->rule.target != CENSUS_NAMED)
        return 0;
    if (command_named(prune->options, prune->config, prune->options->yes, &prune->named, &scope,
                      fault) != 0)
        return -1;
    memcpy(prune->rule.named, scope.server, sizeof scope.server);
    if (!label_same_scope(&scope, &prune->rule.own))
        return 0;
    prune->rule.target = CENSUS_OWN;
    if (prune->named.lock >= 0)
        return 0;
    return read_own(prune, fault);
}

static int read_record(struct prune *prune, struct fault *fault)
{
    bool there;

    if (command_record(prune->config, &prune->own, &prune->record, &there, fault) != 0)
        return -1;
    prune->rule.record = there ? &prune->record : NULL;
    return 0;
}

static int prepare(struct prune *prune, struct fault *fault)
{
    struct census_rule *rule = &prune->rule;

    if (read_floor(prune->options, &rule->floor, fault) != 0 ||
        read_target(prune->options, &rule->target, fault) != 0 ||
        label_next_generation(time(NULL), 0, &rule->now, fault) != 0)
        return -1;
    if (read_own(prune, fault) != 0 || read_named(prune, fault) != 0)
        return -1;
    return read_record(prune, fault);
}

/* ---- destroying ---- */

/* For another server only the label is compared, not the key's state. */
static enum hsm_expect expected(const struct inventory_item *item)
{
    if (verdict_is_public_half(item))
        return HSM_EXPECT_HALF;
    return item->proven && item->state == HSM_COMPLETE ? HSM_EXPECT_KEY : HSM_EXPECT_ANY;
}

/* Returns true if the key is seen to be gone. Otherwise the command has printed why not. */
static bool destroy(struct prune *prune, const struct inventory_item *item, char why[TABLE_CELL])
{
    struct hsm_request request = {.op = HSM_DESTROY, .key = item->name, .expect = expected(item)};
    struct hsm_reply reply;

    memcpy(request.fingerprint, item->public_key.fingerprint, sizeof request.fingerprint);
    command_execute(&prune->token, &request, &reply);
    (void)snprintf(why, TABLE_CELL, "%.*s", TABLE_CELL - 1, reply.fault.message);
    return reply.fault.code == FAULT_NONE;
}

static const char *reason(const struct prune *prune, struct inventory *server,
                          struct inventory_item *item)
{
    if (!label_same_scope(&item->label.scope, &prune->rule.own))
        return "other server";
    return census_state(prune->rule.record, server, item) == CENSUS_HALF ? "half a key"
                                                                         : "superseded";
}

static void prune_item(struct prune *prune, struct inventory *server, struct inventory_item *item,
                       struct table *table)
{
    char age[AGE_TEXT];
    char generation[16];
    char why[TABLE_CELL] = "";
    bool gone = false;

    prune->found++;
    if (prune->options->yes)
        gone = destroy(prune, item, why);
    prune->failed += prune->options->yes && !gone;
    print_age((int64_t)prune->rule.now - item->label.generation, age);
    (void)snprintf(generation, sizeof generation, "%u", item->label.generation);
    table_row(table, item->label.scope.server, item->label.key_id, generation, age,
              reason(prune, server, item),
              gone                  ? "destroyed"
              : prune->options->yes ? "NOT DESTROYED"
                                    : "would be destroyed",
              NULL);
    if (why[0] != '\0')
        table_note(table, "label=%s: %s", item->name.label, why);
    else
        table_note(table, "label=%s", item->name.label);
}

/* All keys are chosen before the first is destroyed, because the choice depends on what is on the
 * token. */
static size_t choose(struct prune *prune, struct inventory *server)
{
    size_t chosen = 0;

    if (census_needs_proof(&prune->rule, server))
        command_prove(&prune->token, server);
    for (size_t i = 0; i < server->count; i++)
        chosen += census_prunes(&prune->rule, server, &server->items[i]);
    return chosen;
}

/* A worker that outlives this command must keep the server from starting beside it. */
static int held(const struct prune *prune)
{
    return prune->own.lock >= 0 ? prune->own.lock : prune->named.lock;
}

static int prune_all(struct prune *prune, struct fault *fault)
{
    OWNED(table_free) struct table table = {.rows = NULL};
    struct inventory server = {.items = NULL};

    if (command_open_token(&prune->config->keymanager, held(prune), &prune->token, fault) != 0 ||
        command_census(&prune->token, fault) != 0)
        return -1;
    table_row(&table, "SERVER", "KEY ID", "GENERATION", "AGE", "REASON", "", NULL);
    while (census_next(&prune->token.census, &server)) {
        if (choose(prune, &server) == 0)
            continue;
        for (size_t i = 0; i < server.count; i++)
            if (census_prunes(&prune->rule, &server, &server.items[i]))
                prune_item(prune, &server, &server.items[i], &table);
    }
    if (prune->found > 0)
        table_print(&table, stdout);
    return 0;
}

static void sum_up(const struct prune *prune)
{
    if (prune->found == 0)
        (void)printf("there is nothing to prune\n");
    else if (!prune->options->yes)
        (void)printf("%zu key%s would be destroyed; --yes destroys them\n", prune->found,
                     prune->found == 1 ? "" : "s");
    else
        (void)printf("%zu of %zu key%s destroyed, and no longer found\n",
                     prune->found - prune->failed, prune->found, prune->found == 1 ? "" : "s");
}

static void close_prune(struct prune *prune)
{
    command_close_token(&prune->token);
    record_close(&prune->record);
    identity_close(&prune->named);
    identity_close(&prune->own);
}

int prune_command(const struct command_options *options)
{
    OWNED(command_wipe_config) struct command_config config = {.needed = {false}};
    OWNED(close_prune)
    struct prune prune = {
        .options = options, .config = &config.config, .own.lock = -1, .named.lock = -1};
    struct fault fault;

    if (command_read_config(options, &config, &fault) != 0 || prepare(&prune, &fault) != 0 ||
        prune_all(&prune, &fault) != 0)
        return command_fail(&fault);
    sum_up(&prune);
    return prune.failed == 0 ? COMMAND_FINE : COMMAND_WRONG;
}
