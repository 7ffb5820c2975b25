/* Format 1 of labels is on tokens for years: the vectors here were computed apart from
 * our code (Python's hashlib) and never change. */
#include "plugin/keys/label.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { GENERATION_MAX = 1073741823 };

static const int64_t year_2025 = 1735689600;

static const struct {
    const char *trust_domain;
    const char *hash;
} trust_domains[] = {
    {"example.org", "21kqqsdg"}, {"example", "agaejca4"}, {"a.b", "47i8sdqu"},
    {"a_b", "qc887b7q"},         {"", "lggvs17i"},
};

static const struct {
    const char *identity;
    size_t length;
    const char *hash;
} servers[] = {
    {"server-1", 8, "l6co9gts"},
    {"", 0, "boa7e50h"},
    {"3f2f5c1e-8f0a-4d57-9b5e-1d7a0a5c9d11", 36, "sbc36ou0"},
    {"a\0b", 3, "0jj73bf2"},
    {"a", 1, "d1f0pjfm"},
    {"\xff\0\n", 3, "g3bci36p"},
};

static const struct {
    uint32_t generation;
    const char *key_id;
    const char *label;
} labels[] = {
    {59234567, "JWT-Signer-A", "sp1-21kqqsdgl6co9gts-1ofm87-JWT-Signer-A"},
    {0, "x", "sp1-21kqqsdgl6co9gts-000000-x"},
    {1, "x509-CA-B", "sp1-21kqqsdgl6co9gts-000001-x509-CA-B"},
    {32, "-", "sp1-21kqqsdgl6co9gts-000010--"},
    {GENERATION_MAX, "a_b", "sp1-21kqqsdgl6co9gts-vvvvvv-a_5fb"},
    {31, "bundle-acme-a+b.c/d e", "sp1-21kqqsdgl6co9gts-00000v-bundle-acme-a_2bb_2ec_2fd_20e"},
    {31, "schl\xc3\xbcssel", "sp1-21kqqsdgl6co9gts-00000v-schl_c3_bcssel"},
    {31, "\xf0\x9f\x94\x91", "sp1-21kqqsdgl6co9gts-00000v-_f0_9f_94_91"},
    {31, "__check", "sp1-21kqqsdgl6co9gts-00000v-_5f_5fcheck"},
    {31, "\x01\x7f", "sp1-21kqqsdgl6co9gts-00000v-_01_7f"},
};

static struct label label_of(uint32_t generation, const char *key_id)
{
    struct label label = {.generation = generation};

    label_scope("example.org", "server-1", 8, &label.scope);
    (void)strncpy(label.key_id, key_id, LABEL_KEY_ID_MAX);
    return label;
}

static void trust_domain_hashes_are_as_published(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof trust_domains / sizeof trust_domains[0]; i++) {
        char hash[LABEL_HASH + 1];
        struct label_scope scope;

        label_trust_domain_hash(trust_domains[i].trust_domain, hash);
        assert_string_equal(hash, trust_domains[i].hash);
        label_scope(trust_domains[i].trust_domain, "", 0, &scope);
        assert_string_equal(scope.trust_domain, trust_domains[i].hash);
    }
}

static void server_hashes_are_as_published(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof servers / sizeof servers[0]; i++) {
        struct label_scope scope;

        label_scope("example.org", servers[i].identity, servers[i].length, &scope);
        assert_string_equal(scope.server, servers[i].hash);
    }
}

static void labels_are_as_published(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof labels / sizeof labels[0]; i++) {
        struct label label = label_of(labels[i].generation, labels[i].key_id);
        char text[HSM_LABEL_MAX + 1];

        label_format(&label, text);
        assert_string_equal(text, labels[i].label);
    }
}

static void labels_are_read_back_as_written(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof labels / sizeof labels[0]; i++) {
        struct label label = label_of(labels[i].generation, labels[i].key_id);
        struct label got;

        assert_true(label_parse(labels[i].label, &got));
        assert_string_equal(got.key_id, labels[i].key_id);
        assert_int_equal(got.generation, labels[i].generation);
        assert_true(label_same_scope(&got.scope, &label.scope));
    }
}

/* Plain byte order is what `keys` sorts by, and what other tools show. */
static void labels_of_a_key_sort_by_generation(void **state)
{
    static const uint32_t ascending[] = {
        0,    1,        9,        10,        31,         32,          1023,
        1024, 59234567, 59234568, 536870911, 536870912U, 1073741822U, GENERATION_MAX};
    char before[HSM_LABEL_MAX + 1] = "";

    (void)state;
    for (size_t i = 0; i < sizeof ascending / sizeof ascending[0]; i++) {
        struct label label = label_of(ascending[i], "x509-CA-A");
        char text[HSM_LABEL_MAX + 1];

        label_format(&label, text);
        assert_true(strcmp(before, text) < 0);
        memcpy(before, text, sizeof text);
    }
}

static void other_trust_domains_and_servers_are_other_scopes(void **state)
{
    static const char *const names[] = {"example", "example.org", "example_org", "a.b",
                                        "a_b",     "a-b",         "a",           "b"};
    enum { COUNT = sizeof names / sizeof names[0] };

    (void)state;
    for (size_t i = 0; i < COUNT; i++)
        for (size_t j = 0; j < COUNT; j++) {
            struct label_scope a, b, c;
            char prefix_a[16], prefix_b[16];

            label_scope(names[i], "s", 1, &a);
            label_scope(names[j], "s", 1, &b);
            label_scope("example.org", names[j], strlen(names[j]), &c);
            label_prefix(&a, prefix_a);
            label_prefix(&b, prefix_b);
            assert_int_equal(label_same_scope(&a, &b), i == j);
            assert_int_equal(strcmp(prefix_a, prefix_b) == 0, i == j);
            assert_false(label_same_scope(&a, &c));
        }
}

/* A trust domain and an identity of the same bytes have nothing in common. */
static void trust_domain_and_server_are_hashed_apart(void **state)
{
    struct label_scope scope;

    (void)state;
    label_scope("same", "same", 4, &scope);
    assert_string_not_equal(scope.trust_domain, scope.server);
}

static void scan_prefix_is_that_of_every_label(void **state)
{
    struct label label = label_of(7, "k");
    char text[HSM_LABEL_MAX + 1];
    char prefix[16];

    (void)state;
    label_prefix(&label.scope, prefix);
    assert_string_equal(prefix, "sp1-21kqqsdg");
    label_format(&label, text);
    assert_memory_equal(text, prefix, strlen(prefix));
}

static void what_is_not_format_1_is_somebody_elses(void **state)
{
    static const char *const foreign[] = {
        "",
        "sp1-",
        "my key",
        "sp2-21kqqsdgl6co9gts-1ofm87-k",
        "SP1-21kqqsdgl6co9gts-1ofm87-k",
        " sp1-21kqqsdgl6co9gts-1ofm87-k",
        "sp1-21kqqsdgl6co9gts-1ofm87-",
        "sp1-21kqqsdgl6co9gts-1ofm87",
        "sp1-21kqqsdgl6co9gts-1ofm8",
        "sp1-21kqqsdgl6co9gts_1ofm87-k",
        "sp1-21kqqsdgl6co9gts-1ofm87_k",
        "sp1-21kqqsdgl6co9gtsx-1ofm87-k",
        "sp1-21kqqsdgl6co9gt-1ofm87-k",
        "sp1-21kqqsdgl6co9gtS-1ofm87-k",
        "sp1-21kqqsdgl6co9gtw-1ofm87-k",
        "sp1-21kqqsdgl6co9gts-1Ofm87-k",
        "sp1-21kqqsdgl6co9gts-1ofm8w-k",
        "sp1-21kqqsdgl6co9gts-01ofm87-k",
        "sp1-21kqqsdgl6co9gts-1ofm87-a b",
        "sp1-21kqqsdgl6co9gts-1ofm87-a.b",
        "sp1-21kqqsdgl6co9gts-1ofm87-schl\xc3\xbcssel",
        "sp1-21kqqsdgl6co9gts-1ofm87-k ",
    };
    struct label label;

    (void)state;
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        assert_false(label_parse(foreign[i], &label));
}

/* One key id, one name: else two labels would be the same key to us. */
static void escapes_other_than_ours_are_somebody_elses(void **state)
{
    static const char *const foreign[] = {
        "_",    "_5",    "a_",        "a_5",    "_5F",          "_5g", "_41",    "_2d",
        "_61",  "_30",   "__",        "_00",    "a_00b",        "_c3", "_c3_28", "_ff",
        "_5f_", "_5f_5", "_ed_a0_80", "_c0_80", "_f4_90_80_80", "_2E", "_7F",    "_ 5",
    };
    char text[HSM_LABEL_MAX + 1] = "sp1-21kqqsdgl6co9gts-1ofm87-";
    size_t head = strlen(text);
    struct label label;

    (void)state;
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++) {
        (void)strcpy(text + head, foreign[i]);
        assert_false(label_parse(text, &label));
    }
    (void)strcpy(text + head, "_5f");
    assert_true(label_parse(text, &label));
}

static void refused_label_leaves_the_result_alone(void **state)
{
    struct label label;
    struct label before;

    (void)state;
    memset(&label, 0x5a, sizeof label);
    before = label;
    assert_false(label_parse("sp1-21kqqsdgl6co9gts-1ofm87-a_41", &label));
    assert_memory_equal(&label, &before, sizeof label);
}

static void longest_key_id_goes_round(void **state)
{
    static const char *const characters[] = {"a", "_", "\xc3\xbc"};

    (void)state;
    for (size_t i = 0; i < sizeof characters / sizeof characters[0]; i++) {
        struct label label = label_of(5, "");
        struct label got;
        char text[HSM_LABEL_MAX + 1];
        struct fault fault;

        while (strlen(label.key_id) + strlen(characters[i]) <= LABEL_KEY_ID_MAX)
            (void)strcat(label.key_id, characters[i]);
        assert_int_equal(label_check_key_id(label.key_id, 0, &fault), 0);
        label_format(&label, text);
        assert_true(strlen(text) <= HSM_LABEL_MAX);
        assert_true(label_parse(text, &got));
        assert_string_equal(got.key_id, label.key_id);
    }
}

static void label_of_a_too_long_key_id_is_somebody_elses(void **state)
{
    char text[HSM_LABEL_MAX + 1] = "sp1-21kqqsdgl6co9gts-1ofm87-";
    size_t head = strlen(text);
    struct label label;

    (void)state;
    memset(text + head, 'a', LABEL_KEY_ID_MAX);
    text[head + LABEL_KEY_ID_MAX] = '\0';
    assert_true(label_parse(text, &label));
    (void)strcat(text, "a");
    assert_false(label_parse(text, &label));
}

static void key_ids_that_cannot_be_are_refused(void **state)
{
    static const char *const bad[] = {"", "\xff", "a\xc3", "\xc0\x80", "\xed\xa0\x80"};
    char too_long[LABEL_KEY_ID_MAX + 2];

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct fault fault = {.code = FAULT_NONE};

        assert_int_equal(label_check_key_id(bad[i], 0, &fault), -1);
        assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
        /* the message goes out as UTF-8, so the id may not be in it */
        for (const char *c = fault.message; *c; c++)
            assert_true((unsigned char)*c < 0x80);
    }
    memset(too_long, 'a', sizeof too_long);
    too_long[LABEL_KEY_ID_MAX + 1] = '\0';
    assert_int_equal(label_check_key_id(too_long, 0, NULL), -1);
    too_long[LABEL_KEY_ID_MAX] = '\0';
    assert_int_equal(label_check_key_id(too_long, 0, NULL), 0);
}

/* A YubiHSM cuts labels at 40 bytes without a word. */
static void label_limit_of_the_token_is_named(void **state)
{
    struct fault fault = {.code = FAULT_NONE};

    (void)state;
    assert_int_equal(label_check_key_id("JWT-Signer-A", 40, &fault), 0);
    assert_int_equal(label_check_key_id("JWT-Signer-AB", 40, &fault), -1);
    assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
    assert_non_null(strstr(fault.message, "label_max is 40"));
    assert_non_null(strstr(fault.message, "JWT-Signer-AB"));
    assert_int_equal(label_check_key_id("JWT_Signer", 40, &fault), 0);
    assert_int_equal(label_check_key_id("JWT_Signer_", 40, &fault), -1);
}

static void generations_follow_the_clock_and_never_go_back(void **state)
{
    uint32_t generation = 0;

    (void)state;
    assert_int_equal(label_next_generation(year_2025 + 1000, 0, &generation, NULL), 0);
    assert_int_equal(generation, 1000);
    assert_int_equal(label_next_generation(year_2025 + 1000, 999, &generation, NULL), 0);
    assert_int_equal(generation, 1000);
    assert_int_equal(label_next_generation(year_2025 + 1000, 1000, &generation, NULL), 0);
    assert_int_equal(generation, 1001);
    assert_int_equal(label_next_generation(year_2025 + 1000, 5000, &generation, NULL), 0);
    assert_int_equal(generation, 5001);
    assert_int_equal(label_next_generation(0, 0, &generation, NULL), 0);
    assert_int_equal(generation, 1);
    assert_int_equal(label_next_generation(INT64_C(-5), 41, &generation, NULL), 0);
    assert_int_equal(generation, 42);
}

static void generations_end_in_2059_with_an_error(void **state)
{
    struct fault fault = {.code = FAULT_NONE};
    uint32_t generation = 77;

    (void)state;
    assert_int_equal(label_next_generation(year_2025, GENERATION_MAX - 1, &generation, &fault), 0);
    assert_int_equal(generation, GENERATION_MAX);
    assert_int_equal(label_next_generation(year_2025 + GENERATION_MAX, 0, &generation, &fault), 0);
    assert_int_equal(generation, GENERATION_MAX);
    generation = 77;
    assert_int_equal(label_next_generation(year_2025, GENERATION_MAX, &generation, &fault), -1);
    assert_int_equal(fault.code, FAULT_INTERNAL);
    assert_int_equal(label_next_generation(year_2025 + GENERATION_MAX + 1, 0, &generation, &fault),
                     -1);
    assert_int_equal(label_next_generation(year_2025, UINT32_MAX, &generation, &fault), -1);
    assert_int_equal(generation, 77);
}

static const struct label_maker nobody = {.known = false};

static void key_identifiers_begin_with_the_generation(void **state)
{
    static const uint8_t head[] = {0x03, 0x87, 0xda, 0x07};
    struct hsm_key_name a = {.id_length = 0};
    struct hsm_key_name b = {.id_length = 0};

    (void)state;
    assert_int_equal(label_new_id(59234823, 16, &nobody, &a, NULL), 0);
    assert_int_equal(label_new_id(59234823, 16, &nobody, &b, NULL), 0);
    assert_int_equal(a.id_length, 16);
    assert_memory_equal(a.id, head, sizeof head);
    assert_memory_equal(b.id, head, sizeof head);
    assert_memory_not_equal(a.id + 4, b.id + 4, 12);
}

static void short_key_identifiers_are_random(void **state)
{
    struct hsm_key_name name = {.id_length = 0};
    bool differs = false;
    uint8_t first[2];

    (void)state;
    assert_int_equal(label_new_id(1, 2, &nobody, &name, NULL), 0);
    assert_int_equal(name.id_length, 2);
    memcpy(first, name.id, sizeof first);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(label_new_id(1, 2, &nobody, &name, NULL), 0);
        differs = differs || memcmp(first, name.id, sizeof first) != 0;
    }
    assert_true(differs);
    assert_int_equal(label_new_id(1, 3, &nobody, &name, NULL), -1);
    assert_int_equal(label_new_id(1, 17, &nobody, &name, NULL), -1);
}

static void a_maker_tells_its_own_keys_from_all_others(void **state)
{
    struct hsm_key_name name = {.label = "sp1-0123456789abcdef-1o7ei7-x509-CA-A"};
    struct hsm_key_name other;
    struct label_maker maker;
    struct label_maker rival;

    (void)state;
    label_maker("here", 4, &maker);
    label_maker("there", 5, &rival);
    assert_int_equal(label_new_id(59234823, 16, &maker, &name, NULL), 0);
    assert_true(label_made_by(&maker, &name));
    assert_false(label_made_by(&rival, &name));
    assert_false(label_made_by(&nobody, &name));
    for (size_t i = 0; i < 16; i++) {
        other = name;
        other.id[i] ^= 1;
        assert_false(label_made_by(&maker, &other));
    }
    other = name;
    other.label[sizeof "sp1-" - 1] ^= 1;
    assert_false(label_made_by(&maker, &other));
    assert_int_equal(label_new_id(59234823, 16, &maker, &other, NULL), 0);
    assert_memory_not_equal(other.id + 4, name.id + 4, 12);
    assert_int_equal(label_new_id(59234823, 16, &nobody, &other, NULL), 0);
    assert_false(label_made_by(&maker, &other));
    assert_int_equal(label_new_id(59234823, 2, &maker, &other, NULL), 0);
    assert_false(label_made_by(&maker, &other));
}

/* What is on tokens must be known again by whatever version comes later. */
static void the_mark_is_the_one_it_always_was(void **state)
{
    struct hsm_key_name name = {
        .label = "sp1-0123456789abcdef-1o7ei7-x509-CA-A",
        .id = {0x03, 0x87, 0xda, 0x07, 1, 2, 3, 4, 0x29, 0x92, 0x17, 0xe9, 0x27, 0xb7, 0xb3, 0x64},
        .id_length = 16};
    struct label_maker maker;

    (void)state;
    label_maker("f81d4fae-7dec-41d0-a765-00a0c91e6bf6", 36, &maker);
    assert_true(label_made_by(&maker, &name));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trust_domain_hashes_are_as_published),
        cmocka_unit_test(server_hashes_are_as_published),
        cmocka_unit_test(labels_are_as_published),
        cmocka_unit_test(labels_are_read_back_as_written),
        cmocka_unit_test(labels_of_a_key_sort_by_generation),
        cmocka_unit_test(other_trust_domains_and_servers_are_other_scopes),
        cmocka_unit_test(trust_domain_and_server_are_hashed_apart),
        cmocka_unit_test(scan_prefix_is_that_of_every_label),
        cmocka_unit_test(what_is_not_format_1_is_somebody_elses),
        cmocka_unit_test(escapes_other_than_ours_are_somebody_elses),
        cmocka_unit_test(refused_label_leaves_the_result_alone),
        cmocka_unit_test(longest_key_id_goes_round),
        cmocka_unit_test(label_of_a_too_long_key_id_is_somebody_elses),
        cmocka_unit_test(key_ids_that_cannot_be_are_refused),
        cmocka_unit_test(label_limit_of_the_token_is_named),
        cmocka_unit_test(generations_follow_the_clock_and_never_go_back),
        cmocka_unit_test(generations_end_in_2059_with_an_error),
        cmocka_unit_test(key_identifiers_begin_with_the_generation),
        cmocka_unit_test(short_key_identifiers_are_random),
        cmocka_unit_test(a_maker_tells_its_own_keys_from_all_others),
        cmocka_unit_test(the_mark_is_the_one_it_always_was),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
