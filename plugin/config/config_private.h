/* Shared by config.c (the whole configuration), config_option.c (the tables, one option) and
 * config_value.c (one value). Only they include it. */
#ifndef PLUGIN_CONFIG_CONFIG_PRIVATE_H
#define PLUGIN_CONFIG_CONFIG_PRIVATE_H

#include "plugin/config/config.h"
#include "plugin/config/hcl.h"

/* ---- config_value.c: text to value ---- */

/* Decimal, 0x.., or octal with a leading 0, as HCL reads a number. */
bool value_integer(const char *text, int64_t *number);

/* Octal digits with or without a leading 0, as chmod takes them. */
bool value_mode(const char *text, int64_t *mode);

/* Each returns what is wrong with `text`, as a clause (a constant), or NULL. */
const char *value_check_text(const char *text);  /* for every string option, before its own check */
const char *value_check_path(const char *text);  /* absolute, and not a folder's */
const char *value_check_place(const char *text); /* absolute, of a file or a folder */
const char *value_check_module(const char *text);
const char *value_check_variable(const char *text);
const char *value_check_code(const char *text);
const char *value_check_mode(int64_t mode);
const char *value_check_trust_domain(const char *name);

/* ---- config_option.c ---- */

enum option_kind {
    OPTION_STRING,
    OPTION_DURATION,
    OPTION_INTEGER,
    OPTION_BOOLEAN,
    OPTION_CHOICE,
    OPTION_MODE,
    OPTION_BLOCK, /* with a table of its own */
};

/* Of each group, only one option may be set. */
enum option_group { GROUP_NONE, GROUP_PIN, GROUP_IDENTITY, GROUPS };

struct option_choice {
    const char *name; /* NULL behind the last one */
    int64_t value;
};

struct config_option {
    const char *name;
    enum option_kind kind;
    size_t offset; /* in struct config */
    size_t size;   /* of a string with its NUL; else 8, 4 or 1 */
    bool required;
    enum option_group group;
    const char *initial; /* as an operator would write it; NULL = none */
    const char *low;     /* duration, integer */
    const char *high;
    bool zero; /* 0 is allowed beside low .. high */
    const struct option_choice *choices;
    const char *type;                       /* of a string */
    const char *(*check)(const char *text); /* of a string, or NULL */
    const char *help;
};

enum { OPTIONS_MAX = 32, OPTION_TYPE_MAX = 96 };

/* The table of a kind; ends with a row without name. */
const struct config_option *option_table(enum config_kind kind);

/* The row of that name, or NULL. `nearest` is then the name one may have meant, or NULL. */
const struct config_option *option_find(enum config_kind kind, const char *name,
                                        const char **nearest);

/* The values that the option takes, such as "duration from 1s to 29s". */
void option_type(const struct config_option *option, char type[OPTION_TYPE_MAX]);

/* Puts a value into its place in *config. Otherwise says what is wrong, as a clause that follows
 * the option's name and ": ". */
bool option_set(const struct config_option *option, const struct hcl_item *item,
                struct config *config, char why[CONFIG_NOTE_MAX]);

void option_set_initial(const struct config_option *option, struct config *config);

#endif
