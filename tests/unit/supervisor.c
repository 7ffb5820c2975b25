/* Workers that die, hang, rave, and whose token fails: what becomes of the requests. */
#include "plugin/worker/supervisor.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "hsm/base/clock.h"
#include "tests/support/supervisor_stage.h"

enum { IN_FLIGHT = 32, KILLS = 8, BETWEEN_KILLS = 50 };

/* ---- a worker that dies ---- */

/* Keeps asking. */
struct traffic {
    struct call call;
    unsigned *good;
    unsigned *bad;
    unsigned *out;
    const bool *stop;
};

static void ask_again(void *context, const struct hsm_reply *reply)
{
    struct traffic *traffic = context;
    struct hsm_request *request = &traffic->call.request;
    bool good = reply->fault.code == FAULT_NONE &&
                memcmp(reply->signature, request->digest, sizeof request->digest) == 0;
    bool again;

    (void)pthread_mutex_lock(&front.mutex);
    ++*(good ? traffic->good : traffic->bad);
    again = !*traffic->stop;
    *traffic->out -= !again;
    changed();
    if (!again)
        return;
    request->digest[1]++;
    supervisor_submit(front.supervisor,
                      &(struct supervisor_request){.request = request,
                                                   .deadline = clock_now() + 30 * CLOCK_SECOND,
                                                   .done = ask_again,
                                                   .context = traffic});
}

static void kills_under_load_cost_no_signature(void **state)
{
    static struct traffic traffic[IN_FLIGHT];
    unsigned good = 0;
    unsigned bad = 0;
    unsigned out = IN_FLIGHT;
    bool stop = false;

    (void)state;
    start();
    for (size_t i = 0; i < IN_FLIGHT; i++) {
        traffic[i] = (struct traffic){.good = &good, .bad = &bad, .out = &out, .stop = &stop};
        traffic[i].call.request =
            (struct hsm_request){.op = HSM_SIGN, .digest = {(uint8_t)i}, .digest_length = 64};
        ask_again(&traffic[i], &(struct hsm_reply){.signature = {(uint8_t)i}});
    }
    for (unsigned i = 0; i < KILLS; i++) {
        assert_true(await_more(&good, BETWEEN_KILLS));
        assert_int_equal(kill(script->pid, SIGKILL), 0);
    }
    assert_true(await_more(&good, BETWEEN_KILLS));
    (void)pthread_mutex_lock(&front.mutex);
    stop = true;
    while (out > 0 && wait_for_change())
        continue;
    (void)pthread_mutex_unlock(&front.mutex);
    assert_int_equal(out, 0);
    assert_int_equal(bad, 0);
    assert_int_equal(supervisor_restarts(front.supervisor), KILLS);
    assert_int_equal(script->starts, KILLS + 1);
    finish();
}

static void a_generation_in_flight_is_not_repeated(void **state)
{
    struct call generate;
    struct call sign;

    (void)state;
    start();
    ask(&generate, HSM_GENERATE, "wait");
    ask(&sign, HSM_SIGN, "wait");
    await_waiting(2);
    assert_int_equal(kill(script->pid, SIGKILL), 0);
    assert_fails(&generate, FAULT_ABORTED, "ended in the middle");
    script->gate = true;
    assert_done(&sign);
    finish();
}

static void a_scan_that_is_cut_short_starts_over(void **state)
{
    static const char *const ways[] = {"die", "fail"};

    (void)state;
    start();
    for (size_t i = 0; i < 2; i++) {
        struct call scan;

        script->faults_left = 2;
        ask(&scan, HSM_SCAN, ways[i]);
        assert_done(&scan);
        assert_int_equal(scan.fresh_starts, 2);
        assert_int_equal(scan.items, ITEMS);
    }
    finish();
}

static void a_worker_that_raves_is_replaced(void **state)
{
    struct call call;

    (void)state;
    start();
    script->faults_left = 1;
    ask(&call, HSM_SIGN, "rave");
    hear(&call); /* its answer may have been behind the nonsense, or it is asked again */
    assert_int_equal(call.reply.fault.code, FAULT_NONE);
    assert_int_equal(supervisor_restarts(front.supervisor), 1);
    assert_done_at_once();
    finish();
}

static void a_worker_that_dies_at_every_start_is_started_less_and_less(void **state)
{
    const struct supervisor_options options = usual();
    const atomic_bool cancel = false;
    struct hsm_token_info info;
    struct fault fault;
    struct call call;

    (void)state;
    script->opening = DIES;
    start_with(&options);
    call = (struct call){.request = {.op = HSM_SIGN, .digest_length = HSM_DIGEST_MAX},
                         .deadline = clock_now() + CLOCK_SECOND};
    submit(&call);
    assert_fails(&call, FAULT_UNAVAILABLE, "the token is away: the PKCS#11 worker ended: signal 9");
    assert_in_range(script->starts, 2, 8);
    assert_int_equal(supervisor_wait(front.supervisor, clock_now(), &cancel, &info, &fault), -1);
    assert_int_equal(fault.code, FAULT_UNAVAILABLE);
    assert_non_null(strstr(fault.message, "signal 9"));
    script->opening = OPENS;
    await_token();
    assert_done_at_once();
    finish();
}

static void what_went_wrong_lately_is_the_reason_given(void **state)
{
    struct fault fault;

    (void)state;
    start();
    assert_false(supervisor_away(front.supervisor, &fault));
    script->opening = REFUSES;
    assert_int_equal(kill(script->pid, SIGKILL), 0);
    while (!supervisor_away(front.supervisor, &fault) || fault.code == FAULT_UNAVAILABLE)
        nap();
    assert_string_equal(fault.message, "PIN refused");
    script->opening = DIES;
    while (supervisor_away(front.supervisor, &fault) && !strstr(fault.message, "signal 9"))
        nap();
    script->opening = OPENS;
    assert_done_at_once();
    assert_false(supervisor_away(front.supervisor, &fault));
    finish();
}

/* ---- a worker that hangs ---- */

static void a_worker_that_hangs_is_replaced_and_others_go_on(void **state)
{
    struct supervisor_options options = usual();
    struct call hang;

    (void)state;
    options.operation_limit = CLOCK_SECOND / 2;
    start_with(&options);
    await_token();
    script->faults_left = 1;
    ask(&hang, HSM_SIGN, "hang");
    for (unsigned i = 0; i < 100; i++)
        assert_done_at_once();
    assert_done(&hang);
    assert_int_equal(supervisor_restarts(front.supervisor), 1);
    finish();
}

static void a_slow_generation_is_let_be_and_signatures_pass_it(void **state)
{
    struct supervisor_options options = usual();
    struct call slow[SESSIONS];

    (void)state;
    options.operation_limit = CLOCK_SECOND / 2;
    start_with(&options);
    await_token();
    for (size_t i = 0; i < SESSIONS; i++)
        ask(&slow[i], HSM_GENERATE, "wait");
    await_waiting(SESSIONS / 2);
    assert_true(await_more(&front.ticks, 5)); /* a second */
    assert_done_at_once();
    script->gate = true;
    for (size_t i = 0; i < SESSIONS; i++)
        assert_done(&slow[i]);
    assert_int_equal(supervisor_restarts(front.supervisor), 0);
    finish();
}

/* A key pair may take minutes; its trial signature is as quick as any, or hangs. */
static void a_trial_signature_that_hangs_gets_a_signatures_time(void **state)
{
    struct supervisor_options options = usual();
    struct call call;
    int64_t begun;

    (void)state;
    options.operation_limit = CLOCK_SECOND / 2;
    options.generate_limit = 20 * CLOCK_SECOND;
    start_with(&options);
    await_token();
    script->faults_left = 1;
    begun = clock_now();
    ask(&call, HSM_GENERATE, "unproven");
    assert_fails(&call, FAULT_ABORTED, "in the middle of it");
    assert_true(clock_now() - begun < options.generate_limit);
    assert_done_at_once();
    finish();
}

static void a_request_that_waits_for_a_session_does_not_pass_for_one_that_hangs(void **state)
{
    struct supervisor_options options = usual();
    struct call queue;

    (void)state;
    options.operation_limit = CLOCK_SECOND / 2;
    start_with(&options);
    await_token();
    ask(&queue, HSM_SIGN, "queue");
    assert_true(await_more(&front.ticks, 5)); /* a second */
    script->gate = true;
    assert_done(&queue);
    assert_int_equal(supervisor_restarts(front.supervisor), 0);
    finish();
}

/* ---- a token that fails ---- */

static void what_a_fresh_process_may_mend_is_asked_again(void **state)
{
    struct call call;

    (void)state;
    start();
    for (int round = 1; round <= 3; round++) { /* what has done well since is not held against it */
        script->faults_left = 2;
        ask(&call, HSM_SIGN, "fail");
        assert_done(&call);
        assert_done_at_once();
        assert_in_range(supervisor_restarts(front.supervisor), 1, 2 * round);
    }
    finish();
}

static void a_token_that_fails_for_everybody_is_asked_until_it_does_not(void **state)
{
    struct call calls[IN_FLIGHT];

    (void)state;
    start();
    script->faults_left = 5;
    for (size_t i = 0; i < IN_FLIGHT; i++)
        ask(&calls[i], HSM_SIGN, "fail");
    for (size_t i = 0; i < IN_FLIGHT; i++)
        assert_done(&calls[i]);
    assert_in_range(supervisor_restarts(front.supervisor), 1, 5);
    finish();
}

static void who_was_only_beside_a_failure_is_not_given_up(void **state)
{
    struct call scan;
    struct call fail;

    (void)state;
    start();
    ask(&scan, HSM_SCAN, "wait");
    for (unsigned i = 1; i <= 3; i++) {
        await_waiting(i);                         /* those of ended workers count on */
        assert_true(await_more(&front.ticks, 6)); /* by nobody's success for so long .. */
        script->faults_left = 1;                  /* .. one failure is put down to the worker */
        ask(&fail, HSM_SIGN, "fail");
        assert_done(&fail);
    }
    script->gate = true;
    assert_done(&scan);
    assert_int_equal(scan.fresh_starts, 3);
    finish();
}

static void a_key_that_is_not_found_although_it_was_served_is_looked_for_again(void **state)
{
    struct call call;

    (void)state;
    start();
    script->faults_left = 1;
    ask(&call, HSM_SIGN, "miss");
    assert_done(&call);
    assert_int_equal(supervisor_restarts(front.supervisor), 1);
    script->faults_left = 1000;
    ask_within(&call, HSM_SIGN, "miss", 1000);
    assert_fails(&call, FAULT_NOT_FOUND, "no such key");
    finish();
}

static void a_worker_cannot_pull_the_shared_page_away_from_under_us(void **state)
{
    struct call call;

    (void)state;
    start();
    ask(&call, HSM_SIGN, "shrink");
    assert_done(&call);
    assert_int_equal(call.reply.items, 0);
    assert_true(await_more(&front.ticks, 2)); /* which look at the page */
    assert_done_at_once();
    finish();
}

static void an_idle_token_is_kept_alive(void **state)
{
    struct supervisor_options options = usual();

    (void)state;
    options.keep_alive = CLOCK_SECOND / 10;
    start_with(&options);
    await_token();
    while (script->pings < 3)
        nap();
    assert_int_equal(supervisor_restarts(front.supervisor), 0);
    finish();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        PLAY(kills_under_load_cost_no_signature),
        PLAY(a_generation_in_flight_is_not_repeated),
        PLAY(a_scan_that_is_cut_short_starts_over),
        PLAY(a_worker_that_raves_is_replaced),
        PLAY(a_worker_that_dies_at_every_start_is_started_less_and_less),
        PLAY(what_went_wrong_lately_is_the_reason_given),
        PLAY(a_worker_that_hangs_is_replaced_and_others_go_on),
        PLAY(a_slow_generation_is_let_be_and_signatures_pass_it),
        PLAY(a_trial_signature_that_hangs_gets_a_signatures_time),
        PLAY(a_request_that_waits_for_a_session_does_not_pass_for_one_that_hangs),
        PLAY(what_a_fresh_process_may_mend_is_asked_again),
        PLAY(a_token_that_fails_for_everybody_is_asked_until_it_does_not),
        PLAY(who_was_only_beside_a_failure_is_not_given_up),
        PLAY(a_key_that_is_not_found_although_it_was_served_is_looked_for_again),
        PLAY(a_worker_cannot_pull_the_shared_page_away_from_under_us),
        PLAY(an_idle_token_is_kept_alive),
    };

    if (argc == 2 && strcmp(argv[1], "worker") == 0)
        return become_worker();
    return cmocka_run_group_tests(tests, make_script, remove_script);
}
