/* The directory of publish_scene.h. */
#include "tests/support/publish_scene.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

int open_scene(void **state)
{
    struct scene *scene = calloc(1, sizeof *scene);

    (void)snprintf(scene->directory, sizeof scene->directory, "/tmp/publish-XXXXXX");
    if (!mkdtemp(scene->directory))
        return -1;
    (void)snprintf(scene->path, sizeof scene->path, "%s/bundle.json", scene->directory);
    *state = scene;
    return 0;
}

void empty(const char *directory)
{
    DIR *entries = opendir(directory);
    const struct dirent *entry;

    while (entries && (entry = readdir(entries)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)(unlinkat(dirfd(entries), entry->d_name, 0) != 0 &&
                   unlinkat(dirfd(entries), entry->d_name, AT_REMOVEDIR) != 0);
    if (entries)
        (void)closedir(entries);
}

int close_scene(void **state)
{
    struct scene *scene = *state;

    (void)umount2(scene->directory, MNT_DETACH); /* what a failed test left */
    empty(scene->directory);
    (void)rmdir(scene->directory);
    free(scene);
    return 0;
}

int publish(const struct scene *scene, const char *text, enum publish_outcome *outcome,
            struct fault *fault)
{
    const struct publish job = {
        .path = scene->path, .bytes = text, .length = strlen(text), .mode = 0644};

    return publish_file(&job, outcome, fault);
}

void assert_published(const struct scene *scene, const char *text, enum publish_outcome expected)
{
    enum publish_outcome outcome = PUBLISH_KEPT;
    struct fault fault = {0};

    if (publish(scene, text, &outcome, &fault) != 0)
        fail_msg("not published: %s", fault.message);
    assert_int_equal(outcome, expected);
}

void write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    (void)close(fd);
}

int count(const struct scene *scene, const char *part)
{
    DIR *entries = opendir(scene->directory);
    const struct dirent *entry;
    int found = 0;

    while ((entry = readdir(entries)))
        if (strstr(entry->d_name, part))
            found++;
    (void)closedir(entries);
    return found;
}
