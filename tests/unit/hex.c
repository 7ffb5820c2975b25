#include "hsm/base/hex.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void every_byte_comes_back(void **state)
{
    uint8_t bytes[256];
    uint8_t back[256] = {0};
    char text[513];

    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)i;
    hex_encode(bytes, sizeof bytes, text);
    assert_int_equal(strlen(text), 512);
    assert_memory_equal(text, "000102030405060708090a0b0c0d0e0f10", 34);
    assert_string_equal(text + 502, "fbfcfdfeff");
    assert_true(hex_decode(text, sizeof back, back));
    assert_memory_equal(back, bytes, sizeof bytes);
}

static void nothing_is_an_empty_text(void **state)
{
    char text[2] = "x";

    (void)state;
    hex_encode("", 0, text);
    assert_string_equal(text, "");
    assert_true(hex_decode("", 0, text));
}

/* Every character but the sixteen digits, in each of the two places; the text's end as well. */
static void only_lower_case_digits_are_read(void **state)
{
    unsigned read[2] = {0};

    (void)state;
    for (unsigned c = 0; c < 256; c++)
        for (size_t place = 0; place < 2; place++) {
            char text[3] = "77";
            uint8_t byte;

            text[place] = (char)c;
            read[place] += hex_decode(text, 1, &byte);
        }
    assert_int_equal(read[0], 16);
    assert_int_equal(read[1], 16);
    assert_false(hex_decode("AB", 1, read));
    assert_false(hex_decode("abc", 2, read));
    assert_true(hex_decode("ab!", 1, read));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_comes_back),
        cmocka_unit_test(nothing_is_an_empty_text),
        cmocka_unit_test(only_lower_case_digits_are_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
