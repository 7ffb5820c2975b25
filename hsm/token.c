/* The worker's door: opens module and token, runs a request by the table of operations, and tries
 * again in place where a session or login was lost. */
#include "hsm/token.h"

#include <string.h>

#include "hsm/base/scope.h"
#include "hsm/quirks.h"
#include "hsm/wire/keytype.h"
#include "hsm/wire/rv.h"

enum { MECHANISMS_MAX = 4096 };

/* ---- doing and recovering ---- */

/* After an error a search or a signature may still be active in the session. */
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

/* Returns true if recovery worked and the step can run again. A lost session may mean that all
 * sessions and the login are lost. */
static bool recover(const struct call *call, bool tried[RV_PERMANENT + 1], struct fault *fault)
{
    struct hsm_token *token = call->token;
    enum rv_class class = rv_class(fault->ckr);

    if (fault->ckr == CKR_OK || fault->code == FAULT_ABORTED || tried[class])
        return false;
    tried[class] = true;
    switch (class) {
    case RV_LOGIN:
        if (!token->pool.needs_login) {
            fault->code = FAULT_FAILED_PRECONDITION;
            (void)fault_prefix(fault, "no PIN is configured, as the token says that it needs no "
                                      "login");
            return false;
        }
        return session_login(&token->pool, fault) == 0;
    case RV_SESSION:
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

/* "No memory" does not mean a full token for a request that stores nothing. */
static void not_full(struct fault *fault)
{
    if (fault->code == FAULT_RESOURCE_EXHAUSTED && fault->ckr != CKR_OK)
        fault->code = FAULT_UNAVAILABLE;
}

/* ---- operations ---- */

/* C_GenerateRandom reaches the device itself, so it keeps the connection alive. A token that never
 * made random numbers is asked for its description instead: some cannot make any, and say so or
 * fail. */
static int ping_step(const struct call *call, const struct session *session, struct fault *fault)
{
    uint8_t byte;
    CK_RV rv = MODULE_CALL(session->module, C_GenerateRandom, session->handle, &byte, sizeof byte);
    bool is_about_random =
        rv == CKR_RANDOM_NO_RNG || rv_class(rv) == RV_DEVICE || rv_class(rv) == RV_PERMANENT;

    if (rv == CKR_OK)
        call->token->random = true;
    else if (call->token->random || !is_about_random)
        return rv_fault(rv, "C_GenerateRandom", fault);
    return session_look(&call->token->pool, session, fault);
}

static int ping(const struct call *call, struct fault *fault)
{
    return token_step(call, ping_step, fault);
}

static const struct operation {
    op_fn *on_token;
    op_fn *on_keyfile;
    bool names_a_key;
} operations[] = {
    [HSM_SCAN] = {scan, keyfile_scan, false},
    [HSM_GENERATE] = {key_generate, keyfile_refuse, true},
    [HSM_PROVE] = {key_prove, keyfile_prove, true},
    [HSM_SIGN] = {key_sign, keyfile_sign, true},
    [HSM_DESTROY] = {key_destroy, keyfile_refuse, true},
    [HSM_PING] = {ping, keyfile_ping, false},
};

static int check_request(const struct hsm_request *request, struct fault *fault)
{
    const struct hsm_key_name *name = &request->key;
    size_t op = (size_t)request->op;
    size_t length = strnlen(name->label, sizeof name->label);

    if (op >= sizeof operations / sizeof operations[0] || !operations[op].on_token)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "there is no operation %zu", op);
    if (!operations[op].names_a_key)
        return 0;
    if (length == 0 || length == sizeof name->label || name->id_length > sizeof name->id)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "request does not name a key");
    return 0;
}

static int run(const struct call *call, struct fault *fault)
{
    const struct operation *operation = &operations[call->request->op];

    return (call->token->keyfile ? operation->on_keyfile : operation->on_token)(call, fault);
}

void hsm_execute(struct hsm_token *token, const struct hsm_request *request,
                 struct hsm_reply *reply, hsm_item_fn *item, void *context)
{
    struct call call = {token, request, reply, item, context, NULL};
    struct fault fault = {.code = FAULT_NONE};

    memset(reply, 0, sizeof *reply);
    if (check_request(request, &fault) == 0 && run(&call, &fault) == 0)
        return;
    if (request->op != HSM_GENERATE)
        not_full(&fault);
    reply->fault = fault;
}

/* ---- what the token can do ---- */

struct mechanisms {
    CK_MECHANISM_TYPE list[MECHANISMS_MAX];
    CK_ULONG count;
    bool unknown; /* the token has no list of mechanisms */
};

static bool is_listed(const struct mechanisms *mechanisms, CK_MECHANISM_TYPE type)
{
    for (CK_ULONG i = 0; i < mechanisms->count; i++)
        if (mechanisms->list[i] == type)
            return true;
    return mechanisms->unknown;
}

enum word { SAYS_YES, SAYS_NO, SAYS_NOTHING };

/* A failure, for a moment or for ever, counts as no answer, and so does an answer that fills
 * nothing in. A token that knows no greatest size says 0. */
static enum word ask_about(struct hsm_token *token, CK_MECHANISM_TYPE type, CK_FLAGS flag,
                           CK_ULONG bits)
{
    CK_MECHANISM_INFO info;
    CK_RV rv;

    memset(&info, 0, sizeof info);
    rv = MODULE_CALL(&token->module, C_GetMechanismInfo, token->pool.slot, type, &info);
    if (rv == CKR_MECHANISM_INVALID)
        return SAYS_NO;
    if (rv != CKR_OK || (info.flags == 0 && info.ulMaxKeySize == 0))
        return SAYS_NOTHING;
    return (info.flags & flag) != 0 && info.ulMinKeySize <= bits &&
                   (info.ulMaxKeySize == 0 || info.ulMaxKeySize >= bits)
               ? SAYS_YES
               : SAYS_NO;
}

/* A type cannot be made if its mechanism is neither listed nor described. The description of a
 * listed one is only a hint: some tokens give sizes in bytes, or leave flags out. */
static void ask_about_type(struct hsm_token *token, const struct mechanisms *mechanisms,
                           const struct keytype *type, struct hsm_token_info *info)
{
    enum word makes = ask_about(token, type->generate, CKF_GENERATE_KEY_PAIR, type->bits);
    enum word signs = ask_about(token, type->sign, CKF_SIGN, type->bits);

    info->can_generate[type->type] = (makes == SAYS_YES || is_listed(mechanisms, type->generate)) &&
                                     (signs == SAYS_YES || is_listed(mechanisms, type->sign));
    info->doubtful[type->type] = makes == SAYS_NO || signs == SAYS_NO;
}

static int list_mechanisms(struct hsm_token *token, struct mechanisms *mechanisms,
                           struct fault *fault)
{
    CK_RV rv;

    mechanisms->count = MECHANISMS_MAX;
    rv = MODULE_CALL(&token->module, C_GetMechanismList, token->pool.slot, mechanisms->list,
                     &mechanisms->count);
    mechanisms->unknown = rv != CKR_OK;
    if (mechanisms->unknown)
        mechanisms->count = 0;
    if (mechanisms->count > MECHANISMS_MAX)
        return fault_set(fault, FAULT_INTERNAL, "token named %lu mechanisms where %d were asked",
                         mechanisms->count, MECHANISMS_MAX);
    return 0;
}

static int ask_abilities(struct hsm_token *token, struct hsm_token_info *info, struct fault *fault)
{
    OWNED(scope_free) struct mechanisms *mechanisms = calloc(1, sizeof *mechanisms);

    if (!mechanisms)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    if (list_mechanisms(token, mechanisms, fault) != 0)
        return -1;
    for (enum hsm_key_type type = HSM_EC_P256; type <= HSM_RSA_4096; type++)
        ask_about_type(token, mechanisms, keytype_find(type), info);
    memcpy(token->doubtful, info->doubtful, sizeof token->doubtful);
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

static unsigned first_tier(const struct hsm_settings *settings, const struct quirk *quirk)
{
    if (settings->least)
        return OBJECT_TEMPLATE_TIERS - 1;
    return quirk ? quirk->tier : 0;
}

/* A token that says it is not initialized was tried all the same. */
static int explain_opening(const struct module_token *found, struct fault *fault)
{
    char label[sizeof found->info.label + 1];

    module_text(found->info.label, sizeof found->info.label, label);
    if ((found->info.flags & CKF_TOKEN_INITIALIZED) == 0) {
        if (rv_class(fault->ckr) == RV_ABSENT)
            fault->code = FAULT_FAILED_PRECONDITION;
        (void)fault_prefix(fault, "it says that it has not been initialized");
    }
    return fault_prefix(fault, "token '%s'", label);
}

static int open_pool(struct hsm_token *token, const struct hsm_settings *settings,
                     struct hsm_token_info *info, struct fault *fault)
{
    const struct quirk *quirk;
    struct module_token found;

    if (module_find_token(&token->module, settings, &found, fault) != 0)
        return -1;
    if (session_pool_open(&token->pool, &token->module, &found, settings, fault) != 0)
        return explain_opening(&found, fault);
    token->write_protected = (token->pool.flags & CKF_RW_SESSION) == 0;
    describe(token, &found.info, info);
    if (ask_abilities(token, info, fault) != 0) {
        session_pool_close(&token->pool);
        return -1;
    }
    quirk = settings->least ? NULL : quirks_find(info->library);
    token->tier = first_tier(settings, quirk);
    quirks_remark(token, &found, quirk, info->remarks);
    return 0;
}

static int open_source(struct hsm_token *token, const struct hsm_settings *settings,
                       struct hsm_token_info *info, struct fault *fault)
{
    if (settings->keys_file[0] != '\0')
        return keyfile_open(settings, &token->keyfile, info, fault);
    if (module_open(settings, &token->module, fault) == 0 &&
        open_pool(token, settings, info, fault) == 0)
        return 0;
    module_close(&token->module);
    not_full(fault);
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
    if (open_source(made, settings, &about, &why) != 0) {
        if (fault)
            *fault = why;
        return -1;
    }
    made->lenient = settings->lenient;
    cache_open(&made->cache);
    hints_open(&made->hints);
    verify_open(&made->verify, settings->verify_always);
    *info = about;
    *token = made;
    made = NULL;
    return 0;
}

void hsm_listen(struct hsm_token *token, hsm_progress_fn *waits, hsm_progress_fn *proves)
{
    token->pool.waits = waits;
    token->proves = proves;
}

void hsm_close(struct hsm_token *token)
{
    if (!token)
        return;
    if (token->keyfile) {
        keyfile_close(token->keyfile);
    } else {
        session_pool_close(&token->pool);
        module_close(&token->module);
    }
    cache_close(&token->cache);
    hints_close(&token->hints);
    verify_close(&token->verify);
    explicit_bzero(token, sizeof *token);
    free(token);
}
