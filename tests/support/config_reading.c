/* Expectations of config_read(), as config_reading.h promises them. */
#include "tests/support/config_reading.h"

#include <stdio.h>
#include <string.h>

struct config config;
struct config_notes notes;

int read_text(enum config_kind kind, const char *text)
{
    return config_read(kind, "example.org", text, strlen(text), &config, &notes);
}

void accepted(enum config_kind kind, const char *text)
{
    if (read_text(kind, text) != 0)
        fail_msg("refused: %s", notes.notes[0].text);
    assert_int_equal(notes.errors, 0);
}

void refused(enum config_kind kind, const char *text, const char *message)
{
    if (read_text(kind, text) == 0)
        fail_msg("accepted: %s", text);
    assert_string_equal(notes.notes[0].text, message);
    assert_int_equal(notes.errors, 1);
    assert_true(notes.notes[0].error);
}

void keymanager_accepted(const char *text)
{
    char whole[4096];

    (void)snprintf(whole, sizeof whole, NEEDED "%s", text);
    accepted(CONFIG_KEYMANAGER, whole);
}

void keymanager_refused(const char *text, const char *message)
{
    char whole[4096];

    (void)snprintf(whole, sizeof whole, NEEDED "%s", text);
    refused(CONFIG_KEYMANAGER, whole, message);
}
