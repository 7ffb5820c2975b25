/* All that SPIRE has on a token, by server, each key with its state: for `keys`, `prune` and
 * `check`. */
#include "plugin/command/census.h"

#include <stdlib.h>
#include <string.h>

#include "plugin/keys/verdict.h"

void census_add(struct census *census, const struct hsm_item *item)
{
    struct label label;

    if (label_parse(item->key.label, &label))
        inventory_add(&census->found, &label.scope, item);
    else
        census->foreign++;
}

static int by_server(const void *a, const void *b)
{
    const struct inventory_item *first = a;
    const struct inventory_item *second = b;
    int order = strcmp(first->label.scope.trust_domain, second->label.scope.trust_domain);

    if (order == 0)
        order = strcmp(first->label.scope.server, second->label.scope.server);
    if (order == 0)
        order = strcmp(first->label.key_id, second->label.key_id);
    if (order != 0)
        return order;
    return (first->label.generation < second->label.generation) -
           (first->label.generation > second->label.generation);
}

void census_sort(struct census *census)
{
    struct inventory *found = &census->found;

    if (found->count > 1)
        qsort(found->items, found->count, sizeof found->items[0], by_server);
}

void census_clear(struct census *census)
{
    inventory_clear(&census->found);
    *census = (struct census){.foreign = 0};
}

bool census_next(const struct census *census, struct inventory *server)
{
    const struct inventory *found = &census->found;
    struct inventory_item *first = server->items ? server->items + server->count : found->items;
    size_t left = first ? (size_t)(found->items + found->count - first) : 0;

    *server = (struct inventory){.items = first};
    while (server->count < left &&
           label_same_scope(&first->label.scope, &first[server->count].label.scope))
        server->count++;
    return server->count > 0;
}

/* ---- states ---- */

static const char *const state_names[] = {
    [CENSUS_UNKNOWN] = "unknown",     [CENSUS_CURRENT] = "current",
    [CENSUS_OLDER] = "older",         [CENSUS_HALF] = "half",
    [CENSUS_UNFIT] = "unfit",         [CENSUS_DUPLICATE] = "duplicate",
    [CENSUS_UNSERVED] = "not served",
};

const char *census_state_name(enum census_state state)
{
    return state_names[state];
}

static struct inventory_item *first_of(const struct inventory *server, struct inventory_item *item)
{
    while (item > server->items && strcmp(item[-1].label.key_id, item->label.key_id) == 0)
        item--;
    return item;
}

static enum census_state state_of_whole(struct record *record, struct inventory *server,
                                        struct inventory_item *item)
{
    struct inventory_item *first = first_of(server, item);
    const struct inventory_item *current = record ? verdict_served(record, server, first) : NULL;

    if (!current)
        current = inventory_candidate(server, first);
    if (current == item)
        return CENSUS_CURRENT;
    if (current && item->label.generation < current->label.generation)
        return CENSUS_OLDER;
    return inventory_is_twin(server, first, item) ? CENSUS_DUPLICATE : CENSUS_UNSERVED;
}

enum census_state census_state(struct record *record, struct inventory *server,
                               struct inventory_item *item)
{
    if (item->state == HSM_DUPLICATE)
        return CENSUS_DUPLICATE;
    if (!item->proven || item->state == HSM_ABSENT)
        return CENSUS_UNKNOWN;
    if (inventory_is_half(item->state))
        return CENSUS_HALF;
    return item->state != HSM_COMPLETE ? CENSUS_UNFIT : state_of_whole(record, server, item);
}

/* ---- pruning ---- */

static bool is_past(const struct census_rule *rule, uint32_t generation)
{
    return generation <= rule->now && rule->now - generation >= rule->floor;
}

static bool is_own(const struct census_rule *rule, const struct inventory_item *item)
{
    return label_same_scope(&item->label.scope, &rule->own);
}

static bool comes_back(const struct census_rule *rule, const struct inventory_item *item)
{
    const struct record_key *key = rule->record ? record_find(rule->record, &item->name) : NULL;

    return key && (key->state == RECORD_SERVED || key->state == RECORD_MISSING);
}

static bool prunes_own(const struct census_rule *rule, struct inventory *server,
                       struct inventory_item *item)
{
    const struct inventory_item *served =
        verdict_served(rule->record, server, first_of(server, item));

    /* a key is served, so the one before it has the same key id */
    return served && served->proven && served->state == HSM_COMPLETE &&
           item->label.generation < served->label.generation && !comes_back(rule, item) &&
           is_past(rule, item[-1].label.generation);
}

static bool is_chosen(const struct census_rule *rule, const struct inventory_item *item)
{
    if (strcmp(item->label.scope.trust_domain, rule->own.trust_domain) != 0)
        return false;
    if (rule->target == CENSUS_NAMED)
        return strcmp(item->label.scope.server, rule->named) == 0;
    return is_own(rule, item) == (rule->target == CENSUS_OWN);
}

bool census_needs_proof(const struct census_rule *rule, const struct inventory *server)
{
    return is_chosen(rule, server->items) && is_own(rule, server->items);
}

bool census_prunes(const struct census_rule *rule, struct inventory *server,
                   struct inventory_item *item)
{
    if (!is_chosen(rule, item))
        return false;
    if (is_own(rule, item))
        return prunes_own(rule, server, item);
    return is_past(rule, inventory_highest(server));
}
