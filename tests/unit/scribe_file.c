/* What is on the disk at a start is believed with care; and whatever a crash leaves is the record
 * or the one before it. */
#include "tests/support/scribe_room.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hsm/base/scope.h"
#include "plugin/keys/scribe_file.h"
#include "tests/support/traced.h"

/* ---- writing ---- */

static void the_record_before_stays_beside_it(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    must_write(scribe, 1);
    assert_int_equal(entries(room->folder), 1);
    for (uint32_t i = 2; i < 5; i++) {
        must_write(scribe, i);
        assert_int_equal(keys_in(room->path, NULL), i);
        assert_int_equal(keys_in(room->copy, NULL), i - 1);
        assert_int_equal(entries(room->folder), 2);
    }
    scribe_release(scribe);
}

static void without_links_there_is_no_copy_and_no_word(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    make_disk(EPERM);
    must_write(scribe, 1);
    must_write(scribe, 2);
    assert_int_equal(keys_in(room->path, NULL), 2);
    assert_int_equal(entries(room->folder), 1);
    assert_int_equal(logged(room, "record_file"), 0);
    scribe_release(scribe);
}

/* A write that failed at its very end leaves both names on one file. */
static void a_copy_that_is_the_same_file_leaves_nothing_beside(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);

    must_write(scribe, 1);
    assert_int_equal(link(room->path, room->copy), 0);
    must_write(scribe, 2);
    assert_int_equal(entries(room->folder), 2);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    scribe_release(scribe);
}

static void what_a_killed_process_left_is_removed(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = opened(room, SCRIBE_NOTHING);
    char path[160];

    (void)snprintf(path, sizeof path, "%s/.id.keys.tmp-1-0123456789abcdef", room->folder);
    write_file(path, "half", 4);
    must_write(scribe, 1);
    assert_int_equal(entries(room->folder), 1);
    scribe_release(scribe);
}

/* ---- what is found ---- */

enum thing { ABSENT, GOOD, OTHER, CUT, EMPTY, NEWER, FOREIGN, LINK, FIFO, FOLDER };

static void cut(const char *path)
{
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(truncate(path, status.st_size / 2), 0);
}

/* A digest that is right, of a document for other readers. */
static void write_newer(const char *path)
{
    static const char text[] =
        "{\"min_reader\":9,\"spire_hsm_record\":9,\"sha256\":"
        "\"5281bade614f6b0fb46d7d796589fee5d9affcfd8ade2ab493bd853b66e3f11c\"}";

    write_file(path, text, sizeof text - 1);
}

static void make(const char *path, enum thing thing, uint32_t generation)
{
    if (thing == GOOD || thing == CUT || thing == FOREIGN)
        write_record(path, &own_scope, generation);
    if (thing == OTHER)
        write_record(path, &other_scope, generation);
    if (thing == CUT)
        cut(path);
    if (thing == EMPTY)
        write_file(path, "", 0);
    if (thing == NEWER)
        write_newer(path);
    if (thing == FOREIGN)
        assert_int_equal(chown(path, 4711, 4711), 0);
    if (thing == LINK)
        assert_int_equal(symlink("/dev/null", path), 0);
    if (thing == FIFO)
        assert_int_equal(mkfifo(path, 0600), 0);
    if (thing == FOLDER)
        assert_int_equal(mkdir(path, 0700), 0);
}

static void clear(const char *path)
{
    if (unlink(path) != 0)
        (void)rmdir(path);
}

static const struct {
    enum thing file;
    enum thing copy;
    enum scribe_found found;
    uint32_t generation; /* of the record that is used: 1 is the file, 2 the copy */
    const char *says[4]; /* in the refusal, or, if something is used, in the log */
    bool refused;
} finds[] = {
    {ABSENT, ABSENT, SCRIBE_NOTHING, 0, {NULL}, false},
    {GOOD, ABSENT, SCRIBE_RECORD, 1, {NULL}, false},
    {GOOD, GOOD, SCRIBE_RECORD, 1, {NULL}, false},
    {GOOD, CUT, SCRIBE_RECORD, 1, {NULL}, false},
    {GOOD, NEWER, SCRIBE_RECORD, 1, {NULL}, false},
    {OTHER, ABSENT, SCRIBE_NOTHING, 0, {NULL}, false},
    {OTHER, GOOD, SCRIBE_NOTHING, 0, {NULL}, false},
    {ABSENT, GOOD, SCRIBE_RECORD, 2, {"record_file is missing", "id.keys~"}, false},
    {ABSENT, OTHER, SCRIBE_NOTHING, 0, {"record_file is missing", "id.keys~"}, false},
    {CUT,
     GOOD,
     SCRIBE_RECORD,
     2,
     {"is damaged: its end is missing", "id.keys\\\"", "id.keys~",
      "the plugin uses the copy beside it"},
     false},
    {EMPTY, GOOD, SCRIBE_RECORD, 2, {"is empty", "id.keys~"}, false},
    {CUT,
     ABSENT,
     SCRIBE_NOTHING,
     0,
     {"record_file \"", "is damaged: its end is missing", "its copy \"", "\" is missing: restore"},
     true},
    {CUT,
     OTHER,
     SCRIBE_NOTHING,
     0,
     {"its end is missing", "knows nothing of this server", "remove both"},
     true},
    {CUT, CUT, SCRIBE_NOTHING, 0, {"record_file \"", "; its copy \"", "remove both"}, true},
    {EMPTY, EMPTY, SCRIBE_NOTHING, 0, {"\" is empty; its copy", "\" is empty: restore"}, true},
    {ABSENT, CUT, SCRIBE_NOTHING, 0, {"\" is missing; its copy", "is damaged"}, true},
    {CUT, FOREIGN, SCRIBE_NOTHING, 0, {"its copy \"", "belongs to user 4711"}, true},
    {NEWER,
     GOOD,
     SCRIBE_NOTHING,
     0,
     {"record_file \"", "its min_reader is 9", "install the newer version again"},
     true},
    {CUT, NEWER, SCRIBE_NOTHING, 0, {"its end is missing", "its min_reader is 9"}, true},
    {ABSENT, NEWER, SCRIBE_NOTHING, 0, {"its min_reader is 9"}, true},
    {FOREIGN,
     GOOD,
     SCRIBE_NOTHING,
     0,
     {"record_file \"", "belongs to user 4711: it must belong to the server's user"},
     true},
    {LINK, GOOD, SCRIBE_NOTHING, 0, {"record_file \"", "is a symbolic link"}, true},
    {FIFO, GOOD, SCRIBE_NOTHING, 0, {"record_file \"", "is not a regular file"}, true},
    {FOLDER, GOOD, SCRIBE_NOTHING, 0, {"record_file \"", "is not a regular file"}, true},
};

static void assert_says(size_t row, const char *text)
{
    for (size_t i = 0; i < 4 && finds[row].says[i]; i++)
        if (!strstr(text, finds[row].says[i]))
            fail_msg("row %zu: \"%s\" does not say \"%s\"", row, text, finds[row].says[i]);
}

/* Only what cannot be read by anybody may be given up for lost. */
static bool is_damage(size_t row)
{
    return finds[row].refused && finds[row].file <= EMPTY && finds[row].copy <= EMPTY;
}

static void check_find(const struct room *room, size_t row)
{
    OWNED(record_close) struct record record;
    char code[RECORD_CODE + 1];
    enum scribe_found found = SCRIBE_NOTHING;
    struct fault fault = {0};
    char log[4096] = "";

    record_open(&own_scope, &record);
    if (scribe_is_damaged(room->path, &own_scope, code) != is_damage(row))
        fail_msg("row %zu: damaged or not", row);
    assert_int_equal(ftruncate(room->log, 0), 0);
    if (scribe_read(room->path, &own_scope, &record, &found, &fault) != 0) {
        if (!finds[row].refused)
            fail_msg("row %zu: %s", row, fault.message);
        assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
        assert_says(row, fault.message);
        return;
    }
    if (finds[row].refused || found != finds[row].found)
        fail_msg("row %zu: found %d", row, found);
    assert_int_equal(record.count, finds[row].generation > 0);
    if (record.count > 0)
        assert_int_equal(record.keys[0].label.generation, finds[row].generation);
    assert_true(pread(room->log, log, sizeof log - 1, 0) >= 0);
    assert_says(row, log);
    if (!finds[row].says[0])
        assert_string_equal(log, "");
}

static void the_file_or_the_one_before_it_or_neither(void **state)
{
    const struct room *room = *state;

    for (size_t i = 0; i < sizeof finds / sizeof finds[0]; i++) {
        if ((finds[i].file == FOREIGN || finds[i].copy == FOREIGN) && geteuid() != 0) {
            print_message("row %zu left out: not root\n", i);
            continue;
        }
        make(room->path, finds[i].file, 1);
        make(room->copy, finds[i].copy, 2);
        check_find(room, i);
        clear(room->path);
        clear(room->copy);
    }
}

static void an_open_that_is_refused_changes_nothing(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = NULL;
    enum scribe_found found;
    struct fault fault;

    make(room->path, CUT, 1);
    assert_int_equal(scribe_open(room->path, &own_scope, &scribe, &found, &fault), -1);
    assert_null(scribe);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    assert_int_equal(entries(room->folder), 1);
    assert_int_equal(keys_in(room->path, NULL), -1);
}

static void a_code_stands_for_what_is_left_of_both_files(void **state)
{
    const struct room *room = *state;
    char codes[4][RECORD_CODE + 1];

    for (size_t i = 0; i < 4; i++) {
        make(room->path, i == 0 ? EMPTY : CUT, i == 1 ? 1 : 2);
        make(room->copy, i == 3 ? EMPTY : CUT, 1);
        assert_true(scribe_is_damaged(room->path, &own_scope, codes[i]));
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(codes[i], codes[k]);
    }
    assert_false(scribe_is_damaged("", &own_scope, codes[0]));
}

static void a_damaged_record_can_begin_anew(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe = NULL;
    char code[RECORD_CODE + 1];
    struct fault fault;

    make(room->path, CUT, 1);
    make(room->copy, CUT, 2);
    assert_int_equal(scribe_open_anew(room->path, &own_scope, &scribe, &fault), 0);
    assert_true(scribe_is_damaged(room->path, &own_scope, code));
    must_write(scribe, 3);
    assert_int_equal(keys_in(room->path, NULL), 1);
    assert_false(scribe_is_damaged(room->path, &own_scope, code));
    must_write(scribe, 4);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    scribe_release(scribe);
}

/* Else a second crash finds two bad files. */
static void a_damaged_record_never_replaces_the_good_copy(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe;

    make(room->path, CUT, 1);
    make(room->copy, GOOD, 2);
    scribe = opened(room, SCRIBE_RECORD);
    must_write(scribe, 3);
    assert_int_equal(keys_in(room->path, NULL), 2);
    assert_int_equal(keys_in(room->copy, NULL), 1);
    must_write(scribe, 4);
    assert_int_equal(keys_in(room->copy, NULL), 2);
    scribe_release(scribe);
}

static mode_t mode_of(const char *path)
{
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    return status.st_mode & 07777;
}

static void a_mode_that_is_too_wide_is_mended(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe;
    struct record record;
    enum scribe_found found;

    make(room->path, GOOD, 1);
    assert_int_equal(chmod(room->path, 0664), 0);
    assert_int_equal(scribe_read(room->path, &own_scope, &record, &found, NULL), 0);
    record_close(&record);
    assert_int_equal(mode_of(room->path), 0664);
    assert_int_equal(logged(room, "WARN"), 0);
    scribe = opened(room, SCRIBE_RECORD);
    assert_int_equal(mode_of(room->path), 0600);
    assert_int_equal(logged(room, "other users had access to record_file"), 1);
    assert_int_equal(logged(room, "0664"), 1);
    scribe_release(scribe);
    assert_int_equal(chmod(room->path, 0400), 0);
    scribe_release(opened(room, SCRIBE_RECORD));
    assert_int_equal(mode_of(room->path), 0400);
}

static void other_scopes_stay_in_the_file(void **state)
{
    const struct room *room = *state;
    struct scribe *scribe;
    OWNED(record_close) struct record record;
    enum scribe_found found;

    make(room->path, OTHER, 5);
    scribe = opened(room, SCRIBE_NOTHING);
    must_write(scribe, 1);
    assert_int_equal(scribe_read(room->path, &other_scope, &record, &found, NULL), 0);
    assert_int_equal(found, SCRIBE_RECORD);
    assert_int_equal(record.count, 1);
    assert_int_equal(record.keys[0].label.generation, 5);
    scribe_release(scribe);
}

static void the_identity_can_be_read_from_it(void **state)
{
    const struct room *room = *state;
    uint8_t identity[CONFIG_IDENTITY_MAX];
    struct fault fault = {0};
    size_t length = 0;

    assert_int_equal(scribe_identity(room->path, "example.org", identity, &length, &fault), -1);
    assert_int_equal(fault.code, FAULT_NOT_FOUND);
    make(room->path, OTHER, 1);
    assert_int_equal(scribe_identity(room->path, "example.org", identity, &length, &fault), 0);
    assert_int_equal(length, 3);
    assert_memory_equal(identity, "abc", 3);
    cut(room->path);
    assert_int_equal(scribe_identity(room->path, "example.org", identity, &length, &fault), -1);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
}

/* ---- kill -9 ---- */

enum { KILLS = 40 };

static int reports;

static void report(void *context, bool written)
{
    (void)context;
    if (!written || write(reports, "", 1) != 1)
        _exit(1);
}

static void write_until_killed(const struct room *room)
{
    struct scribe *scribe;
    enum scribe_found found;

    if (scribe_open(room->path, &own_scope, &scribe, &found, NULL) != 0)
        _exit(1);
    for (;;) {
        (void)scribe_edit(scribe);
        scribe_commit(scribe, report, NULL);
        (void)sched_yield();
    }
}

static void a_kill_leaves_what_was_acknowledged(void **state)
{
    const struct room *room = *state;
    uint64_t before = 0;

    for (int i = 0; i < KILLS; i++) {
        uint64_t written = 0;
        int ends[2];
        pid_t child;
        char byte;

        assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
        reports = ends[1];
        child = fork();
        if (child == 0)
            write_until_killed(room);
        (void)close(ends[1]);
        for (int k = 0; k <= i % 4; k++)
            assert_int_equal(read(ends[0], &byte, 1), 1);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        (void)close(ends[0]);
        assert_int_equal(keys_in(room->path, &written), 0);
        assert_true(written >= before + 1);
        assert_true(keys_in(room->copy, NULL) == 0 || access(room->copy, F_OK) != 0);
        before = written;
    }
    print_message("%d kills, %llu writes\n", KILLS, (unsigned long long)before);
}

/* ---- a kill at each step ---- */

enum { STEPS_MAX = 400 };

struct change {
    const char *path;
    const char *text; /* of the new record */
};

static bool write_change(void *context)
{
    const struct change *change = context;
    struct scribe_file file = {.path = change->path, .good = true};

    return scribe_file_write(&file, change->text, strlen(change->text), NULL) == 0;
}

static char *text_of(size_t keys)
{
    struct scribe *scribe;
    enum scribe_found found;
    size_t length;
    char *text;

    assert_int_equal(scribe_open("", &own_scope, &scribe, &found, NULL), 0);
    for (size_t i = 1; i <= keys; i++) {
        add_key(scribe, RECORD_ATTEMPTED, (uint32_t)i);
        scribe_commit(scribe, NULL, NULL);
    }
    text = record_format(scribe_edit(scribe), &length);
    scribe_leave(scribe);
    scribe_release(scribe);
    assert_non_null(text);
    return text;
}

/* A start finds it as it was, or as it became; and the one before it whole, or none. */
static void killed_at_any_step_of_a_write_the_record_is_old_or_new(void **state)
{
    const struct room *room = *state;
    OWNED(scope_free) char *before = text_of(1);
    OWNED(scope_free) char *after = text_of(2);
    struct change to_before = {room->path, before};
    struct change to_after = {room->path, after};
    int result = 1;
    int seen[3] = {0};

    for (int step = 1; step < STEPS_MAX && result > 0; step++) {
        int keys;

        assert_true(write_change(&to_before) && write_change(&to_before));
        assert_int_equal(entries(room->folder), 2); /* what was killed left nothing for long */
        result = traced_kill(write_change, &to_after, step);
        if (result < 0) {
            print_message("skipped: tracing is not allowed here\n");
            skip();
        }
        keys = keys_in(room->path, NULL);
        assert_in_range(keys, 1, 2);
        assert_int_equal(keys_in(room->copy, NULL), 1);
        scribe_release(opened(room, SCRIBE_RECORD));
        await_threads(room);
        seen[keys]++;
    }
    assert_int_equal(result, 0);
    assert_true(seen[1] > 10);
    assert_true(seen[2] > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_ROOM(the_record_before_stays_beside_it),
        IN_ROOM(without_links_there_is_no_copy_and_no_word),
        IN_ROOM(a_copy_that_is_the_same_file_leaves_nothing_beside),
        IN_ROOM(what_a_killed_process_left_is_removed),
        IN_ROOM(the_file_or_the_one_before_it_or_neither),
        IN_ROOM(an_open_that_is_refused_changes_nothing),
        IN_ROOM(a_code_stands_for_what_is_left_of_both_files),
        IN_ROOM(a_damaged_record_can_begin_anew),
        IN_ROOM(a_damaged_record_never_replaces_the_good_copy),
        IN_ROOM(a_mode_that_is_too_wide_is_mended),
        IN_ROOM(other_scopes_stay_in_the_file),
        IN_ROOM(the_identity_can_be_read_from_it),
        IN_ROOM(a_kill_leaves_what_was_acknowledged),
        IN_ROOM(killed_at_any_step_of_a_write_the_record_is_old_or_new),
    };

    return cmocka_run_group_tests(tests, start_a_thread, NULL);
}
