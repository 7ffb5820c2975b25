#include "tests/support/keymanager_spire.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "plugin/worker/child.h"
#include "plugin/worker/program.h"

struct config settings;
struct keymanager *keymanager;

void generated(void *context, const struct catalogue_key *key, const struct fault *fault)
{
    struct answer *answer = context;

    if (key) {
        memcpy(answer->label, key->name.label, sizeof answer->label);
        answer->type = key->public_key.type;
    } else {
        answer->fault = *fault;
    }
    atomic_fetch_add(&answer->count, 1);
}

static void was_signed(void *context, const struct catalogue_key *key,
                       const struct hsm_reply *reply)
{
    struct answer *answer = context;

    if (reply->fault.code == FAULT_NONE)
        memcpy(answer->label, key->name.label, sizeof answer->label);
    answer->fault = reply->fault;
    atomic_fetch_add(&answer->count, 1);
}

void hear(struct answer *answer, enum fault_code code)
{
    int64_t until = clock_now() + PATIENCE_S * CLOCK_SECOND;

    while (answer->count == 0 && clock_now() < until)
        nap();
    assert_int_equal(answer->count, 1);
    if (answer->fault.code != code)
        print_error("%s\n", answer->fault.message);
    assert_int_equal(answer->fault.code, code);
}

void ask_for(enum hsm_key_type type, struct answer *answer, int64_t patience)
{
    *answer = (struct answer){.count = 0};
    keymanager_generate(keymanager, "x509-CA-A", type, clock_now() + patience, generated, answer);
}

void ask(struct answer *answer, int64_t patience)
{
    ask_for(HSM_EC_P256, answer, patience);
}

struct answer make_key(void)
{
    struct answer answer;

    ask(&answer, PATIENCE_S * CLOCK_SECOND);
    hear(&answer, FAULT_NONE);
    return answer;
}

struct answer sign_once(void)
{
    const struct hsm_request request = {.scheme = HSM_PLAIN, .hash = HSM_SHA256};
    struct answer answer = {.count = 0};

    keymanager_sign(keymanager, "x509-CA-A", &request, clock_now() + PATIENCE_S * CLOCK_SECOND,
                    was_signed, &answer);
    hear(&answer, FAULT_NONE);
    return answer;
}

void open_keymanager(void)
{
    const atomic_bool cancel = false;
    struct keymanager *before = keymanager;
    struct fault fault;

    if (keymanager_open(&settings, before, &cancel, &keymanager, &fault) != 0)
        fail_msg("%s", fault.message);
    keymanager_succeed(keymanager, before);
    if (before)
        keymanager_release(before);
}

void crash_and_restart(void)
{
    keymanager_abandon(keymanager);
    keymanager_release(keymanager);
    keymanager = NULL;
    open_keymanager();
}

/* Of each test's own: the scribe of the one before may be at its last write. */
static unsigned tests_begun;

static void name_files(unsigned test)
{
    const char *path = getenv(token_variable);

    (void)snprintf(settings.keymanager.place.key_identifier_file,
                   sizeof settings.keymanager.place.key_identifier_file, "%s.%u.id", path, test);
    (void)snprintf(settings.keymanager.record_file, sizeof settings.keymanager.record_file,
                   "%s.%u.keys", path, test);
}

int start(void **state)
{
    (void)state;
    memset(token, 0, sizeof *token);
    name_files(++tests_begun);
    settings.keymanager.destroy_superseded = true;
    settings.keymanager.destroy_superseded_after = 0;
    settings.keymanager.keep_condemned = KEPT;
    keymanager = NULL;
    open_keymanager();
    return 0;
}

void remove_beside(const char *suffix)
{
    char path[HSM_PATH_MAX];

    (void)snprintf(path, sizeof path, "%.1000s%s", settings.keymanager.record_file, suffix);
    (void)unlink(path);
}

static void remove_files(void)
{
    remove_beside("");
    remove_beside("~");
    remove_beside(".accept");
    (void)unlink(settings.keymanager.place.key_identifier_file);
}

int end(void **state)
{
    (void)state;
    token->gate = true;
    keymanager_abandon(keymanager);
    keymanager_release(keymanager);
    while (waitpid(-1, NULL, 0) > 0)
        continue;
    remove_files();
    return 0;
}

static int prepare(void **state)
{
    static char path[] = "/tmp/unit-keymanager-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);
    int sized = ftruncate(fd, sizeof *token);

    (void)state;
    (void)close(fd);
    settings = (struct config){.kind = CONFIG_KEYMANAGER, .trust_domain = "example.org"};
    settings.keymanager = (struct config_keymanager){.max_sessions = 4,
                                                     .startup_wait = PATIENCE_S * CLOCK_SECOND,
                                                     .operation_timeout = PATIENCE_S * CLOCK_SECOND,
                                                     .generate_timeout = PATIENCE_S * CLOCK_SECOND,
                                                     .cka_id_length = HSM_ID_MAX,
                                                     .keep_condemned = KEPT};
    if (sized != 0 || map_token(path) != 0 || setenv(token_variable, path, 1) != 0)
        return -1;
    program_is("/proc/self/exe", NULL); /* this program is its own worker */
    child_prepare();
    return 0;
}

static int clear_up(void **state)
{
    (void)state;
    for (unsigned test = 1; test <= tests_begun; test++) {
        name_files(test);
        remove_files();
    }
    return unlink(getenv(token_variable));
}

int keymanager_main(int argc, char **argv, const struct CMUnitTest *tests, size_t count)
{
    if (argc == 2 && strcmp(argv[1], "worker") == 0)
        return map_token(getenv(token_variable)) != 0 ? EXIT_FAILURE
                                                      : hsm_worker(WORKER_SOCKET, WORKER_PAGE);
    return _cmocka_run_group_tests("tests", tests, count, prepare, clear_up);
}
