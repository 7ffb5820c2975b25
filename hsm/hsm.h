/* The room's one door: a token behind a PKCS#11 module, and six operations on it. Each takes a
 * plain request, complete in itself, and gives a plain reply.
 *
 * Nothing here knows trust domains or rotation, and nothing here logs: a reply carries a fault, and
 * the caller decides what it means. The room keeps no list of keys either. Each request names its
 * objects by label, CKA_ID, type and fingerprint, and the room merely remembers which handles it
 * found, so a fresh process can go on where a dead one stopped.
 *
 * Calling sequence: hsm_open once; hsm_execute from any number of threads, each
 * call borrowing one of at most settings.sessions sessions and waiting while none
 * is free; hsm_close after the last call has returned. One token per process:
 * PKCS#11 modules are process-wide state.
 *
 * Who owns what: every struct here is a value of the caller's. No pointer is kept
 * after a call returns and none is handed out, except the opaque token.
 *
 * Recovered inside a call: a dead session is replaced, a lost login redone (each
 * PIN tried once), a stale handle found again if label, id and public key are the
 * same. Everything else comes back as a fault; FAULT_UNAVAILABLE means that a
 * fresh process may do better (many modules recover only so).
 *
 * Behind the same door may be a file: settings.keys_file, the keys.json of SPIRE's disk key
 * manager, server's or agent's. It is for a server that moves its keys to a token and signs with
 * the old ones meanwhile. hsm_open reads it, once, and it is never written; a fresh process reads
 * it anew.
 *   - A key's label is SPIRE's key id, as "x509-CA-A". It has no CKA_ID; that of a request is
 *     ignored.
 *   - HSM_SCAN, whatever its prefix and limits, emits every key with its public key, in the
 *     order of their ids (of their bytes). One SCAN shows one state of the file.
 *   - HSM_PROVE signs with the key, and answers HSM_COMPLETE and its public key, or HSM_ABSENT.
 *   - HSM_SIGN is as on a token. FAULT_NOT_FOUND: the file had no such key when it was read.
 *     FAULT_FAILED_PRECONDITION: it had another one under this id.
 *   - HSM_PING does nothing. HSM_GENERATE and HSM_DESTROY: FAULT_FAILED_PRECONDITION.
 * hsm_open refuses the whole file rather than leave a key out: FAULT_FAILED_PRECONDITION, or
 * FAULT_UNAVAILABLE where it is not there (yet) or cannot be read at the moment. keyfile.h says
 * what is accepted. A sentence names "previous: keys_file", the path and at most a key id. */
#ifndef HSM_HSM_H
#define HSM_HSM_H

#include "hsm/wire/types.h"

struct hsm_token;

/* Loads the module, finds the one token the URI names, logs in; or reads the keys_file. On
 * success *token is the caller's until hsm_close. FAULT_UNAVAILABLE: not there (yet);
 * FAULT_FAILED_PRECONDITION: a setting is wrong, or the PIN was refused. */
int hsm_open(const struct hsm_settings *settings, struct hsm_token **token,
             struct hsm_token_info *info, struct fault *fault);

/* Registers callbacks by which a thread inside hsm_execute reports on its request, on that thread;
 * NULL = none. Call this before the first hsm_execute. Neither may block.
 *
 *   waits    for a free session: a few times a second, and once more when it has one. Other
 *            requests used up that time, so it does not count.
 *   proves   HSM_GENERATE has made its pair. What is left is HSM_PROVE, and takes no longer. */
typedef void hsm_progress_fn(void);
void hsm_listen(struct hsm_token *token, hsm_progress_fn *waits, hsm_progress_fn *proves);

/* Does one request and fills *reply, always. item may be NULL except for SCAN. */
void hsm_execute(struct hsm_token *token, const struct hsm_request *request,
                 struct hsm_reply *reply, hsm_item_fn *item, void *context);

/* Logs out, closes what it opened, finalizes the module. NULL is fine. */
void hsm_close(struct hsm_token *token);

/* The body of a worker process: serves the frames of hsm/wire/frame.h that come in on
 * `socket` until the other end closes it, then ends the call it is in and returns
 * the exit status. `page` is the shared page of frame.h. */
int hsm_worker(int socket, int page);

#endif
