/* The key manager: what SPIRE asks of keys, on top of a token that only knows objects.
 * Owns the catalogue, the policy of rotation and clean-up, and a supervisor.
 *
 * One keymanager is one configuration in force. A reconfiguration opens a second one,
 * lets it take over and releases the first, which goes on until the last call that
 * holds it has been answered.
 *
 * Rotation never loses a key: the new one is made under a label of its own, read back
 * and proven, then served; only then, and after the last signature in flight with it,
 * the old one leaves the token. Every doubt (a worker that died, an error after the
 * effect) is settled by looking for the label. A generation outlives the caller who
 * asked for it; the next one to ask takes its result. */
#ifndef PLUGIN_KEYMANAGER_H
#define PLUGIN_KEYMANAGER_H

#include <stdatomic.h>
#include <stdint.h>

#include "catalogue.h"
#include "config.h"

struct keymanager;

/* Opens the token, scans it, proves the newest generation of each of our keys and is
 * then ready. Waits for an absent token as long as config.startup_wait, less when
 * *cancel is set. `before` is the keymanager in force, or NULL: it stops generating
 * until keymanager_succeed or until this fails. Blocks: for the slow lane. */
int keymanager_open(const struct config *config, struct keymanager *before,
                    const atomic_bool *cancel, struct keymanager **keymanager, struct fault *fault);

/* `before` (may be NULL) hands over the callers it kept waiting; clean-up begins. */
void keymanager_succeed(struct keymanager *keymanager, struct keymanager *before);

/* Holders: the one who opened it, and every call under way. */
struct keymanager *keymanager_hold(struct keymanager *keymanager);
void keymanager_release(struct keymanager *keymanager);

/* At process exit: answers everything with FAULT_UNAVAILABLE. */
void keymanager_abandon(struct keymanager *keymanager);

/* The key is held for the callback's caller and given back when it returns. On any
 * thread, exactly once, possibly before the call that caused it has returned. */
typedef void keymanager_generated(void *context, const struct catalogue_key *key,
                                  const struct fault *fault);
typedef void keymanager_signed(void *context, const struct catalogue_key *key,
                               const struct hsm_reply *reply);

/* Makes a new key for an id, never blocking. `deadline` (clock_now()'s clock) is when the
 * caller stops waiting. */
void keymanager_generate(struct keymanager *keymanager, const char *key_id, enum hsm_key_type type,
                         int64_t deadline, keymanager_generated *done, void *context);

/* Signs with the key served for key_id. `request` needs scheme, hash, salt and digest;
 * the rest is filled in here. The key is NULL in the callback if there is none
 * (FAULT_NOT_FOUND). */
void keymanager_sign(struct keymanager *keymanager, const char *key_id,
                     const struct hsm_request *request, int64_t deadline, keymanager_signed *done,
                     void *context);

/* What is served; keys come with holds for the caller: see catalogue.h. */
struct catalogue *keymanager_catalogue(struct keymanager *keymanager);
void keymanager_drop(struct keymanager *keymanager, struct catalogue_key *key);

/* How long a call may take altogether. */
int64_t keymanager_call_timeout(const struct keymanager *keymanager);

#endif
