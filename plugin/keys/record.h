/* The record: the keys that this server has on the token. It says which of them a start must find,
 * and which may ever be destroyed. Pure but for memory; scribe.h puts it on a disk.
 *
 * One file may hold the records of several scopes (trust domain and server identity), so that
 * a changed trust domain forgets nothing. It is one JSON document:
 *
 *   {"spire_hsm_record": 1, "min_reader": 1, "written": 17,
 *    "scopes": {"<td8><srv8>": {
 *       "identity": "<hex>", "token": {"label": "..", "serial": ".."}, "ran": 86400,
 *       "makers": [{"key": "<hex>", "place": "..", "until": 0}, ..], newest first
 *       "keys": [{"state": "served", "label": "sp1-..", "cka_id": "<hex>", "type": "ec-p256",
 *                 "public_key": "<base64 DER>", "made": true, "in_use": true, "since": 0}, ..],
 *       "previous": [{"state": "served", "id": "x509-CA-A", "label": "..", "cka_id": "", "type":
 * .., "public_key": .., "in_use": true}, ..]}}, left out if it is empty "sha256": "<hex, of the
 * document without this member, sorted and compact>"}
 *
 * Members that this version does not know are kept as they are, in the document, in a scope and
 * in a key, so that a newer version finds them again after a rollback. Only a `min_reader` above
 * ours is refused. The digest is made and checked alike in all versions. Nothing in it is secret: a
 * maker's key can at most make a foreign key look like one of ours to this host, and the file is
 * for its owner alone. */
#ifndef PLUGIN_KEYS_RECORD_H
#define PLUGIN_KEYS_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "plugin/config/config.h"
#include "plugin/keys/label.h"

enum {
    RECORD_CODE = 8, /* code of a loss, in hexadecimal digits */
    RECORD_MAKERS = 8,
    RECORD_PLACE_MAX = 160,
    RECORD_BYTES_MAX = 1 << 22,  /* a larger file is none of ours */
    RECORD_ATTEMPTED_MAX = 64,   /* of one scope; the oldest is forgotten: prune finds it */
    RECORD_FOUND_MAX = 256,      /* likewise */
    RECORD_MISSING_MAX = 256,    /* of a token that begins empty with each start */
    RECORD_PREVIOUS_MAX = 1024,  /* a source with more keys is refused */
    RECORD_CONDEMNED_MAX = 1024, /* keep_condemned's most of 16 ids. More there are where the role
                                    may not destroy, or a crash loop leaves no time to see them
                                    gone: what is forgotten is condemned again by a start that walks
                                    over the token, or is prune's */
};

enum record_state {
    RECORD_SERVED,    /* the key in service; one for each id */
    RECORD_MISSING,   /* it was served, and a start went on without it: verdict.h says when it is
                         served again */
    RECORD_CONDEMNED, /* superseded by us: may be destroyed when its time has come */
    RECORD_ATTEMPTED, /* written down before C_GenerateKeyPair: it may exist, whole or half */
    RECORD_FOUND,     /* was on the token when this record began, and not served: for prune */
};

struct record_key {
    enum record_state state;
    struct label label;
    struct hsm_key_name name;
    struct hsm_public_key public_key; /* pkix_length 0: not known (ATTEMPTED, FOUND) */
    bool made;                        /* made by this server, as far as we know: may be condemned */
    bool in_use;   /* it signed when it was more than a minute old: SPIRE had activated it */
    int64_t since; /* CONDEMNED: the record's running time then, s */
};

/* A key of the `previous` that this server has adopted: previous.h has what becomes of it. */
struct record_previous {
    char key_id[LABEL_KEY_ID_MAX + 1];
    struct hsm_key_name name; /* on the token of `previous`; if that is a keys_file, no CKA_ID */
    struct hsm_public_key public_key;
    bool in_use; /* it has signed since it was adopted */
    bool moved;  /* a key of the token serves the id now */
};

/* The maker that marks keys (label.h), and its place: it is good for one place only. The maker of
 * an earlier place tells the keys that were made there until this record left it. A newer key with
 * its mark comes from the process whose record this is a copy of. */
struct record_maker {
    struct label_maker maker;
    char place[RECORD_PLACE_MAX];
    uint32_t until; /* generation; 0 = no end, it is the newest maker */
};

struct json_t;

struct record {
    struct label_scope scope;
    uint64_t written; /* how often the document was written */
    int64_t ran;      /* running time of all processes so far, s */
    uint8_t identity[CONFIG_IDENTITY_MAX];
    size_t identity_length;
    char token_label[HSM_TOKEN_TEXT_MAX + 1]; /* this and the next: for sentences only */
    char token_serial[HSM_TOKEN_SERIAL_MAX + 1];
    struct record_maker makers[RECORD_MAKERS]; /* newest first */
    size_t maker_count;
    bool moved;              /* no start in this place has been completed yet. Not in the file */
    struct record_key *keys; /* owned, in no order */
    size_t count;
    size_t room;
    struct record_previous *previous; /* owned; one an id */
    size_t previous_count;
    struct json_t *document; /* owned: the whole file, unknown members included; or NULL */
};

/* An empty record. */
void record_open(const struct label_scope *scope, struct record *record);
void record_close(struct record *record);

/* Reads a whole file. *known says whether it has a section for the scope; without one the record
 * is empty, but keeps the document. -1, and the record is empty: FAULT_FAILED_PRECONDITION with
 * a clause such as "is damaged: its end is missing"; it must not be taken for no record.
 * FAULT_UNIMPLEMENTED: it is undamaged and asks for a newer reader. FAULT_UNAVAILABLE: out of
 * memory, where jansson tells that from damage. */
int record_parse(const char *bytes, size_t length, const struct label_scope *scope,
                 struct record *record, bool *known, struct fault *fault);

/* The bytes of the file, malloc'd, a NUL behind them; `written` counts up. NULL: out of memory. */
char *record_format(struct record *record, size_t *length);

/* A copy that shares nothing with the original, without its document. -1: out of memory. */
int record_copy(const struct record *from, struct record *to);

/* The identity that a parsed document has, of whatever scope: that of a section of the trust domain
 * of record->scope, or else the one that all of its sections have. 0: it has none, or several. */
size_t record_identity(const struct record *record, uint8_t identity[CONFIG_IDENTITY_MAX]);

/* Has a parsed document sections of other identities alone, of whatever trust domain? It is another
 * server's then, or the identity is. `code` stands for exactly these sections and the identity. */
bool record_is_anothers(const struct record *record, char code[RECORD_CODE + 1]);

/* ---- looking ---- */

/* Pointers stay good until the next change of the record. NULL: there is none. */
struct record_key *record_find(struct record *record, const struct hsm_key_name *name);
struct record_key *record_served(struct record *record, const char *key_id);

/* Did this server make the key of that name, as far as the record tells: it has it, and not as
 * FOUND, or the key bears the mark of a maker in the record. */
bool record_knows(struct record *record, const struct hsm_key_name *name);

/* Does the key bear the mark of the newest maker: was it made in this place? */
bool record_made_here(const struct record *record, const struct hsm_key_name *name);

/* Is this a key that no start may do without? It is SERVED, and the X.509 CA key last in use or one
 * made after it; of an agent the same of its SVID's keys. (Last in use of those SERVED; while none
 * was in use, all are needed.) SPIRE finds its journal by that key alone and ends every agent's
 * trust when it makes another in its place; the other ids are a blip. */
bool record_is_needed(const struct record *record, const struct record_key *key);

/* Is it of such an id, whether needed or not? */
bool record_is_vital(const struct record_key *key);

/* Which of those ids a key id is one of, the same pointer for the same: NULL if it is none. */
const char *record_family(const char *key_id);

/* A code of 8 characters for exactly the SERVED keys that are missing: hex of a SHA-256 over their
 * labels and ids; "--------" if OpenSSL has no memory for it. `is_missing` is asked of each SERVED
 * key, more than once, and always answers the same. `no_previous`: so are the keys of `previous`
 * that are needed (previous.h). */
typedef bool record_test(void *context, const struct record_key *key);
void record_loss_code(const struct record *record, record_test *is_missing, void *context,
                      bool no_previous, char code[RECORD_CODE + 1]);

/* ---- changing ---- */

/* Adds a copy of *key, or replaces the one of its name (label and id). Beyond the bounds above the
 * oldest one of a state is forgotten. Of each id at most one is SERVED, which record_serve
 * sees to. -1: out of memory, nothing changed. */
int record_put(struct record *record, const struct record_key *key);
void record_remove(struct record *record, const struct hsm_key_name *name);

/* Serves `key` (its state and `since` are set here) in place of the one SERVED before. That one
 * becomes MISSING if it is `lost`, for it is now displaced; else CONDEMNED since `ran` if it was
 * made by us, and FOUND if it was not. If that one was in use, no key of the id that was MISSING
 * before counts as in use any more: SPIRE has gone on without it. -1: out of memory, nothing
 * changed. */
int record_serve(struct record *record, const struct record_key *key, bool lost, int64_t ran);

/* Makes `place` the newest maker's: keeps that maker if it is of this place, else makes another,
 * of 32 random bytes. `now` is the present as a generation. true: there is a new one. */
bool record_take_place(struct record *record, const char *place, const uint8_t random[32],
                       uint32_t now);

/* A start has come to its end: it has not moved any more, and earlier makers tell no key that is
 * newer than all in the record. */
void record_settle_makers(struct record *record);

#endif
