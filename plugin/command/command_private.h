/* Shared by the command*.c files. Only they and tests include it. */
#ifndef PLUGIN_COMMAND_COMMAND_PRIVATE_H
#define PLUGIN_COMMAND_COMMAND_PRIVATE_H

#include <pthread.h>

#include <jansson.h>
#include <openssl/x509.h>

#include "plugin/bundle/bundle.h"
#include "plugin/command/census.h"
#include "plugin/command/command.h"
#include "plugin/config/config.h"
#include "plugin/keys/identity.h"
#include "plugin/keys/record.h"
#include "plugin/worker/supervisor.h"

/* Exit statuses. */
enum { COMMAND_FINE = 0, COMMAND_WRONG = 1, COMMAND_CANNOT = 2 };

/* The command line, read. Strings are argv's; NULL where nothing was given. */
struct command_options {
    const char *config;
    const char *trust_domain;
    const char *server_id;
    const char *server_id_file;
    const char *older_than;
    const char *format;
    const char *bundle;
    const char *nonce;
    const char *sessions;
    const char *seconds;
    bool expand_env;
    bool all;
    bool no_trial;
    bool json;
    bool other_servers;
    bool yes;
    const char *operands[2];
    size_t operand_count;
};

typedef int command_fn(const struct command_options *options);

command_fn check_command;    /* command_check.c */
command_fn keys_command;     /* command_keys.c */
command_fn prune_command;    /* command_prune.c */
command_fn bundle_command;   /* command_bundle.c */
command_fn accept_command;   /* command_record.c */
command_fn evidence_command; /* command_evidence.c */
command_fn bench_command;    /* command_bench.c */

/* "spire-hsm: " and the sentence, on stderr; returns COMMAND_CANNOT. */
int command_fail(const struct fault *fault);

/* ---- command_config.c ---- */

struct command_config {
    struct config config;
    bool needed[HSM_RSA_4096 + 1]; /* key types the server will ask for, as far as the file
                                      says; EC P-256 where it does not */
};

/* Reads --config: plugin_data, or the configuration of a server or agent with it inside.
 * Notes go to stderr. The caller's to wipe. */
int command_read_config(const struct command_options *options, struct command_config *config,
                        struct fault *fault);
void command_wipe_config(struct command_config *config);

/* Text with $NAME and ${NAME} replaced as spire-server's -expandEnv does it: malloc'd, the
 * caller's; NULL when out of memory. Names that are not set are counted. Declared for
 * tests. */
char *command_expand(const char *text, unsigned *unset);

/* At most `most` bytes of a file, with a NUL behind them: malloc'd, the caller's. NULL: see
 * *fault. */
char *command_read_file(const char *path, size_t most, size_t *length, struct fault *fault);

/* ---- command_token.c ---- */

struct command_token {
    struct supervisor *supervisor; /* NULL: not open */
    struct hsm_token_info info;
    struct census census;
    int64_t limit; /* call_timeout, ns */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool open; /* the supervisor has not ended */
};

/* Opens the token the configuration names, in a worker, which holds `lock` (-1 = none) as
 * long as it lives; the descriptor stays the caller's. Gives up as soon as a first worker has
 * failed. Closed with command_close_token, also after a failure; that takes one all zero. */
int command_open_token(const struct config_keymanager *config, int lock,
                       struct command_token *token, struct fault *fault);
void command_close_token(struct command_token *token);

/* Has one request done, as the plugin would: repeated in a fresh worker where that may help,
 * given up after call_timeout. */
void command_execute(struct command_token *token, const struct hsm_request *request,
                     struct hsm_reply *reply);

/* Lists all servers on the token, into token->census. */
int command_census(struct command_token *token, struct fault *fault);

/* Looks closer at these keys. One that cannot be looked at stays unproven, with the reason
 * in `why`. */
void command_prove(struct command_token *token, struct inventory *server);

/* The server's own scope. FAULT_NOT_FOUND: key_identifier_file is not there (yet). With `lock`
 * no server with this identity may be running: see identity_find. Closed with identity_close. */
int command_identity(const struct config *config, bool lock, struct identity *identity,
                     struct label_scope *scope, struct fault *fault);

/* The scope that --server-id or --server-id-file names, likewise. */
int command_named(const struct command_options *options, const struct config *config, bool lock,
                  struct identity *identity, struct label_scope *scope, struct fault *fault);

/* ---- command_record.c ---- */

/* Reads the server's record as a start would do now; it may be the first start in this place.
 * *there: the file has a record of this scope; otherwise *record is empty. The caller closes it
 * with record_close in any case. */
int command_record(const struct config *config, const struct identity *identity,
                   struct record *record, bool *there, struct fault *fault);

/* Which of the keys that are served by the record would a start find? */
struct command_start {
    struct record *record; /* the caller's */
    const bool *gone;      /* by place in the record, while it is being filled in */
    unsigned served;
    unsigned condemned;
    unsigned unproven; /* keys that the token cannot prove just now */
    unsigned missing;
    unsigned lost;    /* missing, and needed: a start is refused */
    char names[1024]; /* names of the missing keys, for a sentence */
    char code[RECORD_CODE + 1];
};

/* `no_previous`: plugin_data has no block of that name, so its keys that are needed are missing
 * too. */
int command_start_of(struct command_token *token, struct record *record, bool no_previous,
                     struct command_start *start, struct fault *fault);

/* ---- command_previous.c ---- */

/* How a start would judge the block previous. */
struct command_previous {
    bool given;
    size_t adopts; /* number of new keys that a start would adopt; 0 = all are known */
    bool refused;  /* they are other keys than those it moved from: see previous.h */
    size_t moved;  /* number of known keys that have moved */
    size_t left;   /* number of keys still served from there */
    /* ids that SPIRE needs of them; of `refused`, one of the token's; "" = none */
    char needed[256];
    char code[RECORD_CODE + 1];
};

/* Reads it by a worker, without waiting. *record then has the keys that a start would adopt. It
 * stays the caller's, and is not written to disk. */
int command_previous_of(const struct config *config, struct record *record,
                        struct command_previous *found, struct fault *fault);

/* ---- command_trial.c ---- */

/* Trial keys. They have a scope of their own: no server finds one as its key, even if we are
 * killed before it is destroyed. */
struct command_trials {
    struct command_token *token;
    uint32_t id_length;
    struct label_scope scope;
    uint32_t highest; /* generation of the last one */
};

/* `token` need not be open yet; it stays the caller's. */
void command_trials_open(const struct config *config, struct command_token *token,
                         struct command_trials *trials);

/* A name for the next one. It fails when the clock is wrong. */
int command_trial_name(struct command_trials *trials, struct hsm_key_name *name,
                       struct fault *fault);

/* Makes it, and waits for it to show up whole. After a failure, too, something of it may be
 * there: destroy it. */
int command_trial_make(struct command_trials *trials, const struct hsm_key_name *name,
                       enum hsm_key_type type, struct hsm_public_key *key, struct fault *fault);
int command_trial_destroy(struct command_trials *trials, const struct hsm_key_name *name,
                          struct fault *fault);

/* Was the key left by a command that was killed, rather than by one that runs now? */
bool command_trial_is_leftover(const struct command_trials *trials,
                               const struct inventory_item *item);

/* ---- command_authorities.c ---- */

/* A published file. */
struct command_bundle {
    char *bytes;
    size_t length;
    json_t *document; /* NULL: it is not JSON */
    enum bundle_format format;
};

/* Called for each authority of a file, in the file's order. The arguments are gone after the call.
 * A damaged certificate is NULL; a damaged JWK shows when it is read. */
struct command_bundle_visitor {
    void (*certificate)(void *context, X509 *certificate);
    void (*key)(void *context, const json_t *jwk);
};

/* Reads a file in the `format` of that name; NULL: in the format that it seems to have. Its content
 * may still be damaged, see bundle_read. The caller frees it, also after a failure. */
int command_read_bundle(const char *path, const char *format, struct command_bundle *bundle,
                        struct fault *fault);
void command_free_bundle(struct command_bundle *bundle);
void command_visit_bundle(const struct command_bundle *bundle,
                          const struct command_bundle_visitor *visitor, void *context);
const char *command_format_name(enum bundle_format format);

/* The subject key identifier in hexadecimal, which is SPIRE's local_authority_id; "" if there is
 * none. */
enum { SKI_TEXT = 129 };
void command_ski(X509 *certificate, char text[SKI_TEXT]);

/* A certificate's time, in UTC as RFC 3339 has it; "?" if it is none. */
enum { TIME_TEXT = 32 };
void command_time(const ASN1_TIME *time, char text[TIME_TEXT]);

/* ---- command_print.c ---- */

/* Rows of cells, columns as wide as they need. Unprintable characters are shown as '?'. */
enum { TABLE_COLUMNS = 8, TABLE_CELL = 320, TABLE_NOTE = 1536 };

struct table_row {
    char cells[TABLE_COLUMNS][TABLE_CELL];
    char note[TABLE_NOTE];
};

struct table {
    struct table_row *rows;
    size_t count;
    size_t room;
};

/* NULL ends the row. */
void table_row(struct table *table, ...) __attribute__((sentinel));

/* A line by itself, indented, under the last row. */
void table_note(struct table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
void table_print(const struct table *table, FILE *out);
void table_free(struct table *table);

enum { AGE_TEXT = 24 };
/* "50s", "3m", "7h", "12d". */
void print_age(int64_t seconds, char text[AGE_TEXT]);

#endif
