/* Requests as bytes: what protobuf-c would let through is refused here. The same over
 * the socket: tests/peers/wire. */
#include "plugin/rpc/message.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"
#include "proto/bundle.pb-c.h"
#include "proto/keymanager.pb-c.h"

#define BYTES(text) (const uint8_t *)(text), sizeof(text) - 1

static void a_good_request_is_read(void **state)
{
    struct fault fault;
    OWNED(message_scope_free)
    Keymanager__SignDataRequest *request =
        message_parse(&keymanager__sign_data_request__descriptor,
                      BYTES("\x0a\x03key\x12\x02\x00\xff\x18\x05"), &fault);

    (void)state;
    assert_non_null(request);
    assert_string_equal(request->key_id, "key");
    assert_int_equal(request->data.len, 2);
    assert_int_equal(request->hash_algorithm, KEYMANAGER__HASH_ALGORITHM__SHA256);
}

static void refused(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t length)
{
    struct fault fault = {.code = FAULT_NONE};

    assert_null(message_parse(type, bytes, length, &fault));
    assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
    assert_non_null(strstr(fault.message, "malformed request"));
}

static void a_key_id_with_nul_is_not_cut_short(void **state)
{
    (void)state;
    refused(&keymanager__sign_data_request__descriptor, BYTES("\x0a\x03"
                                                              "a\0b"));
}

static void strings_are_checked_at_any_depth(void **state)
{
    (void)state;
    /* publish_bundle_request.bundle.jwt_authorities.key_id */
    refused(&bundle__publish_bundle_request__descriptor, BYTES("\x0a\x06\x1a\x04\x12\x02k\0"));
    refused(&bundle__publish_bundle_request__descriptor, BYTES("\x0a\x06\x1a\x04\x12\x02k\xff"));
}

static void truncated_and_overlong_bytes_are_refused(void **state)
{
    static const uint8_t whole[] = "\x0a\x03key\x12\x02\x00\xff\x1a\x02\x08\x05";

    (void)state;
    for (size_t cut = 1; cut < sizeof whole - 1; cut++) {
        struct fault fault;
        void *request =
            message_parse(&keymanager__sign_data_request__descriptor, whole, cut, &fault);

        if (request)
            assert_true(cut == 5 || cut == 9); /* between fields */
        message_scope_free(&request);
    }
    refused(&keymanager__sign_data_request__descriptor,
            BYTES("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"));
    refused(&keymanager__sign_data_request__descriptor, BYTES("\x0b\x0c"));
    refused(&keymanager__sign_data_request__descriptor, BYTES("\x00\x00"));
}

static const struct {
    const char *bytes;
    size_t character;
} characters[] = {
    {"a", 1},
    {"\xc3\xa9", 2},
    {"\xe2\x82\xac", 3},
    {"\xf0\x9f\x94\x91", 4},
    {"\x80", 0},
    {"\xc3", 0},
    {"\xc0\x80", 0},
    {"\xe0\x80\x80", 0},
    {"\xed\xa0\x80", 0},
    {"\xf4\x90\x80\x80", 0},
    {"\xf8\x88\x80\x80", 0},
    {"\xff", 0},
};

static void utf8_is_what_the_rfc_says(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof characters / sizeof characters[0]; i++) {
        const char *bytes = characters[i].bytes;

        assert_int_equal(utf8_character(bytes, strlen(bytes)), characters[i].character);
        assert_int_equal(utf8_is_text(bytes, strlen(bytes)), characters[i].character > 0);
    }
    assert_int_equal(utf8_character("", 0), 0);
    assert_true(utf8_is_text("", 0));
    assert_false(utf8_is_text("a\0b", 3));
}

static void half_a_character_is_left_off(void **state)
{
    static const char text[] = "a\xc3\xa9z\xe2\x82\xac\xf0\x9f\x94\x91";
    static const size_t whole[] = {0, 1, 1, 3, 4, 4, 4, 7, 7, 7, 7, 11};

    (void)state;
    for (size_t length = 0; length < sizeof text; length++)
        assert_int_equal(utf8_whole(text, length), whole[length]);
    assert_int_equal(utf8_whole("\x80\x80\x80\x80\x80\x80", 6), 2); /* a character, no more */
    assert_int_equal(utf8_whole("\x80", 1), 0);
}

static void unclean_text_is_made_fit_for_a_log(void **state)
{
    char copy[8];

    (void)state;
    utf8_clean("a\xff\n\xc3\xa9", false, copy, sizeof copy);
    assert_string_equal(copy, "a??\xc3\xa9");
    utf8_clean("a\nb", true, copy, sizeof copy);
    assert_string_equal(copy, "a\nb");
    utf8_clean("123456\xc3\xa9", true, copy, sizeof copy); /* no half characters */
    assert_string_equal(copy, "123456");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_request_is_read),
        cmocka_unit_test(a_key_id_with_nul_is_not_cut_short),
        cmocka_unit_test(strings_are_checked_at_any_depth),
        cmocka_unit_test(truncated_and_overlong_bytes_are_refused),
        cmocka_unit_test(utf8_is_what_the_rfc_says),
        cmocka_unit_test(half_a_character_is_left_off),
        cmocka_unit_test(unclean_text_is_made_fit_for_a_log),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
