#include "hsm/token.h"

#include <string.h>

#include "hsm/base/scope.h"
#include "hsm/wire/keytype.h"
#include "hsm/wire/rv.h"

enum { MECHANISMS_MAX = 4096 };

/* ---- doing and recovering ---- */

/* After any CK_RV but CKR_OK a search or a signature may still be going on in a session. */
static void put_away(struct session_pool *pool, const struct session *session,
                     const struct fault *fault)
{
    if (fault->ckr == CKR_OK)
        session_return(pool, session);
    else if (rv_class(fault->ckr) == RV_SESSION)
        session_lost(pool, session);
    else
        session_discard(pool, session);
}

/* true: recovered, do it over. When one session is lost all may be, and with them the login. */
static bool recover(const struct call *call, bool tried[RV_PERMANENT + 1], struct fault *fault)
{
    struct hsm_token *token = call->token;
    enum rv_class class = rv_class(fault->ckr);

    if (fault->ckr == CKR_OK || fault->code == FAULT_ABORTED || tried[class])
        return false;
    tried[class] = true;
    switch (class) {
    case RV_SESSION:
    case RV_LOGIN:
        return session_login(&token->pool, fault) == 0;
    case RV_HANDLE:
        return true;
    default:
        return false;
    }
}

int token_step(const struct call *call, step_fn *step, struct fault *fault)
{
    struct session_pool *pool = &call->token->pool;
    bool tried[RV_PERMANENT + 1] = {false};
    struct session session;

    do {
        if (session_borrow(pool, &session, fault) != 0)
            return -1;
        if (step(call, &session, fault) == 0) {
            session_return(pool, &session);
            return 0;
        }
        put_away(pool, &session, fault);
    } while (recover(call, tried, fault));
    return -1;
}

/* "No memory" is no full token where nothing was to be stored. */
static void not_full(struct fault *fault)
{
    if (fault->code == FAULT_RESOURCE_EXHAUSTED && fault->ckr != CKR_OK)
        fault->code = FAULT_UNAVAILABLE;
}

/* ---- operations ---- */

/* C_GenerateRandom is what reaches a device that would otherwise time us out. A token
 * without random numbers is asked about itself instead. */
static int ping_step(const struct call *call, const struct session *session, struct fault *fault)
{
    uint8_t byte;
    CK_RV rv = MODULE_CALL(session->module, C_GenerateRandom, session->handle, &byte, sizeof byte);

    if (rv != CKR_OK && rv != CKR_RANDOM_NO_RNG && rv != CKR_FUNCTION_NOT_SUPPORTED)
        return rv_fault(rv, "C_GenerateRandom", fault);
    return session_check(&call->token->pool, session, fault);
}

static int ping(const struct call *call, struct fault *fault)
{
    return token_step(call, ping_step, fault);
}

static const struct operation {
    op_fn *run;
    bool names_a_key;
} operations[] = {
    [HSM_SCAN] = {scan, false},          [HSM_GENERATE] = {key_generate, true},
    [HSM_PROVE] = {key_prove, true},     [HSM_SIGN] = {key_sign, true},
    [HSM_DESTROY] = {key_destroy, true}, [HSM_PING] = {ping, false},
};

static int check_request(const struct hsm_request *request, struct fault *fault)
{
    const struct hsm_key_name *name = &request->key;
    size_t op = (size_t)request->op;
    size_t length = strnlen(name->label, sizeof name->label);

    if (op >= sizeof operations / sizeof operations[0] || !operations[op].run)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "there is no operation %zu", op);
    if (!operations[op].names_a_key)
        return 0;
    if (length == 0 || length == sizeof name->label || name->id_length > sizeof name->id)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "request does not name a key");
    return 0;
}

void hsm_execute(struct hsm_token *token, const struct hsm_request *request,
                 struct hsm_reply *reply, hsm_item_fn *item, void *context)
{
    struct call call = {token, request, reply, item, context};
    struct fault fault = {.code = FAULT_NONE};

    memset(reply, 0, sizeof *reply);
    if (check_request(request, &fault) == 0 && operations[request->op].run(&call, &fault) == 0)
        return;
    if (request->op != HSM_GENERATE)
        not_full(&fault);
    reply->fault = fault;
}

/* ---- what the token can do ---- */

struct mechanisms {
    CK_MECHANISM_TYPE list[MECHANISMS_MAX];
    CK_ULONG count;
};

static bool is_listed(const struct mechanisms *mechanisms, CK_MECHANISM_TYPE type)
{
    for (CK_ULONG i = 0; i < mechanisms->count; i++)
        if (mechanisms->list[i] == type)
            return true;
    return false;
}

/* Only "yes, so" and "there is no such mechanism" are answers. Where a token fails to say, for a
 * moment or always, what it lists is all that is known, and the making of a key will tell: nor
 * does one mechanism's trouble keep keys of other types from signing. A token that has no idea
 * of a greatest size says 0. */
static bool can(struct hsm_token *token, CK_MECHANISM_TYPE type, CK_FLAGS flag, CK_ULONG bits)
{
    CK_MECHANISM_INFO info;
    CK_RV rv;

    memset(&info, 0, sizeof info);
    rv = MODULE_CALL(&token->module, C_GetMechanismInfo, token->pool.slot, type, &info);
    if (rv != CKR_OK)
        return rv != CKR_MECHANISM_INVALID;
    return (info.flags & flag) != 0 && info.ulMinKeySize <= bits &&
           (info.ulMaxKeySize == 0 || info.ulMaxKeySize >= bits);
}

static bool can_make(struct hsm_token *token, const struct mechanisms *mechanisms,
                     const struct keytype *type)
{
    return is_listed(mechanisms, type->generate) && is_listed(mechanisms, type->sign) &&
           can(token, type->generate, CKF_GENERATE_KEY_PAIR, type->bits) &&
           can(token, type->sign, CKF_SIGN, type->bits);
}

static int ask_abilities(struct hsm_token *token, struct hsm_token_info *info, struct fault *fault)
{
    OWNED(scope_free) struct mechanisms *mechanisms = calloc(1, sizeof *mechanisms);
    CK_RV rv;

    if (!mechanisms)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    mechanisms->count = MECHANISMS_MAX;
    rv = MODULE_CALL(&token->module, C_GetMechanismList, token->pool.slot, mechanisms->list,
                     &mechanisms->count);
    if (rv != CKR_OK)
        return rv_fault(rv, "C_GetMechanismList", fault);
    if (mechanisms->count > MECHANISMS_MAX)
        return fault_set(fault, FAULT_INTERNAL, "token named %lu mechanisms where %d were asked",
                         mechanisms->count, MECHANISMS_MAX);
    for (enum hsm_key_type type = HSM_EC_P256; type <= HSM_RSA_4096; type++)
        info->can_generate[type] = can_make(token, mechanisms, keytype_find(type));
    return 0;
}

/* ---- opening and closing ---- */

_Static_assert(sizeof((CK_TOKEN_INFO *)NULL)->label == HSM_TOKEN_TEXT_MAX &&
                   sizeof((CK_TOKEN_INFO *)NULL)->serialNumber == HSM_TOKEN_SERIAL_MAX,
               "the token's texts fit");

static void describe(struct hsm_token *token, const CK_TOKEN_INFO *about,
                     struct hsm_token_info *info)
{
    module_text(about->label, sizeof about->label, info->label);
    module_text(about->manufacturerID, sizeof about->manufacturerID, info->manufacturer);
    module_text(about->model, sizeof about->model, info->model);
    module_text(about->serialNumber, sizeof about->serialNumber, info->serial);
    module_library(&token->module, info->library);
    info->slot = token->pool.slot;
    info->write_protected = token->write_protected;
    info->sessions = token->pool.limit;
}

/* Libraries that answer a template they cannot do with CKR_GENERAL_ERROR, which from others
 * is a token that is away: so they are known by name. */
static const struct quirk {
    const char *library;
    unsigned tier;
} quirks[] = {
    /* A TPM has one bit for VERIFY and DECRYPT, one for SIGN and ENCRYPT; and tpm2-pkcs11 makes
     * RSA signatures by decrypting. */
    {"TPM2.0 Cryptoki", 2},
    {"NSS Internal Crypto Services", 1}, /* has no place for COPYABLE */
};

static unsigned first_tier(const struct hsm_settings *settings, const struct hsm_token_info *info)
{
    if (settings->least)
        return OBJECT_TEMPLATE_TIERS - 1;
    for (size_t i = 0; i < sizeof quirks / sizeof quirks[0]; i++)
        if (strcmp(info->library, quirks[i].library) == 0)
            return quirks[i].tier;
    return 0;
}

static int open_pool(struct hsm_token *token, const struct hsm_settings *settings,
                     struct hsm_token_info *info, struct fault *fault)
{
    struct module_token found;

    if (module_find_token(&token->module, settings->token, &found, fault) != 0)
        return -1;
    if (session_pool_open(&token->pool, &token->module, &found, settings, fault) != 0) {
        char label[sizeof found.info.label + 1];

        module_text(found.info.label, sizeof found.info.label, label);
        return fault_prefix(fault, "token '%s'", label);
    }
    token->write_protected = (found.info.flags & CKF_WRITE_PROTECTED) != 0;
    describe(token, &found.info, info);
    if (ask_abilities(token, info, fault) == 0)
        return 0;
    session_pool_close(&token->pool);
    return -1;
}

int hsm_open(const struct hsm_settings *settings, struct hsm_token **token,
             struct hsm_token_info *info, struct fault *fault)
{
    OWNED(scope_free) struct hsm_token *made = calloc(1, sizeof *made);
    struct hsm_token_info about = {.slot = 0};
    struct fault why = {.code = FAULT_NONE};

    if (!made)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    if (module_open(settings, &made->module, &why) != 0 ||
        open_pool(made, settings, &about, &why) != 0) {
        module_close(&made->module);
        not_full(&why);
        if (fault)
            *fault = why;
        return -1;
    }
    made->lenient = settings->lenient;
    made->tier = first_tier(settings, &about);
    cache_open(&made->cache);
    hints_open(&made->hints);
    *info = about;
    *token = made;
    made = NULL;
    return 0;
}

void hsm_on_wait(struct hsm_token *token, hsm_waits_fn *waits)
{
    token->pool.waits = waits;
}

void hsm_close(struct hsm_token *token)
{
    if (!token)
        return;
    session_pool_close(&token->pool);
    module_close(&token->module);
    cache_close(&token->cache);
    hints_close(&token->hints);
    explicit_bzero(token, sizeof *token);
    free(token);
}
