/* For the tests of config.c: reads a text, and says what is expected of it. */
#ifndef TESTS_CONFIG_READING_H
#define TESTS_CONFIG_READING_H

#include "plugin/config/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define NEEDED "module = \"m\"\ntoken = \"pkcs11:\"\nkey_identifier_value = \"x\"\n"

static struct config config;
static struct config_notes notes;

static inline int read_text(enum config_kind kind, const char *text)
{
    return config_read(kind, "example.org", text, strlen(text), &config, &notes);
}

static inline void accepted(enum config_kind kind, const char *text)
{
    if (read_text(kind, text) != 0)
        fail_msg("refused: %s", notes.notes[0].text);
    assert_int_equal(notes.errors, 0);
}

/* One complaint, and this. */
static inline void refused(enum config_kind kind, const char *text, const char *message)
{
    if (read_text(kind, text) == 0)
        fail_msg("accepted: %s", text);
    assert_string_equal(notes.notes[0].text, message);
    assert_int_equal(notes.errors, 1);
    assert_true(notes.notes[0].error);
}

/* `text` behind what a KeyManager cannot do without, so it begins in line 4. */
static inline void keymanager_accepted(const char *text)
{
    char whole[4096];

    (void)snprintf(whole, sizeof whole, NEEDED "%s", text);
    accepted(CONFIG_KEYMANAGER, whole);
}

static inline void keymanager_refused(const char *text, const char *message)
{
    char whole[4096];

    (void)snprintf(whole, sizeof whole, NEEDED "%s", text);
    refused(CONFIG_KEYMANAGER, whole, message);
}

#endif
