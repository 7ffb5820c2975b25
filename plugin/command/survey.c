#include "plugin/command/survey.h"

#include <stdlib.h>
#include <string.h>

void survey_add(struct survey *survey, const struct hsm_item *item)
{
    struct label label;

    if (label_parse(item->key.label, &label))
        inventory_add(&survey->found, &label.scope, item);
    else
        survey->foreign++;
}

static int compare(const void *a, const void *b)
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

void survey_sort(struct survey *survey)
{
    struct inventory *found = &survey->found;

    if (found->count > 1)
        qsort(found->items, found->count, sizeof found->items[0], compare);
}

void survey_clear(struct survey *survey)
{
    inventory_clear(&survey->found);
    *survey = (struct survey){.foreign = 0};
}

bool survey_next(const struct survey *survey, struct inventory *server)
{
    const struct inventory *found = &survey->found;
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
    [SURVEY_UNKNOWN] = "unknown", [SURVEY_CURRENT] = "current", [SURVEY_OLDER] = "older",
    [SURVEY_HALF] = "half",       [SURVEY_UNFIT] = "unfit",     [SURVEY_DUPLICATE] = "duplicate",
};

const char *survey_state_name(enum survey_state state)
{
    return state_names[state];
}

static struct inventory_item *served(struct inventory *server, struct inventory_item *item)
{
    while (item > server->items && strcmp(item[-1].label.key_id, item->label.key_id) == 0)
        item--;
    return inventory_candidate(server, item);
}

static enum survey_state state_of_whole(struct inventory *server, struct inventory_item *item)
{
    const struct inventory_item *current = served(server, item);

    if (current == item)
        return SURVEY_CURRENT;
    if (current && item->label.generation < current->label.generation)
        return SURVEY_OLDER;
    return SURVEY_DUPLICATE;
}

static bool is_half(const struct inventory_item *item)
{
    return item->state == HSM_HALF || item->state == HSM_BARE;
}

enum survey_state survey_state(struct inventory *server, struct inventory_item *item)
{
    if (item->state == HSM_DUPLICATE)
        return SURVEY_DUPLICATE;
    if (!item->proven || item->state == HSM_ABSENT)
        return SURVEY_UNKNOWN;
    if (is_half(item))
        return SURVEY_HALF;
    return item->state == HSM_UNFIT ? SURVEY_UNFIT : state_of_whole(server, item);
}

/* ---- pruning ---- */

static bool is_past(const struct survey_rule *rule, uint32_t generation)
{
    return generation <= rule->now && rule->now - generation >= rule->floor;
}

static bool is_own(const struct survey_rule *rule, const struct inventory_item *item)
{
    return label_same_scope(&item->label.scope, &rule->own);
}

static bool prunes_own(const struct survey_rule *rule, struct inventory *server,
                       struct inventory_item *item)
{
    const struct inventory_item *current = served(server, item);

    if (item->proven && item->state == HSM_HALF)
        return is_past(rule, item->label.generation);
    /* of the same key id, since the one that is served comes before it */
    return current && current->proven && item->label.generation < current->label.generation &&
           is_past(rule, item[-1].label.generation);
}

static bool is_chosen(const struct survey_rule *rule, const struct inventory_item *item)
{
    if (strcmp(item->label.scope.trust_domain, rule->own.trust_domain) != 0)
        return false;
    if (rule->target == SURVEY_NAMED)
        return strcmp(item->label.scope.server, rule->named) == 0;
    return is_own(rule, item) == (rule->target == SURVEY_OWN);
}

bool survey_needs_proof(const struct survey_rule *rule, const struct inventory *server)
{
    return is_chosen(rule, server->items) && is_own(rule, server->items);
}

bool survey_prunes(const struct survey_rule *rule, struct inventory *server,
                   struct inventory_item *item)
{
    if (!is_chosen(rule, item))
        return false;
    if (is_own(rule, item))
        return prunes_own(rule, server, item);
    return is_past(rule, inventory_highest(server));
}
