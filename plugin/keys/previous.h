/* The keys of `previous` in the record: where this server's ids are served from while it moves
 * (docs/moving.md). Pure but for memory.
 *
 * The record decides, not the absence of keys from a token. A start finds in `previous`:
 *
 *   nothing that the record does not have      PREVIOUS_KNOWN: the record's places go on, whatever
 *                                              of it is not there any more
 *   a public key that the record does not have PREVIOUS_ADOPT: all ids of the set are served from
 *                                              there, whatever the token has under them
 *   the same, though the record's array is     PREVIOUS_REFUSE: an older copy of keys.json may have
 *     not empty and an id of it would be         come back, and with its keys every agent ends. Or
 *     taken from a token's key in use that       the server went back and comes again: only the
 *     SPIRE cannot do without                    operator knows
 *
 * An id leaves `previous` for good when a key of the token is served under it. */
#ifndef PLUGIN_KEYS_PREVIOUS_H
#define PLUGIN_KEYS_PREVIOUS_H

#include "plugin/keys/record.h"

enum previous_verdict { PREVIOUS_KNOWN, PREVIOUS_ADOPT, PREVIOUS_REFUSE };

/* `taken`, of PREVIOUS_REFUSE: the token's key. */
enum previous_verdict previous_verdict(const struct record *record,
                                       const struct record_previous *shown, size_t count,
                                       const struct record_key **taken);

/* A code of 8 characters that stands for exactly these keys. */
void previous_code(const struct record_previous *shown, size_t count, char code[RECORD_CODE + 1]);

/* The array becomes the set shown. Keys on the token that were served under these ids, or may have
 * been, are FOUND from now on. -1: out of memory, nothing changed. */
int previous_adopt(struct record *record, const struct record_previous *shown, size_t count);
void previous_forget(struct record *record);

/* One more. -1: out of memory. */
int previous_add(struct record *record, const struct record_previous *key);

/* The entry of an id, or NULL. Good until the array changes. */
struct record_previous *previous_find(const struct record *record, const char *key_id);

/* Is the id served from there? */
bool previous_serves(const struct record *record, const char *key_id);

/* Returns their number. */
size_t previous_left(const struct record *record);

/* A key of the token serves the id from now on. true: it was served from there. */
bool previous_move(struct record *record, const char *key_id);

/* Must no start be without it? It is served from there and of the ids that record_is_needed speaks
 * of, it or none of its family there is in use, and no key of the token of its family is. */
bool previous_is_needed(const struct record *record, const struct record_previous *key);

#endif
