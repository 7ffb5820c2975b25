/* plugin_data as values. All options, with type, default, range and help, stand in
 * the tables of config_option.c, which `spire-hsm --help` prints and a test compares with
 * docs/options.md. Reading is pure: no file, no token is touched, so Validate may call it. */
#ifndef PLUGIN_CONFIG_CONFIG_H
#define PLUGIN_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "hsm/wire/types.h"
#include "plugin/bundle/bundle.h"

enum {
    CONFIG_IDENTITY_MAX = 256,
    CONFIG_TRUST_DOMAIN_MAX = 255,
    CONFIG_CODE_MAX = 8,
    CONFIG_ISSUER_MAX = 512,
};

/* CONFIG_PREVIOUS is the block `previous` in a KeyManager's: a table of its own, no plugin. */
enum config_kind { CONFIG_KEYMANAGER, CONFIG_PUBLISHER, CONFIG_NOTIFIER, CONFIG_PREVIOUS };

/* Where keys are: a token, and whose on it; or, of `previous` alone, SPIRE's keys.json. */
struct config_place {
    char keys_file[HSM_PATH_MAX]; /* or the rest */
    char module[HSM_PATH_MAX];
    char module_args[HSM_ARGS_MAX];
    char token[HSM_URI_MAX];
    char pin_file[HSM_PATH_MAX];
    char pin_env[HSM_PATH_MAX];
    char pin[HSM_PIN_MAX]; /* wiped by config_wipe */
    char key_identifier_file[HSM_PATH_MAX];
    char key_identifier_value[CONFIG_IDENTITY_MAX + 1];
};

struct config_keymanager {
    struct config_place place;
    char record_file[HSM_PATH_MAX]; /* "" = none */
    char accept_loss[CONFIG_CODE_MAX + 1];
    int64_t max_sessions;
    int64_t startup_wait; /* this and the next five: nanoseconds */
    int64_t call_timeout;
    int64_t operation_timeout;
    int64_t generate_timeout;
    int64_t keep_alive; /* 0 = off */
    int64_t destroy_superseded_after;
    int64_t keep_condemned;
    bool destroy_superseded;
    bool replace_missing; /* missing_keys = "replace" */
    bool lenient;         /* attribute_check = "lenient" */
    bool least;           /* key_template = "least" */
    bool verify_always;   /* verify_signatures = "always" */
    int64_t cka_id_length;
    int64_t label_max; /* 0 = no limit */
    bool has_previous;
    struct config_place previous; /* where they were, of a server that moves */
};

struct config_bundle {
    char path[HSM_PATH_MAX];
    enum bundle_format format;
    char issuer[CONFIG_ISSUER_MAX + 1]; /* with BUNDLE_OIDC, and only then */
    int64_t refresh_hint;               /* nanoseconds, 0 = the bundle's own */
    uint32_t mode;
    bool required; /* Notifier only */
};

struct config {
    enum config_kind kind;
    char trust_domain[CONFIG_TRUST_DOMAIN_MAX + 1]; /* lower case, without spiffe:// */
    union {
        struct config_keymanager keymanager;
        struct config_bundle bundle;
    };
};

/* The mistakes and oddities of a configuration, a sentence each, in the order of the text; then the
 * missing options. No sentence repeats a value, which may be a misplaced PIN. At most
 * CONFIG_NOTES_MAX are kept; the last one then says how many more. */
enum { CONFIG_NOTES_MAX = 32, CONFIG_NOTE_MAX = 320 };

struct config_notes {
    size_t errors;   /* notes that make the configuration invalid */
    size_t warnings; /* notes that do not */
    struct {
        bool error;
        char text[CONFIG_NOTE_MAX]; /* "line 3: unknown option \"pin_fil\" (did you mean pin_file?)"
                                     */
    } notes[CONFIG_NOTES_MAX];
};

/* Reads `text` (HCL 1 or JSON as SPIRE delivers it; empty is fine) for a plugin of
 * `kind` in `trust_domain`. Returns 0 when it is valid. On -1 *config is untouched and
 * notes->errors > 0. Warnings are filled in both cases. */
int config_read(enum config_kind kind, const char *trust_domain, const char *text, size_t length,
                struct config *config, struct config_notes *notes);

/* The same for plugin_data that is a block in a larger text, such as server.conf. */
struct hcl_item;
int config_read_block(enum config_kind kind, const char *trust_domain, const struct hcl_item *block,
                      struct config *config, struct config_notes *notes);

/* The settings for the hsm room. Wiped with hsm_settings_wipe. */
void config_settings(const struct config_keymanager *config, struct hsm_settings *settings);

/* The block `previous` as a configuration by itself, without a record, which the caller wipes. With
 * it the usual functions open that token and find that identity. Returns false if there is no such
 * block. */
bool config_previous(const struct config *config, struct config *previous);

/* All errors in one sentence list, for a Configure that fails: "3 mistakes in
 * plugin_data: line 2: ...; line 5: ...", which ends with "and 7 more, see the log" if they
 * do not all fit. FAULT_INVALID_ARGUMENT. */
int config_fault(const struct config_notes *notes, struct fault *fault);

/* Reads a duration as Go's time.ParseDuration does, but for a minus sign. false: it is none. */
bool config_duration(const char *text, int64_t *nanoseconds);

/* The option table of `kind` as text, two lines an option. */
void config_help(enum config_kind kind, FILE *out);

/* For tests: the same as docs/options.md has it. */
void config_markdown(enum config_kind kind, FILE *out);

/* For tests: the name of the table's row `index`, or NULL behind the last one. */
const char *config_option_name(enum config_kind kind, size_t index);

/* Clears the PINs. */
void config_wipe(struct config *config);

#endif
