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

/* The same with a record. On the token also: 0 nothing, x whole, but another key. In the record: s
 * served, S served and in use, m, M missing likewise, A attempted in another place, c condemned, a
 * attempted, f found, k not in it, but with our mark, - not in it. And the verdicts: L listed, C
 * condemned, Y stray, X a stranger's. */
static const struct recorded_row {
    const char *token;
    const char *record;
    const char *verdicts;
    const char *why;
} recorded_rows[] = {
    {"w", "s", "S", "it is served"},
    {"h", "s", "L", "half of it shows: it is listed, as a token does so for a while"},
    {"b", "s", "L", "likewise"},
    {"u", "s", "L", "unfit at one look: likewise"},
    {"W", "s", "L", "nobody could look: likewise"},
    {"0", "s", ".", "it is gone"},
    {"x", "s", ".", "another key under its name: it is gone"},
    {"ww", "-s", "XS", "a newer key that nobody knows is a stranger's, and not served"},
    {"ww", "s-", "S.", "an older one is anybody's, and stays"},
    {"w=w", "-s", "XS", "a twin of it is a stranger's, too"},
    {"w=w", "s-", "SX", "likewise"},
    {"ww", "as", "SC", "a process ended before it wrote down that it serves the new one"},
    {"hw", "as", ".S", "half of that one: it waits for what is newer"},
    {"uw", "as", ".S", "likewise"},
    {"Ww", "as", ".S", "likewise if nobody could look"},
    {"0w", "as", ".S", "it was never made"},
    {"wh", "sa", "SY", "half of an attempt that was overtaken was served to nobody"},
    {"ww", "sa", "SC", "a whole one may have been, if a disk lost what was written down"},
    {"wh", "sA", "S.", "but not one of another place, where it may be going on"},
    {"hw", "sa", "L.", "nor while the served one is not whole"},
    {"Ww", "sa", "L.", "likewise"},
    {"ww", "ks", "SC", "a later start than the record's made it: a record restored"},
    {"ww", "kS", "SC", "likewise"},
    {"hw", "ks", ".S", "only a whole one"},
    {"ww", "sk", "SC", "an older one of ours, not in the record"},
    {"wh", "sk", "SY", "half of one"},
    {"hw", "sk", "L.", "but not while the served one is not whole"},
    {"wW", "sk", "S.", "nor if nobody could look"},
    {"ww", "sc", "SC", "superseded"},
    {"www", "scc", "SCC", "superseded, both"},
    {"0w", "sc", ".C", "condemned is not served, whatever is gone"},
    {"w", "c", "C", "likewise"},
    {"ww", "fs", ".S", "what was found first of all is not served"},
    {"ww", "sf", "S.", "and stays"},
    {"w", "-", "X", "a key of an id of which the record knows nothing"},
    {"w", "k", "S", "but ours by its mark"},
    {"w", "a", "S", "or by the record"},
    {"h", "-", ".", "half of one"},
    {"w", "m", "S", "it is back"},
    {"h", "m", ".", "half of it is not"},
    {"ww", "sM", "CS", "it is back, was in use, and its successor never was"},
    {"ww", "sm", "S.", "it never was in use itself: it stays, displaced"},
    {"ww", "SM", "S.", "its successor is in use: likewise"},
    {"0w", "sM", "CS", "it is back, and the successor gone"},
    {"0w", "SM", "..", "but what was in use last and is gone is a loss"},
    {"xw", "m-", ".X", "not the key that was missing; and a stranger's"},
};

static enum hsm_state state_of(char letter)
{
    switch (letter) {
    case '0':
        return HSM_ABSENT;
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
        added->public_key.fingerprint[0] = *token == 'x' ? 0 : item.key.id[0];
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
            found[k] = letters[verdict_of(NULL, &inventory, first, &inventory.items[k])];
        if (strcmp(found, rows[i].verdicts) != 0)
            fail_msg("%s: %s, not %s (%s)", rows[i].token, found, rows[i].verdicts, rows[i].why);
        inventory_clear(&inventory);
    }
}

/* ---- with a record ---- */

static void write_down(char letter, const struct inventory_item *item, struct record *record)
{
    struct record_key key = {.label = item->label, .name = item->name, .made = true};

    key.public_key.pkix_length = 1;
    key.public_key.fingerprint[0] = item->name.id[0];
    key.in_use = letter == 'S' || letter == 'M';
    switch (letter) {
    case 's':
    case 'S':
        key.state = RECORD_SERVED;
        break;
    case 'm':
    case 'M':
        key.state = RECORD_MISSING;
        break;
    case 'c':
        key.state = RECORD_CONDEMNED;
        break;
    case 'a':
    case 'A':
        key.state = RECORD_ATTEMPTED;
        break;
    case 'f':
        key.state = RECORD_FOUND;
        break;
    default:
        return;
    }
    assert_int_equal(record_put(record, &key), 0);
}

/* The names come first, as a mark is part of them. */
static void name_all(const struct recorded_row *row, const struct record *record,
                     struct inventory *inventory)
{
    struct fault fault;

    for (size_t i = 0; i < inventory->count; i++) {
        struct inventory_item *item = &inventory->items[i];
        uint8_t number = item->name.id[0];

        if (row->record[i] == 'k' || row->record[i] == 'a')
            assert_int_equal(label_new_id(item->label.generation, HSM_ID_MAX,
                                          &record->makers[0].maker, &item->name, &fault),
                             0);
        item->public_key.fingerprint[0] = item->public_key.fingerprint[0] ? number : 0;
    }
}

static void check_row(const struct recorded_row *row)
{
    static const char letters[] = "SLOH.CYX";
    static const uint8_t random[32] = {1};
    struct inventory inventory = {.items = NULL};
    struct inventory_item *first;
    struct record record;
    char found[8] = "";

    record_open(&ours, &record);
    assert_true(record_take_place(&record, "here", random, 0));
    lay_out(row->token, &inventory);
    name_all(row, &record, &inventory);
    for (size_t i = 0; i < inventory.count; i++)
        write_down(row->record[i], &inventory.items[i], &record);
    first = inventory_first(&inventory);
    for (size_t i = 0; i < inventory.count; i++)
        found[i] = letters[verdict_of(&record, &inventory, first, &inventory.items[i])];
    if (strcmp(found, row->verdicts) != 0)
        fail_msg("%s, recorded %s: %s, not %s (%s)", row->token, row->record, found, row->verdicts,
                 row->why);
    inventory_clear(&inventory);
    record_close(&record);
}

static void each_recorded_key_has_the_verdict_of_its_row(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof recorded_rows / sizeof recorded_rows[0]; i++)
        check_row(&recorded_rows[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_key_has_the_verdict_of_its_row),
        cmocka_unit_test(each_recorded_key_has_the_verdict_of_its_row),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
