/* One PKCS#11 module, loaded and initialized, and the one token in it that a URI names.
 *
 * Every call into the module goes through MODULE_CALL, for the sake of modules that cannot
 * lock for themselves (CKR_CANT_LOCK): those are entered by one thread at a time. */
#ifndef HSM_MODULE_H
#define HSM_MODULE_H

#include <pthread.h>

#include <p11-kit/pkcs11.h>

#include "hsm/wire/types.h"

/* No session, no object. Some libraries count from 0, which is the standard's own word for it. */
#define HANDLE_NONE (~(CK_ULONG)0)

struct module {
    CK_FUNCTION_LIST *calls; /* NULL: not loaded */
    bool initialized;
    bool one_at_a_time;       /* does not change once module_open is done */
    bool plain_start;         /* it takes no arguments at C_Initialize */
    _Atomic bool unpadded;    /* its texts end with a NUL */
    _Atomic bool finds_names; /* a search for a label has found something */
    pthread_mutex_t entered;
};

/* The parts of the setting "token" that do not select the token. */
struct module_token {
    CK_SLOT_ID slot;
    CK_TOKEN_INFO info;
    bool empty_slot;               /* so the module says */
    char pin_source[HSM_PATH_MAX]; /* the URI's, "" = none */
};

/* `setting` is an absolute path, or a file name in p11-kit's module folder. A file that
 * others may write is not loaded. FAULT_FAILED_PRECONDITION names the setting; a module
 * that loads but cannot start is FAULT_UNAVAILABLE, as its device may be what is missing.
 * On failure there is nothing to close. */
int module_open(const struct hsm_settings *settings, struct module *module, struct fault *fault);

/* Finalizes and unloads what module_open left. All zero is fine. */
void module_close(struct module *module);

/* CK_INFO's libraryDescription, "" if the module does not say. */
void module_library(struct module *module, char text[HSM_TOKEN_TEXT_MAX + 1]);

/* The one token that the setting "token" names, or of several the one of the setting's serial
 * number. One that says it is not initialized counts where no other fits: opening it will tell.
 * FAULT_UNAVAILABLE: none is there; FAULT_FAILED_PRECONDITION: several are, or the URI is none, or
 * holds the PIN itself. */
int module_find_token(struct module *module, const struct hsm_settings *settings,
                      struct module_token *token, struct fault *fault);

/* C_GetTokenInfo, with texts as PKCS#11 wants them. */
CK_RV module_token_info(struct module *module, CK_SLOT_ID slot, CK_TOKEN_INFO *info);

/* Text of PKCS#11 structures, which is padded with blanks and comes from the token: what is
 * not printable or not UTF-8 becomes '?'. `text` has room for `length` + 1 bytes. */
void module_text(const uint8_t *padded, size_t length, char *text);

static inline void module_enter(struct module *module)
{
    if (module->one_at_a_time)
        (void)pthread_mutex_lock(&module->entered);
}

static inline CK_RV module_leave(struct module *module, CK_RV rv)
{
    if (module->one_at_a_time)
        (void)pthread_mutex_unlock(&module->entered);
    return rv;
}

/* MODULE_CALL(module, C_Sign, session, ...) is the CK_RV of that call. module_open has refused a
 * module that lacks a function we cannot do without. */
#define MODULE_CALL(module, name, ...)                                                             \
    module_leave((module),                                                                         \
                 (module_enter(module), (module)->calls->name ? (module)->calls->name(__VA_ARGS__) \
                                                              : CKR_FUNCTION_NOT_SUPPORTED))

#endif
