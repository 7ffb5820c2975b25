/* The token or file that the block `previous` names, with a worker of its own. */
#include "plugin/keys/source.h"

#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "plugin/keys/identity.h"
#include "plugin/keys/previous.h"
#include "plugin/keys/stock.h"
#include "plugin/keys/verdict.h"

enum { LOOKS_MAX = 20 };

/* A token that comes up shows only some of its keys at first. Two looks that are this far apart
 * must agree. */
static const int64_t between_looks = CLOCK_SECOND;
static const int64_t look_time = 30 * CLOCK_SECOND;

struct source {
    struct config config; /* without the PIN */
    struct supervisor *supervisor;
};

static void tick(void *context)
{
    (void)context;
}

/* The old token may have been used under the identity that ours has now. A PIN that it refuses says
 * nothing about our PIN, so each has a latch of its own. */
static void part_latch(char latch[HSM_PATH_MAX])
{
    static const char suffix[] = ".previous";
    size_t length = strlen(latch);

    if (length + sizeof suffix <= HSM_PATH_MAX)
        memcpy(latch + length, suffix, sizeof suffix);
}

int source_open(const struct config *previous, bool one_caller, struct source **source,
                struct fault *fault)
{
    const struct config_keymanager *config = &previous->keymanager;
    struct supervisor_options options = {.lock = -1,
                                         .operation_limit = config->operation_timeout,
                                         .generate_limit = config->generate_timeout,
                                         .keep_alive = config->keep_alive,
                                         .startup_wait = config->startup_wait,
                                         .one_caller = one_caller,
                                         .tick = tick,
                                         .ended = free};
    struct source *made = calloc(1, sizeof *made);
    int result;

    if (!made)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    made->config = *previous;
    config_wipe(&made->config);
    options.context = made;
    config_settings(config, &options.settings);
    part_latch(options.settings.latch);
    result = supervisor_start(&options, &made->supervisor, fault);
    hsm_settings_wipe(&options.settings);
    if (result == 0)
        *source = made;
    else
        free(made);
    return result;
}

struct supervisor *source_supervisor(const struct source *source)
{
    return source->supervisor;
}

bool source_is_file(const struct source *source)
{
    return source->config.keymanager.place.keys_file[0] != '\0';
}

const char *source_name(const struct source *source)
{
    return source_is_file(source) ? source->config.keymanager.place.keys_file
                                  : source->config.keymanager.place.token;
}

void source_abandon(struct source *source)
{
    supervisor_abandon(source->supervisor);
}

void source_retire(struct source *source)
{
    supervisor_retire(source->supervisor);
}

/* ---- what is found ---- */

struct found {
    struct record record; /* of it, only the array `previous` is used */
    bool out_of_memory;
};

static void add(struct found *found, const char *key_id, const struct hsm_key_name *name,
                const struct hsm_public_key *public_key)
{
    struct record_previous key = {.name = *name, .public_key = *public_key};

    (void)stpncpy(key.key_id, key_id, sizeof key.key_id - 1);
    if (found->record.previous_count == RECORD_PREVIOUS_MAX ||
        previous_add(&found->record, &key) != 0)
        found->out_of_memory = true;
}

/* ---- a file ---- */

static void scanned_item(void *context, const struct hsm_item *item)
{
    struct found *found = context;

    if (item)
        add(found, item->key.label, &item->key, &item->public_key);
    else
        previous_forget(&found->record);
}

static int read_file(struct source *source, const atomic_bool *cancel, struct found *found,
                     struct fault *fault)
{
    struct stock stock = {.supervisor = source->supervisor, .cancel = cancel};
    int result;

    stock_open(&stock);
    result = stock_list(&stock, clock_now() + look_time, scanned_item, found, fault);
    stock_close(&stock);
    return result;
}

/* ---- a token ---- */

static int look_again(struct stock *stock, struct fault *fault)
{
    size_t before = 0;
    unsigned looks = 0;

    do {
        if (looks > 0)
            stock_pause(stock, between_looks);
        before = stock->inventory.count;
        if (stock_look(stock, clock_now() + look_time, CLOCK_NEVER / 2, fault) != 0)
            return -1;
    } while (++looks < 2 || (stock->inventory.count != before && looks < LOOKS_MAX));
    return 0;
}

static void take(struct stock *stock, struct found *found)
{
    struct inventory_item *first;

    for (first = inventory_first(&stock->inventory); first;
         first = inventory_next_id(&stock->inventory, first)) {
        const struct inventory_item *item = verdict_served(NULL, &stock->inventory, first);

        if (item)
            add(found, item->label.key_id, &item->name, &item->public_key);
    }
}

static int read_token(struct source *source, const atomic_bool *cancel, struct found *found,
                      struct fault *fault)
{
    OWNED(identity_close) struct identity identity = {.lock = -1};
    struct stock stock = {
        .supervisor = source->supervisor, .scope = &identity.scope, .cancel = cancel};
    int result;

    if (identity_find(&source->config, false, &identity, fault) != 0) {
        if (fault->code == FAULT_NOT_FOUND)
            fault->code = FAULT_UNAVAILABLE;
        return -1;
    }
    stock_open(&stock);
    result = look_again(&stock, fault);
    if (result == 0)
        take(&stock, found);
    stock_close(&stock);
    if (result == 0 && found->record.previous_count == 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the token has no key of that key identifier");
    return result;
}

int source_read(struct source *source, int64_t deadline, const atomic_bool *cancel,
                struct record_previous **keys, size_t *count, struct fault *fault)
{
    struct found found = {.out_of_memory = false};
    struct hsm_token_info info;
    int result = supervisor_wait(source->supervisor, deadline, cancel, &info, fault);

    if (result == 0)
        result = source_is_file(source) ? read_file(source, cancel, &found, fault)
                                        : read_token(source, cancel, &found, fault);
    if (result == 0 && found.out_of_memory)
        result = fault_set(fault, FAULT_UNAVAILABLE, "too many keys, or out of memory");
    if (result != 0 && !strstr(fault->message, "previous"))
        (void)fault_prefix(fault, "previous");
    *keys = found.record.previous;
    *count = found.record.previous_count;
    return result;
}
