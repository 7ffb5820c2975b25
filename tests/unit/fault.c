/* Faults: a code for SPIRE and a sentence for people. A sentence that is too long is cut between
 * two characters and never inside one. */
#include "hsm/base/fault.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "hsm/base/utf8.h"

static bool is_text(const struct fault *fault)
{
    return utf8_is_text(fault->message, strlen(fault->message));
}

static void fault_carries_code_and_sentence(void **state)
{
    struct fault fault = {.code = FAULT_NONE, .ckr = 5};

    (void)state;
    assert_int_equal(fault_set(&fault, FAULT_NOT_FOUND, "no key '%s'", "x509-CA-A"), -1);
    assert_int_equal(fault.code, FAULT_NOT_FOUND);
    assert_string_equal(fault.message, "no key 'x509-CA-A'");
    assert_int_equal(fault.ckr, 0);
}

static void nobody_needs_to_ask_why(void **state)
{
    (void)state;
    assert_int_equal(fault_set(NULL, FAULT_INTERNAL, "%s", "x"), -1);
    assert_int_equal(fault_errno(NULL, FAULT_INTERNAL, ENOENT, "%s", "x"), -1);
    assert_int_equal(fault_prefix(NULL, "%s", "x"), -1);
}

static void system_errors_are_told_in_words(void **state)
{
    struct fault fault;

    (void)state;
    assert_int_equal(fault_errno(&fault, FAULT_UNAVAILABLE, ENOENT, "cannot open %s", "/pin"), -1);
    assert_int_equal(fault.code, FAULT_UNAVAILABLE);
    assert_string_equal(fault.message, "cannot open /pin: No such file or directory");
    assert_int_equal(fault_errno(&fault, FAULT_INTERNAL, 99999, "x"), -1);
    assert_non_null(strstr(fault.message, "99999"));
}

static void context_goes_in_front_and_keeps_code_and_ckr(void **state)
{
    struct fault fault;

    (void)state;
    (void)fault_set(&fault, FAULT_ABORTED, "token is gone");
    fault.ckr = 0xe0;
    assert_int_equal(fault_prefix(&fault, "generating '%s'", "a"), -1);
    assert_int_equal(fault_prefix(&fault, "slot %d", 3), -1);
    assert_string_equal(fault.message, "slot 3: generating 'a': token is gone");
    assert_int_equal(fault.code, FAULT_ABORTED);
    assert_int_equal(fault.ckr, 0xe0);
}

static void fault_can_be_made_of_itself(void **state)
{
    struct fault fault;

    (void)state;
    (void)fault_set(&fault, FAULT_INTERNAL, "inner");
    (void)fault_set(&fault, FAULT_UNAVAILABLE, "outer (%s)", fault.message);
    assert_string_equal(fault.message, "outer (inner)");
    (void)fault_prefix(&fault, "again %s", fault.message);
    assert_string_equal(fault.message, "again outer (inner): outer (inner)");
}

/* Half a character would make the host refuse the whole status. */
static void long_message_is_cut_between_characters(void **state)
{
    static const char *const characters[] = {"a", "\xc3\xbc", "\xe2\x82\xac", "\xf0\x9f\x94\x91"};
    char text[FAULT_MESSAGE_MAX + 32];

    (void)state;
    for (size_t i = 0; i < sizeof characters / sizeof characters[0]; i++)
        for (size_t shift = 0; shift < 4; shift++) {
            size_t step = strlen(characters[i]);
            struct fault fault;

            memset(text, 'x', shift);
            text[shift] = '\0';
            while (strlen(text) < FAULT_MESSAGE_MAX + 8)
                (void)strcat(text, characters[i]);
            (void)fault_set(&fault, FAULT_INTERNAL, "%s", text);
            assert_true(is_text(&fault));
            assert_true(strlen(fault.message) < FAULT_MESSAGE_MAX);
            assert_true(strlen(fault.message) + step >= FAULT_MESSAGE_MAX);
            assert_memory_equal(fault.message, text, strlen(fault.message));
        }
}

static void message_that_just_fits_is_whole(void **state)
{
    char text[FAULT_MESSAGE_MAX];
    struct fault fault;

    (void)state;
    memset(text, 'x', sizeof text);
    text[FAULT_MESSAGE_MAX - 1] = '\0';
    (void)fault_set(&fault, FAULT_INTERNAL, "%s", text);
    assert_string_equal(fault.message, text);
    (void)strcpy(text + sizeof text - 4, "\xe2\x82\xac");
    (void)fault_set(&fault, FAULT_INTERNAL, "%s", text);
    assert_string_equal(fault.message, text);
}

static void long_context_is_cut_between_characters_too(void **state)
{
    char text[400] = "";
    struct fault fault;

    (void)state;
    while (strlen(text) + 3 < sizeof text)
        (void)strcat(text, "\xe2\x82\xac");
    for (size_t shift = 0; shift < 3; shift++) {
        (void)fault_set(&fault, FAULT_INTERNAL, "%s", text + 3 * shift);
        (void)fault_prefix(&fault, "%.*s%s", (int)shift, "xxx", text);
        assert_true(is_text(&fault));
        assert_true(strlen(fault.message) >= FAULT_MESSAGE_MAX - 4);
        (void)fault_errno(&fault, FAULT_INTERNAL, ENOENT, "%.*s%s%s", (int)shift, "xxx", text,
                          text);
        assert_true(is_text(&fault));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fault_carries_code_and_sentence),
        cmocka_unit_test(nobody_needs_to_ask_why),
        cmocka_unit_test(system_errors_are_told_in_words),
        cmocka_unit_test(context_goes_in_front_and_keeps_code_and_ckr),
        cmocka_unit_test(fault_can_be_made_of_itself),
        cmocka_unit_test(long_message_is_cut_between_characters),
        cmocka_unit_test(message_that_just_fits_is_whole),
        cmocka_unit_test(long_context_is_cut_between_characters_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
