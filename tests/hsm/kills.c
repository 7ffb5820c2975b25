/* SIGKILL within generating, destroying and logging in, while another process signs: is a
 * PKCS#11 module a basis on which a worker may be ended at any time? HSM_KILLS says how
 * often (100). */
#include "tests/support/hsm_room.h"

#include <glob.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <openssl/evp.h>
#include <openssl/x509.h>

#include "hsm/base/clock.h"

enum { KILLS = 100, OWN_KEYS = 4 };

static const int64_t patience = 30 * CLOCK_SECOND;

enum phase { STARTING, LOGIN, GENERATE, DESTROY, PHASES };

static const char *const phases[PHASES] = {"starting", "login", "generate", "destroy"};

/* What the processes tell each other. */
static struct page {
    _Atomic enum phase phase;       /* of the one that is killed */
    _Atomic int64_t lasted[PHASES]; /* nanoseconds, when it was not killed */
    atomic_uint signatures;         /* good ones */
    atomic_uint failures;
    atomic_uint tries; /* to open the token, that found none */
    atomic_bool done;
    struct fault fault; /* the first failure's */
} * page;

static pid_t signer;

static int setup(void **state)
{
    (void)state;
    softhsm_make(&softhsm);
    softhsm_token("spire");
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    softhsm_must(page != MAP_FAILED, "mmap");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    page->done = true; /* a test that failed has left it running */
    if (signer > 0)
        (void)waitpid(signer, NULL, 0);
    (void)munmap(page, sizeof *page);
    softhsm_remove(&softhsm);
    return 0;
}

static void nap(int64_t ns)
{
    const struct timespec time = {.tv_sec = ns / CLOCK_SECOND, .tv_nsec = ns % CLOCK_SECOND};

    (void)nanosleep(&time, NULL);
}

static pid_t child(void (*body)(void))
{
    pid_t pid = fork();

    softhsm_must(pid >= 0, "fork");
    if (pid == 0) {
        body();
        _exit(0);
    }
    return pid;
}

/* A child's cmocka would report to nobody. */
static void complain(const struct fault *fault)
{
    if (atomic_fetch_add(&page->failures, 1) == 0)
        page->fault = *fault;
}

/* SoftHSM passes over a token whose file somebody is just writing: absence is no verdict. */
static struct hsm_token *open_token(void)
{
    struct hsm_settings settings = room_good();
    int64_t until = clock_now() + patience / 3;
    struct hsm_token *token = NULL;
    struct hsm_token_info info;
    struct fault fault;

    while (hsm_open(&settings, &token, &info, &fault) != 0) {
        if (fault.code != FAULT_UNAVAILABLE || clock_now() > until) {
            complain(&fault);
            _exit(1);
        }
        atomic_fetch_add(&page->tries, 1);
        nap(10 * CLOCK_MILLISECOND);
    }
    return token;
}

/* ---- who is killed ---- */

static void timed(struct hsm_token *token, enum phase phase, const struct hsm_request *request)
{
    int64_t since = clock_now();
    struct hsm_reply reply;

    page->phase = phase;
    reply = room_execute(token, request);
    page->lasted[phase] = clock_now() - since;
    if (reply.fault.code != FAULT_NONE)
        complain(&reply.fault);
}

static void busy(void)
{
    int64_t since = clock_now();
    struct hsm_token *token;
    char name[16];

    page->phase = LOGIN;
    token = open_token();
    page->lasted[LOGIN] = clock_now() - since;
    for (unsigned i = 0; !page->done; i = (i + 1) % OWN_KEYS) {
        struct hsm_request request;

        (void)snprintf(name, sizeof name, "killed-%u", i);
        request = room_request(HSM_DESTROY, name, HSM_EC_P256);
        timed(token, DESTROY, &request);
        request.op = HSM_GENERATE;
        timed(token, GENERATE, &request);
    }
    hsm_close(token);
}

/* ---- who signs meanwhile ---- */

static bool verifies(const struct hsm_public_key *key, const struct hsm_request *request,
                     const struct hsm_reply *reply)
{
    const uint8_t *pkix = key->pkix;
    EVP_PKEY *public = d2i_PUBKEY(NULL, &pkix, (long)key->pkix_length);
    EVP_PKEY_CTX *context = public ? EVP_PKEY_CTX_new(public, NULL) : NULL;
    bool good = context && EVP_PKEY_verify_init(context) == 1 &&
                EVP_PKEY_verify(context, reply->signature, reply->signature_length, request->digest,
                                request->digest_length) == 1;

    EVP_PKEY_CTX_free(context);
    EVP_PKEY_free(public);
    return good;
}

static void steady(void)
{
    struct hsm_token *token = open_token();
    struct hsm_public_key key = room_generate(token, "steady", HSM_EC_P256);

    for (uint32_t i = 0; !page->done; i++) {
        struct hsm_request request = room_signature("steady", &key, HSM_SHA256, i);
        struct hsm_reply reply = room_execute(token, &request);

        if (reply.fault.code == FAULT_NONE && !verifies(&key, &request, &reply))
            (void)fault_set(&reply.fault, FAULT_INTERNAL, "a signature does not verify");
        if (reply.fault.code == FAULT_NONE)
            atomic_fetch_add(&page->signatures, 1);
        else
            complain(&reply.fault);
        nap(CLOCK_MILLISECOND / 2);
    }
    hsm_close(token);
}

/* ---- the test ---- */

static uint64_t chance(void)
{
    static uint64_t state;
    struct timespec now;

    if (state == 0) {
        const char *seed = getenv("HSM_KILLS_SEED");

        (void)timespec_get(&now, TIME_UTC);
        state = seed ? strtoull(seed, NULL, 10) : (uint64_t)now.tv_nsec;
        print_message("HSM_KILLS_SEED=%llu\n", (unsigned long long)state);
    }
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return state >> 33;
}

/* Logging in is first and done once; it may be over before we look. */
static bool reached(enum phase phase)
{
    enum phase now = page->phase;

    return phase == LOGIN ? now != STARTING : now == phase;
}

static bool await_phase(enum phase phase)
{
    int64_t until = clock_now() + patience;

    while (!reached(phase) && clock_now() < until)
        (void)sched_yield();
    return reached(phase);
}

/* At any time within the phase, as long as it lasted in earlier processes. */
static enum phase kill_within(enum phase phase)
{
    pid_t pid = child(busy);
    bool came = await_phase(phase);
    enum phase hit;
    int status;

    nap((int64_t)(chance() % 1000) * page->lasted[phase] / 1000);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    hit = page->phase;
    page->phase = STARTING;
    if (!came)
        fail_msg("no %s within 30 s: a lock is stuck? %s", phases[phase], page->fault.message);
    return hit;
}

/* SoftHSM writes the token's own file at every login, in place: empty for some 50 us, and for
 * ever if the process is killed just then (SoftHSM 2.6.1, objectstore.backend = file). No
 * PKCS#11 call can mend that, so the test does, and counts. */
struct token_file {
    char path[160];
    char bytes[4096];
    size_t length;
    unsigned lost;
};

static size_t token_file_read(const struct token_file *file, char *bytes, size_t room)
{
    FILE *in = fopen(file->path, "r");
    size_t length;

    softhsm_must(in != NULL, file->path);
    length = fread(bytes, 1, room, in);
    softhsm_must(fclose(in) == 0, file->path);
    return length;
}

static void token_file_keep(struct token_file *file)
{
    glob_t found;

    (void)snprintf(file->path, sizeof file->path, "%s/tokens/*/token.object", softhsm.folder);
    softhsm_must(glob(file->path, 0, NULL, &found) == 0 && found.gl_pathc == 1, file->path);
    (void)snprintf(file->path, sizeof file->path, "%s", found.gl_pathv[0]);
    globfree(&found);
    file->length = token_file_read(file, file->bytes, sizeof file->bytes);
}

static void token_file_mend(struct token_file *file)
{
    char now[sizeof file->bytes];
    FILE *out;

    if (token_file_read(file, now, sizeof now) == file->length)
        return;
    file->lost++;
    out = fopen(file->path, "w");
    softhsm_must(out && fwrite(file->bytes, 1, file->length, out) == file->length, file->path);
    softhsm_must(fclose(out) == 0, file->path);
}

static void count_signature(void)
{
    unsigned before = page->signatures;
    int64_t until = clock_now() + patience;

    while (page->signatures == before && clock_now() < until)
        nap(CLOCK_MILLISECOND);
    assert_true(page->signatures > before);
}

/* Every process that opens the token logs in, so the PIN was taken each time. */
static void kills_leave_others_their_keys_the_locks_and_the_pin(void **state)
{
    const char *many = getenv("HSM_KILLS");
    unsigned kills = many ? (unsigned)strtoul(many, NULL, 10) : KILLS;
    unsigned hits[PHASES] = {0};
    struct token_file file = {.lost = 0};
    int status;

    (void)state;
    token_file_keep(&file);
    signer = child(steady);
    count_signature();
    for (unsigned i = 0; i < kills; i++) {
        hits[kill_within(LOGIN + (enum phase)(i % (PHASES - LOGIN)))]++;
        token_file_mend(&file);
        count_signature();
        if (page->failures > 0)
            break;
    }
    page->done = true;
    assert_int_equal(waitpid(signer, &status, 0), signer);
    signer = 0;
    print_message("killed: %u logging in, %u generating, %u destroying; %u signatures\n",
                  hits[LOGIN], hits[GENERATE], hits[DESTROY], page->signatures);
    print_message("%u times no token at first; %u times SoftHSM lost it\n", page->tries, file.lost);
    if (page->failures > 0)
        fail_msg("%u failures, the first: %s", page->failures, page->fault.message);
    assert_true(hits[LOGIN] > 0 && hits[GENERATE] > 0 && hits[DESTROY] > 0);
}

static void ignore_item(void *context, const struct hsm_item *item)
{
    (void)context;
    (void)item;
}

static void what_they_leave_can_be_cleared_away(void **state)
{
    struct hsm_settings settings = room_good();
    struct hsm_token *token = room_open(&settings);
    const struct hsm_request scan = {.op = HSM_SCAN, .prefix = "sp1-"};
    struct hsm_reply reply;
    char name[16];

    (void)state;
    assert_int_equal(room_state(token, "steady"), HSM_COMPLETE);
    for (unsigned i = 0; i < OWN_KEYS; i++) {
        struct hsm_request request;

        (void)snprintf(name, sizeof name, "killed-%u", i);
        request = room_request(HSM_DESTROY, name, HSM_EC_P256);
        (void)room_must(token, &request);
        assert_int_equal(room_state(token, name), HSM_ABSENT);
        (void)room_generate(token, name, HSM_EC_P256);
    }
    hsm_execute(token, &scan, &reply, ignore_item, NULL);
    assert_int_equal(reply.fault.code, FAULT_NONE);
    print_message("objects without a name: %u\n", reply.nameless);
    hsm_close(token);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kills_leave_others_their_keys_the_locks_and_the_pin),
        cmocka_unit_test(what_they_leave_can_be_cleared_away),
    };

    return cmocka_run_group_tests_name("kills", tests, setup, teardown);
}
