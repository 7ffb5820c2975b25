/* The key manager: SPIRE's view of keys on top of a token, which knows only objects. Owns the
 * catalogue, the policy of rotation and clean-up, and a supervisor.
 *
 * One keymanager is one configuration in force. A reconfiguration opens a second one,
 * lets it take over and releases the first, which goes on until the last call that
 * holds it has been answered.
 *
 * Rotation never loses a key: the new one is made under a label of its own, read back and proven,
 * then served; only then, and after the last signature in flight with it, the old one leaves the
 * token. Every doubt (a worker that died, an error after the effect) is settled by looking for the
 * label. A generation outlives the caller who asked for it; the next caller takes its result.
 *
 * The record (record.h) lists the keys that are served, superseded and attempted, and it is written
 * before anything is done about them. A start serves the keys of the record, and waits for them. A
 * key is destroyed only if the record says that it was superseded, or attempted and never served.
 *
 * Where it may break off, what is then on the token, what comes of it, and the test that
 * breaks it there (tests/unit/crash_points.c sees to it that there is one). "Goes" is: when it
 * has been superseded for a day of running time (destroy_superseded_after):
 *
 *   the process ends before the token generates: the old key, which is served
 *     -> TestAPluginKilledAtEveryCallOfGenerateKeyLeavesOneKeyThatSigns
 *   while it generates: a half may be there, which goes once there is a newer key
 *     -> TestAPluginKilledAtEveryCallOfGenerateKeyLeavesOneKeyThatSigns
 *     -> one_server_started_again_and_again
 *   when the pair is whole, but not served yet: the new key is served, the old one goes
 *     -> TestAPluginKilledAtEveryCallOfGenerateKeyLeavesOneKeyThatSigns
 *   when it is served, and SPIRE has not written it down: so is this, and SPIRE makes another
 *     -> TestASpireServerKilledWhileItMakesAuthoritiesLeavesNoKeyBehind
 *   while the old key is destroyed: a half, or all of it, goes
 *     -> a_restart_goes_on_with_what_was_condemned
 *     -> TestAPluginKilledUnderLoadFindsEveryKeyAndLeavesNothing
 *   the worker ends while it generates: the label is looked for, then another generation made
 *     -> a_worker_that_dies_while_generating_costs_nothing
 *     -> TestAWorkerKilledAtEveryCallOfGenerateKeyIsMadeUpFor
 *   the token answers an error after the effect: likewise
 *     -> generation_that_may_have_worked_is_a_doubt_and_never_repeated
 *     -> TestWhatTheTokenAnswersToASignatureOrAKeyPairIsMendedOrSaid
 *   the token makes what does not sign: cleared away, the old key is served
 *     -> one_server_started_again_and_again
 *   the token shows what it made late: looked for again; after a restart, so is the other half
 *     -> TestKeysThatShowUpLateAreServedAndNotMadeTwice
 *     -> a_fresh_key_of_which_half_shows_at_first_is_waited_for
 *   the token generates for longer than a call: the next call takes the key
 *     -> a_slow_generation_outlives_its_caller_and_goes_to_the_next
 *     -> TestSlowKeyGenerationCostsFailedCallsButExactlyOneKey
 *   keys of two types are asked for under one id: one after the other, the last is served
 *     -> a_key_of_another_type_is_made_after_the_one_under_way
 *   a reconfiguration comes in between: who waits goes over to the new state
 *     -> a_reconfiguration_keeps_the_keys_and_hands_over_who_waits
 *     -> TestReconfiguringUnderLoadCostsNoCall
 *   a reconfiguration does not find a key that is served: refused
 *     -> TestReconfiguringOnALaggingTokenLosesNoKey
 *   the token is full: the error says so, what was there is served
 *     -> TestAFullTokenSaysSoAndGoesOnServingWhatItHas
 *     -> full_token_keeps_no_half
 *   a destroyed key is back (a backup, a token that lags): an older generation, which stays
 *     -> what_the_record_does_not_know_stays_at_a_start
 *   the clock goes back: generations never do
 *     -> one_server_started_again_and_again
 *   one label twice on the token: listed, as SPIRE needs it, and not destroyed
 *     -> TestADuplicatedKeyIsListedAndNotDestroyedAndOthersAreServed
 *   half of a key shows, or none of it for a while: waited for, listed, not destroyed
 *     -> TestHalvesOfOurKeysStayAndOthersAreServed
 *     -> a_key_of_which_half_shows_is_served_from_the_record
 *     -> TestAStartThroughLastingTroubleForgetsNoKeyAndDestroysNone
 *     -> TestAStartWithARecordServesTheSameKeysThroughLastingTrouble
 *   a key is gone that SPIRE needs: no start, until the loss is accepted
 *     -> a_start_without_a_key_that_is_needed_is_refused
 *     -> a_loss_is_accepted_once_by_its_code
 *     -> a_loss_is_accepted_by_a_file_beside_the_record
 *     -> missing_keys_are_replaced_where_that_is_said
 *   another key is gone: the start goes on without, and serves it when it is back
 *     -> a_start_without_another_key_goes_on
 *   the record is damaged: its copy is used, or the start refused
 *     -> a_damaged_record_is_no_reason_to_begin_anew
 *   the record is another server's: the start is refused, until that is accepted
 *     -> TestAStartBesideAnotherServersRecordIsRefusedUntilItIsAccepted
 *   the process ends while it writes the record: the newest key, which is served
 *     -> TestAPluginKilledWhileItWritesItsRecordServesTheNewestKeys
 *     -> killed_at_any_step_of_a_write_the_record_is_old_or_new
 *   the record cannot be written: keys are made all the same, and nothing more is destroyed
 *     -> one_server_started_again_and_again
 *     -> TestAFullDiskUnderTheRecordStopsNoRotationAndDestroysNothing
 *     -> TestAHungDiskUnderTheRecordHoldsUpNoSignatureAndStopsNoRotation
 *   there is no record: the newest key is served, and nothing of before is destroyed
 *     -> without_a_record_the_newest_key_is_served_and_nothing_goes
 *   the role may not destroy: the old key stays, and the log says so
 *     -> a_key_that_may_not_be_destroyed_is_left_alone
 *     -> superseded_keys_stay_where_the_role_may_not_destroy
 *   the server moves, and ends at any step of it: each id is where it was, or on the token
 *     -> TestAServerMovesFromKeysJsonAndHasEveryKeyAtEveryStep
 *     -> TestAServerMovesFromAnotherToken
 *   the block previous is taken out too early: no start
 *     -> TestTheBlockIsTakenOutTooEarly
 *   an older keys.json comes back after the move: no start, as it would take the keys in use away
 *     -> TestAnOlderKeysJsonIsRefusedOnceTheTokenSigns
 *   previous is away: listed from the record, and its signatures UNAVAILABLE
 *     -> TestASourceThatIsAwayFailsItsSignaturesAloneAndComesBack
 *   the identity is lost: the keys are another server's, and not touched
 *     -> servers_with_identity_files_of_their_own
 *   a second process has the identity: refused on one host, elsewhere seen, and nothing old goes
 *     -> while_a_second_server_has_our_identity_nothing_old_goes
 *     -> servers_that_are_copies_of_each_other
 *     -> TestASecondProcessWithTheSameIdentityFileIsRefused
 *     -> TestASecondServerWithTheSameValueIsRefusedOnTheSameHost
 *     -> TestServersWithTheSameValueOnTwoHostsDestroyNothingOfEachOthers
 *     -> servers_that_share_an_identity_value_by_mistake
 *   all of this again and again: no more objects than keys
 *     -> TestCrashLoopsWithAValueDoNotFillTheToken
 *     -> one_server_with_an_identity_value_started_again_and_again */
#ifndef PLUGIN_KEYS_KEYMANAGER_H
#define PLUGIN_KEYS_KEYMANAGER_H

#include <stdatomic.h>
#include <stdint.h>

#include "plugin/config/config.h"
#include "plugin/keys/catalogue.h"

struct keymanager;

/* Opens the token, looks for the keys that were served, proves them and is then ready. Waits
 * for an absent token, or key, as long as config.startup_wait, less when *cancel is set.
 * FAULT_FAILED_PRECONDITION: a key is gone that SPIRE needs (loss.h). `before` is the keymanager in
 * force, or NULL: it stops generating until keymanager_succeed or until this fails. Blocks: for the
 * slow lane. */
int keymanager_open(const struct config *config, struct keymanager *before,
                    const atomic_bool *cancel, struct keymanager **keymanager, struct fault *fault);

/* `before` (may be NULL) hands over the callers it kept waiting; clean-up begins. */
void keymanager_succeed(struct keymanager *keymanager, struct keymanager *before);

/* The caller that opened it holds it, and so does every call in progress. */
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

/* The served keys, each with a hold for the caller: see catalogue.h. */
struct catalogue *keymanager_catalogue(struct keymanager *keymanager);
void keymanager_drop(struct keymanager *keymanager, struct catalogue_key *key);

/* Sets the gauges of the key manager in force (plugin/report/metrics.h). Any thread; blocks on no
 * disk and asks no token. */
void keymanager_measure(struct keymanager *keymanager);

/* How long a call may take altogether. */
int64_t keymanager_call_timeout(const struct keymanager *keymanager);

#endif
