#include "plugin/report/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
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

/* A pipe keeps only writes of up to 4096 bytes whole. */
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

void log_open(const char *module)
{
    log_module = module;
}

/* The host parses exactly this form, and a line without it is dated year 1. */
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

static void put(json_t *line, const char *key, const char *value)
{
    char clean[VALUE_MAX];

    utf8_clean(value, true, clean, sizeof clean);
    (void)json_object_set_new(line, key, json_string(clean));
}

static json_t *begin(enum log_level level, const char *message)
{
    json_t *line = json_object();
    char time[64];

    stamp(time, sizeof time);
    put(line, "@level", level_names[level]);
    put(line, "@message", message);
    put(line, "@module", log_module);
    put(line, "@timestamp", time);
    return line;
}

static void put_pairs(json_t *line, va_list pairs)
{
    const char *key;

    while ((key = va_arg(pairs, const char *)) != NULL) {
        const char *value = va_arg(pairs, const char *);

        if (value && *value)
            put(line, key, value);
    }
}

/* Nobody is left to be told when this fails. */
static void write_line(char *text)
{
    struct iovec parts[] = {{text, strlen(text)}, {(char[]){'\n'}, 1}};

    (void)pthread_mutex_lock(&writing);
    while (writev(STDERR_FILENO, parts, 2) < 0 && errno == EINTR)
        ;
    (void)pthread_mutex_unlock(&writing);
}

static void end(json_t *line)
{
    OWNED(scope_free) char *text = json_dumps(line, JSON_COMPACT);

    if (text)
        write_line(text);
    json_decref(line);
}

void log_write(enum log_level level, const char *message, ...)
{
    json_t *line = begin(level, message);
    va_list pairs;

    va_start(pairs, message);
    put_pairs(line, pairs);
    va_end(pairs);
    end(line);
}

void log_fault(enum log_level level, const struct fault *fault, const char *message, ...)
{
    json_t *line = begin(level, message);
    va_list pairs;

    put(line, "error", fault->message);
    if (fault->ckr != 0)
        put(line, "ckr", hsm_rv_name(fault->ckr));
    va_start(pairs, message);
    put_pairs(line, pairs);
    va_end(pairs);
    end(line);
}
