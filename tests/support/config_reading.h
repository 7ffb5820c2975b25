/* For the tests of plugin_data: reads a text, and says what is expected of it.
 *
 * Every function reads `text` for a plugin of that kind in trust domain example.org. What was
 * read is in `config` and `notes` afterwards, until the next call. */
#ifndef TESTS_CONFIG_READING_H
#define TESTS_CONFIG_READING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plugin/config/config.h"

/* The three lines that a KeyManager cannot do without. */
#define NEEDED "module = \"m\"\ntoken = \"pkcs11:\"\nkey_identifier_value = \"x\"\n"

extern struct config config;
extern struct config_notes notes;

/* 0, or -1 if there were errors. Nothing is expected yet. */
int read_text(enum config_kind kind, const char *text);

/* It is read without an error, or the test fails. */
void accepted(enum config_kind kind, const char *text);

/* There is one error, and `message` is all of it, or the test fails. */
void refused(enum config_kind kind, const char *text, const char *message);

/* The same for a KeyManager, with `text` behind NEEDED: it begins in line 4. */
void keymanager_accepted(const char *text);
void keymanager_refused(const char *text, const char *message);

#endif
