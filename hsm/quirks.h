/* The quirks of a token: the known needs of its library, and its own claims that turned out untrue.
 * The needs decide how the worker calls it. Both are reported in words to the operator.
 * */
#ifndef HSM_QUIRKS_H
#define HSM_QUIRKS_H

#include "hsm/token.h"

/* A row of the table in quirks.c. */
struct quirk {
    const char *library; /* CK_INFO's libraryDescription */
    unsigned tier;       /* the first template that a key is asked for with */
    const char *what;    /* what the worker does, and why: a clause */
};

/* NULL: nothing special is known of this library. */
const struct quirk *quirks_find(const char *library);

/* Fills `remarks` with sentences, a line each: the quirk that is applied (or NULL), and the claims
 * of the token that do not count. */
void quirks_remark(const struct hsm_token *token, const struct module_token *found,
                   const struct quirk *quirk, char remarks[HSM_REMARKS_MAX]);

#endif
