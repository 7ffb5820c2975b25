/* What one library cannot do that others can. tokens.md lists them for operators. */
#include "hsm/quirks.h"

#include <stdio.h>
#include <string.h>

/* These libraries answer an impossible template with CKR_GENERAL_ERROR. From other libraries the
 * same code means that the token is away, so they are known by name. A habit that the token's
 * answers show, such as attribute lengths or one session, needs no row. */
static const struct quirk quirks[] = {
    /* A TPM has one bit for VERIFY and DECRYPT, one for SIGN and ENCRYPT; tpm2-pkcs11 1.8 makes
     * RSA signatures by decrypting. Seen with swtpm (tests/peers/tokens). */
    {"TPM2.0 Cryptoki", 2,
     "keys are requested with the fewest attributes, as a TPM cannot tell all uses apart"},
    /* NSS 3.87 has no place for COPYABLE. Seen with libsoftokn3.so (tests/peers/tokens). */
    {"NSS Internal Crypto Services", 1,
     "keys are requested with fewer attributes, as NSS has no place for CKA_COPYABLE"},
};

const struct quirk *quirks_find(const char *library)
{
    for (size_t i = 0; i < sizeof quirks / sizeof quirks[0]; i++)
        if (strcmp(library, quirks[i].library) == 0)
            return &quirks[i];
    return NULL;
}

/* ---- what was said, and is not so ---- */

/* By now the plugin has tried everything that these looks concern, and it has worked. */
struct look {
    const struct hsm_token *token;
    const struct module_token *found;
};

static bool is_raw(const struct look *look)
{
    return (look->found->info.flags & CKF_TOKEN_INITIALIZED) == 0;
}

static bool is_in_empty_slot(const struct look *look)
{
    return look->found->empty_slot;
}

static bool is_written_to(const struct look *look)
{
    return (look->found->info.flags & CKF_WRITE_PROTECTED) != 0 && !look->token->write_protected;
}

static bool takes_pin_here(const struct look *look)
{
    const struct session_pool *pool = &look->token->pool;

    return (look->found->info.flags & CKF_PROTECTED_AUTHENTICATION_PATH) != 0 && !pool->keypad;
}

static bool takes_login(const struct look *look)
{
    return (look->found->info.flags & CKF_LOGIN_REQUIRED) == 0 && look->token->pool.needs_login;
}

static bool has_pin(const struct look *look)
{
    return (look->found->info.flags & CKF_USER_PIN_INITIALIZED) == 0 &&
           look->token->pool.needs_login;
}

static bool is_mute(const struct look *look)
{
    return look->token->pool.mute;
}

static bool is_unpadded(const struct look *look)
{
    return look->token->module.unpadded;
}

static bool is_started_plainly(const struct look *look)
{
    return look->token->module.plain_start;
}

static bool is_for_one(const struct look *look)
{
    return look->token->module.one_at_a_time;
}

static const struct remark {
    bool (*holds)(const struct look *look);
    const char *text;
} table[] = {
    {is_raw, "it says that it is not initialized; the plugin opened it nevertheless"},
    {is_in_empty_slot, "it is in a slot that is said to be empty"},
    {is_written_to, "it says that it is write-protected, but it opened a session for writing"},
    {takes_pin_here, "it says that it has a keypad for its PIN, but it took the configured PIN"},
    {takes_login, "it says that it needs no login, but it took the PIN"},
    {has_pin, "it says that it has no user PIN yet, but it took the PIN"},
    {is_mute,
     "it does not report whether a session is logged in; the plugin calls C_Login to find out"},
    {is_unpadded, "its texts end with a NUL instead of blanks"},
    {is_started_plainly, "its library is started without arguments"},
    {is_for_one, "its library takes one thread at a time, so the plugin opens one session"},
};

static void add(char remarks[HSM_REMARKS_MAX], const char *text)
{
    size_t used = strlen(remarks);

    if (used + strlen(text) + 2 <= HSM_REMARKS_MAX)
        (void)snprintf(remarks + used, HSM_REMARKS_MAX - used, "%s%s", used > 0 ? "\n" : "", text);
}

void quirks_remark(const struct hsm_token *token, const struct module_token *found,
                   const struct quirk *quirk, char remarks[HSM_REMARKS_MAX])
{
    const struct look look = {token, found};

    remarks[0] = '\0';
    if (quirk)
        add(remarks, quirk->what);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].holds(&look))
            add(remarks, table[i].text);
}
