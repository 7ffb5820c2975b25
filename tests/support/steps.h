/* For tests of faulty.so itself, on a SoftHSM: plain PKCS#11 calls, without the product.
 *
 * Each step is a function that runs in a process of its own, as some are to die. Its exit
 * status says how it went: CHECK, RV and OK end the step with a line on stderr.
 *
 *   static void step_x(void) { begin_with("C_Sign 1 before CKR_DEVICE_ERROR"); .. }
 *   in the test: run(step_x), or WTERMSIG(status_of(step_x)) of one that dies
 *
 * Objects on the token stay from step to step; make_token() and remove_token() are the
 * group's setup and teardown. */
#ifndef TESTS_STEPS_H
#define TESTS_STEPS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>
#include <p11-kit/pkcs11.h>

int make_token(void **state);
int remove_token(void **state);

/* In the test: runs the step, which must succeed; or returns its status, as waitpid(2). */
void run(void (*step)(void));
int status_of(void (*step)(void));

/* ---- in the steps ---- */

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            _exit(EXIT_FAILURE);                                                          \
        }                                                                                 \
    } while (0)

/* `call` answers `expected`. */
#define RV(expected, call)                                                              \
    do {                                                                                \
        CK_RV got = (call);                                                             \
        if (got != (expected)) {                                                        \
            (void)fprintf(stderr, "%s:%d: %#lx: %s\n", __FILE__, __LINE__, got, #call); \
            _exit(EXIT_FAILURE);                                                        \
        }                                                                               \
    } while (0)
#define OK(call) RV(CKR_OK, call)

extern char script_path[64];
extern CK_FUNCTION_LIST *p11; /* faulty.so, after load() */
extern CK_SLOT_ID slot;       /* these two after begin() */
extern CK_SESSION_HANDLE session;
extern uint8_t pin[5]; /* with its NUL */

/* What faulty.so does from its next call on. */
void script(const char *text);

/* Loads faulty.so; initializes it, opens `session` and logs in; or all, after script(). */
void load(void);
void begin(void);
void begin_with(const char *text);

void open_session(CK_SESSION_HANDLE *opened);

/* A P-256 key pair: keys[0] is the public key. `more` is one more attribute of it. */
CK_RV generate(const char *label, CK_OBJECT_HANDLE keys[2]);
CK_RV generate_with(const char *label, const void *id, CK_ULONG id_length, CK_OBJECT_HANDLE keys[2],
                    CK_ATTRIBUTE *more);

CK_RV sign(CK_OBJECT_HANDLE key);
CK_RV sign_in(CK_SESSION_HANDLE where, CK_OBJECT_HANDLE key);

/* How many objects have the label. */
CK_ULONG find(const char *label);

/* CKA_EC_POINT. *length is the room for it, then what C_GetAttributeValue says. */
CK_RV get_point(CK_OBJECT_HANDLE key, uint8_t *point, CK_ULONG *length);

int64_t milliseconds(void); /* CLOCK_MONOTONIC */

#endif
