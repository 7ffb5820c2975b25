/* Settings, requests and replies between front and worker, as plain values. Both programs know
 * these types. Only the worker can execute the requests (hsm/hsm.h).
 *
 * Every struct is a plain value without pointers. */
#ifndef HSM_WIRE_TYPES_H
#define HSM_WIRE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/base/fault.h"
#include "hsm/base/file_stamp.h"

enum {
    HSM_LABEL_MAX = 800,     /* bytes of CKA_LABEL; 28 + 3 x 255 is format 1's longest */
    HSM_ID_MAX = 16,         /* bytes of CKA_ID */
    HSM_PKIX_MAX = 640,      /* DER SubjectPublicKeyInfo; RSA-4096 needs 550 */
    HSM_SIGNATURE_MAX = 512, /* RSA-4096 */
    HSM_DIGEST_MAX = 64,
    HSM_FINGERPRINT = 32, /* SHA-256 of the SubjectPublicKeyInfo */
    HSM_PATH_MAX = 1024,
    HSM_URI_MAX = 1024,
    HSM_ARGS_MAX = 1024,
    HSM_PIN_MAX = 256,
    HSM_SESSIONS_MAX = 64,
    HSM_REMARKS_MAX = 1024,   /* lines about a token */
    HSM_WHY_MAX = 160,        /* a clause that says why a key is not fit, and its NUL */
    HSM_TOKEN_TEXT_MAX = 32,  /* PKCS#11's label, manufacturerID and libraryDescription */
    HSM_TOKEN_SERIAL_MAX = 16 /* PKCS#11's serialNumber and model */
};

/* Numbers as in SPIRE's KeyType and HashAlgorithm (checked where those are seen). */
enum hsm_key_type {
    HSM_KEY_NONE = 0,
    HSM_EC_P256 = 1,
    HSM_EC_P384 = 2,
    HSM_RSA_2048 = 3,
    HSM_RSA_4096 = 4,
};

enum hsm_hash {
    HSM_HASH_NONE = 0,
    HSM_SHA224 = 4,
    HSM_SHA256 = 5,
    HSM_SHA384 = 6,
    HSM_SHA512 = 7,
    HSM_SHA3_224 = 10,
    HSM_SHA3_256 = 11,
    HSM_SHA3_384 = 12,
    HSM_SHA3_512 = 13,
    HSM_SHA512_224 = 14,
    HSM_SHA512_256 = 15,
};

/* HSM_PLAIN is ECDSA for an EC key and PKCS#1 v1.5 for an RSA key. */
enum hsm_scheme {
    HSM_PLAIN = 0,
    HSM_PSS = 1,
};

/* Salt lengths of RSA-PSS that are not a length; the numbers are Go's. */
enum {
    HSM_SALT_HASH = -1, /* as long as the hash */
    HSM_SALT_MAX = 0,   /* as long as fits; as long as the hash where the token refuses that */
};

enum hsm_pin_kind {
    HSM_PIN_NONE = 0, /* token without login, or pin-source inside the URI */
    HSM_PIN_FILE,     /* pin_text is a path, read at every login */
    HSM_PIN_ENV,      /* pin_text is the name of a variable */
    HSM_PIN_INLINE,   /* pin_text is the PIN itself */
};

struct hsm_settings {
    char module[HSM_PATH_MAX];      /* absolute path, or a file name in p11-kit's module folder */
    char module_args[HSM_ARGS_MAX]; /* for C_Initialize, "" = none */
    char token[HSM_URI_MAX];        /* RFC 7512 URI that must match exactly one token */
    /* Serial number of the token that was open before; "" = none. If several tokens match, this one
     * is chosen. A token that matches alone may have another (a group of HSMs changes its serial
     * number). */
    char serial[HSM_TOKEN_SERIAL_MAX + 1];
    enum hsm_pin_kind pin_kind;
    char pin_text[HSM_PATH_MAX]; /* wiped by hsm_settings_wipe */
    char latch[HSM_PATH_MAX];    /* file that remembers a refused PIN, "" = memory only */
    uint32_t sessions;           /* 1 .. HSM_SESSIONS_MAX, the anchor session not counted */
    bool lenient;                /* accept a key whose LOCAL/ALWAYS_SENSITIVE/NEVER_EXTRACTABLE
                                    cannot be read; never one where they are readable and wrong,
                                    but for LOCAL where the other two are right (NSS) */
    bool least;                  /* key_template = "least": begin with the smallest template */
    bool verify_always;          /* verify every signature, not only those that verify.h selects */
    /* The file of SPIRE's disk key manager; "" = a token. A file has no module, token or PIN: of
     * the others only `sessions` and `verify_always` count then. See hsm.h. */
    char keys_file[HSM_PATH_MAX];
};

/* What hsm_open found. Strings are trimmed of PKCS#11's padding. Of a keys_file only `label`,
 * which is "keys_file", `write_protected` and `sessions` say something. */
struct hsm_token_info {
    char label[HSM_TOKEN_TEXT_MAX + 1];
    char manufacturer[HSM_TOKEN_TEXT_MAX + 1];
    char model[HSM_TOKEN_SERIAL_MAX + 1];
    char serial[HSM_TOKEN_SERIAL_MAX + 1];
    char library[HSM_TOKEN_TEXT_MAX + 1]; /* CK_INFO libraryDescription */
    uint64_t slot;
    /* By enum hsm_key_type. `can_generate`: the token has the mechanisms to generate and sign.
     * `doubtful`: the token says that it cannot. As such claims can be wrong, only a try tells. */
    bool can_generate[HSM_RSA_4096 + 1];
    bool doubtful[HSM_RSA_4096 + 1];
    bool write_protected; /* it opens no session for writing */
    /* A line each: the quirks applied for this library, and the token's claims that are untrue. ""
     * = none. */
    char remarks[HSM_REMARKS_MAX];
    uint32_t sessions; /* as many as the token allowed, <= settings.sessions */
};

enum hsm_op {
    HSM_SCAN = 1, /* every pair whose label begins with `prefix`, one item each */
    HSM_GENERATE, /* make `key` of `type`, read back, prove. FAULT_ABORTED: it may exist; PROVE
                     tells. HSM_ABSENT, HSM_HALF, HSM_BARE: made, but not to be seen (whole) yet */
    HSM_PROVE,    /* is `key` here, whole, with the right attributes, and does it sign? */
    HSM_SIGN,
    HSM_DESTROY, /* both halves of `key`, if they are what `expect` says; done only when seen
                    gone */
    HSM_PING,    /* a round trip to the device (C_GenerateRandom) */
};

/* Objects are named by label and id; identity is label, class and public key. */
struct hsm_key_name {
    char label[HSM_LABEL_MAX + 1];
    uint8_t id[HSM_ID_MAX];
    uint32_t id_length; /* 0 in a request: any id */
};

/* The object that HSM_DESTROY must find under the name. If it finds another, it destroys nothing:
 * FAULT_FAILED_PRECONDITION. */
enum hsm_expect {
    HSM_EXPECT_ANY = 0, /* any object: the caller made it, or asked for it, and never used it */
    HSM_EXPECT_KEY,     /* the key of `fingerprint`, or what is left of it */
    HSM_EXPECT_HALF,    /* a public half alone, in two looks a moment apart */
};

/* Where a SCAN in slices goes on: at this handle, in ascending order. `epoch` tells whether handles
 * still have the same meaning. All zero means the beginning; in an answer, the end. */
struct hsm_place {
    uint64_t epoch;
    uint64_t handle;
};

struct hsm_request {
    enum hsm_op op;
    struct hsm_key_name key; /* all but SCAN and PING */
    enum hsm_key_type type;  /* for GENERATE and SIGN; for PROVE, NONE accepts any type */
    uint8_t fingerprint[HSM_FINGERPRINT]; /* SIGN: sign only with this key. DESTROY: see expect */
    enum hsm_expect expect;               /* DESTROY */
    char prefix[16];                      /* SCAN, and the next three */
    uint32_t limit_ms; /* 0 = none. A SCAN that takes longer emits nothing, and says so in `next` */
    bool sliced;       /* only private keys, from `from` on, and as many as can be read in the limit
                          or in the time that listing them took; each item is HSM_HALF */
    struct hsm_place from;
    enum hsm_scheme scheme; /* SIGN .. */
    enum hsm_hash hash;
    int32_t salt_length;
    uint8_t digest[HSM_DIGEST_MAX];
    uint32_t digest_length;
};

enum hsm_state {
    HSM_ABSENT = 0, /* and the token was reachable and logged in before and after the look */
    HSM_HALF,       /* of a scan: only one half is there. Of a look: the public one */
    HSM_COMPLETE,
    HSM_UNFIT,     /* whole, but public key or attributes are wrong: see why */
    HSM_DUPLICATE, /* more than one private key of this label and id */
    HSM_BARE,      /* a private key alone, whose public key cannot be read */
    HSM_MISSIGNED, /* whole, but its trial signature is wrong: see why. It may be right next time */
};

struct hsm_public_key {
    enum hsm_key_type type;
    uint8_t pkix[HSM_PKIX_MAX];
    uint32_t pkix_length;
    uint8_t fingerprint[HSM_FINGERPRINT];
};

struct hsm_reply {
    struct fault fault;   /* code FAULT_NONE = success; otherwise only microseconds has a meaning */
    enum hsm_state state; /* GENERATE, PROVE, DESTROY */
    char why[HSM_WHY_MAX];                /* a clause, whenever state is not COMPLETE or ABSENT */
    struct hsm_public_key public_key;     /* GENERATE, PROVE when HSM_COMPLETE */
    uint8_t signature[HSM_SIGNATURE_MAX]; /* SIGN: minimal DER for EC, modulus length for RSA */
    uint32_t signature_length;
    struct hsm_place next; /* SCAN with a limit: not all was read. Where a sliced one goes on; with
                              another epoch than `from` had: begin anew, nothing was emitted */
    uint32_t items;        /* SCAN: items emitted. DESTROY: objects destroyed, 0 = none was there */
    uint32_t nameless;     /* SCAN: key objects with neither label nor id (crashed writes) */
    uint32_t unreadable;   /* SCAN: those of the nameless that the token failed to read just now:
                              one may be a key of ours */
    uint32_t foreign;      /* SCAN: key objects of other labels */
    uint32_t microseconds; /* that the worker spent on the request, without waiting for a session;
                              also set for a request that failed */
};

/* One pair of a SCAN, as its labels and classes show it (state ABSENT and UNFIT do not occur):
 * HSM_PROVE looks closer. A key of a keys_file is HSM_COMPLETE, and was proven when the file was
 * read. */
struct hsm_item {
    struct hsm_key_name key;
    enum hsm_state state;
    struct hsm_public_key public_key; /* of a keys_file; a token's is of HSM_KEY_NONE */
};

/* Takes one item of a SCAN, which is the caller's and valid during the call. */
typedef void hsm_item_fn(void *context, const struct hsm_item *item);

void hsm_settings_wipe(struct hsm_settings *settings);

/* Names for logs and messages: "ec-p256" .., "CKR_DEVICE_ERROR" ..; never NULL. */
const char *hsm_key_type_name(enum hsm_key_type type);
const char *hsm_rv_name(uint64_t ckr);

/* Does a fault with this CKR mean that the PIN was refused, so that trying it again may lock
 * the token? */
bool hsm_refused_pin(uint64_t ckr);

/* Is the PIN in a file, of pin_text or of the URI's pin-source? Asks no file system. */
bool hsm_pin_is_filed(const struct hsm_settings *settings);

/* Bytes of a digest of `hash`, 0 for a number that is no hash of ours. */
size_t hsm_hash_length(enum hsm_hash hash);

#endif
