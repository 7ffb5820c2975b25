/* The steps of steps.h. */
#include "tests/support/steps.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/support/softhsm.h"

static char folder[] = "/tmp/faulty.XXXXXX";
static char module_path[512];

char script_path[64];
CK_FUNCTION_LIST *p11;
CK_SLOT_ID slot;
CK_SESSION_HANDLE session;
uint8_t pin[5] = "1234";

void script(const char *text)
{
    char name[96];
    uint64_t bell[] = {(uint64_t)getpid() << 32 | (uint64_t)clock()};
    static uint32_t rung;
    FILE *file;
    int fd;

    (void)snprintf(name, sizeof name, "%s.new", script_path);
    file = fopen(name, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
    CHECK(rename(name, script_path) == 0);
    (void)snprintf(name, sizeof name, "%s.page", script_path);
    fd = open(name, O_WRONLY | O_CREAT, 0600);
    bell[0] += ++rung;
    CHECK(fd >= 0 && pwrite(fd, bell, sizeof bell, 0) == (ssize_t)sizeof bell && close(fd) == 0);
}

int64_t milliseconds(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

void load(void)
{
    CK_RV (*get)(CK_FUNCTION_LIST **) = NULL;
    void *library = dlopen(module_path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "C_GetFunctionList") : NULL;

    memcpy(&get, &symbol, sizeof get);
    CHECK(get && get(&p11) == CKR_OK);
}

void open_session(CK_SESSION_HANDLE *opened)
{
    OK(p11->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, opened));
}

void begin(void)
{
    CK_C_INITIALIZE_ARGS threads = {.flags = CKF_OS_LOCKING_OK};
    CK_ULONG count = 4;
    CK_SLOT_ID slots[4];
    CK_TOKEN_INFO info;

    OK(p11->C_Initialize(&threads));
    OK(p11->C_GetSlotList(CK_TRUE, slots, &count));
    for (CK_ULONG i = 0; i < count; i++)
        if (p11->C_GetTokenInfo(slots[i], &info) == CKR_OK &&
            (info.flags & CKF_TOKEN_INITIALIZED) != 0)
            slot = slots[i];
    open_session(&session);
    OK(p11->C_Login(session, CKU_USER, pin, sizeof pin - 1));
}

void begin_with(const char *text)
{
    script(text);
    load();
    begin();
}

CK_RV generate_with(const char *label, const void *id, CK_ULONG id_length, CK_OBJECT_HANDLE keys[2],
                    CK_ATTRIBUTE *more)
{
    static uint8_t p256[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
    CK_MECHANISM mechanism = {CKM_EC_KEY_PAIR_GEN, NULL, 0};
    CK_BBOOL yes = CK_TRUE;
    uint8_t text[128];
    uint8_t bytes[16];
    CK_ATTRIBUTE public[] = {{CKA_TOKEN, &yes, 1},
                             {CKA_LABEL, text, strlen(label)},
                             {CKA_ID, bytes, id_length},
                             {CKA_EC_PARAMS, p256, sizeof p256},
                             {CKA_VERIFY, &yes, 1}};
    CK_ATTRIBUTE private[] = {{CKA_TOKEN, &yes, 1},
                              {CKA_LABEL, text, strlen(label)},
                              {CKA_ID, bytes, id_length},
                              {CKA_SIGN, &yes, 1},
                              {CKA_PRIVATE, &yes, 1}};

    memcpy(text, label, strlen(label));
    memcpy(bytes, id, id_length);
    if (more)
    public[4] = *more;
    return p11->C_GenerateKeyPair(session, &mechanism, public, 5, private, 5, &keys[0], &keys[1]);
}

CK_RV generate(const char *label, CK_OBJECT_HANDLE keys[2])
{
    return generate_with(label, "0123456789abcdef", 16, keys, NULL);
}

CK_RV sign_in(CK_SESSION_HANDLE where, CK_OBJECT_HANDLE key)
{
    CK_MECHANISM mechanism = {CKM_ECDSA, NULL, 0};
    uint8_t digest[32] = {1};
    uint8_t signature[64];
    CK_ULONG length = sizeof signature;
    CK_RV rv = p11->C_SignInit(where, &mechanism, key);

    return rv == CKR_OK ? p11->C_Sign(where, digest, sizeof digest, signature, &length) : rv;
}

CK_RV sign(CK_OBJECT_HANDLE key)
{
    return sign_in(session, key);
}

CK_ULONG find(const char *label)
{
    uint8_t text[128];
    CK_ATTRIBUTE by_label = {CKA_LABEL, text, strlen(label)};
    CK_OBJECT_HANDLE objects[8];
    CK_ULONG count = 0;
    CK_ULONG all = 0;

    memcpy(text, label, strlen(label));
    OK(p11->C_FindObjectsInit(session, &by_label, 1));
    do {
        OK(p11->C_FindObjects(session, objects, 8, &count));
        all += count;
    } while (count > 0);
    OK(p11->C_FindObjectsFinal(session));
    return all;
}

CK_RV get_point(CK_OBJECT_HANDLE key, uint8_t *point, CK_ULONG *length)
{
    CK_ATTRIBUTE wanted = {CKA_EC_POINT, point, *length};
    CK_RV rv = p11->C_GetAttributeValue(session, key, &wanted, 1);

    *length = wanted.ulValueLen;
    return rv;
}

int status_of(void (*step)(void))
{
    static const struct rlimit no_core = {0, 0};
    int status = 0;
    pid_t child;

    (void)fflush(NULL);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)setrlimit(RLIMIT_CORE, &no_core);
        step();
        _exit(EXIT_SUCCESS);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

void run(void (*step)(void))
{
    assert_int_equal(status_of(step), 0);
}

static void step_init(void)
{
    uint8_t so_pin[] = "5678";
    uint8_t label[32];
    CK_ULONG one = 1;

    load();
    OK(p11->C_Initialize(NULL));
    OK(p11->C_GetSlotList(CK_TRUE, &slot, &one));
    memset(label, ' ', sizeof label);
    OK(p11->C_InitToken(slot, so_pin, 4, label));
    open_session(&session);
    OK(p11->C_Login(session, CKU_SO, so_pin, 4));
    OK(p11->C_InitPIN(session, pin, 4));
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* faulty.so is built beside the folder of the tests. */
int make_token(void **state)
{
    char text[128];
    char path[64];
    ssize_t length = readlink("/proc/self/exe", module_path, sizeof module_path - 16);

    (void)state;
    assert_true(length > 0);
    module_path[length] = '\0';
    *strrchr(module_path, '/') = '\0';
    (void)strcpy(strrchr(module_path, '/'), "/faulty.so");
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/tokens", folder);
    assert_int_equal(mkdir(path, 0700), 0);
    (void)snprintf(text, sizeof text, "directories.tokendir = %s/tokens\nlog.level = ERROR\n",
                   folder);
    (void)snprintf(path, sizeof path, "%s/softhsm2.conf", folder);
    write_text(path, text);
    (void)snprintf(script_path, sizeof script_path, "%s/script", folder);
    (void)setenv("SOFTHSM2_CONF", path, 1);
    (void)setenv("FAULTY_MODULE", softhsm_library(), 1);
    (void)setenv("FAULTY_SCRIPT", script_path, 1);
    run(step_init);
    return 0;
}

int remove_token(void **state)
{
    char command[64];

    (void)state;
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}
