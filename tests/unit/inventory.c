/* Which of the keys a scan shows is served: the newest that is whole, fit, and not one of
 * two of the same generation. */
#include "plugin/keys/inventory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct label_scope ours;
static struct label_scope other_server;
static struct label_scope other_domain;

static int make_scopes(void **state)
{
    (void)state;
    label_scope("example.org", "server-a", 8, &ours);
    label_scope("example.org", "server-b", 8, &other_server);
    label_scope("example.com", "server-a", 8, &other_domain);
    return 0;
}

static struct hsm_item item_of(const struct label_scope *scope, const char *key_id,
                               uint32_t generation, enum hsm_state state)
{
    struct label label = {.scope = *scope, .generation = generation};
    struct hsm_item item = {.state = state};

    (void)snprintf(label.key_id, sizeof label.key_id, "%s", key_id);
    label_format(&label, item.key.label);
    item.key.id_length = HSM_ID_MAX;
    return item;
}

static void add(struct inventory *inventory, const char *key_id, uint32_t generation,
                enum hsm_state state)
{
    struct hsm_item item = item_of(&ours, key_id, generation, state);

    item.key.id[0] = (uint8_t)inventory->count;
    inventory_add(inventory, &ours, &item);
}

/* The second byte of the CKA_ID says what a proof would find; 0: what the scan has found. */
static enum hsm_state truth(const struct inventory_item *item)
{
    return item->name.id[1] != 0 ? (enum hsm_state)item->name.id[1] : item->state;
}

/* As loading does it: candidates are proven until one stands. */
static struct inventory_item *prove(struct inventory *inventory, struct inventory_item *first)
{
    struct inventory_item *item;

    while ((item = inventory_candidate(inventory, first)) != NULL && !item->proven) {
        item->proven = true;
        item->state = truth(item);
    }
    return item;
}

/* The generation that would be served for the only key id; 0 = none. */
static uint32_t candidate(struct inventory *inventory)
{
    struct inventory_item *item;

    inventory_sort(inventory);
    item = inventory_first(inventory);
    item = item ? prove(inventory, item) : NULL;
    return item ? item->label.generation : 0;
}

static void the_newest_whole_key_is_served(void **state)
{
    struct inventory inventory = {.items = NULL};

    (void)state;
    add(&inventory, "a", 5, HSM_COMPLETE);
    add(&inventory, "a", 9, HSM_COMPLETE);
    add(&inventory, "a", 7, HSM_COMPLETE);
    assert_int_equal(candidate(&inventory), 9);
    assert_int_equal(inventory_highest(&inventory), 9);
    inventory_clear(&inventory);
}

static void half_a_key_is_not_served(void **state)
{
    struct inventory inventory = {.items = NULL};

    (void)state;
    add(&inventory, "a", 9, HSM_HALF);
    add(&inventory, "a", 8, HSM_DUPLICATE);
    add(&inventory, "a", 5, HSM_COMPLETE);
    add(&inventory, "a", 4, HSM_COMPLETE);
    assert_int_equal(candidate(&inventory), 5);
    assert_int_equal(inventory_highest(&inventory), 9); /* its generation is used up all the same */
    inventory_clear(&inventory);
}

static void half_a_key_that_proves_whole_is_served(void **state)
{
    struct inventory inventory = {.items = NULL};

    (void)state;
    add(&inventory, "a", 9, HSM_HALF); /* a token without public objects */
    inventory.items[0].name.id[1] = HSM_COMPLETE;
    add(&inventory, "a", 5, HSM_COMPLETE);
    assert_int_equal(candidate(&inventory), 9);
    inventory_clear(&inventory);
}

static void a_key_that_failed_its_proof_gives_way_to_the_one_before_it(void **state)
{
    struct inventory inventory = {.items = NULL};

    (void)state;
    add(&inventory, "a", 9, HSM_COMPLETE);
    inventory.items[0].name.id[1] = HSM_UNFIT;
    add(&inventory, "a", 5, HSM_COMPLETE);
    assert_int_equal(candidate(&inventory), 5);
    inventory_clear(&inventory);
}

static void two_keys_of_one_generation_are_both_passed_over(void **state)
{
    struct inventory inventory = {.items = NULL};

    (void)state;
    add(&inventory, "a", 9, HSM_COMPLETE);
    add(&inventory, "a", 4, HSM_COMPLETE);
    add(&inventory, "a", 9, HSM_COMPLETE);
    assert_int_equal(candidate(&inventory), 4);
    add(&inventory, "a", 4, HSM_COMPLETE);
    assert_int_equal(candidate(&inventory), 0);
    inventory_clear(&inventory);
}

static void a_worker_that_tells_of_keys_without_end_does_not_fill_our_memory(void **state)
{
    struct inventory inventory = {.items = NULL};

    (void)state;
    for (uint32_t i = 0; i < 2 * INVENTORY_MAX; i++)
        add(&inventory, "a", i + 1, HSM_COMPLETE);
    assert_true(inventory.out_of_memory);
    assert_in_range(inventory.count, 1, INVENTORY_MAX);
    inventory_clear(&inventory);
}

static void one_generation_of_two_key_ids_is_no_clash(void **state)
{
    struct inventory inventory = {.items = NULL};
    struct inventory_item *item;

    (void)state;
    add(&inventory, "a", 9, HSM_COMPLETE);
    add(&inventory, "b", 9, HSM_COMPLETE);
    assert_int_equal(candidate(&inventory), 9);
    item = inventory_next_id(&inventory, inventory_first(&inventory));
    assert_ptr_equal(inventory_candidate(&inventory, item), item);
    inventory_clear(&inventory);
}

static void keys_of_others_are_left_out(void **state)
{
    const struct hsm_item others[] = {
        item_of(&other_server, "a", 20, HSM_COMPLETE),
        item_of(&other_domain, "a", 21, HSM_COMPLETE),
        {.key.label = "somebody's key", .state = HSM_COMPLETE},
        {.key.label = "sp2-not-of-this-format", .state = HSM_COMPLETE},
        {.key.label = "", .state = HSM_COMPLETE},
    };
    struct inventory inventory = {.items = NULL};

    (void)state;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        inventory_add(&inventory, &ours, &others[i]);
    assert_int_equal(inventory.count, 0);
    assert_null(inventory_first(&inventory));
    assert_int_equal(inventory_highest(&inventory), 0);
    add(&inventory, "a", 3, HSM_COMPLETE);
    inventory_add(&inventory, &ours, &others[0]);
    assert_int_equal(candidate(&inventory), 3);
    inventory_clear(&inventory);
}

static void a_walk_meets_every_key_once_by_id_and_newest_first(void **state)
{
    static const char *const ids[] = {"x509-CA-B", "x509-CA-A", "b\xc3\xbcndel", "JWT", "a/b"};
    struct inventory inventory = {.items = NULL};
    struct inventory_item *id;
    struct inventory_item *item;
    const char *previous = "";
    size_t met = 0;

    (void)state;
    for (uint32_t i = 0; i < 50; i++)
        add(&inventory, ids[i % 5], 1 + i * 7 % 50, HSM_COMPLETE);
    inventory_sort(&inventory);
    for (id = inventory_first(&inventory); id; id = inventory_next_id(&inventory, id)) {
        uint32_t generation = UINT32_MAX;

        assert_true(strcmp(previous, id->label.key_id) < 0);
        previous = id->label.key_id;
        for (item = id; item; item = inventory_next_generation(&inventory, item), met++) {
            assert_string_equal(item->label.key_id, id->label.key_id);
            assert_true(item->label.generation < generation);
            generation = item->label.generation;
        }
    }
    assert_int_equal(met, 50);
    inventory_clear(&inventory);
    assert_int_equal(inventory.count, 0);
}

/* ---- a model: what servers that crash leave on a token ---- */

enum { HISTORIES = 1000, STEPS = 30, IDS = 3, OBJECTS_MAX = 2 * STEPS };

struct object {
    unsigned id;
    uint32_t generation;
    enum hsm_state state;
    bool unfit; /* only its proof shows that */
};

struct token {
    struct object objects[OBJECTS_MAX];
    size_t count;
    uint32_t highest;
    unsigned dice;
};

static unsigned roll(struct token *token, unsigned sides)
{
    token->dice = token->dice * 1103515245U + 12345U;
    return (token->dice >> 16) % sides;
}

static void put(struct token *token, unsigned id, enum hsm_state state, bool unfit)
{
    token->objects[token->count++] = (struct object){id, token->highest, state, unfit};
}

/* One thing that can happen to a token. */
static void step(struct token *token)
{
    unsigned id = roll(token, IDS);
    unsigned what = roll(token, 10);

    if (what < 5) { /* a key is made */
        token->highest += 1 + roll(token, 3);
        put(token, id, HSM_COMPLETE, roll(token, 8) == 0);
    } else if (what < 7) { /* and another crashes half-way */
        token->highest++;
        put(token, id, HSM_HALF, false);
    } else if (what == 7 && token->highest > 0) { /* a second server does the same */
        put(token, id, HSM_COMPLETE, false);
    } else if (token->count > 0) { /* something is destroyed, or only one half of it */
        struct object *object = &token->objects[roll(token, (unsigned)token->count)];

        if (roll(token, 2))
            *object = (struct object){object->id, object->generation, HSM_HALF, false};
        else
            *object = token->objects[--token->count];
    }
}

static bool has_twin(const struct token *token, const struct object *object)
{
    for (size_t i = 0; i < token->count; i++)
        if (&token->objects[i] != object && token->objects[i].id == object->id &&
            token->objects[i].generation == object->generation)
            return true;
    return false;
}

/* What must be served, straight from the sentence at the head of this file. */
static uint32_t expected(const struct token *token, unsigned id)
{
    uint32_t newest = 0;

    for (size_t i = 0; i < token->count; i++) {
        const struct object *object = &token->objects[i];

        if (object->id == id && object->state == HSM_COMPLETE && !object->unfit &&
            !has_twin(token, object) && object->generation > newest)
            newest = object->generation;
    }
    return newest;
}

static void scan(const struct token *token, struct inventory *inventory)
{
    char key_id[8];

    for (size_t i = 0; i < token->count; i++) {
        (void)snprintf(key_id, sizeof key_id, "key-%u", token->objects[i].id);
        add(inventory, key_id, token->objects[i].generation, token->objects[i].state);
        if (token->objects[i].unfit)
            inventory->items[inventory->count - 1].name.id[1] = HSM_UNFIT;
    }
    inventory_sort(inventory);
}

static void check(const struct token *token)
{
    struct inventory inventory = {.items = NULL};
    uint32_t served[IDS] = {0};
    struct inventory_item *id;

    scan(token, &inventory);
    for (id = inventory_first(&inventory); id; id = inventory_next_id(&inventory, id)) {
        struct inventory_item *item = prove(&inventory, id);

        if (item)
            served[item->label.key_id[4] - '0'] = item->label.generation;
    }
    for (unsigned i = 0; i < IDS; i++)
        assert_int_equal(served[i], expected(token, i));
    assert_true(inventory_highest(&inventory) <= token->highest);
    inventory_clear(&inventory);
}

/* What loading destroys unasked, in the eyes of the model: halves, and what is older than
 * the served key. A whole key that is newer than the served one is not among it. */
static void clean(struct token *token)
{
    size_t kept = 0;

    for (size_t i = 0; i < token->count; i++) {
        const struct object *object = &token->objects[i];

        if (object->state != HSM_HALF && object->generation >= expected(token, object->id))
            token->objects[kept++] = *object;
    }
    token->count = kept;
}

static void whatever_crashes_left_the_newest_good_key_is_served(void **state)
{
    (void)state;
    for (unsigned history = 1; history <= HISTORIES; history++) {
        struct token token = {.dice = history};
        uint32_t before[IDS];

        for (unsigned i = 0; i < STEPS; i++) {
            step(&token);
            check(&token);
        }
        for (unsigned id = 0; id < IDS; id++)
            before[id] = expected(&token, id);
        clean(&token);
        check(&token);
        for (unsigned id = 0; id < IDS; id++)
            assert_true(expected(&token, id) >= before[id]); /* a half twin may have gone */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_newest_whole_key_is_served),
        cmocka_unit_test(half_a_key_is_not_served),
        cmocka_unit_test(half_a_key_that_proves_whole_is_served),
        cmocka_unit_test(a_key_that_failed_its_proof_gives_way_to_the_one_before_it),
        cmocka_unit_test(two_keys_of_one_generation_are_both_passed_over),
        cmocka_unit_test(a_worker_that_tells_of_keys_without_end_does_not_fill_our_memory),
        cmocka_unit_test(one_generation_of_two_key_ids_is_no_clash),
        cmocka_unit_test(keys_of_others_are_left_out),
        cmocka_unit_test(a_walk_meets_every_key_once_by_id_and_newest_first),
        cmocka_unit_test(whatever_crashes_left_the_newest_good_key_is_served),
    };

    return cmocka_run_group_tests(tests, make_scopes, NULL);
}
