/* key_identifier_file: made, read, refused, and locked against a second server. */
#include "../plugin/identity.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { UUID_LENGTH = 36, AT_ONCE = 6, ROUNDS = 20, A_WHILE_MS = 200, PATIENCE_MS = 10000 };

struct place {
    char folder[64];
    struct config config;
};

static char in_memory[IDENTITY_PLACE_MAX]; /* stands for /dev/shm/... */

void identity_place(const struct label_scope *scope, char path[IDENTITY_PLACE_MAX])
{
    (void)scope;
    memcpy(path, in_memory, sizeof in_memory);
}

static int make_place(void **state)
{
    struct place *place = calloc(1, sizeof *place);

    (void)snprintf(place->folder, sizeof place->folder, "/tmp/identity-XXXXXX");
    if (!mkdtemp(place->folder))
        return -1;
    (void)snprintf(place->config.keymanager.key_identifier_file,
                   sizeof place->config.keymanager.key_identifier_file, "%s/id", place->folder);
    (void)snprintf(place->config.trust_domain, sizeof place->config.trust_domain, "example.org");
    (void)snprintf(in_memory, sizeof in_memory, "%.40s/memory", place->folder);
    *state = place;
    return 0;
}

static int remove_place(void **state)
{
    struct place *place = *state;

    (void)unlink(place->config.keymanager.key_identifier_file);
    (void)unlink(in_memory);
    if (rmdir(place->folder) != 0) /* nothing else is left in it, no temporary file either */
        return -1;
    free(place);
    return 0;
}

static void put(const struct place *place, const void *bytes, size_t length, mode_t mode)
{
    int fd = open(place->config.keymanager.key_identifier_file, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, length), (ssize_t)length);
    assert_int_equal(fchmod(fd, mode), 0);
    (void)close(fd);
}

static void put_text(const struct place *place, const char *text)
{
    put(place, text, strlen(text), 0600);
}

static struct identity take(const struct place *place)
{
    struct identity identity;

    assert_int_equal(identity_open(&place->config, NULL, &identity, NULL), 0);
    return identity;
}

static void assert_is(const struct identity *identity, const char *text)
{
    assert_int_equal(identity->length, strlen(text));
    assert_memory_equal(identity->bytes, text, identity->length);
}

static void assert_refused(const struct place *place, const char *why)
{
    struct identity identity = {.lock = 77};
    struct fault fault = {.code = FAULT_NONE};

    assert_int_equal(identity_open(&place->config, NULL, &identity, &fault), -1);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    assert_non_null(strstr(fault.message, why));
    assert_non_null(strstr(fault.message, place->config.keymanager.key_identifier_file));
    assert_int_equal(identity.lock, 77);
}

/* ---- made and read ---- */

static void a_new_identity_is_a_uuid_nobody_else_can_read(void **state)
{
    struct place *place = *state;
    struct identity identity = take(place);
    struct stat st;

    assert_false(identity.existed);
    assert_int_equal(identity.length, UUID_LENGTH);
    for (size_t i = 0; i < UUID_LENGTH; i++)
        if (i == 8 || i == 13 || i == 18 || i == 23)
            assert_int_equal(identity.bytes[i], '-');
        else
            assert_non_null(memchr("0123456789abcdef", identity.bytes[i], 16));
    assert_int_equal(identity.bytes[14], '4');
    assert_non_null(memchr("89ab", identity.bytes[19], 4));
    assert_int_equal(stat(place->config.keymanager.key_identifier_file, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(st.st_size, UUID_LENGTH);
    assert_int_equal(fcntl(identity.lock, F_GETFL) & O_ACCMODE, O_RDWR); /* or NFS grants no lock */
    identity_close(&identity);
    assert_int_equal(identity.lock, -1);
}

static void a_restart_finds_the_same_identity(void **state)
{
    struct identity first = take(*state);
    struct identity second;

    identity_close(&first);
    second = take(*state);
    assert_true(second.existed);
    assert_int_equal(second.length, first.length);
    assert_memory_equal(second.bytes, first.bytes, first.length);
    identity_close(&second);
}

static void one_newline_at_the_end_does_not_count(void **state)
{
    static const struct {
        const char *content;
        const char *identity;
    } files[] = {{"server-1", "server-1"},
                 {"server-1\n", "server-1"},
                 {"server-1\n\n", "server-1\n"},
                 {" server 1 \r\n", " server 1 \r"}};

    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        struct identity identity;

        put_text(*state, files[i].content);
        identity = take(*state);
        assert_is(&identity, files[i].identity);
        assert_true(identity.existed);
        identity_close(&identity);
    }
}

static void any_bytes_will_do_up_to_256(void **state)
{
    char bytes[CONFIG_IDENTITY_MAX + 1];
    struct identity identity;

    memset(bytes, 0xff, sizeof bytes);
    bytes[7] = '\0';
    put(*state, bytes, CONFIG_IDENTITY_MAX, 0600);
    identity = take(*state);
    assert_int_equal(identity.length, CONFIG_IDENTITY_MAX);
    assert_memory_equal(identity.bytes, bytes, CONFIG_IDENTITY_MAX);
    identity_close(&identity);
    bytes[CONFIG_IDENTITY_MAX] = '\n';
    put(*state, bytes, sizeof bytes, 0600);
    identity = take(*state);
    assert_int_equal(identity.length, CONFIG_IDENTITY_MAX);
    identity_close(&identity);
}

static void an_identity_that_was_never_used_is_taken_back(void **state)
{
    struct place *place = *state;
    struct identity identity = take(place);

    identity_undo(&place->config, &identity);
    identity_close(&identity);
    assert_int_equal(access(place->config.keymanager.key_identifier_file, F_OK), -1);
    identity = take(place);
    assert_false(identity.existed);
    identity_close(&identity);
    identity = take(place);
    assert_true(identity.existed);
    identity_undo(&place->config, &identity);
    identity_close(&identity);
    assert_int_equal(access(place->config.keymanager.key_identifier_file, F_OK), 0);
}

/* ---- a value and its place ---- */

static struct place *with_value(void **state)
{
    struct place *place = *state;

    place->config.keymanager.key_identifier_file[0] = '\0';
    (void)strcpy(place->config.keymanager.key_identifier_value, "server-7");
    return place;
}

static void a_value_marks_the_keys_of_its_place(void **state)
{
    struct place *place = with_value(state);
    struct identity first = take(place);
    struct identity again;
    struct identity elsewhere;

    assert_is(&first, "server-7");
    assert_false(first.existed);
    assert_false(first.alone);
    assert_true(first.lock >= 0 && first.maker.known);
    identity_close(&first);
    again = take(place);
    assert_memory_equal(&again.maker, &first.maker, sizeof first.maker);
    identity_close(&again);
    assert_int_equal(unlink(in_memory), 0);
    elsewhere = take(place);
    assert_memory_equal(&elsewhere.scope, &first.scope, sizeof first.scope);
    assert_memory_not_equal(elsewhere.maker.key, first.maker.key, sizeof first.maker.key);
    identity_close(&elsewhere);
}

static void a_file_marks_nothing(void **state)
{
    struct identity identity = take(*state);

    assert_true(identity.alone);
    assert_false(identity.maker.known);
    identity_close(&identity);
}

static void assert_no_place(const struct place *place)
{
    struct identity identity = take(place);

    assert_is(&identity, "server-7");
    assert_int_equal(identity.lock, -1);
    assert_false(identity.alone || identity.maker.known);
    identity_close(&identity);
}

static void a_value_without_a_place_will_do(void **state)
{
    struct place *place = with_value(state);
    char target[96];

    (void)snprintf(target, sizeof target, "%s/id", place->folder);
    (void)snprintf(place->config.keymanager.key_identifier_file,
                   sizeof place->config.keymanager.key_identifier_file, "%s", target);
    put_text(place, "whose content somebody else chose");
    place->config.keymanager.key_identifier_file[0] = '\0';
    assert_int_equal(symlink(target, in_memory), 0);
    assert_no_place(place);
    assert_int_equal(unlink(in_memory), 0);
    assert_int_equal(rename(target, in_memory), 0);
    assert_int_equal(chmod(in_memory, 0666), 0);
    assert_no_place(place);
    assert_int_equal(unlink(in_memory), 0);
    assert_int_equal(mkdir(in_memory, 0700), 0);
    assert_no_place(place);
    assert_int_equal(rmdir(in_memory), 0);
    (void)strcpy(in_memory, "/no/such/folder");
    assert_no_place(place);
}

/* ---- refused ---- */

static void an_empty_file_is_not_an_identity(void **state)
{
    put_text(*state, "");
    assert_refused(*state, "is empty");
    put_text(*state, "\n");
    assert_refused(*state, "is empty");
}

static void more_than_256_bytes_are_refused_not_cut(void **state)
{
    char bytes[5000];

    memset(bytes, 'x', sizeof bytes);
    put(*state, bytes, CONFIG_IDENTITY_MAX + 1, 0600);
    assert_refused(*state, "more than 256 bytes");
    put(*state, bytes, sizeof bytes, 0600);
    assert_refused(*state, "more than 256 bytes");
    bytes[CONFIG_IDENTITY_MAX + 1] = '\n';
    put(*state, bytes, sizeof bytes, 0600);
    assert_refused(*state, "more than 256 bytes");
}

static void a_file_others_can_write_is_refused(void **state)
{
    put(*state, "server-1", 8, 0660);
    assert_refused(*state, "0660");
    put(*state, "server-1", 8, 0602);
    assert_refused(*state, "0602");
}

static void a_missing_folder_is_an_error_that_names_the_setting(void **state)
{
    struct place *place = *state;
    struct place lost = *place;

    (void)snprintf(lost.config.keymanager.key_identifier_file,
                   sizeof lost.config.keymanager.key_identifier_file, "%s/no/id", place->folder);
    assert_refused(&lost, "key_identifier_file");
}

static void what_is_not_a_regular_file_is_refused_at_once(void **state)
{
    struct place *place = *state;
    struct place folder = *place;

    assert_int_equal(mkfifo(place->config.keymanager.key_identifier_file, 0600), 0);
    assert_refused(place, "not a regular file");
    (void)strcpy(folder.config.keymanager.key_identifier_file, place->folder);
    assert_refused(&folder, "key_identifier_file");
}

/* ---- two processes ---- */

struct process {
    pid_t pid;
    int says; /* what it found, once it has the lock */
    int hold; /* it lets go when this is closed */
};

/* In a forked process: locks and pipes that are not its own would be held by it too. */
static void keep_only(int one, int other)
{
    for (int fd = STDERR_FILENO + 1; fd < 64; fd++)
        if (fd != one && fd != other)
            (void)close(fd);
}

static void serve(const struct place *place, int says, int hold)
{
    struct identity identity;
    char end;

    keep_only(says, hold);
    if (identity_open(&place->config, NULL, &identity, NULL) != 0 ||
        write(says, &identity, sizeof identity) != (ssize_t)sizeof identity)
        _exit(1);
    _exit(read(hold, &end, 1) == 0 ? 0 : 1);
}

/* A server that takes the identity, says so, and runs until told to end. */
static struct process start_server(const struct place *place)
{
    struct process process;
    int says[2];
    int hold[2];

    assert_int_equal(pipe2(says, O_CLOEXEC), 0);
    assert_int_equal(pipe2(hold, O_CLOEXEC), 0);
    process.pid = fork();
    assert_true(process.pid >= 0);
    if (process.pid == 0)
        serve(place, says[1], hold[0]);
    (void)close(says[1]);
    (void)close(hold[0]);
    process.says = says[0];
    process.hold = hold[1];
    return process;
}

static bool says_something(const struct process *process, int patience_ms)
{
    struct pollfd says = {.fd = process->says, .events = POLLIN};

    return poll(&says, 1, patience_ms) == 1;
}

static struct identity hear(const struct process *process)
{
    struct identity identity;

    assert_true(says_something(process, PATIENCE_MS));
    assert_int_equal(read(process->says, &identity, sizeof identity), sizeof identity);
    return identity;
}

static void assert_same(const struct identity *a, const struct identity *b)
{
    assert_int_equal(a->length, b->length);
    assert_memory_equal(a->bytes, b->bytes, a->length);
}

static void end_server(struct process *process)
{
    int status;

    (void)close(process->hold);
    assert_int_equal(waitpid(process->pid, &status, 0), process->pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    (void)close(process->says);
}

static void a_second_server_waits_until_the_first_has_ended(void **state)
{
    struct process first = start_server(*state);
    struct identity one = hear(&first);
    struct process second = start_server(*state);
    struct identity same;

    assert_false(says_something(&second, A_WHILE_MS));
    end_server(&first);
    same = hear(&second);
    assert_same(&one, &same);
    assert_false(one.existed);
    assert_true(same.existed);
    end_server(&second);
}

static void a_second_server_with_the_same_value_waits_too(void **state)
{
    struct process first = start_server(with_value(state));
    struct identity one = hear(&first);
    struct process second = start_server(*state);
    struct identity same;

    assert_false(says_something(&second, A_WHILE_MS));
    end_server(&first);
    same = hear(&second);
    assert_memory_equal(&one.maker, &same.maker, sizeof one.maker);
    end_server(&second);
}

static void the_lock_lasts_as_long_as_a_worker_that_inherited_it(void **state)
{
    struct identity front = take(*state);
    int hold[2];
    struct process next;
    pid_t worker;
    char end;

    assert_int_equal(pipe2(hold, O_CLOEXEC), 0);
    worker = fork();
    if (worker == 0) {
        keep_only(hold[0], front.lock);
        _exit(read(hold[0], &end, 1) == 0 ? 0 : 1);
    }
    identity_close(&front);
    next = start_server(*state);
    assert_false(says_something(&next, A_WHILE_MS));
    (void)close(hold[0]);
    (void)close(hold[1]);
    assert_int_equal(waitpid(worker, NULL, 0), worker);
    assert_true(says_something(&next, PATIENCE_MS));
    end_server(&next);
}

static void a_start_that_came_to_nothing_leaves_no_identity(void **state)
{
    struct place *place = *state;
    struct identity identity;

    assert_int_equal(identity_open(&place->config, NULL, &identity, NULL), 0);
    assert_false(identity.existed);
    identity_undo(&place->config, &identity);
    identity_close(&identity);
    assert_int_equal(access(place->config.keymanager.key_identifier_file, F_OK), -1);
    put_text(place, "old");
    assert_int_equal(identity_open(&place->config, NULL, &identity, NULL), 0);
    identity_undo(&place->config, &identity);
    identity_close(&identity);
    assert_int_equal(access(place->config.keymanager.key_identifier_file, F_OK), 0);
}

static void a_reconfiguration_does_not_lock_itself_out(void **state)
{
    struct place *place = *state;
    struct identity first = take(place);
    struct identity second;
    struct process other;

    assert_int_equal(identity_open(&place->config, &first, &second, NULL), 0);
    assert_true(second.lock >= 0 && second.lock != first.lock);
    assert_memory_equal(second.bytes, first.bytes, UUID_LENGTH);
    identity_close(&first); /* the lock goes with the last of the two */
    other = start_server(place);
    assert_false(says_something(&other, A_WHILE_MS));
    identity_close(&second);
    assert_true(says_something(&other, PATIENCE_MS));
    end_server(&other);
}

static void servers_that_start_at_once_agree_on_one_identity(void **state)
{
    struct place *place = *state;

    for (unsigned round = 0; round < ROUNDS; round++) {
        struct process servers[AT_ONCE];
        struct identity first;
        unsigned makers = 0;

        for (unsigned i = 0; i < AT_ONCE; i++)
            servers[i] = start_server(place);
        for (unsigned i = 0; i < AT_ONCE; i++)
            (void)close(servers[i].hold); /* each may end as soon as it has said it */
        for (unsigned i = 0; i < AT_ONCE; i++) {
            struct identity identity = hear(&servers[i]);

            if (i == 0)
                first = identity;
            assert_same(&identity, &first);
            makers += !identity.existed;
            servers[i].hold = -1;
            end_server(&servers[i]);
        }
        assert_int_equal(makers, 1);
        assert_int_equal(unlink(place->config.keymanager.key_identifier_file), 0);
    }
}

#define AT(test) cmocka_unit_test_setup_teardown(test, make_place, remove_place)

int main(void)
{
    const struct CMUnitTest tests[] = {
        AT(a_new_identity_is_a_uuid_nobody_else_can_read),
        AT(a_restart_finds_the_same_identity),
        AT(one_newline_at_the_end_does_not_count),
        AT(any_bytes_will_do_up_to_256),
        AT(an_identity_that_was_never_used_is_taken_back),
        AT(a_value_marks_the_keys_of_its_place),
        AT(a_file_marks_nothing),
        AT(a_value_without_a_place_will_do),
        AT(an_empty_file_is_not_an_identity),
        AT(more_than_256_bytes_are_refused_not_cut),
        AT(a_file_others_can_write_is_refused),
        AT(a_missing_folder_is_an_error_that_names_the_setting),
        AT(what_is_not_a_regular_file_is_refused_at_once),
        AT(a_second_server_waits_until_the_first_has_ended),
        AT(a_second_server_with_the_same_value_waits_too),
        AT(the_lock_lasts_as_long_as_a_worker_that_inherited_it),
        AT(a_start_that_came_to_nothing_leaves_no_identity),
        AT(a_reconfiguration_does_not_lock_itself_out),
        AT(servers_that_start_at_once_agree_on_one_identity),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
