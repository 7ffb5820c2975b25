/* When the file is written and when it is not, and that a failure leaves the old one. */
#include "plugin/bundle/publish.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/seccomp.h>

#include "hsm/base/clock.h"
#include "tests/support/publish_scene.h"

static void assert_failed(const struct scene *scene, enum fault_code code, const char *why)
{
    enum publish_outcome outcome = PUBLISH_KEPT;
    struct fault fault = {0};

    assert_int_equal(publish(scene, "new", &outcome, &fault), -1);
    assert_int_equal(outcome, PUBLISH_KEPT);
    assert_int_equal(fault.code, code);
    if (!strstr(fault.message, why) || !strstr(fault.message, scene->directory))
        fail_msg("\"%s\" does not say \"%s\" and where", fault.message, why);
}

static void assert_holds(const struct scene *scene, const char *text)
{
    char bytes[256] = "";
    int fd = open(scene->path, O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_true(read(fd, bytes, sizeof bytes - 1) >= 0);
    (void)close(fd);
    assert_string_equal(bytes, text);
}

static ino_t inode(const struct scene *scene)
{
    struct stat status;

    assert_int_equal(stat(scene->path, &status), 0);
    return status.st_ino;
}

static int open_files(void)
{
    DIR *entries = opendir("/proc/self/fd");
    int found = 0;

    while (readdir(entries))
        found++;
    (void)closedir(entries);
    return found;
}

/* ---- what is written, and when ---- */

static void a_new_file_has_the_bytes_and_the_mode(void **state)
{
    const struct scene *scene = *state;
    struct stat status;
    mode_t before = umask(077);

    assert_published(scene, "one", PUBLISH_WRITTEN);
    (void)umask(before);
    assert_holds(scene, "one");
    assert_int_equal(stat(scene->path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0644);
    assert_int_equal(count(scene, ".tmp-"), 0);
}

static void unchanged_content_is_not_rewritten(void **state)
{
    const struct scene *scene = *state;
    ino_t first;

    assert_published(scene, "one", PUBLISH_WRITTEN);
    first = inode(scene);
    assert_published(scene, "one", PUBLISH_UNCHANGED);
    assert_int_equal(inode(scene), first);
    assert_published(scene, "two", PUBLISH_WRITTEN);
    assert_holds(scene, "two");
}

static void a_deleted_damaged_or_locked_away_file_is_repaired(void **state)
{
    const struct scene *scene = *state;

    assert_published(scene, "one", PUBLISH_WRITTEN);
    assert_int_equal(unlink(scene->path), 0);
    assert_published(scene, "one", PUBLISH_WRITTEN);
    write_text(scene->path, "on");
    assert_published(scene, "one", PUBLISH_WRITTEN);
    write_text(scene->path, "");
    assert_published(scene, "one", PUBLISH_WRITTEN);
    assert_int_equal(chmod(scene->path, 0600), 0);
    assert_published(scene, "one", PUBLISH_WRITTEN);
    assert_published(scene, "one", PUBLISH_UNCHANGED);
}

static void lock_path(const struct scene *scene, char *path, size_t size)
{
    (void)snprintf(path, size, "%s/.bundle.json.lock", scene->directory);
}

struct judge {
    int asked;
    bool keeps;
    char seen[64];
    uint64_t number;
};

static bool keep(void *context, const char *bytes, size_t length, uint64_t number)
{
    struct judge *judge = context;

    judge->asked++;
    assert_int_equal(strlen(bytes), length);
    (void)snprintf(judge->seen, sizeof judge->seen, "%s", bytes);
    judge->number = number;
    return judge->keeps;
}

static int refuse(void *context, const char *bytes, size_t length, struct fault *fault)
{
    (void)context;
    (void)bytes;
    (void)length;
    return fault_set(fault, FAULT_INVALID_ARGUMENT, "checked");
}

static void a_newer_file_is_kept(void **state)
{
    const struct scene *scene = *state;
    struct judge judge = {.keeps = true};
    struct publish job = {.path = scene->path,
                          .bytes = "old",
                          .length = 3,
                          .mode = 0644,
                          .keep = keep,
                          .context = &judge};
    enum publish_outcome outcome;

    assert_int_equal(publish_file(&job, &outcome, NULL), 0);
    assert_int_equal(outcome, PUBLISH_WRITTEN);
    assert_int_equal(judge.asked, 0);
    write_text(scene->path, "newer");
    assert_int_equal(publish_file(&job, &outcome, NULL), 0);
    assert_int_equal(outcome, PUBLISH_KEPT);
    assert_string_equal(judge.seen, "newer");
    assert_holds(scene, "newer");
    judge.keeps = false;
    assert_int_equal(publish_file(&job, &outcome, NULL), 0);
    assert_int_equal(outcome, PUBLISH_WRITTEN);
}

/* Whoever publishes next is told, a shorter number after a longer one, too; and of nonsense in its
 * place nothing. */
static void the_number_is_kept_in_the_lock_file(void **state)
{
    static const uint64_t numbers[] = {1, UINT64_MAX, 12, 7};
    static const char *const nonsense[] = {"", "x7\n", "7", "-7\n", "99999999999999999999\n"};
    const struct scene *scene = *state;
    struct judge judge = {.keeps = false};
    struct publish job = {
        .path = scene->path, .length = 1, .mode = 0644, .keep = keep, .context = &judge};
    enum publish_outcome outcome;
    char path[96];

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        job.number = numbers[i];
        job.bytes = i % 2 == 0 ? "a" : "b";
        assert_int_equal(publish_file(&job, &outcome, NULL), 0);
        assert_int_equal(outcome, PUBLISH_WRITTEN);
        assert_int_equal(judge.number, i > 0 ? numbers[i - 1] : 0);
    }
    lock_path(scene, path, sizeof path);
    for (size_t i = 0; i < sizeof nonsense / sizeof nonsense[0]; i++) {
        write_text(path, nonsense[i]);
        job.bytes = i % 2 == 0 ? "a" : "b";
        assert_int_equal(publish_file(&job, &outcome, NULL), 0);
        assert_int_equal(judge.number, 0);
    }
}

static void bytes_that_read_back_badly_do_not_replace_the_file(void **state)
{
    const struct scene *scene = *state;
    const struct publish job = {
        .path = scene->path, .bytes = "bad", .length = 3, .mode = 0644, .check = refuse};
    enum publish_outcome outcome;
    struct fault fault;

    assert_published(scene, "good", PUBLISH_WRITTEN);
    assert_int_equal(publish_file(&job, &outcome, &fault), -1);
    assert_string_equal(fault.message, "checked");
    assert_holds(scene, "good");
    assert_int_equal(count(scene, ".tmp-"), 0);
}

/* ---- what is refused ---- */

static void a_target_that_is_no_file_is_refused(void **state)
{
    const struct scene *scene = *state;
    char other[96];
    struct stat status;

    assert_int_equal(mkdir(scene->path, 0755), 0);
    assert_failed(scene, FAULT_FAILED_PRECONDITION, "is a directory");
    assert_int_equal(publish_check(scene->path, NULL), -1);
    assert_int_equal(rmdir(scene->path), 0);

    (void)snprintf(other, sizeof other, "%s/other", scene->directory);
    write_text(other, "untouched");
    assert_int_equal(symlink("other", scene->path), 0);
    assert_failed(scene, FAULT_FAILED_PRECONDITION, "is a symbolic link");
    assert_int_equal(publish_check(scene->path, NULL), -1);
    assert_int_equal(lstat(scene->path, &status), 0);
    assert_true(S_ISLNK(status.st_mode));
    assert_int_equal(unlink(scene->path), 0);

    assert_int_equal(mkfifo(scene->path, 0644), 0);
    assert_failed(scene, FAULT_FAILED_PRECONDITION, "pipe");
    assert_int_equal(unlink(scene->path), 0);
    assert_int_equal(count(scene, ".tmp-"), 0);
    assert_published(scene, "one", PUBLISH_WRITTEN);
}

static void a_missing_directory_is_named(void **state)
{
    struct scene gone = *(const struct scene *)*state;
    struct fault fault;

    (void)strcat(gone.directory, "/gone");
    (void)snprintf(gone.path, sizeof gone.path, "%s/b", gone.directory);
    assert_failed(&gone, FAULT_FAILED_PRECONDITION, "No such file or directory");
    assert_int_equal(publish_check(gone.path, &fault), -1);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    assert_non_null(strstr(fault.message, gone.directory));
    assert_int_equal(mkdir(gone.directory, 0755), 0);
    assert_published(&gone, "one", PUBLISH_WRITTEN);
    empty(gone.directory);
}

/* As docker -v FILE:FILE and Kubernetes' subPath make it. No rename gets there. */
static void a_file_that_is_a_mount_is_refused_at_once(void **state)
{
    const struct scene *scene = *state;
    char source[96];
    struct fault fault;
    int checked;

    (void)snprintf(source, sizeof source, "%s/source", scene->directory);
    write_text(source, "old");
    write_text(scene->path, "");
    assert_int_equal(publish_check(scene->path, NULL), 0);
    if (mount(source, scene->path, "", MS_BIND, "") != 0) {
        print_message("skipped: nothing can be mounted here: %s\n", strerror(errno));
        skip();
    }
    checked = publish_check(scene->path, &fault);
    assert_failed(scene, FAULT_FAILED_PRECONDITION, "mount its folder");
    assert_int_equal(umount(scene->path), 0);
    assert_int_equal(checked, -1);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    assert_non_null(strstr(fault.message, "mount its folder"));
    assert_int_equal(publish_check(scene->path, NULL), 0);
}

/* Every system call in `numbers` fails with `error` from now on. */
static void forbid(const unsigned numbers[2], unsigned error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, numbers[0], 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, numbers[1], 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(2);
}

/* Container runtimes answer so for system calls that are newer than they are. */
static void a_look_ahead_that_is_forbidden_is_no_answer(void **state)
{
    static const unsigned looks[] = {SYS_faccessat2, SYS_statx};
    static const unsigned errors[] = {EPERM, ENOSYS};
    const struct scene *scene = *state;

    write_text(scene->path, "old");
    for (size_t i = 0; i < 2; i++) {
        int status = 0;
        pid_t pid = fork();

        if (pid == 0) {
            forbid(looks, errors[i]);
            _exit(publish_check(scene->path, NULL) != 0);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
    }
}

static void paths_that_name_no_file_are_refused(void **state)
{
    static const char *const paths[] = {"", "relative", "/tmp/", "/", "/tmp/.", "/tmp/.."};
    char longest[400];

    (void)state;
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
        assert_int_equal(publish_check(paths[i], NULL), -1);
    (void)snprintf(longest, sizeof longest, "/tmp/%0240d", 0);
    assert_int_equal(publish_check(longest, NULL), -1);
    assert_int_equal(publish_check("/tmp/bundle", NULL), 0);
}

static void looking_leaves_nothing_behind(void **state)
{
    const struct scene *scene = *state;

    assert_int_equal(publish_check(scene->path, NULL), 0);
    assert_int_equal(count(scene, "bundle"), 0);
}

/* ---- the lock ---- */

static void a_lock_held_elsewhere_is_waited_for_but_not_for_ever(void **state)
{
    const struct scene *scene = *state;
    int64_t start = clock_now();
    char path[96];
    int fd;

    assert_published(scene, "old", PUBLISH_WRITTEN);
    lock_path(scene, path, sizeof path);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_failed(scene, FAULT_UNAVAILABLE, "lock");
    assert_true(clock_now() - start >= 5 * CLOCK_SECOND);
    assert_holds(scene, "old");
    (void)close(fd);
    assert_published(scene, "new", PUBLISH_WRITTEN);
}

/* The flags of our open file of that path, or -1. */
static int flags_of(const char *path)
{
    DIR *entries = opendir("/proc/self/fd");
    const struct dirent *entry;
    char target[PATH_MAX];
    int flags = -1;

    while ((entry = readdir(entries))) {
        ssize_t length = readlinkat(dirfd(entries), entry->d_name, target, sizeof target - 1);

        if (length <= 0)
            continue;
        target[length] = '\0';
        if (strcmp(target, path) == 0)
            flags = fcntl(atoi(entry->d_name), F_GETFL);
    }
    (void)closedir(entries);
    return flags;
}

struct lock_seen {
    const char *path;
    int flags;
};

static int note_flags(void *context, const char *bytes, size_t length, struct fault *fault)
{
    struct lock_seen *lock = context;

    (void)bytes;
    (void)length;
    (void)fault;
    lock->flags = flags_of(lock->path);
    return 0;
}

static void the_lock_is_one_that_nfs_grants(void **state)
{
    const struct scene *scene = *state;
    char path[96];
    struct lock_seen lock = {path, -1};
    const struct publish job = {.path = scene->path,
                                .bytes = "one",
                                .length = 3,
                                .mode = 0644,
                                .check = note_flags,
                                .context = &lock};
    enum publish_outcome outcome;
    struct fault fault;

    lock_path(scene, path, sizeof path);
    assert_int_equal(publish_file(&job, &outcome, &fault), 0);
    assert_true(lock.flags >= 0);
    assert_int_equal(lock.flags & O_ACCMODE, O_RDWR);
}

static void a_lock_file_that_is_something_else_is_refused(void **state)
{
    const struct scene *scene = *state;
    struct stat status;
    char path[96];

    lock_path(scene, path, sizeof path);
    assert_int_equal(symlink("/tmp/publish-must-not-be-made", path), 0);
    assert_failed(scene, FAULT_FAILED_PRECONDITION, "lock file");
    assert_int_equal(access("/tmp/publish-must-not-be-made", F_OK), -1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_failed(scene, FAULT_FAILED_PRECONDITION, "lock file");
    assert_int_equal(unlink(path), 0);
    assert_published(scene, "one", PUBLISH_WRITTEN);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
}

static void a_lock_file_of_another_user_is_refused(void **state)
{
    const struct scene *scene = *state;
    char path[96];

    if (geteuid() != 0) {
        print_message("skipped: only root can make another user's file\n");
        skip();
    }
    lock_path(scene, path, sizeof path);
    write_text(path, "");
    assert_int_equal(chown(path, 12345, 12345), 0);
    assert_failed(scene, FAULT_FAILED_PRECONDITION, "not a file of this user");
}

/* ---- disks ---- */

/* A small file system of the test's own, or none (and says why). */
static bool mount_small(const struct scene *scene)
{
    if (mount("publish", scene->directory, "tmpfs", 0, "size=64k,mode=0755") == 0)
        return true;
    print_message("skipped: no tmpfs can be mounted here: %s\n", strerror(errno));
    return false;
}

static void fill_disk(const struct scene *scene)
{
    static const char zeros[4096];
    char path[96];
    int fd;

    (void)snprintf(path, sizeof path, "%s/filler", scene->directory);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    while (write(fd, zeros, sizeof zeros) > 0)
        continue;
    assert_int_equal(errno, ENOSPC);
    (void)close(fd);
}

static void a_full_disk_leaves_the_old_file(void **state)
{
    const struct scene *scene = *state;
    char filler[96];

    if (!mount_small(scene))
        skip();
    assert_published(scene, "old", PUBLISH_WRITTEN);
    fill_disk(scene);
    assert_failed(scene, FAULT_UNAVAILABLE, "No space left on device");
    assert_holds(scene, "old");
    assert_int_equal(count(scene, ".tmp-"), 0);
    assert_published(scene, "old", PUBLISH_UNCHANGED);
    (void)snprintf(filler, sizeof filler, "%s/filler", scene->directory);
    assert_int_equal(unlink(filler), 0);
    assert_published(scene, "new", PUBLISH_WRITTEN);
}

static void a_read_only_disk_leaves_the_old_file(void **state)
{
    const struct scene *scene = *state;
    struct fault fault;

    if (!mount_small(scene))
        skip();
    assert_published(scene, "old", PUBLISH_WRITTEN);
    assert_int_equal(mount("", scene->directory, "", MS_REMOUNT | MS_RDONLY, ""), 0);
    assert_failed(scene, FAULT_UNAVAILABLE, "Read-only file system");
    assert_int_equal(publish_check(scene->path, &fault), -1);
    assert_int_equal(fault.code, FAULT_UNAVAILABLE);
    assert_published(scene, "old", PUBLISH_UNCHANGED);
    assert_int_equal(mount("", scene->directory, "", MS_REMOUNT, "size=64k"), 0);
    assert_published(scene, "new", PUBLISH_WRITTEN);
}

static void a_directory_that_may_not_be_written_is_refused(void **state)
{
    const struct scene *scene = *state;
    pid_t child;
    int status;

    if (geteuid() != 0) {
        assert_int_equal(chmod(scene->directory, 0555), 0);
        assert_int_equal(publish_check(scene->path, NULL), -1);
        assert_int_equal(chmod(scene->directory, 0755), 0);
        return;
    }
    assert_int_equal(chmod(scene->directory, 0755), 0);
    child = fork();
    if (child == 0) {
        struct fault fault = {0};

        _exit(setresuid(12345, 12345, 12345) == 0 && publish_check(scene->path, &fault) != 0 &&
                      fault.code == FAULT_FAILED_PRECONDITION
                  ? 0
                  : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void no_descriptor_is_left_open(void **state)
{
    const struct scene *scene = *state;
    enum publish_outcome outcome;
    int before;

    assert_published(scene, "one", PUBLISH_WRITTEN);
    before = open_files();
    assert_published(scene, "two", PUBLISH_WRITTEN);
    assert_published(scene, "two", PUBLISH_UNCHANGED);
    assert_int_equal(unlink(scene->path), 0);
    assert_int_equal(mkdir(scene->path, 0755), 0);
    assert_int_equal(publish(scene, "two", &outcome, NULL), -1);
    assert_int_equal(open_files(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCENE(a_new_file_has_the_bytes_and_the_mode),
        SCENE(unchanged_content_is_not_rewritten),
        SCENE(a_deleted_damaged_or_locked_away_file_is_repaired),
        SCENE(a_newer_file_is_kept),
        SCENE(the_number_is_kept_in_the_lock_file),
        SCENE(bytes_that_read_back_badly_do_not_replace_the_file),
        SCENE(a_target_that_is_no_file_is_refused),
        SCENE(a_missing_directory_is_named),
        SCENE(a_file_that_is_a_mount_is_refused_at_once),
        SCENE(a_look_ahead_that_is_forbidden_is_no_answer),
        SCENE(paths_that_name_no_file_are_refused),
        SCENE(looking_leaves_nothing_behind),
        SCENE(a_lock_held_elsewhere_is_waited_for_but_not_for_ever),
        SCENE(the_lock_is_one_that_nfs_grants),
        SCENE(a_lock_file_that_is_something_else_is_refused),
        SCENE(a_lock_file_of_another_user_is_refused),
        SCENE(a_full_disk_leaves_the_old_file),
        SCENE(a_read_only_disk_leaves_the_old_file),
        SCENE(a_directory_that_may_not_be_written_is_refused),
        SCENE(no_descriptor_is_left_open),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
