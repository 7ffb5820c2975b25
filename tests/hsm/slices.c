/* A walk over a crowded token: in slices it finds what one walk finds, and a whole one that takes
 * too long tells so. */
#include "tests/support/hsm_room.h"

#include <stdio.h>
#include <string.h>

/* The crowd has a private key in five. */
enum { KEYS = 3, CROWD = 60, LIMIT_MS = 10, SLICES_MAX = 100 };

static const char crowded[] = "profile crowd 60\nC_GetAttributeValue before sleep 5\n";
static const char *const names[KEYS] = {"a", "b", "c"};

struct count {
    unsigned of[KEYS];
    unsigned others;
    enum hsm_state state;
};

static void count_item(void *context, const struct hsm_item *item)
{
    struct count *count = context;
    const char *name = item->key.label + strlen(ROOM_LABEL);

    for (size_t i = 0; i < KEYS; i++)
        if (strcmp(name, names[i]) == 0) {
            count->of[i]++;
            count->state = item->state;
            return;
        }
    count->others++;
}

static struct hsm_token *open_crowded(void)
{
    struct hsm_settings settings = room_faulty("");
    struct hsm_token *token = room_open(&settings);

    for (size_t i = 0; i < KEYS; i++)
        (void)room_generate(token, names[i], HSM_EC_P256);
    softhsm_script(crowded);
    return token;
}

static struct hsm_reply scan(struct hsm_token *token, const struct hsm_request *request,
                             struct count *count)
{
    struct hsm_reply reply;

    hsm_execute(token, request, &reply, count_item, count);
    if (reply.fault.code != FAULT_NONE)
        fail_msg("%s", reply.fault.message);
    return reply;
}

static void slices_find_each_private_key_once(void **state)
{
    struct hsm_token *token = open_crowded();
    struct hsm_request request = {
        .op = HSM_SCAN, .prefix = "sp1-", .sliced = true, .limit_ms = LIMIT_MS};
    struct count count = {.others = 0};
    unsigned foreign = 0;
    unsigned slices = 0;

    (void)state;
    do {
        struct hsm_reply reply = scan(token, &request, &count);

        assert_true(reply.next.epoch == 0 || slices == 0 || reply.next.epoch == request.from.epoch);
        foreign += reply.foreign;
        request.from = reply.next;
    } while (++slices < SLICES_MAX && request.from.epoch != 0);
    print_message("%u slices\n", slices);
    assert_in_range(slices, 3, SLICES_MAX - 1);
    for (size_t i = 0; i < KEYS; i++)
        assert_int_equal(count.of[i], 1);
    assert_int_equal(count.state, HSM_HALF);
    assert_int_equal(count.others, 0);
    assert_int_equal(foreign, CROWD / 5);
    hsm_close(token);
}

/* A slice makes progress, however little time there is. */
static void a_slice_without_time_reads_one(void **state)
{
    struct hsm_token *token = open_crowded();
    struct hsm_request request = {.op = HSM_SCAN, .prefix = "sp1-", .sliced = true, .limit_ms = 1};
    struct count count = {.others = 0};
    struct hsm_reply reply = scan(token, &request, &count);

    (void)state;
    assert_int_not_equal(reply.next.handle, 0);
    assert_int_equal(reply.items + reply.foreign, 1);
    hsm_close(token);
}

static void handles_of_another_login_are_not_gone_on_from(void **state)
{
    struct hsm_token *token = open_crowded();
    struct hsm_request request = {
        .op = HSM_SCAN, .prefix = "sp1-", .sliced = true, .limit_ms = LIMIT_MS};
    struct count count = {.others = 0};
    struct hsm_reply first = scan(token, &request, &count);
    struct hsm_reply second;

    (void)state;
    request.from = first.next;
    softhsm_script("profile logout\n");
    (void)room_execute(token, &(struct hsm_request){.op = HSM_PING});
    (void)room_state(token, "a"); /* which logs in again */
    softhsm_script(crowded);
    memset(&count, 0, sizeof count);
    second = scan(token, &request, &count);
    assert_int_not_equal(second.next.epoch, first.next.epoch);
    assert_int_not_equal(second.next.epoch, 0);
    assert_int_equal(second.next.handle, 0);
    assert_int_equal(second.items, 0);
    hsm_close(token);
}

static void a_whole_walk_that_takes_too_long_tells_nothing_but_that(void **state)
{
    struct hsm_token *token = open_crowded();
    struct hsm_request request = {.op = HSM_SCAN, .prefix = "sp1-", .limit_ms = LIMIT_MS};
    struct count count = {.others = 0};
    struct hsm_reply reply = scan(token, &request, &count);

    (void)state;
    assert_int_not_equal(reply.next.epoch, 0);
    assert_int_equal(reply.items, 0);
    assert_int_equal(count.of[0] + count.of[1] + count.of[2] + count.others, 0);
    request.limit_ms = 0;
    reply = scan(token, &request, &count);
    assert_int_equal(reply.next.epoch, 0);
    assert_int_equal(reply.items, KEYS);
    assert_int_equal(reply.foreign, 2 * CROWD / 5);
    assert_int_equal(count.state, HSM_COMPLETE);
    hsm_close(token);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, room_setup, room_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(slices_find_each_private_key_once),
        TEST(a_slice_without_time_reads_one),
        TEST(handles_of_another_login_are_not_gone_on_from),
        TEST(a_whole_walk_that_takes_too_long_tells_nothing_but_that),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
