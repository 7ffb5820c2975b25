/* The pool of sessions, all logged in once: borrowing, opening, closing, and the login with the
 * PIN. An idle session, the anchor, keeps the login alive. */
#include "hsm/session.h"

#include <stdio.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "hsm/base/scope.h"
#include "hsm/wire/rv.h"
#include "hsm/wire/uri.h"

/* Sessions of a killed process may count for a while: YubiHSM forgets them after 30 seconds. */
static const int64_t full_pause = 30 * CLOCK_SECOND;

static const int64_t wait_interval = CLOCK_SECOND / 5;

/* ---- logging in ---- */

/* A token without a free session counts those of other processes, or of workers that died. These
 * may go. */
static int open_session(const struct session_pool *pool, CK_SESSION_HANDLE *handle,
                        struct fault *fault)
{
    CK_RV rv =
        MODULE_CALL(pool->module, C_OpenSession, pool->slot, pool->flags, NULL, NULL, handle);

    if (rv == CKR_OK)
        return 0;
    (void)rv_fault(rv, "C_OpenSession", fault);
    /* A code that C_OpenSession should not give says nothing about the request. The same holds for
     * any failure, once the token has opened one session. */
    if (fault && (rv_class(rv) == RV_FULL || fault->code == FAULT_INTERNAL ||
                  (pool->logins > 0 && rv_class(rv) == RV_PERMANENT)))
        fault->code = FAULT_UNAVAILABLE;
    return -1;
}

static void close_session(const struct session_pool *pool, CK_SESSION_HANDLE handle)
{
    (void)MODULE_CALL(pool->module, C_CloseSession, handle);
}

/* The state of the login, as C_GetSessionInfo reports it. */
enum told { TOLD_NOTHING, TOLD_NOBODY, TOLD_USER };

static int ask_state(const struct session_pool *pool, CK_SESSION_HANDLE handle, enum told *told,
                     struct fault *fault)
{
    CK_SESSION_INFO info;
    CK_RV rv;

    *told = TOLD_NOTHING;
    memset(&info, 0, sizeof info);
    rv = MODULE_CALL(pool->module, C_GetSessionInfo, handle, &info);
    if (rv == CKR_FUNCTION_NOT_SUPPORTED ||
        (pool->mute && rv_class(rv) != RV_SESSION && rv_class(rv) != RV_ABSENT))
        return 0;
    if (rv != CKR_OK)
        return rv_fault(rv, "C_GetSessionInfo", fault);
    *told = info.state == CKS_RO_USER_FUNCTIONS || info.state == CKS_RW_USER_FUNCTIONS
                ? TOLD_USER
                : TOLD_NOBODY;
    return 0;
}

/* A SoftHSM whose directory was moved away keeps its sessions and finds nothing. Only a question
 * about the token shows it. */
static int check_token(const struct session_pool *pool, CK_TOKEN_INFO *info, struct fault *fault)
{
    char serial[sizeof info->serialNumber + 1];
    CK_RV rv;

    rv = module_token_info(pool->module, pool->slot, info);
    if (rv != CKR_OK)
        return rv_fault(rv, "C_GetTokenInfo", fault);
    module_text(info->serialNumber, sizeof info->serialNumber, serial);
    if (strcmp(serial, pool->serial) == 0)
        return 0;
    (void)fault_set(fault, FAULT_UNAVAILABLE, "another token is in its slot (serial %s, not %s)",
                    serial, pool->serial);
    if (fault)
        fault->ckr = CKR_TOKEN_NOT_PRESENT;
    return -1;
}

int session_look(const struct session_pool *pool, const struct session *session,
                 struct fault *fault)
{
    CK_TOKEN_INFO info;
    enum told told;

    if (ask_state(pool, session->handle, &told, fault) != 0)
        return -1;
    if (pool->needs_login && told == TOLD_NOBODY)
        return rv_fault(CKR_USER_NOT_LOGGED_IN, "C_GetSessionInfo", fault);
    return check_token(pool, &info, fault);
}

/* These sessions do not report the login, so another login is tried. "Already logged in" means that
 * the login has lasted. If the token grants it, the login was lost. */
static int ask_login(struct session_pool *pool, struct fault *fault)
{
    uint32_t logins = pool->logins;

    if (session_login(pool, fault) != 0)
        return -1;
    return pool->logins == logins ? 0 : rv_fault(CKR_USER_NOT_LOGGED_IN, "C_Login", fault);
}

int session_check(struct session_pool *pool, const struct session *session, struct fault *fault)
{
    if (session_look(pool, session, fault) != 0)
        return -1;
    return pool->needs_login && pool->mute ? ask_login(pool, fault) : 0;
}

int session_check_since(struct session_pool *pool, const struct session *session, uint32_t logins,
                        struct fault *fault)
{
    if (session_check(pool, session, fault) != 0)
        return -1;
    return pool->logins == logins
               ? 0
               : rv_fault(CKR_USER_NOT_LOGGED_IN, "another session logged in meanwhile", fault);
}

/* The token's flags say that few tries are left. They are read before every try: others may have
 * used tries up, or restored them. The fault has no CK_RV: nothing was tried, so the next look
 * needs no change of the PIN. */
static int check_patience(const struct session_pool *pool, struct fault *fault)
{
    CK_TOKEN_INFO info;

    if (check_token(pool, &info, fault) != 0)
        return -1;
    if ((info.flags & CKF_USER_PIN_LOCKED) != 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "the token says its user PIN is locked");
    if ((info.flags & CKF_USER_PIN_FINAL_TRY) != 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the token has one PIN try left, and the plugin does not take it: log in "
                         "once by other means");
    return 0;
}

/* "Already logged in" counts as success if it is true: some libraries say it after the token has
 * forgotten the login. */
static CK_RV call_login(const struct session_pool *pool, CK_SESSION_HANDLE handle, struct pin *pin)
{
    uint8_t *bytes = pool->keypad ? NULL : pin->bytes;
    enum told told;
    CK_RV rv = MODULE_CALL(pool->module, C_Login, handle, CKU_USER, bytes, pin->length);

    if (rv != CKR_USER_ALREADY_LOGGED_IN || pool->mute)
        return rv;
    if (ask_state(pool, handle, &told, NULL) == 0 && told != TOLD_NOBODY)
        return rv;
    (void)MODULE_CALL(pool->module, C_Logout, handle);
    return MODULE_CALL(pool->module, C_Login, handle, CKU_USER, bytes, pin->length);
}

/* The token granted the login, but its session does not show it: from now on C_Login is asked. A
 * token that says it needs no login, and has none, is believed. */
static int login_with(struct session_pool *pool, CK_SESSION_HANDLE handle, struct pin *pin,
                      struct fault *fault)
{
    enum told told;
    CK_RV rv = call_login(pool, handle, pin);

    if (rv == CKR_FUNCTION_NOT_SUPPORTED && (pool->said & CKF_LOGIN_REQUIRED) == 0) {
        pool->needs_login = false;
        return 0;
    }
    if (rv != CKR_OK && rv != CKR_USER_ALREADY_LOGGED_IN)
        return rv_fault(rv, "C_Login", fault);
    if (rv == CKR_OK)
        pool->logins++;
    if (ask_state(pool, handle, &told, NULL) != 0 || told != TOLD_USER)
        pool->mute = true;
    return 0;
}

/* fault->ckr stays, because recovery depends on it. */
static void explain_refusal(const struct session_pool *pool, struct fault *fault)
{
    static const char *const sources[] = {
        [HSM_PIN_NONE] = "the PIN at the token's own keypad",
        [HSM_PIN_FILE] = "the PIN in file ",
        [HSM_PIN_ENV] = "the PIN in environment variable ",
        [HSM_PIN_INLINE] = "the PIN in option pin",
    };
    bool named = pool->pin_kind == HSM_PIN_FILE || pool->pin_kind == HSM_PIN_ENV;

    (void)fault_prefix(fault, "%s%s was refused, and is not tried again until it changes",
                       sources[pool->pin_kind], named ? pool->pin_text : "");
}

/* The token's own description may hold the reason, and may be untrue. */
static void add_what_was_said(const struct session_pool *pool, struct fault *fault)
{
    if (fault->code == FAULT_UNAVAILABLE)
        return;
    if ((pool->said & CKF_PROTECTED_AUTHENTICATION_PATH) != 0 && !pool->keypad)
        (void)fault_prefix(fault,
                           "the token says it has a keypad for its PIN: then configure no PIN");
    if ((pool->said & CKF_USER_PIN_INITIALIZED) == 0)
        (void)fault_prefix(fault, "the token says it has no user PIN yet");
}

static int read_pin(const struct session_pool *pool, struct pin *pin, struct fault *fault)
{
    if (pool->keypad)
        return 0;
    if (pin_read(pool->pin_kind, pool->pin_text, pin, fault) != 0)
        return -1;
    if (pin_latch_check(&pool->latch, pool->serial, pin, fault) == 0)
        return 0;
    explain_refusal(pool, fault);
    return -1;
}

static int log_in(struct session_pool *pool, CK_SESSION_HANDLE handle, struct fault *fault)
{
    OWNED(pin_wipe) struct pin pin = {.length = 0};

    if (check_patience(pool, fault) != 0 || read_pin(pool, &pin, fault) != 0)
        return -1;
    if (login_with(pool, handle, &pin, fault) == 0) {
        pin_latch_clear(&pool->latch, pool->serial);
        return 0;
    }
    if (hsm_refused_pin(fault->ckr)) {
        explain_refusal(pool, fault);
        if (!pool->keypad)
            pin_latch_set(&pool->latch, pool->serial, &pin, fault);
    }
    add_what_was_said(pool, fault);
    return -1;
}

/* Some tokens claim to be write-protected and are not, and a single refusal may pass. Only both
 * together mean it. */
static int open_any_session(struct session_pool *pool, struct fault *fault)
{
    struct fault why = {.code = FAULT_NONE};

    if (open_session(pool, &pool->anchor, &why) == 0)
        return 0;
    if ((pool->said & CKF_WRITE_PROTECTED) != 0 && rv_class(why.ckr) == RV_PERMANENT) {
        pool->flags &= ~(CK_FLAGS)CKF_RW_SESSION;
        return open_session(pool, &pool->anchor, fault);
    }
    if (fault)
        *fault = why;
    return -1;
}

static int open_anchor(struct session_pool *pool, struct fault *fault)
{
    if (open_any_session(pool, fault) == 0) {
        pool->logins++;
        return 0;
    }
    pool->anchor = HANDLE_NONE;
    return -1;
}

/* If a new session reports no login state, C_Login decides. */
static int login_locked(struct session_pool *pool, struct fault *fault)
{
    enum told told = TOLD_NOTHING;

    if (pool->anchor != HANDLE_NONE && ask_state(pool, pool->anchor, &told, fault) != 0) {
        close_session(pool, pool->anchor);
        pool->anchor = HANDLE_NONE;
    }
    if (pool->anchor == HANDLE_NONE) {
        if (open_anchor(pool, fault) != 0)
            return -1;
        (void)ask_state(pool, pool->anchor, &told, NULL);
    }
    if (!pool->needs_login || (told == TOLD_USER && !pool->mute))
        return 0;
    return log_in(pool, pool->anchor, fault);
}

int session_login(struct session_pool *pool, struct fault *fault)
{
    int done;

    (void)pthread_mutex_lock(&pool->login);
    done = login_locked(pool, fault);
    (void)pthread_mutex_unlock(&pool->login);
    return done;
}

/* ---- the pool ---- */

static int take_pin_source(struct session_pool *pool, const struct module_token *token,
                           const struct hsm_settings *settings, struct fault *fault)
{
    const char *path = NULL;

    pool->pin_kind = settings->pin_kind;
    memcpy(pool->pin_text, settings->pin_text, sizeof pool->pin_text);
    if (token->pin_source[0] != '\0' && pool->pin_kind != HSM_PIN_NONE)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "token: the URI has a pin-source, and there is a PIN setting beside it");
    if (token->pin_source[0] != '\0') {
        if (uri_pin_path(token->pin_source, &path, fault) != 0)
            return -1;
        pool->pin_kind = HSM_PIN_FILE;
        (void)snprintf(pool->pin_text, sizeof pool->pin_text, "%s", path);
    }
    pool->keypad = pool->pin_kind == HSM_PIN_NONE &&
                   (token->info.flags & CKF_PROTECTED_AUTHENTICATION_PATH) != 0;
    pool->needs_login = (token->info.flags & CKF_LOGIN_REQUIRED) != 0 ||
                        pool->pin_kind != HSM_PIN_NONE || pool->keypad;
    return 0;
}

/* The token's own limit counts the anchor. 0 and ~0 mean "no limit" and "unknown". The worker
 * starts even with a limit that is too low. */
static uint32_t limit_of(const CK_TOKEN_INFO *info, CK_FLAGS flags, uint32_t wanted)
{
    CK_ULONG most =
        (flags & CKF_RW_SESSION) != 0 ? info->ulMaxRwSessionCount : info->ulMaxSessionCount;

    if (wanted == 0)
        wanted = 1;
    if (wanted > HSM_SESSIONS_MAX)
        wanted = HSM_SESSIONS_MAX;
    if (most == CK_EFFECTIVELY_INFINITE || most == CK_UNAVAILABLE_INFORMATION)
        return wanted;
    if (most <= wanted)
        wanted = most > 1 ? (uint32_t)most - 1 : 1;
    return wanted;
}

int session_pool_open(struct session_pool *pool, struct module *module,
                      const struct module_token *token, const struct hsm_settings *settings,
                      struct fault *fault)
{
    memset(pool, 0, sizeof *pool);
    pool->module = module;
    pool->slot = token->slot;
    pool->anchor = HANDLE_NONE;
    pool->flags = CKF_SERIAL_SESSION | CKF_RW_SESSION;
    pool->said = token->info.flags;
    module_text(token->info.serialNumber, sizeof token->info.serialNumber, pool->serial);
    memcpy(pool->latch.file, settings->latch, sizeof pool->latch.file);
    pin_latch_load(&pool->latch);
    (void)pthread_mutex_init(&pool->login, NULL);
    (void)pthread_mutex_init(&pool->lock, NULL);
    condition_open(&pool->returned);
    if (take_pin_source(pool, token, settings, fault) != 0 || session_login(pool, fault) != 0) {
        session_pool_close(pool);
        return -1;
    }
    /* A module that only one thread may enter gets one session. A second thread would queue for
     * the module, and the front would take it for hung. */
    pool->limit =
        limit_of(&token->info, pool->flags, module->one_at_a_time ? 1 : settings->sessions);
    return 0;
}

void session_pool_close(struct session_pool *pool)
{
    for (uint32_t i = 0; i < pool->idle_count; i++)
        close_session(pool, pool->idle[i]);
    if (pool->anchor != HANDLE_NONE) {
        if (pool->needs_login)
            (void)MODULE_CALL(pool->module, C_Logout, pool->anchor);
        close_session(pool, pool->anchor);
    }
    (void)pthread_mutex_destroy(&pool->login);
    (void)pthread_mutex_destroy(&pool->lock);
    (void)pthread_cond_destroy(&pool->returned);
    explicit_bzero(pool, sizeof *pool);
}

/* How borrowing goes on: decided under the lock and done outside it. */
enum borrow_step { BORROW_WAIT, BORROW_TAKE, BORROW_OPEN, BORROW_CLOSE };

static enum borrow_step next_step(struct session_pool *pool, struct session *session)
{
    if (pool->idle_count > 0) {
        uint32_t last = --pool->idle_count;

        session->handle = pool->idle[last];
        session->epoch = pool->idle_epochs[last];
        if (session->epoch == pool->epoch)
            return BORROW_TAKE;
        pool->open--;
        return BORROW_CLOSE;
    }
    if (pool->open == 0 || (pool->open < pool->limit && clock_now() >= pool->full_until)) {
        pool->open++;
        session->epoch = pool->epoch;
        return BORROW_OPEN;
    }
    return BORROW_WAIT;
}

/* A returned session can serve one waiter, so waking one is enough. After a session was lost, all
 * must look again. */
static void forget_one(struct session_pool *pool, bool full)
{
    (void)pthread_mutex_lock(&pool->lock);
    pool->open--;
    if (full)
        pool->full_until = clock_now() + full_pause;
    (void)pthread_cond_broadcast(&pool->returned);
    (void)pthread_mutex_unlock(&pool->lock);
}

static bool shows(const struct session_pool *pool, CK_SESSION_HANDLE handle, enum told wanted)
{
    enum told told;

    return ask_state(pool, handle, &told, NULL) == 0 && told == wanted;
}

/* On some tokens a login counts only in its own session. There, a new session shows nobody logged
 * in while the anchor shows us. A session that reports nothing is logged in as well: other tokens
 * answer "already". */
static void log_in_here(struct session_pool *pool, CK_SESSION_HANDLE handle)
{
    struct fault unused;

    if (!pool->needs_login || !(pool->mute || shows(pool, handle, TOLD_NOBODY)))
        return;
    (void)pthread_mutex_lock(&pool->login);
    if (pool->mute || shows(pool, pool->anchor, TOLD_USER))
        (void)log_in(pool, handle, &unused);
    (void)pthread_mutex_unlock(&pool->login);
}

/* Returns -1 if the fault is final. With 0, *opened says whether there is a session. If not, the
 * token's limit is reached and one of ours will come back. */
static int open_one(struct session_pool *pool, struct session *session, bool *opened,
                    struct fault *fault)
{
    bool full;
    bool others;

    *opened = open_session(pool, &session->handle, fault) == 0;
    if (*opened) {
        log_in_here(pool, session->handle);
        pool->opened++;
        return 0;
    }
    full = rv_class(fault->ckr) == RV_FULL;
    (void)pthread_mutex_lock(&pool->lock);
    others = pool->open > 1;
    (void)pthread_mutex_unlock(&pool->lock);
    forget_one(pool, full);
    return full && others ? 0 : -1;
}

/* The wait ends after a while: a full token may have room for another session later. */
static void wait_a_while(struct session_pool *pool)
{
    condition_wait(&pool->returned, &pool->lock, clock_now() + wait_interval);
    if (pool->waits)
        pool->waits();
}

static enum borrow_step wait_step(struct session_pool *pool, struct session *session)
{
    enum borrow_step step;

    (void)pthread_mutex_lock(&pool->lock);
    while ((step = next_step(pool, session)) == BORROW_WAIT)
        wait_a_while(pool);
    (void)pthread_mutex_unlock(&pool->lock);
    return step;
}

int session_borrow(struct session_pool *pool, struct session *session, struct fault *fault)
{
    struct session lent = {.module = pool->module};
    bool opened = false;

    while (!opened) {
        switch (wait_step(pool, &lent)) {
        case BORROW_CLOSE:
            close_session(pool, lent.handle);
            break;
        case BORROW_OPEN:
            if (open_one(pool, &lent, &opened, fault) != 0)
                return -1;
            break;
        case BORROW_TAKE:
        case BORROW_WAIT:
            opened = true;
            break;
        }
    }
    *session = lent;
    return 0;
}

void session_return(struct session_pool *pool, const struct session *session)
{
    (void)pthread_mutex_lock(&pool->lock);
    pool->idle[pool->idle_count] = session->handle;
    pool->idle_epochs[pool->idle_count++] = session->epoch;
    (void)pthread_cond_signal(&pool->returned);
    (void)pthread_mutex_unlock(&pool->lock);
}

void session_discard(struct session_pool *pool, const struct session *session)
{
    close_session(pool, session->handle);
    forget_one(pool, false);
}

void session_lost(struct session_pool *pool, const struct session *session)
{
    (void)pthread_mutex_lock(&pool->lock);
    if (session->epoch == pool->epoch)
        pool->epoch++;
    (void)pthread_mutex_unlock(&pool->lock);
    session_discard(pool, session);
}
