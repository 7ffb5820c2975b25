/* A SoftHSM of a test's own: a folder with its configuration, its tokens and a PIN file,
 * gone when the test is. Every function aborts when the machine does not play along.
 *
 * HSM_PROFILE gives it the habits of another HSM: lines for faulty.so (faulty_module.c),
 * which stands before it then, as `lag 2`. */
#ifndef TESTS_SOFTHSM_H
#define TESTS_SOFTHSM_H

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

#define SOFTHSM_MODULE "/usr/lib/softhsm/libsofthsm2.so"
#define SOFTHSM_PIN "open-sesame" /* is nowhere else: tests look for it in messages */

struct softhsm {
    char folder[64];
    char pin_file[80];
};

static inline void softhsm_must(int well, const char *what)
{
    if (well)
        return;
    perror(what);
    abort();
}

static inline void softhsm_write(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    size_t length = strlen(text);

    softhsm_must(fd >= 0 && fchmod(fd, mode) == 0, path);
    softhsm_must(write(fd, text, length) == (ssize_t)length && close(fd) == 0, path);
}

static inline void softhsm_run(const char *const *arguments)
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

/* The profile's name and the number behind it, "" for SoftHSM as it is. */
static inline const char *softhsm_profile(void)
{
    const char *profile = getenv("HSM_PROFILE");

    return profile ? profile : "";
}

static inline int softhsm_is(const char *profile)
{
    return strncmp(softhsm_profile(), profile, strlen(profile)) == 0;
}

/* faulty.so is built beside the folder of the tests. */
static inline void softhsm_module(char *path, size_t size)
{
    char self[256];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);

    if (*softhsm_profile() == '\0') {
        (void)snprintf(path, size, "%s", SOFTHSM_MODULE);
        return;
    }
    softhsm_must(length > 0, "/proc/self/exe");
    self[length] = '\0';
    *strrchr(self, '/') = '\0';
    *strrchr(self, '/') = '\0';
    (void)snprintf(path, size, "%s/faulty.so", self);
}

/* These habits from the next call on, "" = none. */
static inline void softhsm_habits(const char *profile)
{
    const char *script = getenv("FAULTY_SCRIPT");
    static uint64_t rings;
    char name[96];
    char text[128];
    int fd;

    (void)snprintf(text, sizeof text, "%s%s\n", *profile ? "profile " : "", profile);
    (void)snprintf(name, sizeof name, "%s.new", script);
    softhsm_write(name, text, 0600);
    softhsm_must(rename(name, script) == 0, script);
    (void)snprintf(name, sizeof name, "%s.page", script);
    fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    rings++;
    softhsm_must(fd >= 0 && pwrite(fd, &rings, sizeof rings, 0) == (ssize_t)sizeof rings, name);
    softhsm_must(close(fd) == 0, name);
}

/* One more token, whose PIN is SOFTHSM_PIN. */
static inline void softhsm_token(const char *label)
{
    const char *const arguments[] = {"softhsm2-util", "--init-token", "--free",   "--label", label,
                                     "--pin",         SOFTHSM_PIN,    "--so-pin", "5678",    NULL};

    softhsm_run(arguments);
}

/* The folder, the configuration, a good PIN file; no token. Sets SOFTHSM2_CONF. */
static inline void softhsm_make(struct softhsm *softhsm)
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
    softhsm_must(setenv("FAULTY_MODULE", SOFTHSM_MODULE, 1) == 0, "FAULTY_MODULE");
    softhsm_must(setenv("FAULTY_SCRIPT", path, 1) == 0, "FAULTY_SCRIPT");
    softhsm_habits(softhsm_profile());
}

static inline int softhsm_remove_one(const char *path, const struct stat *about, int kind,
                                     struct FTW *place)
{
    (void)about;
    (void)kind;
    (void)place;
    return remove(path);
}

static inline void softhsm_remove(struct softhsm *softhsm)
{
    softhsm_must(nftw(softhsm->folder, softhsm_remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0,
                 softhsm->folder);
}

#endif
