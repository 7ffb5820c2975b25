/* A directory of the test's own, with the path of a file in it that is to be published.
 *
 * Register tests with SCENE(): *state is then a struct scene. The file is not there yet.
 * The directory goes with the test, whatever is in it, mounts included. */
#ifndef TESTS_PUBLISH_SCENE_H
#define TESTS_PUBLISH_SCENE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plugin/bundle/publish.h"

struct scene {
    char directory[64];
    char path[96];
};

#define SCENE(test) cmocka_unit_test_setup_teardown(test, open_scene, close_scene)
int open_scene(void **state);
int close_scene(void **state);

/* Publishes the text at the scene's path, mode 0644. As publish_file(). */
int publish(const struct scene *scene, const char *text, enum publish_outcome *outcome,
            struct fault *fault);

/* It is published with this outcome, or the test fails. */
void assert_published(const struct scene *scene, const char *text, enum publish_outcome expected);

/* Removes everything in the directory that is no full folder. */
void empty(const char *directory);

/* Makes or replaces a file by hand, mode 0644. */
void write_text(const char *path, const char *text);

/* How many entries of the directory have `part` in their name. */
int count(const struct scene *scene, const char *part);

#endif
