/* Losses: keys, or the record itself, that a start needs and does not find, and the operator's
 * acceptance of the loss.
 *
 * A loss has a code, which stands for exactly these keys (record_loss_code), for what is left of
 * the record and its copy (scribe_is_damaged), or for a record that is another server's
 * (record_is_anothers). It is accepted by
 * `accept_loss` in plugin_data, by a file beside the record, `<record>.accept`, that holds the
 * code (`spire-hsm accept` makes it, as a start that waits holds the identity's lock), or always,
 * by missing_keys = "replace". The code means nothing later: another loss has another code. */
#ifndef PLUGIN_KEYS_LOSS_H
#define PLUGIN_KEYS_LOSS_H

#include <stdbool.h>

#include "plugin/config/config.h"
#include "plugin/keys/record.h"

/* Has the operator given this very code? `record_path` "" = there is no file. */
bool loss_is_told(const struct config_keymanager *config, const char *record_path,
                  const char *code);

/* Has he accepted this loss: so, or all of them? */
bool loss_is_accepted(const struct config_keymanager *config, const char *record_path,
                      const char *code);

/* Adds the key to a list of names for a sentence, "" at first, as far as `room` bytes go. */
void loss_add_name(const struct record_key *key, char *names, size_t room);

/* The same for those keys of `previous` that are needed, where that block is gone. */
void loss_add_previous(const struct record *record, char *names, size_t room);

/* Fills the fault (FAULT_FAILED_PRECONDITION): which keys are missing (`names`, for a sentence),
 * what it means, and what to do. Returns -1. */
int loss_refuse(const char *names, const struct hsm_token_info *token, const char *code,
                struct fault *fault);

/* For a record_file and a copy that are both unreadable: adds to the fault how to go on without
 * them. Returns -1. */
int loss_refuse_damage(const char *code, struct fault *fault);

/* Fills the fault for a record_file that has only another server's keys (record_is_anothers).
 * Returns -1. */
int loss_refuse_anothers(const struct config_keymanager *config, const char *code,
                         struct fault *fault);

/* Writes the operator's acceptance beside the record, for the start that waits or the next one.
 * Returns -1 with a fault: there is no record_file, or the file cannot be written. */
int loss_accept(const char *record_path, const char *code, struct fault *fault);

/* Removes the acceptance: it is good for one start. */
void loss_forget(const char *record_path);

#endif
