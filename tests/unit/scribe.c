/* The record reaches the disk, behind everybody's back and in order; a disk that hangs, fails or
 * lies delays nobody. */
#include "tests/support/scribe_room.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hsm/base/scope.h"
#include "tests/support/clock_ahead.h"

/* ---- writing ---- */

static void opening_writes_nothing(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    assert_string_equal(scribe_path(scribe), room->path);
    assert_int_equal(scribe_edit(scribe)->count, 0);
    scribe_leave(scribe);
    assert_true(scribe_is_written(scribe));
    scribe_tick(scribe);
    scribe_release(scribe);
    await_threads(room);
    assert_int_equal(entries(room->folder), 0);
}

/* On the scribe's thread, where cmocka's assertions do not work. */
static void must(bool holds)
{
    if (!holds)
        abort();
}

static void look_at_file(void *context, bool written)
{
    const struct room *room = context;

    must(written && keys_in(room->path, NULL) >= 1);
}

static void who_waits_is_told_when_it_is_on_the_disk(void **state)
{
    struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct stat status;

    add_key(scribe, RECORD_SERVED, 1);
    scribe_commit(scribe, look_at_file, room);
    must_write(scribe, 2);
    assert_true(scribe_is_written(scribe));
    assert_int_equal(stat(room->path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    scribe_release(scribe);
}

static void one_write_answers_all_who_wait(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer first = {0};
    struct answer later[20] = {{0}};

    set_disk(true, 0);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &first);
    await_writes(&disk.begun, 1);
    for (uint32_t i = 0; i < 20; i++) {
        add_key(scribe, RECORD_ATTEMPTED, 2 + i);
        scribe_commit(scribe, take_answer, &later[i]);
    }
    assert_false(scribe_is_written(scribe));
    assert_int_equal(times(&first), 0);
    set_disk(false, 0);
    assert_answered(&first, true);
    for (size_t i = 0; i < 20; i++)
        assert_answered(&later[i], true);
    assert_int_equal(writes(), 2);
    assert_int_equal(keys_in(room->path, NULL), 21);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    scribe_release(scribe);
}

static void what_nobody_waits_for_goes_with_the_next(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, NULL, NULL);
    assert_true(scribe_is_written(scribe));
    must_write(scribe, 2);
    assert_int_equal(keys_in(room->path, NULL), 2);
    assert_int_equal(writes(), 1);
    scribe_release(scribe);
}

static void what_is_left_is_written_at_the_end(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, NULL, NULL);
    scribe_release(scribe);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), 1);
}

static void without_a_path_all_is_done_at_once(void **state)
{
    struct scribe *scribe;
    enum scribe_found found;
    struct answer answer = {0};

    (void)state;
    assert_int_equal(scribe_open("", &own_scope, &scribe, &found, NULL), 0);
    assert_int_equal(found, SCRIBE_NOTHING);
    add_key(scribe, RECORD_CONDEMNED, 1);
    scribe_commit(scribe, take_answer, &answer);
    assert_int_equal(answer.times, 1);
    assert_true(answer.written);
    assert_true(pthread_equal(answer.thread, pthread_self()));
    add_key(scribe, RECORD_ATTEMPTED, 2);
    scribe_commit(scribe, NULL, NULL);
    assert_true(scribe_is_written(scribe));
    pass(7200);
    scribe_tick(scribe);
    assert_true(scribe_ran(scribe) >= 7200);
    assert_string_equal(scribe_path(scribe), "");
    scribe_release(scribe_hold(scribe));
    scribe_release(scribe);
}

/* ---- a disk that hangs ---- */

static void nobody_waits_for_a_hung_disk_for_more_than_two_seconds(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer first = {0};
    struct answer second = {0};
    struct answer third = {0};

    set_disk(true, 0);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &first);
    await_writes(&disk.begun, 1);
    scribe_tick(scribe);
    assert_int_equal(times(&first), 0);
    pass(1);
    add_key(scribe, RECORD_ATTEMPTED, 2); /* does not block */
    scribe_commit(scribe, take_answer, &second);
    pass(1);
    scribe_tick(scribe);
    assert_answered(&first, false);
    assert_int_equal(times(&second), 0);
    pass(1);
    scribe_tick(scribe);
    assert_answered(&second, false);
    add_key(scribe, RECORD_ATTEMPTED, 3);
    scribe_commit(scribe, take_answer, &third);
    scribe_tick(scribe);
    assert_answered(&third, false);
    assert_false(scribe_is_written(scribe));
    assert_int_equal(logged(room, "record_file was not written within 2 s"), 1);
    set_disk(false, 0);
    await_log(room, "record_file is written again");
    while (!scribe_is_written(scribe))
        look_again();
    assert_int_equal(keys_in(room->path, NULL), 3);
    assert_int_equal(times(&first) + times(&second) + times(&third), 3);
    scribe_release(scribe);
}

static void a_hung_disk_holds_up_no_release(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answer = {0};

    set_disk(true, 0);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &answer);
    await_writes(&disk.begun, 1);
    add_key(scribe, RECORD_ATTEMPTED, 2);
    scribe_commit(scribe, NULL, NULL);
    scribe_release(scribe);
    assert_int_equal(times(&answer), 0);
    set_disk(false, 0);
    assert_answered(&answer, true);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), 2);
}

/* ---- a disk that fails ---- */

static void a_failing_disk_is_told_of_once_and_tried_again(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answers[3] = {{0}};

    pass(1000); /* so that the pause between two attempts never ends by itself */
    set_disk(false, EIO);
    for (uint32_t i = 0; i < 3; i++) { /* each that is waited for is worth an attempt */
        add_key(scribe, RECORD_ATTEMPTED, 1 + i);
        scribe_commit(scribe, take_answer, &answers[i]);
        await_writes(&disk.passed, 1 + i);
    }
    await_log(room, "Input/output error");
    for (size_t i = 0; i < 3; i++) /* the second failure is enough: no time has to pass */
        assert_answered(&answers[i], false);
    assert_false(scribe_is_written(scribe));
    while (entries(room->folder) > 0) /* the last attempt's bytes are on their way out */
        look_again();
    set_disk(false, 0);
    must_write(scribe, 4);
    assert_true(scribe_is_written(scribe));
    assert_int_equal(keys_in(room->path, NULL), 4);
    assert_int_equal(logged(room, "record_file cannot be written"), 1);
    assert_int_equal(logged(room, "record_file was not written within"), 0);
    assert_int_equal(logged(room, "record_file is written again"), 1);
    set_disk(false, EIO);
    add_key(scribe, RECORD_ATTEMPTED, 5);
    scribe_commit(scribe, take_answer, &(struct answer){0});
    while (logged(room, "record_file cannot be written") < 2)
        look_again();
    set_disk(false, 0);
    must_write(scribe, 6);
    scribe_release(scribe);
}

static void it_is_tried_again_unasked(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answer = {0};

    set_disk(false, EROFS);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &answer);
    await_log(room, "Read-only file system");
    set_disk(false, 0);
    await_log(room, "record_file is written again"); /* some 5 s */
    assert_answered(&answer, true);
    assert_int_equal(keys_in(room->path, NULL), 1);
    scribe_release(scribe);
}

static void a_failing_disk_ends_with_the_last_holder(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answer = {0};

    set_disk(false, EIO);
    add_key(scribe, RECORD_ATTEMPTED, 1);
    scribe_commit(scribe, take_answer, &answer);
    await_log(room, "Input/output error");
    scribe_release(scribe);
    assert_answered(&answer, false);
    await_threads(room);
    assert_int_equal(entries(room->folder), 0);
}

static bool mount_small(const struct room *room)
{
    if (mount("scribe", room->folder, "tmpfs", 0, "size=64k,mode=0755") == 0)
        return true;
    print_message("skipped: no tmpfs can be mounted here: %s\n", strerror(errno));
    return false;
}

static void a_full_disk_leaves_the_record_and_the_one_before(void **state)
{
    static char much[60000];
    const struct room *room = *state;
    struct scribe *scribe;
    struct answer answer = {0};
    char filler[96];
    int fd;

    if (!mount_small(room))
        skip();
    scribe = opened(room, SCRIBE_NOTHING);
    must_write(scribe, 1);
    must_write(scribe, 2);
    (void)snprintf(filler, sizeof filler, "%s/filler", room->folder);
    fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    while (write(fd, much, sizeof much) > 0)
        ;
    (void)close(fd);
    add_key(scribe, RECORD_ATTEMPTED, 3);
    scribe_commit(scribe, take_answer, &answer);
    await_log(room, "No space left on device");
    pass(2);
    scribe_tick(scribe);
    assert_answered(&answer, false);
    assert_int_equal(keys_in(room->path, NULL), 2);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    assert_int_equal(entries(room->folder), 3);
    assert_int_equal(unlink(filler), 0);
    must_write(scribe, 4);
    assert_int_equal(keys_in(room->path, NULL), 4);
    assert_int_equal(keys_in(room->copy, NULL), 2);
    scribe_release(scribe);
    await_threads(room);
}

/* ---- from within an answer ---- */

struct chain {
    struct scribe *scribe;
    uint32_t next;
    struct answer answer;
};

static void go_on(void *context, bool written)
{
    struct chain *chain = context;

    must(written);
    if (chain->next == 5) {
        scribe_release(chain->scribe); /* the last */
        take_answer(&chain->answer, written);
        return;
    }
    add_key(chain->scribe, RECORD_ATTEMPTED, chain->next++);
    scribe_commit(chain->scribe, go_on, chain);
}

static void an_answer_may_commit_and_release(void **state)
{
    const struct room *room = *state;
    struct chain chain = {opened(room, SCRIBE_NOTHING), 1, {0}};

    (void)scribe_edit(chain.scribe);
    scribe_commit(chain.scribe, go_on, &chain);
    assert_answered(&chain.answer, true);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), 4);
    assert_int_equal(writes(), 5);
}

static void release(void *context, bool written)
{
    assert_false(written);
    scribe_release(context);
}

static void the_last_release_may_come_from_a_tick(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    set_disk(true, 0);
    (void)scribe_edit(scribe);
    scribe_commit(scribe, release, scribe);
    await_writes(&disk.begun, 1);
    pass(2);
    scribe_tick(scribe);
    set_disk(false, 0);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), 0);
}

static void look_at_signals(void *context, bool written)
{
    struct answer *answer = context;
    sigset_t blocked;

    (void)pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    take_answer(answer, written && sigismember(&blocked, SIGTERM) && sigismember(&blocked, SIGINT));
}

static void signals_are_not_for_the_scribe(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct answer answer = {0};
    sigset_t blocked;

    (void)scribe_edit(scribe);
    scribe_commit(scribe, look_at_signals, &answer);
    assert_answered(&answer, true);
    assert_false(pthread_equal(answer.thread, pthread_self()));
    (void)pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    assert_false(sigismember(&blocked, SIGTERM));
    scribe_release(scribe);
}

/* ---- many at once ---- */

enum { CALLERS = 4, CALLS = 50 };

struct caller {
    struct scribe *scribe;
    uint32_t first;
    pthread_t thread;
};

static void *call(void *context)
{
    struct caller *caller = context;

    for (uint32_t i = 0; i < CALLS; i++) {
        struct answer answer = {0};

        add_key(caller->scribe, RECORD_CONDEMNED, caller->first + i);
        scribe_commit(caller->scribe, take_answer, &answer);
        (void)scribe_ran(caller->scribe);
        scribe_tick(caller->scribe);
        assert_answered(&answer, true);
    }
    scribe_release(caller->scribe);
    return NULL;
}

static void many_may_call_at_once(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    struct caller callers[CALLERS];

    for (uint32_t i = 0; i < CALLERS; i++) {
        callers[i] = (struct caller){scribe_hold(scribe), 1 + i * CALLS, 0};
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call, &callers[i]), 0);
    }
    scribe_release(scribe);
    for (size_t i = 0; i < CALLERS; i++)
        (void)pthread_join(callers[i].thread, NULL);
    await_threads(room);
    assert_int_equal(keys_in(room->path, NULL), CALLERS * CALLS);
    print_message("%d commits, %zu writes\n", CALLERS * CALLS, writes());
}

/* ---- running time ---- */

static void the_running_time_goes_on_from_the_record(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe;
    OWNED(record_close) struct record record;
    enum scribe_found found;

    write_record(room->path, &own_scope, 1);
    scribe = opened(room, SCRIBE_RECORD);
    pass(50);
    assert_true(scribe_ran(scribe) >= 150 && scribe_ran(scribe) < 3600);
    must_write(scribe, 2);
    assert_int_equal(scribe_read(room->path, &own_scope, &record, &found, NULL), 0);
    assert_true(record.ran >= 150 && record.ran < 3600);
    scribe_release(scribe);
}

static void it_is_written_hourly_while_something_is_condemned(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    must_write(scribe, 1);
    pass(3600);
    scribe_tick(scribe);
    scribe_release(scribe);
    await_threads(room);
    assert_int_equal(writes(), 1);
    write_state(room->path, &own_scope, RECORD_CONDEMNED, 2);
    scribe = opened(room, SCRIBE_RECORD);
    for (size_t hour = 1; hour < 4; hour++) {
        pass(3600);
        scribe_tick(scribe);
        await_writes(&disk.passed, 2 * hour);
        must_write(scribe, 1); /* the hour begins anew with each write */
        scribe_tick(scribe);
    }
    pass(3000);
    scribe_tick(scribe);
    scribe_release(scribe);
    await_threads(room);
    assert_int_equal(writes(), 1 + 2 * 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_ROOM(opening_writes_nothing),
        IN_ROOM(who_waits_is_told_when_it_is_on_the_disk),
        IN_ROOM(one_write_answers_all_who_wait),
        IN_ROOM(what_nobody_waits_for_goes_with_the_next),
        IN_ROOM(what_is_left_is_written_at_the_end),
        IN_ROOM(without_a_path_all_is_done_at_once),
        IN_ROOM(nobody_waits_for_a_hung_disk_for_more_than_two_seconds),
        IN_ROOM(a_hung_disk_holds_up_no_release),
        IN_ROOM(a_failing_disk_is_told_of_once_and_tried_again),
        IN_ROOM(it_is_tried_again_unasked),
        IN_ROOM(a_failing_disk_ends_with_the_last_holder),
        IN_ROOM(a_full_disk_leaves_the_record_and_the_one_before),
        IN_ROOM(an_answer_may_commit_and_release),
        IN_ROOM(the_last_release_may_come_from_a_tick),
        IN_ROOM(signals_are_not_for_the_scribe),
        IN_ROOM(many_may_call_at_once),
        IN_ROOM(the_running_time_goes_on_from_the_record),
        IN_ROOM(it_is_written_hourly_while_something_is_condemned),
    };

    return cmocka_run_group_tests(tests, start_a_thread, NULL);
}
