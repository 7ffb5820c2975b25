/* The folder of softhsm.h. */
#include "tests/support/softhsm.h"

#include <fcntl.h>
#include <ftw.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

void softhsm_must(bool well, const char *what)
{
    if (well)
        return;
    perror(what);
    abort();
}

void softhsm_write(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    size_t length = strlen(text);

    softhsm_must(fd >= 0 && fchmod(fd, mode) == 0, path);
    softhsm_must(write(fd, text, length) == (ssize_t)length && close(fd) == 0, path);
}

void softhsm_run(const char *const *arguments)
{
    extern char **environ;
    posix_spawn_file_actions_t quiet;
    char *copies[16] = {NULL};
    pid_t pid = 0;
    int status = -1;

    for (size_t i = 0; arguments[i] && i < 15; i++)
        copies[i] = strdup(arguments[i]);
    softhsm_must(posix_spawn_file_actions_init(&quiet) == 0, "posix_spawn");
    softhsm_must(posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0) == 0,
                 "posix_spawn");
    softhsm_must(posix_spawnp(&pid, copies[0], &quiet, NULL, copies, environ) == 0, arguments[0]);
    softhsm_must(waitpid(pid, &status, 0) == pid && status == 0, arguments[0]);
    (void)posix_spawn_file_actions_destroy(&quiet);
    for (size_t i = 0; copies[i]; i++)
        free(copies[i]);
}

const char *softhsm_library(void)
{
    const char *library = getenv("SOFTHSM2_MODULE");

    return library && *library != '\0' ? library : "/usr/lib/softhsm/libsofthsm2.so";
}

const char *softhsm_profile(void)
{
    const char *profile = getenv("HSM_PROFILE");

    return profile ? profile : "";
}

bool softhsm_is(const char *profile)
{
    return strncmp(softhsm_profile(), profile, strlen(profile)) == 0;
}

/* faulty.so is built beside the folder of the tests. */
void softhsm_faulty_module(char *path, size_t size)
{
    char self[256];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);

    softhsm_must(length > 0, "/proc/self/exe");
    self[length] = '\0';
    *strrchr(self, '/') = '\0';
    *strrchr(self, '/') = '\0';
    (void)snprintf(path, size, "%s/faulty.so", self);
}

void softhsm_module(char *path, size_t size)
{
    if (*softhsm_profile() == '\0')
        (void)snprintf(path, size, "%s", softhsm_library());
    else
        softhsm_faulty_module(path, size);
}

/* Half a script must not be read: it is replaced by rename. The write to SCRIPT.page has it
 * read again by the next call. */
void softhsm_script(const char *text)
{
    const char *script = getenv("FAULTY_SCRIPT");
    static uint64_t rings;
    char name[96];
    int fd;

    (void)snprintf(name, sizeof name, "%s.new", script);
    softhsm_write(name, text, 0600);
    softhsm_must(rename(name, script) == 0, script);
    (void)snprintf(name, sizeof name, "%s.page", script);
    fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    rings++;
    softhsm_must(fd >= 0 && pwrite(fd, &rings, sizeof rings, 0) == (ssize_t)sizeof rings, name);
    softhsm_must(close(fd) == 0, name);
}

void softhsm_habits(const char *profile)
{
    char text[128];

    (void)snprintf(text, sizeof text, "%s%s\n", *profile ? "profile " : "", profile);
    softhsm_script(text);
}

void softhsm_token(const char *label)
{
    const char *const arguments[] = {
        "softhsm2-util", "--module", softhsm_library(), "--init-token", "--free", "--label",
        label,           "--pin",    SOFTHSM_PIN,       "--so-pin",     "5678",   NULL};

    softhsm_run(arguments);
}

void softhsm_make(struct softhsm *softhsm)
{
    char path[96];
    char text[256];

    (void)snprintf(softhsm->folder, sizeof softhsm->folder, "/tmp/hsm-test-XXXXXX");
    softhsm_must(mkdtemp(softhsm->folder) != NULL, softhsm->folder);
    (void)snprintf(path, sizeof path, "%s/tokens", softhsm->folder);
    softhsm_must(mkdir(path, 0700) == 0, path);
    (void)snprintf(text, sizeof text,
                   "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n",
                   path);
    (void)snprintf(path, sizeof path, "%s/softhsm2.conf", softhsm->folder);
    softhsm_write(path, text, 0600);
    softhsm_must(setenv("SOFTHSM2_CONF", path, 1) == 0, path);
    (void)snprintf(softhsm->pin_file, sizeof softhsm->pin_file, "%s/pin", softhsm->folder);
    softhsm_write(softhsm->pin_file, SOFTHSM_PIN "\n", 0600);
    (void)snprintf(path, sizeof path, "%s/script", softhsm->folder);
    softhsm_must(setenv("FAULTY_MODULE", softhsm_library(), 1) == 0, "FAULTY_MODULE");
    softhsm_must(setenv("FAULTY_SCRIPT", path, 1) == 0, "FAULTY_SCRIPT");
    softhsm_habits(softhsm_profile());
}

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *place)
{
    (void)about;
    (void)kind;
    (void)place;
    return remove(path);
}

void softhsm_remove(struct softhsm *softhsm)
{
    softhsm_must(nftw(softhsm->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0, softhsm->folder);
}
