/* The rules that are asked of the record. */
#include "tests/support/record_sample.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/scope.h"

/* ---- looking ---- */

static void a_key_is_found_by_label_and_id(void **state)
{
    OWNED(record_close) struct record record = sample_record();
    struct hsm_key_name name = record.keys[2].name;

    (void)state;
    assert_ptr_equal(record_find(&record, &name), &record.keys[2]);
    name.id[15] ^= 1;
    assert_null(record_find(&record, &name));
    name.id[15] ^= 1;
    name.id_length = 15;
    assert_null(record_find(&record, &name));
    assert_ptr_equal(record_served(&record, "x509-CA-A"), &record.keys[0]);
    assert_null(record_served(&record, "x509-CA-B"));
}

static void ours_is_what_we_wrote_down_or_marked(void **state)
{
    OWNED(record_close) struct record record = sample_record();
    struct record_key key = sample_key(RECORD_SERVED, "x509-CA-A", 70);

    (void)state;
    for (size_t i = 0; i < record.count; i++)
        assert_int_equal(record_knows(&record, &record.keys[i].name),
                         record.keys[i].state != RECORD_FOUND);
    assert_false(record_knows(&record, &key.name));
    for (size_t i = 0; i < record.maker_count; i++) {
        key = sample_key(RECORD_SERVED, "x509-CA-A", 4);
        assert_int_equal(label_new_id(4, 16, &record.makers[i].maker, &key.name, NULL), 0);
        assert_true(record_knows(&record, &key.name));
        assert_int_equal(record_made_here(&record, &key.name), i == 0);
    }
    assert_int_equal(label_new_id(70, 16, &(struct label_maker){0}, &key.name, NULL), 0);
    assert_false(record_knows(&record, &key.name));
}

/* ---- needed ---- */

/* Keys by age: "x509-CA-A" + is in use, - was never; "(..)" is not served any more. */
static const struct {
    const char *keys[5]; /* the first letter says the state */
    const char *needed;  /* a letter each: n, or - */
} needs[] = {
    /* all is new */
    {{"s-x509-CA-A", "s-JWT-Signer-A"}, "n-"},
    {{"s-x509-CA-A", "s-x509-CA-B"}, "nn"},
    /* A signs */
    {{"s+x509-CA-A", "s+JWT-Signer-A"}, "n-"},
    /* and B is prepared */
    {{"s+x509-CA-A", "s+JWT-Signer-A", "s-x509-CA-B", "s-JWT-Signer-B"}, "n-n-"},
    /* B signs, A is old */
    {{"s+x509-CA-A", "s+JWT-Signer-A", "s+x509-CA-B", "s+JWT-Signer-B"}, "--n-"},
    /* A is prepared anew */
    {{"c+x509-CA-A", "s+x509-CA-B", "s-x509-CA-A"}, "-nn"},
    /* a key that was never in use is older than one that is */
    {{"s-x509-CA-A", "s+x509-CA-B"}, "-n"},
    /* the newest was lost: what is left counts */
    {{"s+x509-CA-A", "m+x509-CA-B", "s-x509-CA-B"}, "n-n"},
    {{"s+x509-CA-A", "c+x509-CA-B"}, "n-"},
    /* never needed is what is not served */
    {{"a-x509-CA-A", "f-x509-CA-A", "m-x509-CA-B", "c-x509-CA-B"}, "----"},
    /* an agent */
    {{"s+agent-svid-A", "s-agent-svid-B"}, "nn"},
    {{"s+agent-svid-A", "s+agent-svid-B"}, "-n"},
    {{"s-agent-svid-A"}, "n"},
    /* one family says nothing of the other */
    {{"s+x509-CA-A", "s+agent-svid-A"}, "nn"},
    /* other ids are a blip */
    {{"s+JWT-Signer-A", "s+WIT-Signer-A", "s+x509-CA", "s+X509-CA-A", "s+my-x509-CA-A"}, "-----"},
};

static struct record_key key_from(const char *text, uint32_t generation)
{
    static const char letters[] = "smcaf";
    struct record_key key =
        sample_key((enum record_state)(strchr(letters, text[0]) - letters), text + 2, generation);

    key.in_use = text[1] == '+';
    return key;
}

static void the_keys_that_no_start_does_without(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof needs / sizeof needs[0]; i++) {
        OWNED(record_close) struct record record = sample_empty();
        size_t count = strlen(needs[i].needed);

        for (size_t k = 0; k < count; k++)
            sample_put(&record, key_from(needs[i].keys[k], 10 + (uint32_t)k));
        for (size_t k = 0; k < count; k++)
            if (record_is_needed(&record, &record.keys[k]) != (needs[i].needed[k] == 'n'))
                fail_msg("row %zu: %s is %sneeded", i, needs[i].keys[k],
                         needs[i].needed[k] == 'n' ? "not " : "");
    }
}

/* ---- the code of a loss ---- */

struct lost {
    const struct record *record;
    unsigned which; /* bits */
};

static bool is_lost(void *context, const struct record_key *key)
{
    const struct lost *lost = context;

    assert_int_equal(key->state, RECORD_SERVED);
    return (lost->which >> (key->label.generation - 1) & 1) != 0;
}

static void code_of(const struct record *record, unsigned which, char code[RECORD_CODE + 1])
{
    struct lost lost = {record, which};

    record_loss_code(record, is_lost, &lost, false, code);
    assert_int_equal(strlen(code), RECORD_CODE);
    assert_int_equal(strspn(code, "0123456789abcdef"), RECORD_CODE);
}

static void a_code_stands_for_one_loss(void **state)
{
    static const char *const ids[] = {"x509-CA-A", "x509-CA-B", "JWT-Signer-A", "JWT-Signer-B"};
    OWNED(record_close) struct record record = sample_empty();
    OWNED(record_close) struct record other = sample_empty();
    char codes[16][RECORD_CODE + 1];
    char again[RECORD_CODE + 1];

    (void)state;
    for (uint32_t i = 0; i < 4; i++) {
        sample_put(&record, sample_key(RECORD_SERVED, ids[i], 1 + i));
        sample_put(&other, sample_key(RECORD_SERVED, ids[3 - i], 4 - i));
    }
    sample_put(&other, sample_key(RECORD_MISSING, "x509-CA-A", 9));
    for (unsigned which = 0; which < 16; which++) {
        code_of(&record, which, codes[which]);
        code_of(&other, which, again); /* whatever else there is, in whatever order */
        assert_string_equal(codes[which], again);
        for (unsigned before = 0; before < which; before++)
            assert_string_not_equal(codes[before], codes[which]);
    }
    record.keys[0].name.id[0] ^= 1;
    code_of(&record, 1, again);
    assert_string_not_equal(codes[1], again);
    code_of(&record, 2, again);
    assert_string_equal(codes[2], again);
}

/* ---- changing ---- */

static void a_key_that_is_put_again_is_replaced(void **state)
{
    OWNED(record_close) struct record record = sample_record();
    struct record_key key = record.keys[3];
    size_t count = record.count;

    (void)state;
    key.state = RECORD_SERVED;
    sample_put(&record, key);
    assert_int_equal(record.count, count);
    assert_int_equal(record_find(&record, &key.name)->state, RECORD_SERVED);
    record_remove(&record, &key.name);
    record_remove(&record, &key.name);
    assert_int_equal(record.count, count - 1);
    assert_null(record_find(&record, &key.name));
}

static size_t count_of(const struct record *record, enum record_state state)
{
    size_t count = 0;

    for (size_t i = 0; i < record->count; i++)
        count += record->keys[i].state == state;
    return count;
}

static void the_oldest_beyond_a_bound_is_forgotten(void **state)
{
    static const struct {
        enum record_state state;
        uint32_t most;
    } rows[] = {{RECORD_ATTEMPTED, RECORD_ATTEMPTED_MAX},
                {RECORD_FOUND, RECORD_FOUND_MAX},
                {RECORD_CONDEMNED, RECORD_CONDEMNED_MAX},
                {RECORD_MISSING, RECORD_MISSING_MAX}};

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OWNED(record_close) struct record record = sample_empty();
        struct record_key first = sample_key(rows[i].state, "a", 1);
        struct record_key late = sample_key(rows[i].state, "a", 0); /* not the one that goes */

        sample_put(&record, sample_key(RECORD_SERVED, "a", 2));
        sample_put(&record, first);
        for (uint32_t k = 1; k < rows[i].most; k++)
            sample_put(&record, sample_key(rows[i].state, "a", 10 + k));
        assert_int_equal(count_of(&record, rows[i].state), rows[i].most);
        sample_put(&record, late);
        assert_int_equal(count_of(&record, rows[i].state), rows[i].most);
        assert_null(record_find(&record, &first.name));
        assert_non_null(record_find(&record, &late.name));
        assert_non_null(record_served(&record, "a"));
    }
}

static void what_was_served_is_condemned_if_it_is_ours(void **state)
{
    static const struct {
        bool made;
        bool lost;
        enum record_state becomes;
        int64_t since;
    } rows[] = {
        {true, false, RECORD_CONDEMNED, 1234},
        {false, false, RECORD_FOUND, 0},
        {true, true, RECORD_MISSING, 0},
        {false, true, RECORD_MISSING, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OWNED(record_close) struct record record = sample_empty();
        struct record_key old = sample_in_use(sample_key(RECORD_SERVED, "a", 1));
        struct record_key key = sample_key(RECORD_ATTEMPTED, "a", 2);
        const struct record_key *found;

        old.made = rows[i].made;
        sample_put(&record, old);
        sample_put(&record, sample_key(RECORD_SERVED, "b", 1));
        sample_put(&record, key);
        key.since = 77;
        assert_int_equal(record_serve(&record, &key, rows[i].lost, 1234), 0);
        assert_int_equal(record.count, 3);
        found = record_find(&record, &old.name);
        assert_int_equal(found->state, rows[i].becomes);
        assert_int_equal(found->since, rows[i].since);
        assert_true(found->in_use);
        found = record_served(&record, "a");
        assert_string_equal(found->name.label, key.name.label);
        assert_int_equal(found->since, 0);
        assert_int_equal(record_served(&record, "b")->label.generation, 1);
    }
}

static void to_serve_a_key_again_condemns_nothing(void **state)
{
    OWNED(record_close) struct record record = sample_record();
    const size_t count = record.count;

    (void)state;
    assert_int_equal(record_serve(&record, record_served(&record, "x509-CA-A"), false, 5), 0);
    assert_int_equal(record.count, count);
    assert_int_equal(count_of(&record, RECORD_CONDEMNED), 1);
    assert_int_equal(count_of(&record, RECORD_SERVED), 1);
}

/* The key is one of the record's own, which moves as the record grows. */
static void a_key_of_the_record_can_be_served(void **state)
{
    OWNED(record_close) struct record record = sample_empty();

    (void)state;
    for (uint32_t i = 0; i < 16; i++)
        sample_put(&record, sample_key(RECORD_MISSING, "a", i));
    for (uint32_t i = 0; i < 16; i++) {
        assert_int_equal(record_serve(&record, &record.keys[i], false, i), 0);
        assert_int_equal(record_served(&record, "a")->label.generation, i);
    }
    assert_int_equal(count_of(&record, RECORD_CONDEMNED), 15);
}

/* Lost, given up, and back on the token: it is of use to SPIRE while its successor was never in
 * use. Once SPIRE has gone on with that one, it never is again, whatever is prepared then. */
static void a_lost_key_is_of_no_use_once_its_successor_was(void **state)
{
    OWNED(record_close) struct record record = sample_empty();
    struct record_key next = key_from("s-x509-CA-A", 3);

    (void)state;
    sample_put(&record, key_from("m+x509-CA-A", 1));
    sample_put(&record, key_from("m+x509-CA-B", 1));
    sample_put(&record, key_from("s-x509-CA-A", 2));
    assert_int_equal(record_serve(&record, record_served(&record, "x509-CA-A"), false, 5), 0);
    assert_true(record.keys[0].in_use);
    record_served(&record, "x509-CA-A")->in_use = true;
    assert_int_equal(record_serve(&record, &next, true, 5), 0);
    assert_false(record.keys[0].in_use);
    assert_true(record.keys[1].in_use); /* of another id */
    assert_int_equal(record.keys[2].state, RECORD_MISSING);
    assert_true(record.keys[2].in_use); /* it is lost just now */
}

static void a_new_place_has_a_new_maker(void **state)
{
    OWNED(record_close) struct record record = sample_empty();
    uint8_t random[32] = {0};
    char place[16];

    (void)state;
    for (uint8_t i = 0; i < 12; i++) {
        random[0] = i;
        (void)snprintf(place, sizeof place, "place %d", i);
        assert_true(record_take_place(&record, place, random, 100 + i));
        random[0] = 99;
        assert_false(record_take_place(&record, place, random, 200));
        assert_int_equal(record.makers[0].maker.key[0], i);
    }
    assert_int_equal(record.maker_count, RECORD_MAKERS);
    for (uint8_t i = 0; i < RECORD_MAKERS; i++) {
        assert_int_equal(record.makers[i].maker.key[0], 11 - i);
        assert_true(record.makers[i].maker.known);
        assert_int_equal(record.makers[i].until, i == 0 ? 0 : 100 + 12 - i);
    }
    assert_true(record_take_place(&record, "place 10", random, 300)); /* it went and came back */
}

/* A snapshot's copy goes on elsewhere, and so does the original: neither takes the other's new
 * keys for its own. */
static void an_earlier_maker_ends_with_its_place(void **state)
{
    static const struct {
        uint32_t generation;
        bool known;   /* at the new place */
        bool settled; /* and when the start there is over */
    } rows[] = {{5, true, true},   {9, true, true},    {10, true, false},
                {40, true, false}, {41, false, false}, {99, false, false}};
    static const uint8_t random[2][32] = {{1}, {2}};
    OWNED(record_close) struct record record = sample_empty();
    struct hsm_key_name names[6];

    (void)state;
    sample_put(&record, sample_key(RECORD_SERVED, "a", 9));
    assert_true(record_take_place(&record, "here", random[0], 1));
    for (size_t i = 0; i < 6; i++) {
        names[i] = sample_key(RECORD_SERVED, "b", rows[i].generation).name;
        assert_int_equal(
            label_new_id(rows[i].generation, 16, &record.makers[0].maker, &names[i], NULL), 0);
        assert_true(record_knows(&record, &names[i]));
        assert_true(record_made_here(&record, &names[i]));
    }
    assert_true(record_take_place(&record, "there", random[1], 40));
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(record_knows(&record, &names[i]), rows[i].known);
        assert_false(record_made_here(&record, &names[i]));
    }
    record_settle_makers(&record);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(record_knows(&record, &names[i]), rows[i].settled);
    assert_int_equal(record.makers[0].until, 0);
}

/* Generations may run ahead of the clock: what the record has is before the end. */
static void an_earlier_maker_ends_behind_the_newest_key(void **state)
{
    static const uint8_t random[32] = {1};
    OWNED(record_close) struct record record = sample_empty();

    (void)state;
    sample_put(&record, sample_key(RECORD_CONDEMNED, "a", 50));
    sample_put(&record, sample_key(RECORD_SERVED, "a", 9));
    (void)record_take_place(&record, "here", random, 1);
    (void)record_take_place(&record, "there", random, 40);
    assert_int_equal(record.makers[1].until, 50);
}

static void a_place_of_any_bytes_is_known_again(void **state)
{
    static const uint8_t random[32] = {1};
    OWNED(record_close) struct record record = sample_empty();
    OWNED(record_close) struct record again;
    OWNED(scope_free) char *text = NULL;
    char place[2 * RECORD_PLACE_MAX];

    (void)state;
    memset(place, 'x', sizeof place);
    memcpy(place, "\xff\n\"", 3);
    place[sizeof place - 1] = '\0';
    assert_true(record_take_place(&record, place, random, 1));
    text = sample_format(&record);
    again = sample_parsed(text);
    assert_false(record_take_place(&again, place, random, 2));
}

static void a_copy_stands_alone(void **state)
{
    OWNED(record_close) struct record record = sample_record();
    OWNED(scope_free) char *text = sample_format(&record);
    OWNED(record_close) struct record copy = sample_empty();
    struct hsm_key_name name = record.keys[0].name;

    (void)state;
    assert_int_equal(record_copy(&record, &copy), 0);
    assert_null(copy.document);
    assert_same_record(&record, &copy);
    record_remove(&record, &name);
    assert_non_null(record_find(&copy, &name));
    sample_put(&copy, sample_key(RECORD_SERVED, "new", 99));
    assert_null(record_served(&record, "new"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_is_found_by_label_and_id),
        cmocka_unit_test(ours_is_what_we_wrote_down_or_marked),
        cmocka_unit_test(the_keys_that_no_start_does_without),
        cmocka_unit_test(a_code_stands_for_one_loss),
        cmocka_unit_test(a_key_that_is_put_again_is_replaced),
        cmocka_unit_test(the_oldest_beyond_a_bound_is_forgotten),
        cmocka_unit_test(what_was_served_is_condemned_if_it_is_ours),
        cmocka_unit_test(to_serve_a_key_again_condemns_nothing),
        cmocka_unit_test(a_key_of_the_record_can_be_served),
        cmocka_unit_test(a_lost_key_is_of_no_use_once_its_successor_was),
        cmocka_unit_test(a_new_place_has_a_new_maker),
        cmocka_unit_test(an_earlier_maker_ends_with_its_place),
        cmocka_unit_test(an_earlier_maker_ends_behind_the_newest_key),
        cmocka_unit_test(a_place_of_any_bytes_is_known_again),
        cmocka_unit_test(a_copy_stands_alone),
    };

    return cmocka_run_group_tests(tests, sample_set_up, NULL);
}
