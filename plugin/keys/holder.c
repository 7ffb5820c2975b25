/* Who holds a lock: the process to name in "is in use by another process". */
#include "plugin/keys/holder.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <unistd.h>

#include "hsm/base/scope.h"

enum { LINE = 256, PATH = 64, NAME = 32 };

static void close_file(FILE **file)
{
    if (*file)
        (void)fclose(*file);
}

/* Returns false if the process is gone. */
static bool name_of(pid_t pid, char name[NAME])
{
    OWNED(close_file) FILE *file = NULL;
    char path[PATH];

    (void)snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    file = fopen(path, "re");
    if (!file || !fgets(name, NAME, file))
        return false;
    name[strcspn(name, "\n")] = '\0';
    return true;
}

/* A line such as "1: FLOCK  ADVISORY  WRITE 123 08:01:456 0 EOF" says who took a lock on this file.
 * On some file systems stat() reports another device than this line, so the inode decides. Returns
 * 0 if no such process is visible. */
static pid_t taker_of(const struct stat *locked)
{
    OWNED(close_file) FILE *locks = fopen("/proc/locks", "re");
    unsigned long long inode;
    char line[LINE];
    int pid;

    while (locks && fgets(line, sizeof line, locks))
        if (sscanf(line, "%*d: FLOCK %*s %*s %d %*x:%*x:%llu", &pid, &inode) == 2 &&
            inode == locked->st_ino && pid > 0)
            return pid;
    return 0;
}

static bool has_open(const char *pid, const struct stat *file)
{
    OWNED(scope_closedir) DIR *directory = NULL;
    const struct dirent *entry;
    char path[PATH];
    struct stat its;

    (void)snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
    directory = opendir(path);
    while (directory && (entry = readdir(directory)) != NULL)
        if (fstatat(dirfd(directory), entry->d_name, &its, 0) == 0 && its.st_dev == file->st_dev &&
            its.st_ino == file->st_ino)
            return true;
    return false;
}

/* Finds a process that has the file open, among those that we may inspect (root: all). */
static pid_t opener_of(const struct stat *file)
{
    OWNED(scope_closedir) DIR *processes = opendir("/proc");
    const struct dirent *entry;

    while (processes && (entry = readdir(processes)) != NULL) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);

        if (pid > 0 && pid != getpid() && has_open(entry->d_name, file))
            return pid;
    }
    return 0;
}

void holder_of(int fd, char text[HOLDER_TEXT])
{
    char name[NAME];
    struct stat file;
    pid_t taker;
    pid_t opener;

    text[0] = '\0';
    if (fstat(fd, &file) != 0)
        return;
    taker = taker_of(&file);
    if (taker > 0 && name_of(taker, name)) {
        (void)snprintf(text, HOLDER_TEXT, " (process %d, %s)", (int)taker, name);
        return;
    }
    opener = opener_of(&file);
    if (opener > 0 && name_of(opener, name))
        (void)snprintf(text, HOLDER_TEXT, " (process %d, %s)", (int)opener, name);
    else if (taker > 0)
        (void)snprintf(text, HOLDER_TEXT,
                       " (process %d took it and has ended; a child of it must be left)",
                       (int)taker);
}
