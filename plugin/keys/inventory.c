/* The objects that a scan found on the token, sorted by server, key id and generation. */
#include "plugin/keys/inventory.h"

#include <stdlib.h>
#include <string.h>

bool inventory_is_half(enum hsm_state state)
{
    return state == HSM_HALF || state == HSM_BARE;
}

bool inventory_may_be_late(enum hsm_state state)
{
    return state == HSM_ABSENT || inventory_is_half(state);
}

static struct inventory_item *append(struct inventory *inventory)
{
    if (inventory->count == inventory->room) {
        size_t room = inventory->room ? 2 * inventory->room : 16;
        struct inventory_item *items =
            room <= INVENTORY_MAX ? reallocarray(inventory->items, room, sizeof *items) : NULL;

        if (!items) {
            inventory->out_of_memory = true;
            return NULL;
        }
        inventory->items = items;
        inventory->room = room;
    }
    return &inventory->items[inventory->count++];
}

void inventory_expect(struct inventory *inventory, const struct label *label,
                      const struct hsm_key_name *name)
{
    struct inventory_item *added = append(inventory);

    if (!added)
        return;
    *added = (struct inventory_item){.label = *label, .name = *name, .state = HSM_ABSENT};
    inventory->expected = inventory->count;
}

static struct inventory_item *expected(const struct inventory *inventory,
                                       const struct hsm_key_name *name)
{
    for (size_t i = 0; i < inventory->expected; i++) {
        struct inventory_item *item = &inventory->items[i];

        if (label_same_name(&item->name, name))
            return item;
    }
    return NULL;
}

void inventory_add(struct inventory *inventory, const struct label_scope *scope,
                   const struct hsm_item *item)
{
    struct inventory_item *added = expected(inventory, &item->key);
    struct label label;

    if (added && added->proven && added->state == HSM_COMPLETE)
        return;
    if (!label_parse(item->key.label, &label) || !label_same_scope(&label.scope, scope))
        return;
    if (!added)
        added = append(inventory);
    if (added)
        *added = (struct inventory_item){.label = label, .name = item->key, .state = item->state};
}

void inventory_forget_seen(struct inventory *inventory)
{
    inventory->count = inventory->expected;
}

static int by_key_id(const void *a, const void *b)
{
    const struct inventory_item *first = a;
    const struct inventory_item *second = b;
    int order = strcmp(first->label.key_id, second->label.key_id);

    if (order != 0)
        return order;
    return (first->label.generation < second->label.generation) -
           (first->label.generation > second->label.generation);
}

void inventory_sort(struct inventory *inventory)
{
    if (inventory->count > 1)
        qsort(inventory->items, inventory->count, sizeof inventory->items[0], by_key_id);
}

void inventory_clear(struct inventory *inventory)
{
    free(inventory->items);
    *inventory = (struct inventory){.items = NULL};
}

struct inventory_item *inventory_first(struct inventory *inventory)
{
    return inventory->count > 0 ? inventory->items : NULL;
}

struct inventory_item *inventory_next_generation(struct inventory *inventory,
                                                 struct inventory_item *item)
{
    struct inventory_item *next = item + 1;

    if (next == inventory->items + inventory->count ||
        strcmp(next->label.key_id, item->label.key_id) != 0)
        return NULL;
    return next;
}

struct inventory_item *inventory_next_id(struct inventory *inventory, struct inventory_item *item)
{
    struct inventory_item *older;

    while ((older = inventory_next_generation(inventory, item)) != NULL)
        item = older;
    return item + 1 == inventory->items + inventory->count ? NULL : item + 1;
}

bool inventory_is_twin(struct inventory *inventory, const struct inventory_item *first,
                       struct inventory_item *item)
{
    const struct inventory_item *next = inventory_next_generation(inventory, item);

    return (next && next->label.generation == item->label.generation) ||
           (item > first && item[-1].label.generation == item->label.generation);
}

/* On a token that keeps no public objects, a half may be all there is of a good key. Only a proof
 * tells. */
static bool may_serve(const struct inventory_item *item)
{
    return item->state == HSM_COMPLETE || (item->state == HSM_HALF && !item->proven);
}

struct inventory_item *inventory_candidate(struct inventory *inventory,
                                           struct inventory_item *first)
{
    struct inventory_item *item;

    for (item = first; item; item = inventory_next_generation(inventory, item))
        if (may_serve(item) && !inventory_is_twin(inventory, first, item))
            return item;
    return NULL;
}

uint32_t inventory_highest(const struct inventory *inventory)
{
    uint32_t highest = 0;

    for (size_t i = 0; i < inventory->count; i++)
        if (inventory->items[i].label.generation > highest)
            highest = inventory->items[i].label.generation;
    return highest;
}
