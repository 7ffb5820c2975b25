/* What `keys` says of a key, and which keys `prune` may take: never another trust domain's,
 * never the newest whole one of our own, never what was in use a moment ago. */
#include "plugin/command/census.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { NOW = 100000000, DAY = 86400 };

static struct label_scope ours;
static struct label_scope other_server;
static struct label_scope other_domain;
static struct census census;
static struct record *recorded; /* NULL: states are told without one */

static int begin(void **state)
{
    (void)state;
    label_scope("example.org", "server-a", 8, &ours);
    label_scope("example.org", "server-b", 8, &other_server);
    label_scope("example.com", "server-a", 8, &other_domain);
    return 0;
}

static int end(void **state)
{
    (void)state;
    census_clear(&census);
    return 0;
}

static void add(const struct label_scope *scope, const char *key_id, uint32_t generation,
                enum hsm_state state)
{
    struct label label = {.scope = *scope, .generation = generation};
    struct hsm_item item = {.state = state};

    (void)snprintf(label.key_id, sizeof label.key_id, "%s", key_id);
    label_format(&label, item.key.label);
    item.key.id_length = HSM_ID_MAX;
    item.key.id[0] = (uint8_t)census.found.count;
    census_add(&census, &item);
}

/* As proofs would, but for the last `unproven` of them. */
static void prove(size_t unproven)
{
    census_sort(&census);
    for (size_t i = 0; i + unproven < census.found.count; i++)
        census.found.items[i].proven = true;
}

/* The states of all items in order, as letters. */
static void states_are(const char *expected)
{
    static const char letters[] = "?cohudn";
    struct inventory server = {.items = NULL};
    char found[64] = "";
    size_t length = 0;

    while (census_next(&census, &server))
        for (size_t i = 0; i < server.count; i++)
            found[length++] = letters[census_state(recorded, &server, &server.items[i])];
    assert_string_equal(found, expected);
}

static struct census_rule rule(enum census_target target)
{
    struct census_rule made = {.target = target, .own = ours, .now = NOW, .floor = DAY};

    memcpy(made.named, other_server.server, sizeof made.named);
    return made;
}

/* The pruned items as "generation generation ". */
static void prunes(struct census_rule made, const char *expected)
{
    struct inventory server = {.items = NULL};
    char found[256] = "";

    while (census_next(&census, &server))
        for (size_t i = 0; i < server.count; i++)
            if (census_prunes(&made, &server, &server.items[i]))
                (void)snprintf(found + strlen(found), sizeof found - strlen(found), "%u ",
                               server.items[i].label.generation);
    assert_string_equal(found, expected);
}

static void the_keys_of_each_server_stand_together(void **state)
{
    struct inventory server = {.items = NULL};
    size_t servers = 0;
    size_t keys = 0;

    (void)state;
    assert_false(census_next(&census, &server));
    add(&ours, "A", 1, HSM_COMPLETE);
    add(&other_domain, "A", 2, HSM_COMPLETE);
    add(&other_server, "B", 3, HSM_COMPLETE);
    add(&ours, "B", 4, HSM_COMPLETE);
    prove(0);
    server = (struct inventory){.items = NULL};
    while (census_next(&census, &server)) {
        servers++;
        keys += server.count;
        for (size_t i = 1; i < server.count; i++)
            assert_true(
                label_same_scope(&server.items[0].label.scope, &server.items[i].label.scope));
    }
    assert_int_equal(servers, 3);
    assert_int_equal(keys, 4);
}

static void labels_of_unknown_formats_are_foreign(void **state)
{
    struct hsm_item item = {.state = HSM_COMPLETE};

    (void)state;
    (void)snprintf(item.key.label, sizeof item.key.label, "sp1-not-ours");
    census_add(&census, &item);
    (void)snprintf(item.key.label, sizeof item.key.label, "sp2-0123456789abcdef-000001-A");
    census_add(&census, &item);
    assert_int_equal(census.found.count, 0);
    assert_int_equal(census.foreign, 2);
}

static void the_newest_whole_key_is_current(void **state)
{
    (void)state;
    add(&ours, "A", 1, HSM_COMPLETE);
    add(&ours, "A", 2, HSM_COMPLETE);
    add(&ours, "A", 3, HSM_HALF);
    add(&ours, "B", 1, HSM_UNFIT);
    prove(0);
    states_are("hcou");
}

/* A record says that the item is served, or, FOUND, that it was there before. */
static void record_item(struct record *record, size_t i, enum record_state state)
{
    struct inventory_item *item = &census.found.items[i];
    struct record_key key = {.state = state, .label = item->label, .name = item->name};

    memset(item->public_key.fingerprint, (int)i, sizeof item->public_key.fingerprint);
    key.public_key = item->public_key;
    assert_int_equal(record_put(record, &key), 0);
}

static void by_a_record_the_key_it_serves_is_current(void **state)
{
    struct record record;

    (void)state;
    record_open(&ours, &record);
    recorded = &record;
    add(&ours, "A", 1, HSM_COMPLETE);
    add(&ours, "A", 2, HSM_COMPLETE);
    add(&ours, "A", 3, HSM_COMPLETE);
    add(&ours, "B", 1, HSM_COMPLETE);
    add(&ours, "B", 2, HSM_COMPLETE);
    prove(0);
    record_item(&record, 0, RECORD_FOUND);
    record_item(&record, 1, RECORD_SERVED);
    states_are("ncoco"); /* of B there is nothing in it */
    record_item(&record, 4, RECORD_SERVED);
    states_are("nconc");
    recorded = NULL;
    record_close(&record);
}

static void two_keys_of_one_generation_are_duplicates(void **state)
{
    (void)state;
    add(&ours, "A", 1, HSM_COMPLETE);
    add(&ours, "A", 2, HSM_COMPLETE);
    add(&ours, "A", 2, HSM_COMPLETE);
    add(&ours, "B", 2, HSM_DUPLICATE);
    prove(0);
    states_are("ddcd");
}

static void what_could_not_be_looked_at_is_unknown(void **state)
{
    (void)state;
    add(&ours, "A", 1, HSM_COMPLETE);
    prove(1);
    states_are("?");
}

static void what_was_gone_when_it_was_looked_at_is_unknown(void **state)
{
    (void)state;
    add(&ours, "A", 1, HSM_ABSENT);
    add(&ours, "A", 2, HSM_COMPLETE);
    prove(0);
    states_are("c?");
}

static void a_private_key_that_has_lost_its_public_key_is_half(void **state)
{
    (void)state;
    add(&ours, "A", 1, HSM_BARE);
    add(&ours, "A", 2, HSM_COMPLETE);
    prove(0);
    states_are("ch");
}

static void a_superseded_key_goes_a_day_after_its_successor_was_made(void **state)
{
    (void)state;
    add(&ours, "A", 1000, HSM_COMPLETE);
    add(&ours, "A", NOW - DAY, HSM_COMPLETE);
    add(&ours, "A", NOW - DAY + 1, HSM_COMPLETE);
    prove(0);
    prunes(rule(CENSUS_OWN), "1000 ");
}

static void the_newest_whole_key_never_goes(void **state)
{
    (void)state;
    add(&ours, "A", 1000, HSM_COMPLETE);
    add(&ours, "B", 2000, HSM_UNFIT);
    add(&ours, "C", 1, HSM_COMPLETE);
    add(&ours, "C", 1, HSM_COMPLETE);
    prove(0);
    prunes(rule(CENSUS_OWN), "");
    prunes(rule(CENSUS_OTHERS), "");
    prunes(rule(CENSUS_NAMED), "");
}

static void an_older_key_stays_while_the_newer_one_is_not_proven(void **state)
{
    (void)state;
    add(&ours, "A", 1000, HSM_COMPLETE);
    add(&ours, "A", 2000, HSM_COMPLETE);
    prove(2);
    prunes(rule(CENSUS_OWN), "");
}

static void an_older_key_stays_while_nothing_newer_may_be_served(void **state)
{
    (void)state;
    add(&ours, "A", 1000, HSM_COMPLETE);
    add(&ours, "A", 2000, HSM_UNFIT);
    prove(0);
    prunes(rule(CENSUS_OWN), "");
}

/* Till then it may be the key in use, of which the token shows half just now. */
static void a_half_goes_a_day_after_a_newer_key_took_its_place(void **state)
{
    (void)state;
    add(&ours, "A", 1000, HSM_HALF);
    add(&ours, "A", NOW - DAY, HSM_COMPLETE);
    add(&ours, "B", 2000, HSM_HALF);
    add(&ours, "B", NOW - DAY + 1, HSM_COMPLETE);
    add(&ours, "C", 3000, HSM_HALF);
    add(&ours, "D", 4000, HSM_COMPLETE);
    add(&ours, "D", 5000, HSM_HALF);
    prove(0);
    prunes(rule(CENSUS_OWN), "1000 ");
}

static void a_private_half_stays_until_a_newer_key_takes_its_place(void **state)
{
    (void)state;
    add(&ours, "A", 1000, HSM_COMPLETE);
    add(&ours, "A", 2000, HSM_BARE);
    add(&ours, "B", 3000, HSM_BARE);
    add(&ours, "B", NOW - DAY, HSM_COMPLETE);
    prove(0);
    prunes(rule(CENSUS_OWN), "3000 ");
}

static void a_half_that_was_not_proven_stays(void **state)
{
    (void)state;
    add(&ours, "A", 1000, HSM_HALF);
    prove(1);
    prunes(rule(CENSUS_OWN), "");
}

static void other_servers_go_when_they_have_made_no_key_for_a_day(void **state)
{
    (void)state;
    add(&ours, "A", 1000, HSM_COMPLETE);
    add(&ours, "A", 2000, HSM_COMPLETE);
    add(&other_server, "A", 3000, HSM_COMPLETE);
    add(&other_server, "B", 4000, HSM_HALF);
    add(&other_domain, "A", 5000, HSM_COMPLETE);
    prove(5);
    prunes(rule(CENSUS_OTHERS), "3000 4000 ");
    prunes(rule(CENSUS_NAMED), "3000 4000 ");
}

static void a_server_that_made_one_key_today_keeps_them_all(void **state)
{
    (void)state;
    add(&other_server, "A", 3000, HSM_COMPLETE);
    add(&other_server, "B", NOW - DAY + 1, HSM_COMPLETE);
    prove(2);
    prunes(rule(CENSUS_OTHERS), "");
    prunes(rule(CENSUS_NAMED), "");
}

static void our_own_name_is_still_our_own(void **state)
{
    struct census_rule named = rule(CENSUS_NAMED);

    (void)state;
    memcpy(named.named, ours.server, sizeof named.named);
    add(&ours, "A", 1000, HSM_COMPLETE);
    add(&ours, "A", 2000, HSM_COMPLETE);
    prove(0);
    prunes(named, "1000 ");
}

static void only_our_own_keys_are_asked_for_a_proof(void **state)
{
    struct census_rule own = rule(CENSUS_OWN);
    struct census_rule others = rule(CENSUS_OTHERS);
    struct inventory server = {.items = NULL};

    (void)state;
    add(&other_server, "A", 3000, HSM_COMPLETE);
    prove(1);
    assert_true(census_next(&census, &server));
    assert_false(census_needs_proof(&own, &server));
    assert_false(census_needs_proof(&others, &server));
    census_clear(&census);
    add(&ours, "A", 3000, HSM_COMPLETE);
    server = (struct inventory){.items = NULL};
    assert_true(census_next(&census, &server));
    assert_true(census_needs_proof(&own, &server));
    assert_false(census_needs_proof(&others, &server));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_keys_of_each_server_stand_together),
        TEST(labels_of_unknown_formats_are_foreign),
        TEST(the_newest_whole_key_is_current),
        TEST(by_a_record_the_key_it_serves_is_current),
        TEST(two_keys_of_one_generation_are_duplicates),
        TEST(what_could_not_be_looked_at_is_unknown),
        TEST(what_was_gone_when_it_was_looked_at_is_unknown),
        TEST(a_private_key_that_has_lost_its_public_key_is_half),
        TEST(a_superseded_key_goes_a_day_after_its_successor_was_made),
        TEST(the_newest_whole_key_never_goes),
        TEST(an_older_key_stays_while_the_newer_one_is_not_proven),
        TEST(an_older_key_stays_while_nothing_newer_may_be_served),
        TEST(a_half_goes_a_day_after_a_newer_key_took_its_place),
        TEST(a_private_half_stays_until_a_newer_key_takes_its_place),
        TEST(a_half_that_was_not_proven_stays),
        TEST(other_servers_go_when_they_have_made_no_key_for_a_day),
        TEST(a_server_that_made_one_key_today_keeps_them_all),
        TEST(our_own_name_is_still_our_own),
        TEST(only_our_own_keys_are_asked_for_a_proof),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
