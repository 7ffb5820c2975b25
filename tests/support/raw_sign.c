/* What the token does without us: the measure for `make bench`. One line of JSON a run.
 *
 *   raw_sign MODULE PIN sign ES256|ES384|RS256 THREADS SECONDS
 *   raw_sign MODULE PIN enumerate        every object once: class, label and id
 *   raw_sign MODULE PIN fill N           N key pairs of somebody else's (EC, fast to make)
 *
 * MODULE's first initialized token is used. The signing keys, labelled "raw ES256" and so
 * on, are token objects like the plugin's, and stay. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <p11-kit/pkcs11.h>

enum { THREADS_MAX = 256, SAMPLES_MAX = 1 << 20, SLOTS_MAX = 16, OBJECTS_MAX = 1 << 16 };

static const uint8_t p256[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
static const uint8_t p384[] = {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22};
static const uint8_t exponent[] = {0x01, 0x00, 0x01};
static const CK_ULONG modulus_bits = 2048;

static const struct operation {
    const char *name;
    CK_MECHANISM_TYPE generate;
    CK_MECHANISM_TYPE sign;
    CK_ULONG input; /* bytes: a digest; for RSA a DigestInfo with one */
    const uint8_t *curve;
    CK_ULONG curve_length;
} operations[] = {
    {"ES256", CKM_EC_KEY_PAIR_GEN, CKM_ECDSA, 32, p256, sizeof p256},
    {"ES384", CKM_EC_KEY_PAIR_GEN, CKM_ECDSA, 48, p384, sizeof p384},
    {"RS256", CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_PKCS, 51, NULL, 0},
};

struct signer {
    pthread_t thread;
    const struct operation *operation;
    CK_OBJECT_HANDLE key;
    CK_SESSION_HANDLE session;
    int64_t until;
    uint32_t *samples; /* ns */
    size_t count;
};

static CK_FUNCTION_LIST *p11;
static CK_SLOT_ID slot;
static CK_SESSION_HANDLE session;
static pthread_barrier_t start_line;

_Noreturn static void give_up(const char *what, CK_RV rv)
{
    (void)fprintf(stderr, "raw_sign: %s: %#lx\n", what, rv);
    exit(EXIT_FAILURE);
}

#define CALL(name, ...)                     \
    do {                                    \
        CK_RV rv_ = p11->name(__VA_ARGS__); \
        if (rv_ != CKR_OK)                  \
            give_up(#name, rv_);            \
    } while (0)

static int64_t now(void)
{
    struct timespec time;

    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static int64_t cpu(void)
{
    struct timespec time;

    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static CK_ATTRIBUTE attribute(CK_ATTRIBUTE_TYPE type, const void *value, CK_ULONG length)
{
    CK_ATTRIBUTE made = {.type = type, .ulValueLen = length};

    memcpy(&made.pValue, &value, sizeof value); /* PKCS#11 has no const */
    return made;
}

/* ---- the token ---- */

static void load(const char *path)
{
    CK_RV (*get)(CK_FUNCTION_LIST **) = NULL;
    CK_C_INITIALIZE_ARGS threads = {.flags = CKF_OS_LOCKING_OK};
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "C_GetFunctionList") : NULL;

    memcpy(&get, &symbol, sizeof get);
    if (!get || get(&p11) != CKR_OK)
        give_up("cannot load the module", 0);
    CALL(C_Initialize, &threads);
}

static CK_SESSION_HANDLE open_session(void)
{
    CK_SESSION_HANDLE opened;

    CALL(C_OpenSession, slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &opened);
    return opened;
}

static void log_in(const char *pin)
{
    CK_SLOT_ID slots[SLOTS_MAX];
    CK_ULONG count = SLOTS_MAX;
    CK_TOKEN_INFO info = {.flags = 0};
    CK_UTF8CHAR text[64];

    CALL(C_GetSlotList, CK_TRUE, slots, &count);
    for (CK_ULONG i = 0; i < count && (info.flags & CKF_TOKEN_INITIALIZED) == 0; i++) {
        slot = slots[i];
        CALL(C_GetTokenInfo, slot, &info);
    }
    session = open_session();
    (void)snprintf((char *)text, sizeof text, "%s", pin);
    CALL(C_Login, session, CKU_USER, text, strlen(pin));
}

static void generate(const struct operation *operation, const char *label)
{
    static const CK_BBOOL yes = CK_TRUE;
    static const CK_BBOOL no = CK_FALSE;
    CK_MECHANISM mechanism = {operation->generate, NULL, 0};
    CK_ATTRIBUTE public[] = {attribute(CKA_TOKEN, &yes, 1),
                             attribute(CKA_LABEL, label, strlen(label)),
                             attribute(CKA_ID, label, strlen(label)),
                             attribute(CKA_VERIFY, &yes, 1),
                             attribute(CKA_EC_PARAMS, operation->curve, operation->curve_length),
                             attribute(CKA_PUBLIC_EXPONENT, exponent, sizeof exponent)};
    CK_ATTRIBUTE private[] = {
        attribute(CKA_TOKEN, &yes, 1),           attribute(CKA_LABEL, label, strlen(label)),
        attribute(CKA_ID, label, strlen(label)), attribute(CKA_SIGN, &yes, 1),
        attribute(CKA_PRIVATE, &yes, 1),         attribute(CKA_SENSITIVE, &yes, 1),
        attribute(CKA_EXTRACTABLE, &no, 1)};
    CK_ULONG count = 5;
    CK_OBJECT_HANDLE made[2];

    if (!operation->curve) {
        public[4] = attribute(CKA_MODULUS_BITS, &modulus_bits, sizeof modulus_bits);
        count = 6;
    }
    CALL(C_GenerateKeyPair, session, &mechanism, public, count, private, 7, &made[0], &made[1]);
}

static bool find(const char *label, CK_OBJECT_HANDLE *key)
{
    static const CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
    CK_ATTRIBUTE wanted[] = {attribute(CKA_CLASS, &class, sizeof class),
                             attribute(CKA_LABEL, label, strlen(label))};
    CK_ULONG count = 0;

    CALL(C_FindObjectsInit, session, wanted, 2);
    CALL(C_FindObjects, session, key, 1, &count);
    CALL(C_FindObjectsFinal, session);
    return count == 1;
}

/* ---- sign ---- */

static void *sign(void *context)
{
    struct signer *signer = context;
    CK_MECHANISM mechanism = {signer->operation->sign, NULL, 0};
    CK_BYTE input[64] = {1};
    CK_BYTE signature[256];
    CK_ULONG length;
    int64_t begun;

    (void)pthread_barrier_wait(&start_line);
    for (int64_t ended = now(); ended < signer->until && signer->count < SAMPLES_MAX;) {
        begun = ended;
        length = sizeof signature;
        CALL(C_SignInit, signer->session, &mechanism, signer->key);
        CALL(C_Sign, signer->session, input, signer->operation->input, signature, &length);
        ended = now();
        signer->samples[signer->count++] = (uint32_t)(ended - begun);
    }
    return NULL;
}

static int compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a;
    uint32_t right = *(const uint32_t *)b;

    return (left > right) - (left < right);
}

static void tell(struct signer *signers, unsigned threads, int64_t took, int64_t cpu_used)
{
    size_t all = 0;
    uint32_t *samples;

    for (unsigned i = 0; i < threads; i++)
        all += signers[i].count;
    samples = calloc(all + 1, sizeof *samples);
    if (!samples || all == 0)
        give_up("nothing was signed", 0);
    all = 0;
    for (unsigned i = 0; i < threads; i++) {
        memcpy(samples + all, signers[i].samples, signers[i].count * sizeof *samples);
        all += signers[i].count;
    }
    qsort(samples, all, sizeof *samples, compare);
    (void)printf("{\"op\":\"%s\",\"threads\":%u,\"per_second\":%.1f,\"p50_us\":%.1f,"
                 "\"p99_us\":%.1f,\"cpu_us_per_op\":%.2f}\n",
                 signers->operation->name, threads, (double)all * 1e9 / (double)took,
                 samples[all / 2] / 1e3, samples[all * 99 / 100] / 1e3,
                 (double)cpu_used / 1e3 / (double)all);
    free(samples);
}

static void run_sign(const struct operation *operation, unsigned threads, double seconds)
{
    static struct signer signers[THREADS_MAX];
    char label[16];
    CK_OBJECT_HANDLE key;
    int64_t begun;
    int64_t cpu_begun;

    (void)snprintf(label, sizeof label, "raw %s", operation->name);
    if (!find(label, &key)) {
        generate(operation, label);
        if (!find(label, &key))
            give_up("key not found", 0);
    }
    (void)pthread_barrier_init(&start_line, NULL, threads + 1);
    begun = now();
    for (unsigned i = 0; i < threads; i++) {
        signers[i] = (struct signer){.operation = operation, .key = key, .session = open_session()};
        signers[i].samples = calloc(SAMPLES_MAX, sizeof *signers[i].samples);
        signers[i].until = begun + (int64_t)((seconds + 0.05) * 1e9);
        if (!signers[i].samples || pthread_create(&signers[i].thread, NULL, sign, &signers[i]) != 0)
            give_up("no memory", 0);
    }
    (void)pthread_barrier_wait(&start_line);
    begun = now();
    cpu_begun = cpu();
    for (unsigned i = 0; i < threads; i++)
        (void)pthread_join(signers[i].thread, NULL);
    tell(signers, threads, now() - begun, cpu() - cpu_begun);
    for (unsigned i = 0; i < threads; i++)
        free(signers[i].samples);
}

/* ---- enumerate, fill ---- */

static void run_enumerate(int64_t loading)
{
    static CK_OBJECT_HANDLE objects[OBJECTS_MAX];
    CK_OBJECT_CLASS class;
    CK_BYTE label[1024];
    CK_BYTE id[256];
    CK_ULONG all = 0;
    CK_ULONG more = 0;
    int64_t begun = now();
    int64_t took;

    CALL(C_FindObjectsInit, session, NULL, 0);
    do {
        CALL(C_FindObjects, session, objects + all, OBJECTS_MAX - all, &more);
        all += more;
    } while (more > 0);
    CALL(C_FindObjectsFinal, session);
    for (CK_ULONG i = 0; i < all; i++) {
        CK_ATTRIBUTE wanted[] = {{CKA_CLASS, &class, sizeof class},
                                 {CKA_LABEL, label, sizeof label},
                                 {CKA_ID, id, sizeof id}};

        CALL(C_GetAttributeValue, session, objects[i], wanted, 3);
    }
    took = now() - begun;
    (void)printf("{\"op\":\"enumerate\",\"objects\":%lu,\"enumerate_ms\":%.2f,\"whole_ms\":%.2f}\n",
                 all, (double)took / 1e6, (double)(took + loading) / 1e6);
}

static void run_fill(unsigned pairs)
{
    int64_t begun = now();
    char label[32];

    for (unsigned i = 0; i < pairs; i++) {
        (void)snprintf(label, sizeof label, "somebody else's %u", i);
        generate(&operations[0], label);
    }
    (void)printf("{\"op\":\"fill\",\"pairs\":%u,\"ms\":%.0f}\n", pairs,
                 (double)(now() - begun) / 1e6);
}

static const struct operation *operation_of(const char *name)
{
    for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++)
        if (strcmp(operations[i].name, name) == 0)
            return &operations[i];
    give_up(name, 0);
}

int main(int argc, char **argv)
{
    int64_t begun = now();
    const char *command = argc > 3 ? argv[3] : "";

    if (argc < 4) {
        (void)fprintf(stderr, "raw_sign MODULE PIN sign OPERATION THREADS SECONDS\n"
                              "raw_sign MODULE PIN enumerate\n"
                              "raw_sign MODULE PIN fill N\n");
        return EXIT_FAILURE;
    }
    load(argv[1]);
    log_in(argv[2]);
    if (strcmp(command, "sign") == 0 && argc == 7) {
        unsigned long threads = strtoul(argv[5], NULL, 10);

        if (threads == 0 || threads > THREADS_MAX)
            give_up("so many threads", threads);
        run_sign(operation_of(argv[4]), (unsigned)threads, strtod(argv[6], NULL));
    } else if (strcmp(command, "enumerate") == 0) {
        run_enumerate(now() - begun);
    } else if (strcmp(command, "fill") == 0 && argc == 5) {
        run_fill((unsigned)strtoul(argv[4], NULL, 10));
    } else {
        give_up("no such command", 0);
    }
    CALL(C_Finalize, NULL);
    return EXIT_SUCCESS;
}
