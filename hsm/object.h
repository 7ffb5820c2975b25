/* Key objects on the token: making them, finding them, reading and judging their
 * attributes, destroying them. Each function does its calls on the one session it is
 * given and never tries to recover: a fault carries the CK_RV for those who do. */
#ifndef HSM_OBJECT_H
#define HSM_OBJECT_H

#include "hsm/session.h"

enum {
    OBJECT_VALUE_MAX = 1024,  /* bytes; our longest value is a label of 800 */
    OBJECT_FOUND_MAX = 32,    /* objects of one label and id; more than two are wrong */
    OBJECT_TEMPLATE_TIERS = 3 /* of what is asked for when a key is made, from all to least */
};

/* An attribute as the token gave it. Not readable: it does not know the attribute, hides
 * it, or it is longer than OBJECT_VALUE_MAX. */
struct object_value {
    bool readable;
    CK_ULONG length;
    uint8_t bytes[OBJECT_VALUE_MAX];
};

struct object_list {
    CK_OBJECT_HANDLE handles[OBJECT_FOUND_MAX];
    uint32_t count;
};

struct object_halves {
    struct object_list private_keys;
    struct object_list public_keys;
};

struct object_pair {
    CK_OBJECT_HANDLE private_key;
    CK_OBJECT_HANDLE public_key; /* HANDLE_NONE: there is none, and the private one must do */
};

/* One attribute per call: of several, one that the token does not know may spoil all. */
int object_read(const struct session *session, CK_OBJECT_HANDLE handle, CK_ATTRIBUTE_TYPE type,
                struct object_value *value, struct fault *fault);

/* CKA_CLASS and its like. false: not readable, or no number. */
bool object_number(const struct object_value *value, CK_ULONG *number);

/* All keys with exactly this label, and this id unless id_length is 0, from one search: a
 * search can be a walk over the whole token. Each object is read back, for there are tokens
 * that shorten labels or look at half a template. */
int object_find(const struct session *session, const struct hsm_key_name *name,
                struct object_halves *found, struct fault *fault);

/* CUT: the beginning of the name, as a token that cuts names leaves it. OTHERWISE: another object's
 * name, or none.
 * */
enum object_naming { OBJECT_NAMED, OBJECT_CUT, OBJECT_OTHERWISE, OBJECT_UNREADABLE };

/* Does the object bear exactly this label (and id)? */
int object_naming(const struct session *session, CK_OBJECT_HANDLE handle,
                  const struct hsm_key_name *name, enum object_naming *naming, struct fault *fault);

/* Returns the next objects that the active search finds; *count is 0 at its end. FAULT_INTERNAL:
 * the module reported more objects than there is room for. */
int object_next(const struct session *session, CK_OBJECT_HANDLE *batch, CK_ULONG room,
                CK_ULONG *count, struct fault *fault);

/* Makes a pair from the template of this tier (0 .. OBJECT_TEMPLATE_TIERS - 1). A fault of
 * class RV_TEMPLATE may be answered with the next tier. */
int object_generate(const struct session *session, enum hsm_key_type type,
                    const struct hsm_key_name *name, unsigned tier, struct object_pair *pair,
                    struct fault *fault);

/* Reads the public key, from the public object or else from the private one. A fault without a
 * CK_RV means that there is no public key, or an unusable one. */
int object_public_key(const struct session *session, const struct object_pair *pair,
                      struct hsm_public_key *key, struct fault *fault);

/* Has the private key all attributes of a key of ours: on the token, for signing only, made there,
 * never readable? If so, `why` is empty; otherwise it is a clause. */
int object_check(const struct session *session, CK_OBJECT_HANDLE private_key, bool lenient,
                 char why[HSM_WHY_MAX], struct fault *fault);

/* 0 also if it is gone already. */
int object_destroy(const struct session *session, CK_OBJECT_HANDLE handle, struct fault *fault);

/* Destroys all of them, the private halves first: so a crash leaves only a harmless public key. The
 * token may keep them all the same: look again afterwards. */
int object_destroy_halves(const struct session *session, const struct object_halves *halves,
                          struct fault *fault);

#endif
