/* A SoftHSM of a test's own: a folder with its configuration, its tokens and a PIN file.
 *
 *   softhsm_make(&softhsm);     the folder; sets SOFTHSM2_CONF, FAULTY_MODULE, FAULTY_SCRIPT
 *   softhsm_token("spire");     a token in it, as often as wanted
 *   softhsm_module(path, size); what to load
 *   softhsm_remove(&softhsm);   all of it goes
 *
 * One at a time in a process. A machine that does not play along ends the program.
 *
 * The environment variable HSM_PROFILE gives SoftHSM the habits of another HSM, as `lag 2`:
 * a line for faulty.so, which is then loaded in front of it (tests/README.md). */
#ifndef TESTS_SOFTHSM_H
#define TESTS_SOFTHSM_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define SOFTHSM_PIN "open-sesame" /* is nowhere else: tests look for it in messages */

struct softhsm {
    char folder[64];
    char pin_file[80]; /* holds SOFTHSM_PIN */
};

void softhsm_make(struct softhsm *softhsm);
void softhsm_remove(struct softhsm *softhsm);

/* One more token. Its PIN is SOFTHSM_PIN. */
void softhsm_token(const char *label);

/* The path of SoftHSM's library: SOFTHSM2_MODULE in the environment, or Debian's. */
const char *softhsm_library(void);

/* That path, or the one of faulty.so if there is a profile. */
void softhsm_module(char *path, size_t size);
void softhsm_faulty_module(char *path, size_t size); /* of faulty.so in any case */

/* HSM_PROFILE; "" is SoftHSM as it is. */
const char *softhsm_profile(void);
bool softhsm_is(const char *profile); /* whatever the number behind its name */

/* What faulty.so does from its next call on: a script, or the habits of one profile. "" ends
 * either. */
void softhsm_script(const char *text);
void softhsm_habits(const char *profile);

/* Helpers for tests that need more: writes a file with this mode; runs a program, whose
 * arguments end with NULL and which must succeed; ends the program unless `well`. */
void softhsm_write(const char *path, const char *text, mode_t mode);
void softhsm_run(const char *const *arguments);
void softhsm_must(bool well, const char *what);

#endif
