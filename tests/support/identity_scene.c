/* The folder of identity_scene.h, and the stand-in for plugin/keys/identity_place.c. */
#include "tests/support/identity_scene.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char in_memory[IDENTITY_PLACE_MAX];

void identity_place(const struct label_scope *scope, char path[IDENTITY_PLACE_MAX])
{
    (void)scope;
    memcpy(path, in_memory, sizeof in_memory);
}

int make_place(void **state)
{
    struct place *place = calloc(1, sizeof *place);

    (void)snprintf(place->folder, sizeof place->folder, "/tmp/identity-XXXXXX");
    if (!mkdtemp(place->folder))
        return -1;
    (void)snprintf(place->config.keymanager.place.key_identifier_file,
                   sizeof place->config.keymanager.place.key_identifier_file, "%s/id",
                   place->folder);
    (void)snprintf(place->config.trust_domain, sizeof place->config.trust_domain, "example.org");
    (void)snprintf(in_memory, sizeof in_memory, "%.40s/memory", place->folder);
    *state = place;
    return 0;
}

int remove_place(void **state)
{
    struct place *place = *state;

    (void)unlink(place->config.keymanager.place.key_identifier_file);
    (void)unlink(in_memory);
    if (rmdir(place->folder) != 0) /* nothing else is left in it, no temporary file either */
        return -1;
    free(place);
    return 0;
}

void put(const struct place *place, const void *bytes, size_t length, mode_t mode)
{
    int fd = open(place->config.keymanager.place.key_identifier_file, O_WRONLY | O_CREAT | O_TRUNC,
                  0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, length), (ssize_t)length);
    assert_int_equal(fchmod(fd, mode), 0);
    (void)close(fd);
}

void put_text(const struct place *place, const char *text)
{
    put(place, text, strlen(text), 0600);
}

struct identity take(const struct place *place)
{
    struct identity identity;

    assert_int_equal(identity_open(&place->config, NULL, &identity, NULL), 0);
    return identity;
}

void assert_is(const struct identity *identity, const char *text)
{
    assert_int_equal(identity->length, strlen(text));
    assert_memory_equal(identity->bytes, text, identity->length);
}

void assert_refused(const struct place *place, const char *why)
{
    struct identity identity = {.lock = 77};
    struct fault fault = {.code = FAULT_NONE};

    assert_int_equal(identity_open(&place->config, NULL, &identity, &fault), -1);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    assert_non_null(strstr(fault.message, why));
    assert_non_null(strstr(fault.message, place->config.keymanager.place.key_identifier_file));
    assert_int_equal(identity.lock, 77);
}

struct place *with_value(void **state)
{
    struct place *place = *state;

    place->config.keymanager.place.key_identifier_file[0] = '\0';
    (void)strcpy(place->config.keymanager.place.key_identifier_value, "server-7");
    return place;
}
