/* Sessions with the token, and being logged in.
 *
 * Login belongs to the process and the token, not to a session, and ends with the last
 * session: so one session, the anchor, is opened first, never lent, and stays. The others
 * are borrowed for a request each, at most `limit` at a time, opened when needed. */
#ifndef HSM_SESSION_H
#define HSM_SESSION_H

#include "hsm/hsm.h"
#include "hsm/module.h"
#include "hsm/pin.h"

/* A borrowed session. The borrower's own until it is returned or discarded. */
struct session {
    struct module *module;
    CK_SESSION_HANDLE handle;
    uint32_t epoch;
};

struct session_pool {
    struct module *module;
    CK_SLOT_ID slot;
    CK_FLAGS flags; /* for C_OpenSession; without CKF_RW_SESSION where the token refuses that */
    CK_FLAGS said;  /* CKF_ of the token */
    uint32_t limit;
    bool needs_login;
    bool keypad; /* no PIN is configured, and the token says it is given one by hand */
    /* C_GetSessionInfo does not tell whether we are logged in: C_Login is asked. */
    _Atomic bool mute;
    char serial[HSM_TOKEN_SERIAL_MAX + 1];
    enum hsm_pin_kind pin_kind;
    char pin_text[HSM_PATH_MAX];

    pthread_mutex_t login; /* held while logging in; guards anchor and latch */
    CK_SESSION_HANDLE anchor;
    struct pin_latch latch;
    /* How often the anchor was opened or logged in. Object handles outlive neither, and their
     * numbers may be given to other objects: so a handle is kept together with this number. */
    _Atomic uint32_t logins;
    _Atomic uint32_t opened; /* the most sessions that could ever be lent */

    hsm_progress_fn *waits; /* or NULL; see hsm_listen */

    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t returned;
    CK_SESSION_HANDLE idle[HSM_SESSIONS_MAX];
    uint32_t idle_epochs[HSM_SESSIONS_MAX];
    uint32_t idle_count;
    uint32_t open; /* number of sessions, lent or idle */
    uint32_t epoch;
    int64_t full_until; /* the token had no session left: no more are asked for until then */
};

/* Opens the anchor and logs in. The PIN's source is the settings', or the one inside the
 * URI if the settings have none. On failure there is nothing to close. */
int session_pool_open(struct session_pool *pool, struct module *module,
                      const struct module_token *token, const struct hsm_settings *settings,
                      struct fault *fault);

/* Closes every session but lent ones, of which there must be none. */
void session_pool_close(struct session_pool *pool);

/* Waits while all are lent. */
int session_borrow(struct session_pool *pool, struct session *session, struct fault *fault);

void session_return(struct session_pool *pool, const struct session *session);

/* For a session in an unknown state, such as one with a search or signature begun: it is
 * closed. */
void session_discard(struct session_pool *pool, const struct session *session);

/* The same for one the token no longer knows: then it hardly knows those that were open
 * at that time, and none of them is lent again. */
void session_lost(struct session_pool *pool, const struct session *session);

/* 0: the token is there, and we are logged in if it takes that. Otherwise a fault with the
 * CK_RV that asks for the right remedy. A token that has gone, or has silently logged us
 * out, may answer searches with nothing and CKR_OK: "not found" is only true between two
 * of these. */
int session_check(struct session_pool *pool, const struct session *session, struct fault *fault);

/* The same as far as it can be seen without another C_Login, which session_check needs where
 * C_GetSessionInfo is of no use. */
int session_look(const struct session_pool *pool, const struct session *session,
                 struct fault *fault);

/* The same, and nobody has logged in since pool->logins was `logins`: in between, private
 * objects were not to be seen, and handles are others now. */
int session_check_since(struct session_pool *pool, const struct session *session, uint32_t logins,
                        struct fault *fault);

/* Opens the anchor again if it is lost, and logs in if we are not. */
int session_login(struct session_pool *pool, struct fault *fault);

#endif
