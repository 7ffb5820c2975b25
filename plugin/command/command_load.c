/* Many signatures at a time, counted and timed, for `bench`. */
#include "plugin/command/command_load.h"

#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "hsm/base/scope.h"

/* More signatures than these are counted, but not timed. */
enum { TIMES_MAX = 1 << 22 };

static const int64_t look = 200 * CLOCK_MILLISECOND;

/* One caller, which signs, waits for the answer, and signs again. */
struct load_lane {
    struct load_run *run;
    int64_t asked;
};

struct load_run {
    const struct load *load;
    struct load_lane lanes[HSM_SESSIONS_MAX];
    pthread_mutex_t lock;
    pthread_cond_t ended;
    unsigned busy;
    int64_t begun;
    int64_t last; /* time of the last answer */
    bool stop;
    float *times; /* in ms; the kernel gives it memory only as it is filled */
    size_t timed;
    struct load_result *result;
};

static void ask(struct load_lane *lane);

/* With the lock held. Returns true if the lane is to go on. */
static bool take(struct load_lane *lane, const struct hsm_reply *reply, int64_t now)
{
    struct load_run *run = lane->run;
    struct load_result *result = run->result;

    run->last = now;
    if (reply->fault.code != FAULT_NONE) {
        if (result->failures++ == 0)
            result->fault = reply->fault;
        return false;
    }
    result->signatures++;
    if (run->timed < TIMES_MAX)
        run->times[run->timed++] = (float)((double)(now - lane->asked) / (double)CLOCK_MILLISECOND);
    return !run->stop && now - run->begun < run->load->length;
}

static void answered(void *context, const struct hsm_reply *reply)
{
    struct load_lane *lane = context;
    struct load_run *run = lane->run;
    bool goes_on;

    (void)pthread_mutex_lock(&run->lock);
    goes_on = take(lane, reply, clock_now());
    if (!goes_on && --run->busy == 0)
        (void)pthread_cond_signal(&run->ended);
    (void)pthread_mutex_unlock(&run->lock);
    if (goes_on)
        ask(lane);
}

static void ask(struct load_lane *lane)
{
    const struct load *load = lane->run->load;

    lane->asked = clock_now();
    supervisor_submit(load->token->supervisor,
                      &(struct supervisor_request){.request = &load->request,
                                                   .deadline = lane->asked + load->token->limit,
                                                   .done = answered,
                                                   .context = lane});
}

/* ---- the sum ---- */

static int by_size(const void *a, const void *b)
{
    float first = *(const float *)a;
    float second = *(const float *)b;

    return (first > second) - (first < second);
}

static double percentile(const struct load_run *run, size_t percent)
{
    return run->timed == 0 ? 0 : (double)run->times[(run->timed - 1) * percent / 100];
}

static void sum_up(struct load_run *run)
{
    struct load_result *result = run->result;

    if (run->timed > 0)
        qsort(run->times, run->timed, sizeof run->times[0], by_size);
    result->p50 = percentile(run, 50);
    result->p99 = percentile(run, 99);
    if (run->last > run->begun)
        result->per_second =
            (double)result->signatures * (double)CLOCK_SECOND / (double)(run->last - run->begun);
    result->stopped = run->stop;
}

static void wait_for_all(struct load_run *run)
{
    const struct load *load = run->load;

    (void)pthread_mutex_lock(&run->lock);
    while (run->busy > 0) {
        double part = (double)(clock_now() - run->begun) / (double)load->length;
        bool goes_on;

        (void)pthread_mutex_unlock(&run->lock);
        goes_on = load->goes_on(load->context, part < 1 ? part : 1);
        (void)pthread_mutex_lock(&run->lock);
        run->stop = run->stop || !goes_on;
        if (run->busy > 0)
            condition_wait(&run->ended, &run->lock, clock_now() + look);
    }
    (void)pthread_mutex_unlock(&run->lock);
}

int load_run(const struct load *load, struct load_result *result, struct fault *fault)
{
    OWNED(scope_free) float *times = calloc(TIMES_MAX, sizeof *times);
    struct load_run run = {.load = load, .times = times, .result = result};

    if (!times)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    *result = (struct load_result){.signatures = 0};
    (void)pthread_mutex_init(&run.lock, NULL);
    condition_open(&run.ended);
    run.busy = load->at_a_time;
    run.begun = clock_now();
    for (unsigned i = 0; i < load->at_a_time; i++) {
        run.lanes[i].run = &run;
        ask(&run.lanes[i]);
    }
    wait_for_all(&run);
    sum_up(&run);
    (void)pthread_cond_destroy(&run.ended);
    (void)pthread_mutex_destroy(&run.lock);
    return 0;
}

size_t load_knee(const double *per_second, size_t count)
{
    double best = 0;
    size_t i = 0;

    for (size_t k = 0; k < count; k++)
        best = per_second[k] > best ? per_second[k] : best;
    while (i + 1 < count && per_second[i] < 0.9 * best)
        i++;
    return i;
}
