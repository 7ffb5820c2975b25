/* Lines in hclog's JSON form, or for the commands in plain words. */
#include "plugin/report/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include <jansson.h>

#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"
#include "hsm/wire/types.h"

enum { VALUE_MAX = 8192 };

static const char *const level_names[] = {
    [LOG_TRACE] = "trace", [LOG_DEBUG] = "debug", [LOG_INFO] = "info",
    [LOG_WARN] = "warn",   [LOG_ERROR] = "error",
};

static const char *log_module = "spire-hsm";

/* A pipe keeps writes whole only up to 4096 bytes. */
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

static bool plain;

void log_open(const char *module)
{
    log_module = module;
}

void log_open_plain(void)
{
    plain = true;
}

/* The host parses exactly this form. Otherwise it dates the line to year 1. */
static void stamp(char *text, size_t size)
{
    struct timespec now;
    struct tm utc;
    char seconds[32];

    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &utc);
    (void)strftime(seconds, sizeof seconds, "%Y-%m-%dT%H:%M:%S", &utc);
    (void)snprintf(text, size, "%s.%06ldZ", seconds, now.tv_nsec / 1000);
}

static void put_field(json_t *line, const char *key, const char *value)
{
    char clean[VALUE_MAX];

    utf8_clean(value, true, clean, sizeof clean);
    (void)json_object_set_new(line, key, json_string(clean));
}

static json_t *begin_line(enum log_level level, const char *message)
{
    json_t *line = json_object();
    char time[64];

    stamp(time, sizeof time);
    put_field(line, "@level", level_names[level]);
    put_field(line, "@message", message);
    put_field(line, "@module", log_module);
    put_field(line, "@timestamp", time);
    return line;
}

static void put_pairs(json_t *line, va_list pairs)
{
    const char *key;

    while ((key = va_arg(pairs, const char *)) != NULL) {
        const char *value = va_arg(pairs, const char *);

        if (value && *value)
            put_field(line, key, value);
    }
}

/* If this fails, nobody is left to tell. */
static void write_line(char *text)
{
    struct iovec parts[] = {{text, strlen(text)}, {(char[]){'\n'}, 1}};

    (void)pthread_mutex_lock(&writing);
    while (writev(STDERR_FILENO, parts, 2) < 0 && errno == EINTR)
        ;
    (void)pthread_mutex_unlock(&writing);
}

/* For people: the fields stand in brackets behind the message. */
static void write_plain(json_t *line)
{
    const char *error = json_string_value(json_object_get(line, "error"));
    const char *open = " (";
    const char *key;
    json_t *value;

    flockfile(stderr);
    (void)fprintf(stderr, "spire-hsm: %s", json_string_value(json_object_get(line, "@message")));
    if (error)
        (void)fprintf(stderr, ": %s", error);
    json_object_foreach (line, key, value) {
        if (key[0] == '@' || strcmp(key, "error") == 0)
            continue;
        (void)fprintf(stderr, "%s%s=%s", open, key, json_string_value(value));
        open = ", ";
    }
    (void)fputs(*open == ',' ? ")\n" : "\n", stderr);
    funlockfile(stderr);
}

static void end_line(json_t *line, enum log_level level)
{
    OWNED(scope_free) char *text = plain ? NULL : json_dumps(line, JSON_COMPACT);

    if (plain && level >= LOG_WARN)
        write_plain(line);
    else if (text)
        write_line(text);
    json_decref(line);
}

void log_write(enum log_level level, const char *message, ...)
{
    json_t *line = begin_line(level, message);
    va_list pairs;

    va_start(pairs, message);
    put_pairs(line, pairs);
    va_end(pairs);
    end_line(line, level);
}

void log_fault(enum log_level level, const struct fault *fault, const char *message, ...)
{
    json_t *line = begin_line(level, message);
    va_list pairs;

    put_field(line, "error", fault->message);
    if (fault->ckr != 0)
        put_field(line, "ckr", hsm_rv_name(fault->ckr));
    va_start(pairs, message);
    put_pairs(line, pairs);
    va_end(pairs);
    end_line(line, level);
}
