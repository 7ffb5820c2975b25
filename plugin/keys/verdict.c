#include "plugin/keys/verdict.h"

bool verdict_is_public_half(const struct inventory_item *item)
{
    return item->proven && item->state == HSM_HALF;
}

enum verdict verdict_of(struct inventory *inventory, struct inventory_item *first,
                        const struct inventory_item *item)
{
    const struct inventory_item *served = inventory_candidate(inventory, first);

    if (!served || !served->proven)
        return VERDICT_WAITS;
    if (item == served)
        return VERDICT_SERVE;
    if (item->label.generation >= served->label.generation)
        return VERDICT_WAITS;
    return verdict_is_public_half(item) ? VERDICT_HALF : VERDICT_OLDER;
}
