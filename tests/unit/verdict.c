/* The rule of what is served and what may ever be destroyed, row by row. */
#include "plugin/keys/verdict.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const struct label_scope ours = {"aaaaaaaa", "bbbbbbbb"};

/* Of one key id, newest first: w whole, W whole and not proven, h a public half, H half as
 * scanned, b a private half, u unfit, = as old as the one before it. And the verdicts: S serve,
 * O older, H half, . waits. */
static const struct row {
    const char *token;
    const char *verdicts;
    const char *why;
} rows[] = {
    {"w", "S", "the only one"},
    {"ww", "SO", "the newest is served, the older one was superseded"},
    {"www", "SOO", "and all that are older"},
    {"h", ".", "half may be a key that does not show whole just now"},
    {"b", ".", "likewise"},
    {"u", ".", "unfit at one look"},
    {"hw", ".S", "half made by a crash, or the newest key: it stays"},
    {"bw", ".S", "likewise"},
    {"uw", ".S", "likewise"},
    {"wh", "SH", "half, and older: without a key it goes as a half"},
    {"wb", "SO", "half, and older"},
    {"wu", "SO", "unfit, and older"},
    {"whw", "SHO", "both are older"},
    {"hwh", ".SH", "newer stays, older goes"},
    {"hh", "..", "nothing is served: nothing goes"},
    {"hb", "..", "likewise"},
    {"W", ".", "nobody could look: nothing is served"},
    {"Ww", "..", "nor does what is older go"},
    {"Wh", "..", "likewise"},
    {"H", ".", "a half as scanned may be whole: only a proof tells"},
    {"w=w", "..", "two of one generation: neither is served, and neither goes"},
    {"w=ww", "..S", "nor keep they an older one from being served"},
    {"ww=w", "SOO", "superseded, both"},
    {"ww=h", "SOH", "likewise"},
};

static enum hsm_state state_of(char letter)
{
    switch (letter) {
    case 'h':
    case 'H':
        return HSM_HALF;
    case 'b':
        return HSM_BARE;
    case 'u':
        return HSM_UNFIT;
    default:
        return HSM_COMPLETE;
    }
}

static void lay_out(const char *token, struct inventory *inventory)
{
    uint32_t generation = 1000;

    for (; *token != '\0'; token++) {
        struct hsm_item item = {.key = {.id_length = 1}};
        struct label label = {.scope = ours, .generation = generation, .key_id = "x509-CA-A"};
        struct inventory_item *added;

        if (*token == '=') {
            generation++;
            continue;
        }
        item.key.id[0] = (uint8_t)(inventory->count + 1);
        item.state = state_of(*token);
        label.generation = generation--;
        label_format(&label, item.key.label);
        inventory_add(inventory, &ours, &item);
        added = &inventory->items[inventory->count - 1];
        added->proven = *token != 'W' && *token != 'H';
    }
}

static void each_key_has_the_verdict_of_its_row(void **state)
{
    static const char letters[] = {
        [VERDICT_SERVE] = 'S', [VERDICT_OLDER] = 'O', [VERDICT_HALF] = 'H', [VERDICT_WAITS] = '.'};

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct inventory inventory = {.items = NULL};
        struct inventory_item *first;
        char found[8] = "";

        lay_out(rows[i].token, &inventory);
        first = inventory_first(&inventory);
        for (size_t k = 0; k < inventory.count; k++)
            found[k] = letters[verdict_of(&inventory, first, &inventory.items[k])];
        if (strcmp(found, rows[i].verdicts) != 0)
            fail_msg("%s: %s, not %s (%s)", rows[i].token, found, rows[i].verdicts, rows[i].why);
        inventory_clear(&inventory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_key_has_the_verdict_of_its_row),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
