/* key_identifier_file and key_identifier_value: made, read, refused. */
#include "tests/support/identity_scene.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- made and read ---- */

static void a_new_identity_is_a_uuid_nobody_else_can_read(void **state)
{
    struct place *place = *state;
    struct identity identity = take(place);
    struct stat st;

    assert_false(identity.existed);
    assert_int_equal(identity.length, UUID_LENGTH);
    for (size_t i = 0; i < UUID_LENGTH; i++)
        if (i == 8 || i == 13 || i == 18 || i == 23)
            assert_int_equal(identity.bytes[i], '-');
        else
            assert_non_null(memchr("0123456789abcdef", identity.bytes[i], 16));
    assert_int_equal(identity.bytes[14], '4');
    assert_non_null(memchr("89ab", identity.bytes[19], 4));
    assert_int_equal(stat(place->config.keymanager.place.key_identifier_file, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(st.st_size, UUID_LENGTH);
    assert_int_equal(fcntl(identity.lock, F_GETFL) & O_ACCMODE, O_RDWR); /* or NFS grants no lock */
    identity_close(&identity);
    assert_int_equal(identity.lock, -1);
}

static void a_restart_finds_the_same_identity(void **state)
{
    struct identity first = take(*state);
    struct identity second;

    identity_close(&first);
    second = take(*state);
    assert_true(second.existed);
    assert_int_equal(second.length, first.length);
    assert_memory_equal(second.bytes, first.bytes, first.length);
    identity_close(&second);
}

static void one_newline_at_the_end_does_not_count(void **state)
{
    static const struct {
        const char *content;
        const char *identity;
    } files[] = {{"server-1", "server-1"},
                 {"server-1\n", "server-1"},
                 {"server-1\n\n", "server-1\n"},
                 {" server 1 \r\n", " server 1 \r"}};

    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        struct identity identity;

        put_text(*state, files[i].content);
        identity = take(*state);
        assert_is(&identity, files[i].identity);
        assert_true(identity.existed);
        identity_close(&identity);
    }
}

static void any_bytes_will_do_up_to_256(void **state)
{
    char bytes[CONFIG_IDENTITY_MAX + 1];
    struct identity identity;

    memset(bytes, 0xff, sizeof bytes);
    bytes[7] = '\0';
    put(*state, bytes, CONFIG_IDENTITY_MAX, 0600);
    identity = take(*state);
    assert_int_equal(identity.length, CONFIG_IDENTITY_MAX);
    assert_memory_equal(identity.bytes, bytes, CONFIG_IDENTITY_MAX);
    identity_close(&identity);
    bytes[CONFIG_IDENTITY_MAX] = '\n';
    put(*state, bytes, sizeof bytes, 0600);
    identity = take(*state);
    assert_int_equal(identity.length, CONFIG_IDENTITY_MAX);
    identity_close(&identity);
}

/* As on FAT. The rival, if any, has just made his file. */
static bool no_links;
static const struct place *rival;

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags)
{
    if (!no_links)
        return (int)syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
    if (rival)
        put_text(rival, "the rival's");
    errno = EPERM;
    return -1;
}

static void a_file_system_without_links_will_do(void **state)
{
    struct place *place = *state;
    struct identity made;
    struct identity found;

    no_links = true;
    made = take(place);
    assert_int_equal(made.length, UUID_LENGTH);
    assert_false(made.existed);
    identity_close(&made);
    found = take(place);
    assert_true(found.existed);
    assert_memory_equal(found.bytes, made.bytes, UUID_LENGTH);
    identity_close(&found);
    assert_int_equal(unlink(place->config.keymanager.place.key_identifier_file), 0);
    rival = place;
    found = take(place);
    assert_is(&found, "the rival's");
    assert_true(found.existed);
    identity_close(&found);
    no_links = false;
    rival = NULL;
}

/* An operator may move the right one into its place at any moment of a start. */
static void a_file_once_made_is_never_removed(void **state)
{
    struct place *place = *state;
    struct identity identity = take(place);

    assert_false(identity.existed);
    identity_close(&identity);
    identity = take(place);
    assert_true(identity.existed);
    identity_close(&identity);
}

static void a_file_that_vanished_under_a_running_server_is_written_back(void **state)
{
    struct place *place = *state;
    const char *path = place->config.keymanager.place.key_identifier_file;
    struct identity first = take(place);
    struct identity second;
    struct fault fault;

    assert_int_equal(unlink(path), 0);
    assert_int_equal(identity_open(&place->config, &first, &second, &fault), 0);
    assert_int_equal(second.length, first.length);
    assert_memory_equal(second.bytes, first.bytes, first.length);
    assert_true(second.existed);
    assert_int_equal(access(path, F_OK), 0);
    identity_close(&first);
    identity_close(&second);
}

/* ---- a value and its place ---- */

static void a_value_marks_the_keys_of_its_place(void **state)
{
    struct place *place = with_value(state);
    struct identity first = take(place);
    struct identity again;
    struct identity elsewhere;

    assert_is(&first, "server-7");
    assert_false(first.existed);
    assert_true(first.lock >= 0 && first.maker.known);
    identity_close(&first);
    again = take(place);
    assert_memory_equal(&again.maker, &first.maker, sizeof first.maker);
    identity_close(&again);
    assert_int_equal(unlink(in_memory), 0);
    elsewhere = take(place);
    assert_memory_equal(&elsewhere.scope, &first.scope, sizeof first.scope);
    assert_memory_not_equal(elsewhere.maker.key, first.maker.key, sizeof first.maker.key);
    identity_close(&elsewhere);
}

static void a_copy_of_the_file_is_another_place(void **state)
{
    struct place *place = *state;
    struct identity first = take(place);
    struct identity again;
    struct identity copied;
    char copy[96];

    assert_false(first.maker.known); /* the record has its maker */
    identity_close(&first);
    again = take(place);
    assert_string_equal(again.place, first.place);
    identity_close(&again);
    (void)snprintf(copy, sizeof copy, "%s/copy", place->folder);
    assert_int_equal(rename(place->config.keymanager.place.key_identifier_file, copy), 0);
    put_text(place, "somebody");
    copied = take(place);
    assert_string_not_equal(copied.place, first.place);
    identity_close(&copied);
    assert_int_equal(unlink(copy), 0);
}

static void assert_no_place(const struct place *place)
{
    struct identity identity = take(place);

    assert_is(&identity, "server-7");
    assert_int_equal(identity.lock, -1);
    assert_false(identity.maker.known);
    identity_close(&identity);
}

static void a_value_without_a_place_will_do(void **state)
{
    struct place *place = with_value(state);
    char target[96];

    (void)snprintf(target, sizeof target, "%s/id", place->folder);
    (void)snprintf(place->config.keymanager.place.key_identifier_file,
                   sizeof place->config.keymanager.place.key_identifier_file, "%s", target);
    put_text(place, "whose content somebody else chose");
    place->config.keymanager.place.key_identifier_file[0] = '\0';
    assert_int_equal(symlink(target, in_memory), 0);
    assert_no_place(place);
    assert_int_equal(unlink(in_memory), 0);
    assert_int_equal(rename(target, in_memory), 0);
    assert_int_equal(chmod(in_memory, 0666), 0);
    assert_no_place(place);
    assert_int_equal(unlink(in_memory), 0);
    assert_int_equal(mkdir(in_memory, 0700), 0);
    assert_no_place(place);
    assert_int_equal(rmdir(in_memory), 0);
    (void)strcpy(in_memory, "/no/such/folder");
    assert_no_place(place);
}

/* ---- refused ---- */

static void an_empty_file_is_not_an_identity(void **state)
{
    put_text(*state, "");
    assert_refused(*state, "is empty");
    put_text(*state, "\n");
    assert_refused(*state, "is empty");
}

static void more_than_256_bytes_are_refused_not_cut(void **state)
{
    char bytes[5000];

    memset(bytes, 'x', sizeof bytes);
    put(*state, bytes, CONFIG_IDENTITY_MAX + 1, 0600);
    assert_refused(*state, "more than 256 bytes");
    put(*state, bytes, sizeof bytes, 0600);
    assert_refused(*state, "more than 256 bytes");
    bytes[CONFIG_IDENTITY_MAX + 1] = '\n';
    put(*state, bytes, sizeof bytes, 0600);
    assert_refused(*state, "more than 256 bytes");
}

static void a_file_others_can_write_is_refused(void **state)
{
    put(*state, "server-1", 8, 0660);
    assert_refused(*state, "0660");
    put(*state, "server-1", 8, 0602);
    assert_refused(*state, "0602");
}

/* Whoever owns it decides which keys are ours. */
static void a_file_of_another_user_is_refused(void **state)
{
    const struct place *place = *state;

    put_text(place, "server-7");
    if (chown(place->config.keymanager.place.key_identifier_file, 4242, (gid_t)-1) != 0) {
        print_message("skipped: files cannot be given away here\n");
        skip();
    }
    assert_refused(place, "belongs to somebody else");
}

static void a_missing_folder_is_an_error_that_names_the_setting(void **state)
{
    struct place *place = *state;
    struct place lost = *place;

    (void)snprintf(lost.config.keymanager.place.key_identifier_file,
                   sizeof lost.config.keymanager.place.key_identifier_file, "%s/no/id",
                   place->folder);
    assert_refused(&lost, "key_identifier_file");
}

static void what_is_not_a_regular_file_is_refused_at_once(void **state)
{
    struct place *place = *state;
    struct place folder = *place;

    assert_int_equal(mkfifo(place->config.keymanager.place.key_identifier_file, 0600), 0);
    assert_refused(place, "not a regular file");
    (void)strcpy(folder.config.keymanager.place.key_identifier_file, place->folder);
    assert_refused(&folder, "key_identifier_file");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        AT(a_new_identity_is_a_uuid_nobody_else_can_read),
        AT(a_restart_finds_the_same_identity),
        AT(one_newline_at_the_end_does_not_count),
        AT(any_bytes_will_do_up_to_256),
        AT(a_file_system_without_links_will_do),
        AT(a_file_once_made_is_never_removed),
        AT(a_file_that_vanished_under_a_running_server_is_written_back),
        AT(a_value_marks_the_keys_of_its_place),
        AT(a_copy_of_the_file_is_another_place),
        AT(a_value_without_a_place_will_do),
        AT(an_empty_file_is_not_an_identity),
        AT(more_than_256_bytes_are_refused_not_cut),
        AT(a_file_others_can_write_is_refused),
        AT(a_file_of_another_user_is_refused),
        AT(a_missing_folder_is_an_error_that_names_the_setting),
        AT(what_is_not_a_regular_file_is_refused_at_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
