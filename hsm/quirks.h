/* What is special about a token: what its library is known to need, and what it said of itself that
 * turned out otherwise. The first decides how we ask it; both are told to who opens it, in words.
 */
#ifndef HSM_QUIRKS_H
#define HSM_QUIRKS_H

#include "hsm/token.h"

/* A row of the table in quirks.c. */
struct quirk {
    const char *library; /* CK_INFO's libraryDescription */
    unsigned tier;       /* the first template that a key is asked for with */
    const char *what;    /* we do, and why: a clause */
};

/* NULL: nothing special is known of this library. */
const struct quirk *quirks_find(const char *library);

/* Fills `remarks` with sentences, a line each: the quirk that is applied (or NULL), and what of
 * the token's word did not count. */
void quirks_remark(const struct hsm_token *token, const struct module_token *found,
                   const struct quirk *quirk, char remarks[HSM_REMARKS_MAX]);

#endif
