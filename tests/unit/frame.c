/* Packets between the plugin and its worker: what is encoded is decoded unchanged. Packets that
 * are cut, changed or from another build are refused, and the refusal says why. */
#include "hsm/wire/frame.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* All of it is zeroed, so that frames can be compared as bytes. */
static struct frame *frame_of(enum frame_kind kind, uint32_t number)
{
    static struct frame frame;

    memset(&frame, 0, sizeof frame);
    frame.kind = kind;
    frame.number = number;
    return &frame;
}

static void fill(void *bytes, size_t length, uint8_t first)
{
    uint8_t *at = bytes;

    for (size_t i = 0; i < length; i++)
        at[i] = (uint8_t)(first + 7 * i);
}

static void fill_text(char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        text[i] = (char)('!' + i % 90);
    text[length] = '\0';
}

static const struct frame *usual_open(void)
{
    struct frame *frame = frame_of(FRAME_OPEN, 0);

    (void)strcpy(frame->settings.module, "/usr/lib/softhsm/libsofthsm2.so");
    (void)strcpy(frame->settings.module_args, "configdir='sql:/nss'");
    (void)strcpy(frame->settings.token, "pkcs11:token=spire;serial=0123456789abcdef");
    (void)strcpy(frame->settings.serial, "0123456789abcdef");
    frame->settings.pin_kind = HSM_PIN_FILE;
    (void)strcpy(frame->settings.pin_text, "/etc/spire/pin");
    (void)strcpy(frame->settings.latch, "/var/lib/spire/identity.pin");
    frame->settings.sessions = 4;
    frame->settings.lenient = true;
    frame->settings.least = true;
    frame->settings.verify_always = true;
    return frame;
}

static const struct frame *longest_open(void)
{
    struct frame *frame = frame_of(FRAME_OPEN, UINT32_MAX);
    struct hsm_settings *settings = &frame->settings;

    fill_text(settings->module, sizeof settings->module - 1);
    fill_text(settings->module_args, sizeof settings->module_args - 1);
    fill_text(settings->token, sizeof settings->token - 1);
    fill_text(settings->serial, sizeof settings->serial - 1);
    settings->pin_kind = HSM_PIN_INLINE;
    fill_text(settings->pin_text, sizeof settings->pin_text - 1);
    fill_text(settings->latch, sizeof settings->latch - 1);
    settings->sessions = HSM_SESSIONS_MAX;
    fill_text(settings->keys_file, sizeof settings->keys_file - 1);
    return frame;
}

static const struct frame *ready(void)
{
    struct frame *frame = frame_of(FRAME_READY, 0);
    struct hsm_token_info *info = &frame->info;

    (void)strcpy(info->label, "spire");
    fill_text(info->manufacturer, sizeof info->manufacturer - 1);
    (void)strcpy(info->model, "SoftHSM v2");
    fill_text(info->serial, sizeof info->serial - 1);
    (void)strcpy(info->library, "Implementation of PKCS11");
    info->slot = 0x123456789abcdef0U;
    info->can_generate[HSM_EC_P256] = true;
    info->can_generate[HSM_RSA_4096] = true;
    info->doubtful[HSM_RSA_2048] = true;
    info->write_protected = true;
    (void)strcpy(info->remarks, "its texts end with a NUL\nand more");
    info->sessions = 3;
    return frame;
}

static const struct frame *sign(void)
{
    struct frame *frame = frame_of(FRAME_REQUEST, 0x01020304);
    struct hsm_request *request = &frame->request;

    request->op = HSM_SIGN;
    (void)strcpy(request->key.label, "sp1-21kqqsdgl6co9gts-1ofm87-JWT-Signer-A");
    request->key.id_length = 16;
    fill(request->key.id, 16, 3);
    request->type = HSM_RSA_2048;
    fill(request->fingerprint, sizeof request->fingerprint, 9);
    request->scheme = HSM_PSS;
    request->hash = HSM_SHA256;
    request->salt_length = HSM_SALT_HASH;
    request->digest_length = 32;
    fill(request->digest, 32, 77);
    return frame;
}

static const struct frame *scan(void)
{
    struct frame *frame = frame_of(FRAME_REQUEST, 7);

    frame->request.op = HSM_SCAN;
    (void)strcpy(frame->request.prefix, "sp1-21kqqsdg");
    frame->request.sliced = true;
    frame->request.limit_ms = 200;
    frame->request.from = (struct hsm_place){UINT64_MAX, 0x8000000000000001};
    return frame;
}

static const struct frame *longest_request(void)
{
    struct frame *frame = frame_of(FRAME_REQUEST, 8);

    frame->request.op = HSM_PING;
    fill_text(frame->request.key.label, HSM_LABEL_MAX);
    fill_text(frame->request.prefix, sizeof frame->request.prefix - 1);
    frame->request.digest_length = HSM_DIGEST_MAX;
    fill(frame->request.digest, HSM_DIGEST_MAX, 1);
    frame->request.salt_length = INT32_MIN;
    frame->request.hash = HSM_SHA512_256;
    return frame;
}

static const struct frame *item(void)
{
    struct frame *frame = frame_of(FRAME_ITEM, 7);

    (void)strcpy(frame->item.key.label, "sp1-21kqqsdgl6co9gts-1ofm87-x509-CA-A");
    frame->item.key.id_length = 2;
    fill(frame->item.key.id, 2, 200);
    frame->item.state = HSM_DUPLICATE;
    return frame;
}

static const struct frame *item_of_a_keys_file(void)
{
    struct frame *frame = frame_of(FRAME_ITEM, 8);

    (void)strcpy(frame->item.key.label, "x509-CA-A");
    frame->item.state = HSM_COMPLETE;
    frame->item.public_key.type = HSM_RSA_4096;
    frame->item.public_key.pkix_length = 550;
    fill(frame->item.public_key.pkix, 550, 4);
    fill(frame->item.public_key.fingerprint, HSM_FINGERPRINT, 6);
    return frame;
}

static const struct frame *signature(void)
{
    struct frame *frame = frame_of(FRAME_REPLY, 9);

    frame->reply.signature_length = 71;
    fill(frame->reply.signature, 71, 5);
    return frame;
}

static const struct frame *longest_reply(void)
{
    struct frame *frame = frame_of(FRAME_REPLY, 10);
    struct hsm_reply *reply = &frame->reply;

    reply->fault.code = FAULT_UNAVAILABLE;
    reply->fault.ckr = UINT64_MAX;
    fill_text(reply->fault.message, sizeof reply->fault.message - 1);
    reply->state = HSM_UNFIT;
    fill_text(reply->why, sizeof reply->why - 1);
    reply->public_key.type = HSM_EC_P384;
    reply->public_key.pkix_length = HSM_PKIX_MAX;
    fill(reply->public_key.pkix, HSM_PKIX_MAX, 1);
    fill(reply->public_key.fingerprint, HSM_FINGERPRINT, 2);
    reply->signature_length = HSM_SIGNATURE_MAX;
    fill(reply->signature, HSM_SIGNATURE_MAX, 3);
    reply->next = (struct hsm_place){1, UINT64_MAX};
    reply->items = 1;
    reply->nameless = 0x80000000;
    reply->foreign = UINT32_MAX;
    reply->microseconds = UINT32_MAX - 1;
    return frame;
}

static const struct frame *(*const samples[])(void) = {
    usual_open, longest_open,        ready,     sign,          scan, longest_request,
    item,       item_of_a_keys_file, signature, longest_reply,
};
enum { SAMPLES = sizeof samples / sizeof samples[0] };

static void every_frame_arrives_as_it_was_sent(void **state)
{
    (void)state;
    for (size_t i = 0; i < SAMPLES; i++) {
        const struct frame *sent = samples[i]();
        uint8_t bytes[FRAME_MAX];
        size_t length = frame_encode(sent, bytes);
        struct frame got;

        assert_in_range(length, 1, FRAME_MAX);
        memset(&got, 0, sizeof got);
        assert_int_equal(frame_decode(bytes, length, &got, NULL), 0);
        assert_memory_equal(&got, sent, sizeof got);
        assert_int_equal(frame_number(bytes, length), sent->number);
    }
}

static void signing_takes_small_packets(void **state)
{
    uint8_t bytes[FRAME_MAX];

    (void)state;
    assert_in_range(frame_encode(sign(), bytes), 1, 200);
    assert_in_range(frame_encode(signature(), bytes), 1, 200);
}

/* A copy of exactly that size: a sanitizer sees one byte too far. */
static int decode_copy(const uint8_t *bytes, size_t length, struct frame *frame,
                       struct fault *fault)
{
    uint8_t *copy = malloc(length > 0 ? length : 1);
    int done;

    assert_non_null(copy);
    memcpy(copy, bytes, length);
    done = frame_decode(copy, length, frame, fault);
    free(copy);
    return done;
}

static void cut_frames_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < SAMPLES; i++) {
        uint8_t bytes[FRAME_MAX];
        size_t length = frame_encode(samples[i](), bytes);

        for (size_t cut = 0; cut < length; cut++) {
            struct fault fault = {.code = FAULT_NONE};
            struct frame got = {.kind = FRAME_REPLY, .number = 4711};

            assert_int_equal(decode_copy(bytes, cut, &got, &fault), -1);
            assert_int_equal(fault.code, FAULT_INTERNAL);
            assert_int_equal(got.number, 4711);
        }
    }
}

static void frames_with_more_behind_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < SAMPLES; i++) {
        uint8_t bytes[FRAME_MAX + 1] = {0};
        size_t length = frame_encode(samples[i](), bytes);
        struct frame got;

        bytes[length] = 0;
        assert_int_equal(decode_copy(bytes, length + 1, &got, NULL), -1);
    }
}

/* There is one way to write a frame. So whatever is read can only be what was written. */
static void changed_bytes_are_refused_or_mean_what_they_say(void **state)
{
    static const uint8_t changes[] = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff, 0x7f};
    size_t read = 0;
    size_t refused = 0;

    (void)state;
    for (size_t i = 0; i < SAMPLES; i++) {
        uint8_t bytes[FRAME_MAX];
        size_t length = frame_encode(samples[i](), bytes);

        for (size_t at = 0; at < length * sizeof changes; at++) {
            uint8_t change = changes[at % sizeof changes];
            uint8_t again[FRAME_MAX];
            struct frame got;

            bytes[at / sizeof changes] ^= change;
            if (decode_copy(bytes, length, &got, NULL) == 0) {
                assert_int_equal(frame_encode(&got, again), length);
                assert_memory_equal(again, bytes, length);
                read++;
            } else {
                refused++;
            }
            bytes[at / sizeof changes] ^= change;
        }
    }
    assert_true(read > 1000 && refused > 1000);
}

static void refusal_says_what_is_wrong(void **state)
{
    struct frame *frame = frame_of(FRAME_REQUEST, 5);
    struct fault fault = {.code = FAULT_NONE};
    uint8_t bytes[FRAME_MAX];
    struct frame got;
    size_t length;

    (void)state;
    frame->request.op = (enum hsm_op)99;
    length = frame_encode(frame, bytes);
    assert_int_equal(frame_decode(bytes, length, &got, &fault), -1);
    assert_int_equal(fault.code, FAULT_INTERNAL);
    assert_non_null(strstr(fault.message, "operation"));
}

static void assert_undecodable(const struct frame *frame)
{
    uint8_t bytes[FRAME_MAX];
    size_t length = frame_encode(frame, bytes);
    struct frame got;

    assert_int_equal(frame_decode(bytes, length, &got, NULL), -1);
}

static void numbers_out_of_their_range_are_refused(void **state)
{
    struct frame frame;

    (void)state;
    frame = *sign();
    frame.request.hash = (enum hsm_hash)8;
    assert_undecodable(&frame);
    frame = *sign();
    frame.request.type = (enum hsm_key_type)5;
    assert_undecodable(&frame);
    frame = *sign();
    frame.request.scheme = (enum hsm_scheme)2;
    assert_undecodable(&frame);
    frame = *usual_open();
    frame.settings.sessions = 0;
    assert_undecodable(&frame);
    frame = *usual_open();
    frame.settings.sessions = HSM_SESSIONS_MAX + 1;
    assert_undecodable(&frame);
    frame = *usual_open();
    frame.settings.pin_kind = (enum hsm_pin_kind)4;
    assert_undecodable(&frame);
    frame = *ready();
    frame.info.sessions = HSM_SESSIONS_MAX + 1;
    assert_undecodable(&frame);
    frame = *item();
    frame.item.state = (enum hsm_state)5;
    assert_undecodable(&frame);
    frame = *longest_reply();
    frame.reply.fault.code = (enum fault_code)2;
    assert_undecodable(&frame);
    frame = *longest_reply();
    frame.reply.public_key.type = (enum hsm_key_type)5;
    assert_undecodable(&frame);
}

/* The writer may be wrong too, but never beyond its structs. */
static void lengths_beyond_their_room_are_not_followed(void **state)
{
    struct frame frame = *longest_reply();
    uint8_t bytes[FRAME_MAX];
    struct frame got;

    (void)state;
    frame.reply.signature_length = UINT32_MAX;
    frame.reply.public_key.pkix_length = UINT32_MAX;
    assert_int_equal(frame_decode(bytes, frame_encode(&frame, bytes), &got, NULL), 0);
    assert_int_equal(got.reply.signature_length, HSM_SIGNATURE_MAX);
    assert_int_equal(got.reply.public_key.pkix_length, HSM_PKIX_MAX);
}

static void texts_with_an_end_inside_are_refused(void **state)
{
    struct frame frame = *item();
    uint8_t bytes[FRAME_MAX];
    size_t length = frame_encode(&frame, bytes);
    struct frame got;

    (void)state;
    assert_int_equal(bytes[5 + 2], 's'); /* kind, number, length: the label begins */
    bytes[5 + 2] = '\0';
    assert_int_equal(frame_decode(bytes, length, &got, NULL), -1);
}

static void other_builds_are_told_apart_from_nonsense(void **state)
{
    const struct frame *(*const first[])(void) = {usual_open, ready};

    (void)state;
    for (size_t i = 0; i < sizeof first / sizeof first[0]; i++) {
        struct fault fault = {.code = FAULT_NONE};
        uint8_t bytes[FRAME_MAX];
        size_t length = frame_encode(first[i](), bytes);
        struct frame got;

        bytes[5] ^= 1;
        assert_int_equal(frame_decode(bytes, length, &got, &fault), -1);
        assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
        /* also when everything behind it is laid out in another way */
        assert_int_equal(frame_decode(bytes, 5 + FRAME_BUILD_ID, &got, &fault), -1);
        assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    }
}

static void the_layout_has_an_id_with_a_nul_behind_it(void **state)
{
    (void)state;
    assert_int_equal(strlen(frame_build_id()), 30);
    assert_int_equal(strspn(frame_build_id(), "0123456789abcdef"), 30);
    assert_int_equal(frame_build_id()[FRAME_BUILD_ID - 1], '\0');
}

static void number_of_a_broken_frame_is_still_known(void **state)
{
    uint8_t bytes[FRAME_MAX];
    size_t length = frame_encode(sign(), bytes);

    (void)state;
    assert_int_equal(frame_number(bytes, length), 0x01020304);
    bytes[0] = 99;
    assert_int_equal(frame_number(bytes, 5), 0x01020304);
    for (size_t cut = 0; cut < 5; cut++)
        assert_int_equal(frame_number(bytes, cut), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_frame_arrives_as_it_was_sent),
        cmocka_unit_test(signing_takes_small_packets),
        cmocka_unit_test(cut_frames_are_refused),
        cmocka_unit_test(frames_with_more_behind_are_refused),
        cmocka_unit_test(changed_bytes_are_refused_or_mean_what_they_say),
        cmocka_unit_test(refusal_says_what_is_wrong),
        cmocka_unit_test(numbers_out_of_their_range_are_refused),
        cmocka_unit_test(lengths_beyond_their_room_are_not_followed),
        cmocka_unit_test(texts_with_an_end_inside_are_refused),
        cmocka_unit_test(other_builds_are_told_apart_from_nonsense),
        cmocka_unit_test(the_layout_has_an_id_with_a_nul_behind_it),
        cmocka_unit_test(number_of_a_broken_frame_is_still_known),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
