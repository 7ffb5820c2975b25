/* How our keys are named on a token: format 1, frozen. Keys live for years, so this format never
 * changes; a format 2 could only be added.
 *
 *   CKA_LABEL (both halves) = "sp1-" td8 srv8 "-" gen6 "-" name
 *
 *   td8   first 5 bytes of SHA-256("spire-p11-1/td" 00 trust domain), base32hex lower case
 *   srv8  the same of SHA-256("spire-p11-1/server" 00 server identity)
 *   gen6  the generation, 30 bits big-endian, base32hex lower case: sorts as text
 *   name  the key id: [A-Za-z0-9-] as is, every other byte "_" and two lower-case hex digits
 *
 *   CKA_ID (both halves) = generation (4 bytes big-endian) and 12 random bytes; 2 random
 *   bytes where a token has room for no more.
 *
 * To its maker alone the last 8 of the 12 are a mark (HMAC-SHA256 with the maker's own key,
 * of the label and the 4 random bytes before): nobody else needs to tell them from random.
 *
 * A generation is the second since 2025-01-01T00:00Z in which a key pair was made, or
 * one more than the highest seen: it never repeats and never goes back. Pure functions. */
#ifndef PLUGIN_KEYS_LABEL_H
#define PLUGIN_KEYS_LABEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/wire/types.h"

enum {
    LABEL_KEY_ID_MAX = 255,
    LABEL_HASH = 8, /* characters of td8 and srv8 */
};

/* The owner of a key: one server of one trust domain. */
struct label_scope {
    char trust_domain[LABEL_HASH + 1];
    char server[LABEL_HASH + 1];
};

struct label {
    struct label_scope scope;
    uint32_t generation;
    char key_id[LABEL_KEY_ID_MAX + 1];
};

/* The maker that marks its keys; all zero makes no mark. */
struct label_maker {
    bool known;
    uint8_t key[32];
};

/* Reserved for trial keys of operator commands. */
#define LABEL_TRIAL_KEY_ID "__check"

/* Hashes a trust domain (lower case, without spiffe://) and a server identity (any bytes). */
void label_scope(const char *trust_domain, const void *identity, size_t length,
                 struct label_scope *scope);
void label_trust_domain_hash(const char *trust_domain, char hash[LABEL_HASH + 1]);

/* Is `key_id` one that can be on a token? Empty, over 255 bytes, not UTF-8, or (with
 * label_max > 0) a label of more than label_max bytes: FAULT_INVALID_ARGUMENT. */
int label_check_key_id(const char *key_id, size_t label_max, struct fault *fault);

/* Writes the label of a checked key id. */
void label_format(const struct label *label, char text[HSM_LABEL_MAX + 1]);

/* Reads a label. false: not format 1 to the letter, so somebody else's object. */
bool label_parse(const char *text, struct label *label);

/* Do two objects have one label and one id? Then they are two halves, or two copies, of a key. */
bool label_same_name(const struct hsm_key_name *a, const struct hsm_key_name *b);

/* The prefix all labels of a scope begin with, for HSM_SCAN ("sp1-" td8 srv8 does not
 * fit its 16 bytes: the scan asks for "sp1-" td8 and same_scope sorts out the rest). */
void label_prefix(const struct label_scope *scope, char prefix[16]);
bool label_same_scope(const struct label_scope *a, const struct label_scope *b);

/* The next generation: max(now, highest + 1), where now is in seconds since 1970.
 * FAULT_INTERNAL when 30 bits are used up (in 2059). */
int label_next_generation(int64_t now, uint32_t highest, uint32_t *generation, struct fault *fault);

/* The maker that this secret stands for. */
void label_maker(const void *secret, size_t length, struct label_maker *maker);

/* A fresh CKA_ID of id_length bytes for that generation, beside the label that is in *name,
 * with the maker's mark if there is room for it. */
int label_new_id(uint32_t generation, uint32_t id_length, const struct label_maker *maker,
                 struct hsm_key_name *name, struct fault *fault);

/* Does it bear the maker's mark? False if the maker is unknown or the id is too short for a
 * mark. */
bool label_made_by(const struct label_maker *maker, const struct hsm_key_name *name);

#endif
