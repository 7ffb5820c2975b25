/* collide.so: a PKCS#11 module around a real one (COLLIDE_MODULE) that has functions of its own
 * under names which our libraries have too, as vendors' libraries with a static OpenSSL or
 * json-c do. Before it hands out its functions it calls each and sees whether its own answers.
 * With COLLIDE_FORK it also forks a helper in C_Initialize that lives on and never calls exec,
 * as some vendors' do; the variable names a file for the helper's process id. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <p11-kit/pkcs11.h>

enum { MINE = 4711 };

#define OURS(name)   \
    int name(void);  \
    int name(void)   \
    {                \
        return MINE; \
    }

OURS(RAND_bytes)
OURS(EVP_DigestInit_ex)
OURS(EVP_PKEY_verify)
OURS(json_loads)
OURS(json_object_get)
OURS(gpr_malloc)
OURS(log_write)
OURS(frame_decode)

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST list;

static bool is_mine(const char *name, int (*function)(void))
{
    if (function() == MINE)
        return true;
    (void)fprintf(stderr, "collide.so: %s is somebody else's\n", name);
    return false;
}

#define IS_MINE(name) is_mine(#name, name)

static bool all_are_mine(void)
{
    return IS_MINE(RAND_bytes) && IS_MINE(EVP_DigestInit_ex) && IS_MINE(EVP_PKEY_verify) &&
           IS_MINE(json_loads) && IS_MINE(json_object_get) && IS_MINE(gpr_malloc) &&
           IS_MINE(log_write) && IS_MINE(frame_decode);
}

enum { OPENED = 8 };

/* What it opened before the second fork must be open behind it. */
static void be_helper(const char *path, const int opened[OPENED])
{
    FILE *file = fopen(path, "we");

    for (size_t i = 0; i < OPENED; i++)
        if (!file || fcntl(opened[i], F_GETFD) < 0)
            _exit(EXIT_FAILURE);
    (void)fprintf(file, "%d\n", (int)getpid());
    (void)fclose(file);
    for (;;)
        (void)pause();
}

/* As daemons do: the child's child. */
static void start_helper(const char *path)
{
    pid_t pid = fork();
    int opened[OPENED];

    if (pid > 0)
        (void)waitpid(pid, NULL, 0);
    if (pid != 0)
        return;
    for (size_t i = 0; i < OPENED; i++)
        opened[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fork() == 0)
        be_helper(path, opened);
    _exit(EXIT_SUCCESS);
}

static CK_RV initialize(void *args)
{
    const char *path = getenv("COLLIDE_FORK");

    if (!all_are_mine())
        return CKR_GENERAL_ERROR;
    if (path)
        start_helper(path);
    return real->C_Initialize(args);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **functions)
{
    const char *path = getenv("COLLIDE_MODULE");
    void *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    CK_C_GetFunctionList get = NULL;
    void *symbol = module ? dlsym(module, "C_GetFunctionList") : NULL;

    memcpy(&get, &symbol, sizeof get);
    if (!get || get(&real) != CKR_OK)
        return CKR_GENERAL_ERROR;
    list = *real;
    list.C_Initialize = initialize;
    *functions = &list;
    return CKR_OK;
}
