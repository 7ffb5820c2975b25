/* An identity is locked against a second server. */
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/identity_scene.h"

enum { AT_ONCE = 6, ROUNDS = 20, A_WHILE_MS = 200, PATIENCE_MS = 10000 };

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

static void a_reconfiguration_to_another_identity_locks_that_one(void **state)
{
    struct place *place = *state;
    struct identity first = take(place);
    char *path = place->config.keymanager.place.key_identifier_file;
    struct identity second;
    struct identity other;

    (void)strcat(path, "-2");
    assert_int_equal(identity_open(&place->config, &first, &second, NULL), 0);
    assert_int_equal(identity_find(&place->config, true, &other, NULL), -1);
    identity_close(&second);
    identity_close(&first);
    assert_int_equal(unlink(path), 0);
    path[strlen(path) - 2] = '\0';
}

static void who_only_looks_does_not_wait_for_the_lock(void **state)
{
    struct place *place = *state;
    struct identity held = take(place);
    struct identity seen;
    struct fault fault;

    assert_int_equal(identity_find(&place->config, false, &seen, &fault), 0);
    assert_memory_equal(seen.bytes, held.bytes, UUID_LENGTH);
    assert_int_equal(seen.lock, -1);
    assert_int_equal(identity_find(&place->config, true, &seen, &fault), -1);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    identity_close(&held);
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
        assert_int_equal(unlink(place->config.keymanager.place.key_identifier_file), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        AT(a_second_server_waits_until_the_first_has_ended),
        AT(a_second_server_with_the_same_value_waits_too),
        AT(the_lock_lasts_as_long_as_a_worker_that_inherited_it),
        AT(a_reconfiguration_does_not_lock_itself_out),
        AT(a_reconfiguration_to_another_identity_locks_that_one),
        AT(who_only_looks_does_not_wait_for_the_lock),
        AT(servers_that_start_at_once_agree_on_one_identity),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
