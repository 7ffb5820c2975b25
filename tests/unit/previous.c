/* What becomes of keys in `previous`: the rule of previous.h, row by row. */
#include "plugin/keys/previous.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "hsm/base/scope.h"

static const struct label_scope ours = {"aaaaaaaa", "bbbbbbbb"};

/* The ids, by a letter: the slots A and B of an X.509 CA, of JWT keys, of an agent. */
static const char *id_of(char letter)
{
    static const char *const ids[] = {"x509-CA-A",    "x509-CA-B",    "JWT-Signer-A",
                                      "JWT-Signer-B", "agent-svid-A", "agent-svid-B"};
    static const char letters[] = "ABjkst";

    return ids[strchr(letters, letter) - letters];
}

/* Words such as "A1m": an id, the number of its key, and what is said of it. */
static const char *next_word(const char *text, char word[8])
{
    size_t length = strcspn(text, " ");

    memcpy(word, text, length);
    word[length] = '\0';
    return text + length + strspn(text + length, " ");
}

static struct record_previous key_of(const char *word)
{
    struct record_previous key = {.in_use = strchr(word, 'u') != NULL,
                                  .moved = strchr(word, 'm') != NULL};

    (void)strcpy(key.key_id, id_of(word[0]));
    (void)strcpy(key.name.label, key.key_id);
    key.public_key.fingerprint[0] = (uint8_t)word[1];
    return key;
}

static size_t keys_of(const char *text, struct record_previous keys[4])
{
    size_t count = 0;
    char word[8];

    while (*text != '\0') {
        text = next_word(text, word);
        keys[count++] = key_of(word);
    }
    return count;
}

/* Of the token: the states of verdict.c's letters, and u in use. */
static void put_token(struct record *record, const char *text)
{
    static const char letters[] = "smcaf";
    char word[8];

    for (uint32_t at = 1; *text != '\0'; at++) {
        struct record_key key = {.label = {.scope = ours, .generation = at}};

        text = next_word(text, word);
        (void)strcpy(key.label.key_id, id_of(word[0]));
        key.state = (enum record_state)(strchr(letters, word[1]) - letters);
        key.in_use = word[2] == 'u';
        label_format(&key.label, key.name.label);
        key.name.id[0] = (uint8_t)at;
        key.name.id_length = 1;
        assert_int_equal(record_put(record, &key), 0);
    }
}

static void make(struct record *record, const char *token, const char *known)
{
    struct record_previous keys[4];
    size_t count = keys_of(known, keys);

    record_open(&ours, record);
    put_token(record, token);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(previous_add(record, &keys[i]), 0);
}

static const struct row {
    const char *token; /* in the record */
    const char *known;
    const char *shown;
    enum previous_verdict verdict;
    const char *why;
} rows[] = {
    {"", "", "A1", PREVIOUS_ADOPT, "a first start"},
    {"", "A1", "A1", PREVIOUS_KNOWN, "the same again"},
    {"", "A1m", "A1", PREVIOUS_KNOWN, "though its key has moved"},
    {"", "A1 B2", "A1", PREVIOUS_KNOWN, "less than there was"},
    {"", "A1 B2", "", PREVIOUS_KNOWN, "nothing of it"},
    {"", "A1", "A2", PREVIOUS_ADOPT, "another key of the id"},
    {"", "A1", "A1 B2", PREVIOUS_ADOPT, "a further id"},
    {"As", "", "A1", PREVIOUS_ADOPT, "the token has one of before, which never signed"},
    {"Asu", "", "A1", PREVIOUS_ADOPT, "nor counts one that has: the server went back, and comes"},
    {"As", "A1m", "A2", PREVIOUS_ADOPT, "prepared is not used"},
    {"Asu", "A1m", "A2", PREVIOUS_REFUSE, "but what SPIRE has used since is not taken away"},
    {"Asu", "A1m", "A1", PREVIOUS_KNOWN, "though the set that is known is left alone"},
    {"Asu", "B1m", "B2", PREVIOUS_ADOPT, "of another id it does not take it away"},
    {"jsu", "j1m", "j2", PREVIOUS_ADOPT, "a JWT key is a blip"},
    {"Afu", "A1", "A2", PREVIOUS_ADOPT, "a key that is not served is not taken away"},
    {"Acu", "A1", "A2", PREVIOUS_ADOPT, "likewise"},
};

static void what_a_start_finds_is_known_adopted_or_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OWNED(record_close) struct record record;
        struct record_previous shown[4];
        size_t count = keys_of(rows[i].shown, shown);
        const struct record_key *taken;

        make(&record, rows[i].token, rows[i].known);
        if (previous_verdict(&record, shown, count, &taken) != rows[i].verdict)
            fail_msg("token %s, known %s, shown %s: %s", rows[i].token, rows[i].known,
                     rows[i].shown, rows[i].why);
        assert_true((rows[i].verdict != PREVIOUS_REFUSE) || taken);
    }
}

static const struct needed_row {
    const char *token;
    const char *known;
    const char *needed; /* letters */
    const char *why;
} needed_rows[] = {
    {"", "A1", "A", "nothing is known of its use"},
    {"", "A1 B2", "AB", "nor of which one it is"},
    {"", "A1u B2", "A", "the one that signs"},
    {"", "A1u B2u", "AB", "both have"},
    {"", "A1mu B2", "B", "one that moved says nothing of the other"},
    {"", "A1m", "", "it has moved"},
    {"", "j1 k2u", "", "a JWT key is a blip"},
    {"Bs", "A1u", "A", "the token's is prepared"},
    {"Bsu", "A1u", "", "the token's signs"},
    {"Bcu", "A1u", "A", "it did, and is not served"},
    {"jsu", "A1u", "A", "a JWT key of the token is no X.509 authority"},
    {"", "s1u t2", "s", "an agent needs the key of its SVID"},
    {"tsu", "s1u", "", "until one of the token is"},
};

static void what_spire_needs_of_it(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof needed_rows / sizeof needed_rows[0]; i++) {
        const struct needed_row *row = &needed_rows[i];
        OWNED(record_close) struct record record;
        char needed[8] = "";

        make(&record, row->token, row->known);
        for (size_t k = 0; k < record.previous_count; k++)
            if (previous_is_needed(&record, &record.previous[k]))
                needed[strlen(needed)] = row->known[k == 0 ? 0 : strcspn(row->known, " ") + 1];
        if (strcmp(needed, row->needed) != 0)
            fail_msg("token %s, known %s: needed is \"%s\": %s", row->token, row->known, needed,
                     row->why);
    }
}

static void what_is_adopted_takes_the_tokens_place(void **state)
{
    OWNED(record_close) struct record record;
    struct record_previous shown[4];
    size_t count = keys_of("A1 j2", shown);

    (void)state;
    make(&record, "As Bs Am Aa Ac jsu", "A9m");
    assert_int_equal(previous_adopt(&record, shown, count), 0);
    assert_int_equal(previous_left(&record), 2);
    assert_true(previous_serves(&record, "x509-CA-A"));
    assert_false(previous_serves(&record, "x509-CA-B"));
    assert_null(record_served(&record, "x509-CA-A"));
    assert_null(record_served(&record, "JWT-Signer-A"));
    assert_non_null(record_served(&record, "x509-CA-B"));
    for (size_t i = 0; i < record.count; i++)
        assert_int_equal(record.keys[i].state, i == 1   ? RECORD_SERVED
                                               : i == 4 ? RECORD_CONDEMNED
                                                        : RECORD_FOUND);
    assert_true(previous_move(&record, "x509-CA-A"));
    assert_false(previous_move(&record, "x509-CA-A"));
    assert_int_equal(previous_left(&record), 1);
    previous_forget(&record);
    assert_int_equal(record.previous_count, 0);
}

static void a_code_stands_for_what_is_shown(void **state)
{
    struct record_previous shown[4];
    char code[RECORD_CODE + 1];
    char other[RECORD_CODE + 1];

    (void)state;
    previous_code(shown, keys_of("A1 B2", shown), code);
    previous_code(shown, keys_of("A1 B3", shown), other);
    assert_string_not_equal(code, other);
    previous_code(shown, keys_of("A1", shown), other);
    assert_string_not_equal(code, other);
    previous_code(shown, keys_of("A1m B2u", shown), other);
    assert_string_equal(code, other);
}

static bool never(void *context, const struct record_key *key)
{
    (void)context;
    (void)key;
    return false;
}

static void the_code_of_a_loss_is_also_for_what_previous_had(void **state)
{
    OWNED(record_close) struct record record;
    char without[RECORD_CODE + 1];
    char with[RECORD_CODE + 1];

    (void)state;
    make(&record, "", "A1");
    record_loss_code(&record, never, NULL, false, without);
    record_loss_code(&record, never, NULL, true, with);
    assert_string_not_equal(without, with);
    assert_true(previous_move(&record, "x509-CA-A"));
    record_loss_code(&record, never, NULL, true, with);
    assert_string_equal(without, with);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_start_finds_is_known_adopted_or_refused),
        cmocka_unit_test(what_spire_needs_of_it),
        cmocka_unit_test(what_is_adopted_takes_the_tokens_place),
        cmocka_unit_test(a_code_stands_for_what_is_shown),
        cmocka_unit_test(the_code_of_a_loss_is_also_for_what_previous_had),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
