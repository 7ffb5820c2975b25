/* A file is whole or untouched, and a failure leaves nothing beside it. What a kill leaves is
 * for publish_crash.c. */
#include "hsm/base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/scope.h"

struct room {
    char folder[64];
    char path[96];
};

/* ---- what the system may do to us ---- */

static int folder_sync_error; /* 0 = none */
static int file_sync_error;
static int mode_error;
static int link_error;
static bool writes_are_interrupted;

int fsync(int fd)
{
    struct stat status;
    int error;

    assert_int_equal(fstat(fd, &status), 0);
    error = S_ISDIR(status.st_mode) ? folder_sync_error : file_sync_error;
    errno = error;
    return error == 0 ? (int)syscall(SYS_fsync, fd) : -1;
}

int fchmod(int fd, mode_t mode)
{
    errno = mode_error;
    return mode_error == 0 ? (int)syscall(SYS_fchmod, fd, mode) : -1;
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags)
{
    errno = link_error;
    return link_error == 0 ? (int)syscall(SYS_linkat, from_folder, from, to_folder, to, flags) : -1;
}

/* Every other one is interrupted, and the others take three bytes. */
ssize_t write(int fd, const void *bytes, size_t length)
{
    static unsigned calls;

    if (writes_are_interrupted && calls++ % 2 == 0) {
        errno = EINTR;
        return -1;
    }
    return syscall(SYS_write, fd, bytes, writes_are_interrupted && length > 3 ? 3 : length);
}

/* ---- the room ---- */

static int open_room(void **state)
{
    struct room *room = calloc(1, sizeof *room);

    (void)snprintf(room->folder, sizeof room->folder, "/tmp/file-XXXXXX");
    if (!mkdtemp(room->folder))
        return -1;
    (void)snprintf(room->path, sizeof room->path, "%s/record", room->folder);
    folder_sync_error = file_sync_error = mode_error = link_error = 0;
    writes_are_interrupted = false;
    *state = room;
    return 0;
}

/* Names in the folder. */
static unsigned count(const struct room *room)
{
    DIR *entries = opendir(room->folder);
    const struct dirent *entry;
    unsigned found = 0;

    while ((entry = readdir(entries)))
        found += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    (void)closedir(entries);
    return found;
}

static int close_room(void **state)
{
    struct room *room = *state;
    DIR *entries;
    const struct dirent *entry;

    (void)umount2(room->folder, MNT_DETACH); /* what a failed test left */
    entries = opendir(room->folder);
    while (entries && (entry = readdir(entries)))
        (void)unlinkat(dirfd(entries), entry->d_name, 0);
    (void)closedir(entries);
    (void)rmdir(room->folder);
    free(room);
    return 0;
}

static void assert_holds(const struct room *room, const char *text)
{
    char bytes[64] = "";
    int fd = open(room->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    assert_true(fd >= 0);
    assert_true(read(fd, bytes, sizeof bytes - 1) >= 0);
    (void)close(fd);
    assert_string_equal(bytes, text);
}

static mode_t mode_of(const char *path)
{
    struct stat status;

    assert_int_equal(lstat(path, &status), 0);
    return status.st_mode & 07777;
}

static void replaces(const struct room *room, const char *text)
{
    struct fault fault = {0};

    if (file_replace(room->path, text, strlen(text), 0640, &fault) != 0)
        fail_msg("not replaced: %s", fault.message);
    assert_holds(room, text);
    assert_int_equal(mode_of(room->path), 0640);
}

static void assert_told(const struct fault *fault, enum fault_code code, const char *path,
                        const char *why)
{
    assert_int_equal(fault->code, code);
    if (!strstr(fault->message, path) || !strstr(fault->message, why))
        fail_msg("\"%s\" does not say \"%s\" of %s", fault->message, why, path);
}

/* Both kinds fail, for the same reason, and leave as many names as there were. */
static void fails(const struct room *room, enum fault_code code, const char *why)
{
    unsigned before = count(room);
    struct fault fault = {0};
    bool existed = true;

    assert_int_equal(file_replace(room->path, "new", 3, 0640, &fault), -1);
    assert_told(&fault, code, room->folder, why);
    assert_int_equal(count(room), before);
    fault = (struct fault){0};
    assert_int_equal(file_make(room->path, "new", 3, 0640, &existed, &fault), -1);
    assert_told(&fault, code, room->folder, why);
    assert_true(existed);
    assert_int_equal(count(room), before);
}

/* ---- what is written ---- */

static void a_file_is_replaced_whole_and_alone(void **state)
{
    const struct room *room = *state;

    replaces(room, "one");
    replaces(room, "two, and longer");
    replaces(room, "");
    assert_int_equal(count(room), 1);
}

static void a_file_is_made_once(void **state)
{
    const struct room *room = *state;
    bool existed = true;

    assert_int_equal(file_make(room->path, "one", 3, 0600, &existed, NULL), 0);
    assert_false(existed);
    assert_int_equal(mode_of(room->path), 0600);
    assert_int_equal(file_make(room->path, "two", 3, 0600, &existed, NULL), 0);
    assert_true(existed);
    assert_holds(room, "one");
    assert_int_equal(count(room), 1);
}

/* FAT says EPERM, others that there is no such call. */
static void a_file_is_made_once_where_there_are_no_links(void **state)
{
    static const int errors[] = {EPERM, EOPNOTSUPP, ENOSYS};
    const struct room *room = *state;
    bool existed = true;

    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        link_error = errors[i];
        assert_int_equal(file_make(room->path, "one", 3, 0600, &existed, NULL), 0);
        assert_false(existed);
        assert_int_equal(file_make(room->path, "two", 3, 0600, &existed, NULL), 0);
        assert_true(existed);
        assert_holds(room, "one");
        assert_int_equal(count(room), 1);
        assert_int_equal(unlink(room->path), 0);
    }
}

static void a_link_that_fails_leaves_nothing(void **state)
{
    const struct room *room = *state;
    struct fault fault = {0};
    bool existed = true;

    link_error = EIO;
    assert_int_equal(file_make(room->path, "one", 3, 0600, &existed, &fault), -1);
    assert_told(&fault, FAULT_UNAVAILABLE, room->path, "Input/output error");
    assert_int_equal(count(room), 0);
}

static void a_signal_or_a_short_write_costs_no_byte(void **state)
{
    writes_are_interrupted = true;
    replaces(*state, "ten letters and some more");
}

static void the_mode_is_right_before_the_first_byte(void **state)
{
    static const mode_t modes[] = {0600, 0644, 0640, 0400};
    const struct room *room = *state;
    mode_t before = umask(077);

    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        OWNED(file_place_close) struct file_place place = {.folder = -1};
        OWNED(file_draft_close) struct file_draft draft = {.fd = -1};
        char path[400];

        assert_int_equal(file_place_open(room->path, &place, NULL), 0);
        assert_int_equal(file_draft_open(&place, modes[i], &draft, NULL), 0);
        (void)snprintf(path, sizeof path, "%s/%s", room->folder, draft.name);
        assert_int_equal(mode_of(path), modes[i]);
        assert_int_equal(file_draft_write(&draft, "one", 3, NULL), 0);
        assert_int_equal(access(room->path, F_OK), i == 0 ? -1 : 0);
        assert_int_equal(file_draft_replace(&draft, NULL), 0);
        assert_int_equal(mode_of(room->path), modes[i]);
    }
    (void)umask(before);
}

/* As FAT refuses fchmod: a private file needs none. */
static void a_private_file_needs_no_chmod(void **state)
{
    const struct room *room = *state;

    mode_error = EPERM;
    assert_int_equal(file_replace(room->path, "one", 3, 0600, NULL), 0);
    assert_int_equal(mode_of(room->path), 0600);
    fails(room, FAULT_FAILED_PRECONDITION, "Operation not permitted");
    assert_holds(room, "one");
}

static void a_draft_that_is_given_up_leaves_nothing(void **state)
{
    const struct room *room = *state;
    OWNED(file_place_close) struct file_place place = {.folder = -1};
    struct file_draft draft;

    replaces(room, "old");
    assert_int_equal(file_place_open(room->path, &place, NULL), 0);
    assert_int_equal(file_draft_open(&place, 0644, &draft, NULL), 0);
    assert_int_equal(file_draft_write(&draft, "new", 3, NULL), 0);
    assert_int_equal(count(room), 2);
    file_draft_close(&draft);
    assert_int_equal(count(room), 1);
    assert_holds(room, "old");
}

static void names_beside_are_never_the_same(void **state)
{
    const struct room *room = *state;
    OWNED(file_place_close) struct file_place place = {.folder = -1};
    struct file_draft drafts[8];

    assert_int_equal(file_place_open(room->path, &place, NULL), 0);
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(file_draft_open(&place, 0600, &drafts[i], NULL), 0);
    assert_int_equal(count(room), 8);
    for (size_t i = 0; i < 8; i++)
        file_draft_close(&drafts[i]);
    assert_int_equal(count(room), 0);
}

/* ---- links ---- */

static void a_link_in_the_files_place_is_not_followed(void **state)
{
    const struct room *room = *state;
    struct room target = *room;
    bool existed = false;

    (void)snprintf(target.path, sizeof target.path, "%s/target", room->folder);
    replaces(&target, "untouched");
    assert_int_equal(symlink("target", room->path), 0);
    assert_int_equal(file_make(room->path, "new", 3, 0600, &existed, NULL), 0);
    assert_true(existed);
    replaces(room, "new");
    assert_holds(&target, "untouched");
    assert_int_equal(unlink(room->path), 0);
    assert_int_equal(symlink("nowhere", room->path), 0);
    assert_int_equal(file_make(room->path, "new", 3, 0600, &existed, NULL), 0);
    assert_true(existed);
    assert_int_equal(count(room), 2);
}

/* ---- disks and folders ---- */

static void a_folder_that_cannot_be_synced_will_do(void **state)
{
    const struct room *room = *state;
    bool existed;

    folder_sync_error = EINVAL;
    replaces(room, "one");
    folder_sync_error = ENOTSUP;
    replaces(room, "two");
    assert_int_equal(unlink(room->path), 0);
    assert_int_equal(file_make(room->path, "one", 3, 0600, &existed, NULL), 0);
    assert_false(existed);
}

static void a_folder_that_fails_to_sync_is_told_of(void **state)
{
    static const int errors[] = {EIO, EROFS, ENOSPC};
    const struct room *room = *state;
    struct fault fault = {0};
    bool existed = true;

    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        folder_sync_error = errors[i];
        assert_int_equal(file_replace(room->path, "new", 3, 0600, &fault), -1);
        assert_told(&fault, FAULT_UNAVAILABLE, room->path, "cannot sync the directory of");
        assert_int_equal(unlink(room->path), 0);
        assert_int_equal(file_make(room->path, "new", 3, 0600, &existed, &fault), -1);
        assert_told(&fault, FAULT_UNAVAILABLE, room->path, "cannot sync the directory of");
        assert_true(existed);
        assert_int_equal(count(room), 1);
        assert_int_equal(unlink(room->path), 0);
    }
}

/* What may be said of a folder is a failure where the file's own bytes are concerned. */
static void bytes_that_do_not_reach_the_disk_replace_nothing(void **state)
{
    const struct room *room = *state;

    replaces(room, "old");
    file_sync_error = EIO;
    fails(room, FAULT_UNAVAILABLE, "Input/output error");
    file_sync_error = EINVAL;
    fails(room, FAULT_FAILED_PRECONDITION, "Invalid argument");
    assert_holds(room, "old");
}

static bool mount_small(const struct room *room)
{
    if (mount("file", room->folder, "tmpfs", 0, "size=64k,mode=0755") == 0)
        return true;
    print_message("skipped: no tmpfs can be mounted here: %s\n", strerror(errno));
    return false;
}

static void a_full_disk_leaves_the_old_file(void **state)
{
    static char much[100000];
    const struct room *room = *state;
    struct fault fault = {0};
    bool existed = true;

    if (!mount_small(room))
        skip();
    replaces(room, "old");
    assert_int_equal(file_replace(room->path, much, sizeof much, 0600, &fault), -1);
    assert_told(&fault, FAULT_UNAVAILABLE, room->path, "No space left on device");
    assert_holds(room, "old");
    assert_int_equal(count(room), 1);
    assert_int_equal(unlink(room->path), 0);
    assert_int_equal(file_make(room->path, much, sizeof much, 0600, &existed, &fault), -1);
    assert_told(&fault, FAULT_UNAVAILABLE, room->path, "No space left on device");
    assert_int_equal(count(room), 0);
    replaces(room, "new");
}

static void a_read_only_disk_leaves_the_old_file(void **state)
{
    const struct room *room = *state;

    if (!mount_small(room))
        skip();
    replaces(room, "old");
    assert_int_equal(mount("", room->folder, "", MS_REMOUNT | MS_RDONLY, ""), 0);
    fails(room, FAULT_UNAVAILABLE, "Read-only file system");
    assert_holds(room, "old");
}

static bool is_refused_to_another_user(const struct room *room)
{
    struct fault fault = {0};
    bool existed;

    if (geteuid() == 0 && setresuid(12345, 12345, 12345) != 0)
        return false;
    return file_replace(room->path, "new", 3, 0600, &fault) != 0 &&
           fault.code == FAULT_FAILED_PRECONDITION && strstr(fault.message, "Permission denied") &&
           file_make(room->path, "new", 3, 0600, &existed, NULL) != 0;
}

/* Root may write anywhere, so a child gives that up. */
static void a_folder_that_may_not_be_written_is_told_of(void **state)
{
    const struct room *room = *state;
    pid_t child;
    int status;

    replaces(room, "old");
    assert_int_equal(chmod(room->folder, 0555), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(is_refused_to_another_user(room) ? 0 : 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(chmod(room->folder, 0755), 0);
    assert_holds(room, "old");
    assert_int_equal(count(room), 1);
}

static void a_missing_folder_is_named(void **state)
{
    const struct room *room = *state;
    struct room gone = *room;
    struct fault fault = {0};
    bool existed = true;

    (void)strcat(gone.folder, "/gone");
    (void)snprintf(gone.path, sizeof gone.path, "%s/record", gone.folder);
    assert_int_equal(file_replace(gone.path, "new", 3, 0600, &fault), -1);
    assert_told(&fault, FAULT_FAILED_PRECONDITION, gone.folder, "No such file or directory");
    assert_int_equal(file_make(gone.path, "new", 3, 0600, &existed, &fault), -1);
    assert_told(&fault, FAULT_FAILED_PRECONDITION, gone.folder, "No such file or directory");
    assert_true(existed);
}

static void a_folder_in_the_files_place_stays(void **state)
{
    const struct room *room = *state;
    struct fault fault = {0};

    assert_int_equal(mkdir(room->path, 0755), 0);
    assert_int_equal(file_replace(room->path, "new", 3, 0600, &fault), -1);
    assert_told(&fault, FAULT_FAILED_PRECONDITION, room->path, "Is a directory");
    assert_int_equal(count(room), 1);
    assert_int_equal(rmdir(room->path), 0);
}

static void a_path_that_names_no_file_is_refused(void **state)
{
    static const char *const paths[] = {"",      "record", "a/record", "/",
                                        "/tmp/", "/tmp/.", "/tmp/.."};
    char longest[NAME_MAX + 8];
    bool existed;

    (void)state;
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        assert_int_equal(file_replace(paths[i], "", 0, 0600, NULL), -1);
        assert_int_equal(file_make(paths[i], "", 0, 0600, &existed, NULL), -1);
    }
    (void)snprintf(longest, sizeof longest, "/tmp/%0240d", 0);
    assert_int_equal(file_replace(longest, "", 0, 0600, NULL), -1);
}

static unsigned open_files(void)
{
    DIR *entries = opendir("/proc/self/fd");
    unsigned found = 0;

    while (readdir(entries))
        found++;
    (void)closedir(entries);
    return found;
}

static void no_descriptor_is_left_open(void **state)
{
    const struct room *room = *state;
    unsigned before = open_files();
    bool existed;

    replaces(room, "one");
    assert_int_equal(file_make(room->path, "two", 3, 0600, &existed, NULL), 0);
    file_sync_error = EIO;
    fails(room, FAULT_UNAVAILABLE, "Input/output error");
    mode_error = EPERM;
    fails(room, FAULT_FAILED_PRECONDITION, "Operation not permitted");
    assert_int_equal(open_files(), before);
}

#define IN_A_ROOM(test) cmocka_unit_test_setup_teardown(test, open_room, close_room)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_ROOM(a_file_is_replaced_whole_and_alone),
        IN_A_ROOM(a_file_is_made_once),
        IN_A_ROOM(a_file_is_made_once_where_there_are_no_links),
        IN_A_ROOM(a_link_that_fails_leaves_nothing),
        IN_A_ROOM(a_signal_or_a_short_write_costs_no_byte),
        IN_A_ROOM(the_mode_is_right_before_the_first_byte),
        IN_A_ROOM(a_private_file_needs_no_chmod),
        IN_A_ROOM(a_draft_that_is_given_up_leaves_nothing),
        IN_A_ROOM(names_beside_are_never_the_same),
        IN_A_ROOM(a_link_in_the_files_place_is_not_followed),
        IN_A_ROOM(a_folder_that_cannot_be_synced_will_do),
        IN_A_ROOM(a_folder_that_fails_to_sync_is_told_of),
        IN_A_ROOM(bytes_that_do_not_reach_the_disk_replace_nothing),
        IN_A_ROOM(a_full_disk_leaves_the_old_file),
        IN_A_ROOM(a_read_only_disk_leaves_the_old_file),
        IN_A_ROOM(a_folder_that_may_not_be_written_is_told_of),
        IN_A_ROOM(a_missing_folder_is_named),
        IN_A_ROOM(a_folder_in_the_files_place_stays),
        IN_A_ROOM(a_path_that_names_no_file_is_refused),
        IN_A_ROOM(no_descriptor_is_left_open),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
